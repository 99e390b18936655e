"""The dashboard of a cluster of ours is loaded when somebody looks, and whoever looks sees it."""

from __future__ import annotations

import sys
import urllib.error
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

import pxcompat as ipp

from .test_dashboard import fetch


@pytest.fixture
def rc() -> Iterator[ipp.Client]:
    """A client of a cluster at whose dashboard nobody has looked."""
    with ipp.Cluster(n=1, backend="dask", cluster_id="dask-unseen") as client:
        yield client


def is_loaded() -> bool:
    return bool(sys.modules.get("bokeh"))


def test_the_first_who_look_wait_until_it_is_there(rc: ipp.Client) -> None:
    base = rc.dashboard_link.rpartition("/")[0]
    assert fetch(f"{base}/health") == "ok"  # Dask's own, without pages
    assert not rc.dask_client.run_on_scheduler(is_loaded)
    wanted = {
        rc.dashboard_link: "Dask Diagnostic UI",
        f"{base}/": "Dask Diagnostic UI",
        f"{base}/engines": "Dask Diagnostic UI",
        f"{base}/individual-plots.json": "/individual-engines",
    }
    with ThreadPoolExecutor() as pool:
        for page, text in zip(pool.map(fetch, wanted), wanted.values(), strict=True):
            assert text in page
    assert rc.dask_client.run_on_scheduler(is_loaded)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{base}/nothing")


def test_it_may_be_behind_a_proxy(rc: ipp.Client) -> None:
    address = urllib.parse.urlsplit(rc.dashboard_link)
    where = {}
    connections = [HTTPConnection(str(address.netloc)) for _ in range(3)]
    asked = ("/status", "/engines?theme=dark&x=/", "//elsewhere.org/")
    for connection, page in zip(connections, asked, strict=True):
        connection.request("GET", page)
    for connection, page in zip(connections, asked, strict=True):
        answer = connection.getresponse()
        where[page] = answer.status, answer.getheader("Location")
        connection.close()
    # which every browser takes from where it is, under whatever path and host
    assert where == {
        "/status": (302, "./status"),
        "/engines?theme=dark&x=/": (302, "./engines?theme=dark&x=/"),
        "//elsewhere.org/": (302, "./"),
    }


def test_who_looks_is_told_why_there_is_none(rc: ipp.Client) -> None:
    def remove_bokeh() -> None:
        sys.modules["bokeh"] = None  # type: ignore[assignment]

    rc.dask_client.run_on_scheduler(remove_bokeh)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            fetch(rc.dashboard_link)
        assert b"no dashboard: " in caught.value.read()
    assert rc[:].apply_sync(abs, -1) == [1]
