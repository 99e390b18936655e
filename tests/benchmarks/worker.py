"""The process of one system: reads orders from stdin, a JSON line each, and answers on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import psutil

from .series import SERIES, Series
from .systems import System, load

#: share of the processors' time that may have been somebody else's, and for how many seconds a
#: series is measured again where it was more
STOLEN, PATIENCE = 0.02, 15
#: seconds that a cluster has at most to come to rest, and the share of a processor it has then
SETTLING, QUIET = 20, 0.15


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the systems print is not an answer
    # an interrupt is for the one who gives the orders, who then ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    system = load(name)
    running = 0
    try:
        for line in sys.stdin:
            order = json.loads(line)
            answer: dict[str, Any] = {}
            try:
                series, n = SERIES[order["series"]], order["engines"]
                if not (hasattr(system, series.needs) and name.startswith(series.only)):
                    answer["value"] = None
                else:
                    wanted = 0 if series.fresh else n
                    if running != wanted:
                        if running:
                            system.stop()
                        running = 0
                        if wanted:
                            system.start(wanted)
                            settle()
                        running = wanted
                    answer["value"], answer["stolen"] = measure(series, system, n, order["scale"])
            except Exception:
                answer["error"] = traceback.format_exc()
            answers.write(json.dumps(answer) + "\n")
    finally:
        # whatever runs: also when a start was cut short, or there is nobody to answer
        system.stop()


def measure(series: Series, system: System, n: int, scale: float) -> tuple[float, float]:
    """A figure, and the share of the processors' time that was not this machine's meanwhile.

    A virtual machine's host gives processors to others too, for minutes on end; calls that change
    processes often then take up to twice as long, and their processor time does, for the caches
    are the others' as well.  So it is measured until that is little, or it has taken long: of
    these the one from which least was taken.
    """
    deadline = time.monotonic() + PATIENCE
    best = (0.0, 2.0)
    while best[1] > STOLEN and (best[1] > 1 or time.monotonic() < deadline):
        before, started = _stolen(), time.monotonic()
        value = series.measure(system, n, scale)
        passed = (time.monotonic() - started) * (os.cpu_count() or 1)
        best = min(best, (value, (_stolen() - before) / passed), key=lambda figure: figure[1])
    return best


def _stolen() -> float:
    """Seconds that this machine's processors were ready to compute, and did not get to."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def settle() -> None:
    """Wait until the cluster that was started computes little: what it starts behind its first
    result, a dashboard for one, is not to be measured along."""
    deadline = time.monotonic() + SETTLING
    while time.monotonic() < deadline:
        before, started = _computed(), time.monotonic()
        time.sleep(1)
        if _computed() - before < QUIET * (time.monotonic() - started):
            return


def _computed() -> float:
    """Seconds of processor time of this process and all that it started."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it ended
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _end(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main(sys.argv[1])
