"""What Ray alone has: its object store, its nodes, its state API.  What every backend has is in
``tests/conformance``."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

import pytest

import pxcompat as ipp

from ..common import PATIENCE, surroundings


@pytest.fixture(scope="package", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with surroundings(tmp_path_factory.mktemp("ipython")):
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


def answers(url: str) -> bool:
    """Whether a web server does."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False


def shown() -> str:
    """Where the dashboard is of the Ray that this process is connected to, when it is there."""
    from ray._private.services import get_webui_url_from_internal_kv

    url = get_webui_url_from_internal_kv()
    return f"http://{url}" if url else ""


def python(
    code: str, arguments: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of its own: a process has one connection to Ray."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
