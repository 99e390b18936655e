"""What engines do, as custom metrics of Ray: beside its own at every node's Prometheus endpoint.

They have the names that they have on Dask, after Ray's prefix: ``ray_pxcompat_calls_total`` ...
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from pxcompat.engine import names

if TYPE_CHECKING:
    from pxcompat.engine.runtime import Engine

__all__ = ["Meter"]

log = logging.getLogger("pxcompat.ray")

#: seconds between two looks at an engine; Ray exports what is noted every few seconds
PERIOD = 2
#: bounds of a histogram's buckets, in seconds
BOUNDARIES = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]


class Meter:
    """Looks at an engine from time to time and notes what it did; calls cost nothing more for it.

    Parameters
    ----------
    engine : Engine
    namespace : str
        Of its cluster, which with the engine's id tells it from others on the same Ray.
    """

    def __init__(self, engine: Engine, namespace: str) -> None:
        self._engine = engine
        self._tags = {"engine": str(engine.id), "namespace": namespace}
        keys = tuple(self._tags)
        self._calls = Counter(
            "pxcompat_calls", "Requests that an engine has ended", (*keys, "status")
        )
        self._seconds = Counter(
            "pxcompat_call_seconds", "Time that an engine's requests took", keys
        )
        self._durations = Histogram(
            "pxcompat_call_duration_seconds", "How long a request took", BOUNDARIES, keys
        )
        self._running = Gauge(
            "pxcompat_running_seconds", "For how long an engine has been at a request, or 0", keys
        )
        self._waiting = Gauge("pxcompat_waiting_calls", "Requests that wait on an engine", keys)
        self._names = Gauge("pxcompat_names", "Names on an engine", keys)
        self._bytes = Gauge("pxcompat_names_bytes", "Bytes of the names on an engine", keys)
        self._noted: dict[str, float] = {}
        self._index = 0
        self._sized_at = -1
        self._size = (0, 0)
        threading.Thread(target=self._run, name="pxcompat-metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                log.exception("the engine's metrics could not be noted, and are not from now on")
                return
            time.sleep(PERIOD)

    def _look(self) -> None:
        activity = self._engine.tasks.activity(self._index)
        self._index = activity["index"]
        for status, total in activity["totals"].items():
            more = total - self._noted.get(status, 0)
            self._noted[status] = total
            if more > 0 and status == "seconds":
                self._seconds.inc(more, self._tags)
            elif more > 0:
                self._calls.inc(more, {**self._tags, "status": status})
        for call in activity["calls"]:
            self._durations.observe(call.completed - call.started, self._tags)
        running = activity["running"]
        since = running[1] if running else None
        self._running.set(max(0.0, time.time() - since) if since else 0.0, self._tags)
        self._waiting.set(len(activity["queue"]), self._tags)
        if self._index != self._sized_at:  # names change with calls
            self._size = names.total(self._engine.shell)
            self._sized_at = self._index
        self._names.set(self._size[0], self._tags)
        self._bytes.set(self._size[1], self._tags)
