"""What Ray alone has: its object store, its nodes, its state API.  What every backend has is in
``tests/conformance``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import pxcompat as ipp

#: seconds for anything to happen that a test waits for
PATIENCE = 30


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {condition}"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="package", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles of our own, no progress bars, and temporary files where they can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.setenv("PXCOMPAT_NONINTERACTIVE", "1")
        with tempfile.TemporaryDirectory(prefix="px") as folder:
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
            yield


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[ipp.Cluster]:
    cluster = ipp.Cluster(n=2, backend="ray", cluster_id="ray-tests")
    cluster.start_cluster_sync()
    cluster.wait_for_engines_sync(timeout=PATIENCE)
    yield cluster
    cluster.stop_cluster_sync()


@pytest.fixture
def rc(cluster: ipp.Cluster) -> Iterator[ipp.Client]:
    with cluster.connect_client_sync() as client:
        client.wait_for_engines(2, timeout=PATIENCE)
        client.clear(block=True)
        client.block = True
        yield client


def python(
    code: str, arguments: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of its own: a process has one connection to Ray."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )
