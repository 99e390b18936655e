"""One suite for every backend: a cluster of three engines, shared by the tests of a run.

``PXCOMPAT_TEST_BACKEND`` names the backends, separated by commas (default: dask).  No test
asks on which of them it runs; where they differ, a capability says so.
"""

from __future__ import annotations

import glob
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from traitlets.config import Config

import pxcompat as ipp

from ..common import PATIENCE, surroundings

BACKENDS = os.environ.get("PXCOMPAT_TEST_BACKEND", "dask").split(",")
ENGINES = 3


def _leftovers() -> set[str]:
    """Processes, threads, temporary files and shared memory of ours."""
    found = {f"thread {t.name}" for t in threading.enumerate() if t.is_alive()}
    for child in psutil.Process().children(recursive=True):
        try:
            found.add(f"process {child.pid} {' '.join(child.cmdline()[:4])}")
        except psutil.NoSuchProcess:
            continue
    folder = os.path.join(tempfile.gettempdir(), "pxcompat-*")
    for pattern in (folder, "/dev/shm/pxcompat*", "/dev/shm/mpich*"):
        found.update(glob.glob(pattern))
    return found


@pytest.fixture(scope="package", autouse=True)
def nothing_is_left(ipython_dir: None) -> Iterator[None]:
    """After the last test nothing of ours is there that was not there before the first."""
    before = _leftovers()
    yield
    # threads of libraries that live as long as the process, asked for once
    lasting = (
        "Dask-Callback-Thread",
        "Dask-Offload",
        "IO loop",
        "asyncio_",
        "Profile",
        "TCP-Executor",
        "pytest_timeout",
        "tqdm_monitor",
    )

    def left() -> set[str]:
        return {
            item
            for item in _leftovers() - before
            if not item.startswith(tuple(f"thread {name}" for name in lasting))
        }

    deadline = time.monotonic() + PATIENCE
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()


@pytest.fixture(scope="package", autouse=True)
def ipython_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with surroundings(tmp_path_factory.mktemp("ipython")):
        yield


@pytest.fixture(scope="package", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the backend, for starting clusters; tests do not look at it."""
    return str(request.param)


@pytest.fixture(scope="package")
def cluster(backend: str, ipython_dir: None) -> Iterator[Any]:
    """A running cluster."""
    cluster = ipp.Cluster(profile="default", cluster_id="conformance", n=ENGINES, backend=backend)
    cluster.start_cluster_sync()
    with cluster.connect_client_sync() as client:
        client.wait_for_engines(ENGINES, timeout=PATIENCE)
    yield cluster
    cluster.stop_cluster_sync()


@pytest.fixture
def rc(cluster: Any) -> Iterator[ipp.Client]:
    """A client of the cluster, which has its engines, idle and with empty namespaces."""
    client = cluster.connect_client_sync()
    missing = ENGINES - len(client.ids)
    if missing > 0:
        cluster.start_engines_sync(missing)
        client.wait_for_engines(ENGINES, timeout=PATIENCE)
    client.clear(block=True)
    client[:].use_pickle().get(PATIENCE)  # tests ask what is outstanding
    yield client
    if client.ids:  # whatever a failed test left running
        client.abort(block=True)
        client.send_signal("SIGINT", block=True)
    client.close()


@pytest.fixture
def e0(rc: ipp.Client) -> ipp.DirectView:
    """A blocking view of one engine."""
    view = rc[rc.ids[0]]
    view.block = True
    return view


@pytest.fixture
def ip() -> Iterator[InteractiveShell]:
    """An IPython shell in this process."""
    config = Config()
    config.HistoryManager.enabled = False
    config.TerminalInteractiveShell.simple_prompt = True
    config.TerminalInteractiveShell.colors = "nocolor"
    TerminalInteractiveShell.clear_instance()
    shell = TerminalInteractiveShell.instance(config=config)
    with shell.builtin_trap:
        yield shell
    TerminalInteractiveShell.clear_instance()
