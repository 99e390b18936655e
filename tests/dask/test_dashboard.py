"""Requests in Dask's own diagnostics, and the page "Engines"."""

from __future__ import annotations

import io
import json
import urllib.request
from collections import Counter
from typing import Any

import pytest
from dask.utils import key_split
from distributed import get_task_stream
from distributed.diagnostics.progress_stream import color_of

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until

#: rows of the tables on a page, which Bokeh hides from the page's own selectors
ROWS = """
function rows(root) {
    let found = [];
    for (const e of root.querySelectorAll('*')) {
        if (e.tagName == 'TR') found.push(Array.from(e.children).map(cell => cell.innerText));
        if (e.shadowRoot) found = found.concat(rows(e.shadowRoot));
    }
    return found;
}
return rows(document);
"""


def get_norms(x: Any) -> Any:
    return x


def wait_for_file(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def stay(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def fails() -> None:
    raise ValueError("as it should")


@pytest.fixture
def dask_client(rc: ipp.Client) -> Any:
    return rc.dask_client


@pytest.fixture(scope="module")
def base(rc: ipp.Client) -> str:
    """Where the dashboard is."""
    return rc.dashboard_link.rpartition("/")[0]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def names(records: Any) -> Counter[str]:
    return Counter(key_split(record["key"]) for record in records)


def test_each_request_is_in_the_task_stream(rc: ipp.Client, dask_client: Any) -> None:
    rc[:].apply_sync(get_norms, 0)
    with get_task_stream(client=dask_client) as stream:
        rc[:].apply_sync(get_norms, 1)
        rc[:].execute("total = 3 - 2", block=True)
        rc[:].push({"pushed": 1}, block=True)
        failed = rc[0].apply_async(fails)
        with pytest.raises(error.RemoteError):
            failed.get(PATIENCE)
    assert names(stream.data) == {
        "px:apply:get_norms": 2,
        "px:execute:total = 3 _ 2": 2,
        "px:apply:push:pushed": 2,
        "px:apply:fails": 1,
    }
    workers = set(dask_client.scheduler_info(n_workers=-1)["workers"])
    assert {record["worker"] for record in stream.data} == workers
    marked = [record for record in stream.data if record["status"] != "OK"]
    assert [key_split(record["key"]) for record in marked] == ["px:apply:fails"]
    for record in stream.data:
        (span,) = record["startstops"]
        assert span["action"] == "compute" and span["start"] <= span["stop"]


def test_balanced_calls_are_in_it_once_each_and_their_failures_are_marked(
    rc: ipp.Client, dask_client: Any
) -> None:
    view = rc.load_balanced_view()
    with get_task_stream(client=dask_client) as stream:
        view.map_sync(get_norms, range(5))
        with pytest.raises(error.RemoteError):
            view.apply_sync(fails)
        future = dask_client.submit(lambda: 7, key="own-task-1")
        assert future.result() == 7
    assert names(stream.data) == {"px:apply:get_norms": 5, "px:apply:fails": 1, "own-task": 1}
    marked = {key_split(r["key"]) for r in stream.data if r["status"] != "OK"}
    assert marked == {"px:apply:fails"}


def test_nothing_is_asked_while_nobody_looks(rc: ipp.Client, dask_client: Any) -> None:
    def stop(dask_scheduler: Any) -> None:
        # as ten minutes after a task stream was begun
        dask_scheduler.plugins["pxcompat"].monitor._recording = 0

    def asked(dask_scheduler: Any) -> tuple[int, bool]:
        monitor = dask_scheduler.plugins["pxcompat"].monitor
        return sum(monitor._index.values()), bool(monitor.seen)

    dask_client.run_on_scheduler(stop)
    wait_until(lambda: not dask_client.run_on_scheduler(asked)[1])
    before, _ = dask_client.run_on_scheduler(asked)
    rc[:].apply_sync(get_norms, 1)
    assert dask_client.run_on_scheduler(asked) == (before, False)
    with get_task_stream(client=dask_client):
        after, _ = dask_client.run_on_scheduler(asked)
    assert after == before + 2


def test_the_performance_report_has_them(rc: ipp.Client, dask_client: Any, tmp_path: Any) -> None:
    from distributed import performance_report

    path = tmp_path / "report.html"
    with dask_client.as_current(), performance_report(filename=str(path)):
        rc[:].apply_sync(get_norms, 1)
    assert "px:apply:get_norms" in path.read_text()


def test_prometheus_is_told(rc: ipp.Client, base: str) -> None:
    pytest.importorskip("prometheus_client")
    rc[:].push({"block": bytes(1_000_000)}, block=True)
    with pytest.raises(error.RemoteError):
        rc[0].apply_sync(fails)

    def metrics() -> dict[str, float]:
        lines = fetch(f"{base}/metrics").splitlines()
        return {
            line.partition(' worker="')[0] if "status" not in line else line: float(
                line.split()[-1]
            )
            for line in lines
            if line.startswith("pxcompat_") and 'engine="0"' in line
        }

    def told() -> bool:
        found = metrics()
        failed = [v for k, v in found.items() if 'status="error"' in k]
        size = [v for k, v in found.items() if k.startswith("pxcompat_names_bytes")]
        return failed >= [1] and size >= [1_000_000]

    wait_until(told)


def test_engines_are_listed_for_jupyterlab(base: str) -> None:
    plots = json.loads(fetch(f"{base}/individual-plots.json"))
    assert plots["Individual Engines"] == "/individual-engines"


@pytest.mark.slow
def test_the_page_engines(rc: ipp.Client, base: str, browser: Any, tmp_path: Any) -> None:
    rc.clear(block=True)
    rc[:].push({"block": bytes(5000)}, block=True)
    rc[1].execute("words = ['<b>', 'x']", block=True)
    gate = tmp_path / "gate"
    held = rc[0].apply_async(wait_for_file, str(gate))
    behind = rc[0].apply_async(get_norms, 2)
    infos = {info.id: info for info in rc._backend.engines()}
    try:
        for page in ("engines", "individual-engines"):
            browser.get(f"{base}/{page}")

            def rows(first: str) -> list[Any]:
                return [row for row in browser.execute_script(ROWS) if row and row[0] == first]

            def busy() -> Any:
                return [row for row in rows("0") if row[3:5] == ["busy", "px:apply:wait_for_file"]]

            row = wait_until(busy)[0]
            assert row[1:3] == [infos[0].host, str(infos[0].pid)]
            assert row[6:8] == ["1", "px:apply:get_norms"]
            wait_until(lambda: [r for r in rows("1") if r[:4] == ["1", "words", "list", "len 2"]])
            block = [r for r in rows("1") if r[1] == "block"]
            assert block and block[0][2:4] == ["bytes", "len 5000"]
    finally:
        gate.touch()
    assert behind.get(PATIENCE) == 2 and held.successful()
    wait_until(lambda: [row for row in rows("0") if row[3] == "idle"])


@pytest.mark.slow
def test_the_stock_page_draws_them(
    rc: ipp.Client, base: str, browser: Any, dask_client: Any, tmp_path: Any
) -> None:
    images = pytest.importorskip("PIL.Image")
    colour = tuple(int(color_of("px:apply:stay")[i : i + 2], 16) for i in (1, 3, 5))
    browser.get(f"{base}/individual-task-stream")
    gates = [tmp_path / str(i) for i in range(2)]
    held = [rc[:].apply_async(stay, str(gate)) for gate in gates]

    def progress(dask_scheduler: Any) -> Any:
        prefix = dask_scheduler.task_prefixes.get("px:apply:stay")
        return prefix and {k: n for k, n in prefix.states.items() if n}

    wait_until(lambda: dask_client.run_on_scheduler(progress) == {"processing": 2, "queued": 2})
    for gate in gates:
        gate.touch()
    for result in held:
        result.get(PATIENCE)
    wait_until(lambda: dask_client.run_on_scheduler(progress) == {"released": 4})

    def drawn() -> bool:
        shot = images.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        near = [
            n
            for n, pixel in shot.getcolors(shot.width * shot.height)
            if max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12
        ]
        return sum(near) > 1000

    wait_until(drawn)
    browser.get("about:blank")
    # as Dask's own groups, it goes some time after it is done
    wait_until(lambda: not dask_client.run_on_scheduler(progress), 60)
