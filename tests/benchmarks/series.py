"""What is measured: one function a series, run in the process of the system it measures."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .functions import nothing, wait
from .systems import System

__all__ = ["SERIES", "Series"]

Measure = Callable[[System, int, float], float]


@dataclass
class Series:
    """One row of the table.

    Attributes
    ----------
    unit
        Of its figures.
    better
        ``"less"`` or ``"more"``: which figure is the better one.
    needs
        What a system must have, to be measured.
    measure
        ``measure(system, n_engines, scale)``; ``scale`` below 1 asks for fewer calls.
    only
        What the names of the systems begin with that are measured.
    fresh
        Whether the series starts and stops a cluster of its own.
    once
        Whether it is measured once, whatever the number of engines and rounds.
    targets
        The ratio to ipyparallel wanted, by system.
    goal
        The figure wanted of every system whose name begins with "pxcompat".
    """

    title: str
    unit: str
    better: str
    needs: str
    measure: Measure
    only: str = ""
    fresh: bool = False
    once: bool = False
    goal: float | None = None
    targets: dict[str, float] | None = None


def _latency(method: str, count: int) -> Measure:
    def measure(system: System, n: int, scale: float) -> float:
        call = getattr(system, method)
        times = []
        for _ in range(max(3, int(count * scale))):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1000

    return measure


def _burst(system: System, n: int, scale: float) -> float:
    count = max(10, int(2000 * scale))
    return _rate(count, lambda: system.burst(count))


def _map(system: System, n: int, scale: float) -> float:
    count = max(10, int(10_000 * scale))
    return _rate(count, lambda: system.map(nothing, range(count)))


def _rate(amount: float, action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return amount / (time.perf_counter() - started)


def _five_milliseconds(system: System, n: int, scale: float) -> float:
    count = max(20, int(400 * scale))
    return _rate(count * 0.005 / n, lambda: system.waits(count, 0.005))


def _straggler(system: System, n: int, scale: float) -> float:
    count = max(20, int(2000 * scale))
    items = [0.001] * count
    items[count // 4] = 2.0
    started = time.perf_counter()
    others, last = 0, 0.0
    for seconds in system.as_they_come(wait, items):
        if seconds < 1:
            others += 1
            last = time.perf_counter() - started
    assert others == count - 1
    return last


def _array(megabytes: float) -> Any:
    import numpy as np

    # not zeros: those are pages that nobody has touched
    return np.ones(int(megabytes * (1 << 17)))


def _moved(method: str, megabytes: float, engines: Callable[[int], int] | None = None) -> Measure:
    def measure(system: System, n: int, scale: float) -> float:
        amount = max(1.0, megabytes * scale)
        array = _array(amount)
        everywhere = method in ("scatter", "gather")
        before = {"pull": "push", "gather": "scatter"}.get(method)
        if before == "push":
            system.push(array, 1)
        elif before == "scatter":
            system.scatter(array)
        action: Callable[[], None]
        if method == "push":
            wanted = engines(n) if engines else 1
            action = lambda: system.push(array, wanted)  # noqa: E731
        else:
            action = lambda: getattr(system, method)(array)  # noqa: E731
        if amount < 512 and not everywhere:
            action()  # the first one is the allocator's
        repeats = 5 if amount < 512 else 1
        return statistics.median(_rate(amount, action) for _ in range(repeats))

    return measure


def _start(system: System, n: int, scale: float) -> float:
    started = time.perf_counter()
    system.start(n)
    seconds = time.perf_counter() - started
    system.stop()
    return seconds


def _slope(points: dict[int, float]) -> float:
    """The slope of the line that fits best; and, on stderr, how well."""
    line = statistics.linear_regression(list(points), list(points.values()))
    fit = statistics.correlation(list(points), list(points.values()))
    figures = ", ".join(f"{n}: {value:.4g}" for n, value in points.items())
    print(f"{figures}; slope {line.slope:.4g}, correlation {fit:.4f}", file=sys.stderr, flush=True)
    return line.slope


def _broadcast(client: Any) -> float:
    """Milliseconds that an apply to all engines takes."""
    view = client[:]
    view.apply_sync(nothing)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        view.apply_sync(nothing)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def _growth(system: System, n: int, scale: float) -> float:
    points = {}
    for count in (8, 16, 32, 64):
        count = max(1, int(count * scale))
        system.start(count)
        try:
            points[count] = _broadcast(system.rc)  # type: ignore[attr-defined]
        finally:
            system.stop()
    return _slope(points)


def _crowd(system: System, n: int, scale: float) -> float:
    points = {}
    for count in (125, 250, 500, 1000):
        count = max(1, int(count * scale))
        client, close = system.crowd(count)  # type: ignore[attr-defined]
        try:
            points[count] = _broadcast(client)
        finally:
            close()
    return _slope(points)


def _queued(system: System, n: int, scale: float) -> float:
    """The rate of 10,000 requests queued at once, over that of as many queued 1,000 at a time."""
    few, many = max(10, int(1000 * scale)), max(100, int(10_000 * scale))

    def in_turn() -> None:
        for _ in range(many // few):
            system.burst(few)

    system.burst(few)
    in_parts, at_once = [], []
    for _ in range(5):  # as many calls either way
        in_parts.append(_rate(many, in_turn))
        at_once.append(_rate(many, lambda: system.burst(many)))
    return statistics.median(at_once) / statistics.median(in_parts)


def _memory(system: System, n: int, scale: float) -> float:
    """Proportional set size: what processes share is counted once."""
    import psutil

    system.start(n)
    try:
        time.sleep(3)  # idle is what is measured
        total = 0
        for process in psutil.Process().children(recursive=True):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    finally:
        system.stop()
    return total / 2**20


def _client_memory(system: System, n: int, scale: float) -> float:
    """Megabytes that the client grows by with further balanced calls, when what it remembers of
    earlier ones has reached its bounds."""
    import ctypes
    import gc

    import psutil

    batch = max(100, int(5000 * scale))
    batches = 40
    process = psutil.Process()

    def rss() -> float:
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what the allocator has, and nobody uses
        return float(process.memory_info().rss) / 2**20

    for _ in range(20):
        system.map(nothing, range(batch))
    before = rss()
    for _ in range(batches):
        system.map(nothing, range(batch))
    return rss() - before


SERIES: dict[str, Series] = {
    "apply_one": Series(
        "apply_sync, one engine",
        "ms",
        "less",
        "one",
        _latency("one", 300),
        targets={"pxcompat-dask": 3, "pxcompat-ray": 2.5},
    ),
    "apply_all": Series(
        "apply_sync, all engines",
        "ms",
        "less",
        "all",
        _latency("all", 200),
        targets={"pxcompat-dask": 3, "pxcompat-ray": 3},
    ),
    "execute_all": Series(
        "execute, all engines",
        "ms",
        "less",
        "execute_all",
        _latency("execute_all", 100),
        targets={"pxcompat-dask": 3, "pxcompat-ray": 3},
    ),
    "burst": Series(
        "2,000 apply_async to one engine",
        "calls/s",
        "more",
        "burst",
        _burst,
        targets={"pxcompat-dask": 10, "pxcompat-ray": 5},
    ),
    "map": Series(
        "balanced map, 10,000 trivial calls, chunksize 1",
        "calls/s",
        "more",
        "map",
        _map,
        targets={"pxcompat-dask": 15, "pxcompat-ray": 15},
    ),
    "balanced": Series(
        "balanced apply_sync, engines idle",
        "ms",
        "less",
        "balanced",
        _latency("balanced", 200),
        targets={"pxcompat-dask": 3, "pxcompat-ray": 3},
    ),
    "five_ms": Series(
        "400 balanced calls of 5 ms: share of the ideal",
        "of 1",
        "more",
        "waits",
        _five_milliseconds,
        goal=0.92,
    ),
    "straggler": Series(
        "one call of 2 s among 2,000 of 1 ms: until the others are there",
        "s",
        "less",
        "as_they_come",
        _straggler,
    ),
}
for _method in ("push", "pull", "scatter", "gather"):
    for _megabytes in (64, 1024):
        SERIES[f"{_method}_{_megabytes}"] = Series(
            f"{_method} {_megabytes} MB",
            "MB/s",
            "more",
            _method,
            _moved(_method, _megabytes),
            targets={"pxcompat-dask": 3, "pxcompat-ray": 2.5},
        )
SERIES.update(
    push_256_all=Series(
        "push 256 MB to every engine",
        "MB/s",
        "more",
        "push",
        _moved("push", 256, lambda n: n),
        targets={"pxcompat-dask": 5, "pxcompat-ray": 30},
    ),
    start=Series(
        "cluster start to first result",
        "s",
        "less",
        "one",
        _start,
        fresh=True,
        targets={"pxcompat-dask": 4, "pxcompat-ray": 1.2},
    ),
    memory=Series(
        "memory of the cluster's processes, idle (PSS)",
        "MB",
        "less",
        "one",
        _memory,
        fresh=True,
        targets={"pxcompat-dask": 1 / 0.6},
    ),
    queued=Series(
        "10,000 requests queued by one client: speed of each, beside 1,000",
        "of 1",
        "more",
        "burst",
        _queued,
        only="pxcompat",
        once=True,
        goal=0.9,
    ),
    growth=Series(
        "apply_sync, all of 8 to 64 engines: cost of each further one",
        "ms",
        "less",
        "rc",
        _growth,
        only="pxcompat-dask",
        fresh=True,
        once=True,
    ),
    crowd=Series(
        "apply_sync, all of 125 to 1,000 simulated engines: cost of each further one",
        "ms",
        "less",
        "crowd",
        _crowd,
        only="pxcompat-dask",
        fresh=True,
        once=True,
    ),
    client_memory=Series(
        "client: growth over 200,000 balanced calls, after 100,000",
        "MB",
        "less",
        "map",
        _client_memory,
        only="pxcompat",
        once=True,
    ),
)
