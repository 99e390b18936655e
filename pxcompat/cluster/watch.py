"""Which engines a cluster has, as one control connection sees it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence

from ..engine.interrupts import Condition
from ..error import EngineError
from ..progress import aside, progress as progress_bar
from ..protocol import EngineInfo, Fate, OutputEvent, Reply

__all__ = ["EngineWatch"]


class EngineWatch:
    """A :class:`pxcompat.protocol.EventSink` that follows engines and sends no requests."""

    def __init__(self) -> None:
        #: who we are to the cluster; one that sends no requests needs no name beyond that
        self.session = uuid.uuid4().hex
        self._changed = Condition()
        self._engines: dict[str, EngineInfo] = {}
        self._down: dict[str, str] = {}
        #: of engines that were started, and of which nothing has been heard
        self._expected: set[str] = set()
        self._lost: str | None = None

    @property
    def engines(self) -> dict[str, EngineInfo]:
        """The engines that are up, by key."""
        with self._changed:
            return dict(self._engines)

    def named(self, names: Collection[str]) -> list[str]:
        """Keys of those of these engines that are up, whether they were restarted or not.

        A key names its engine alone, and not a successor.
        """
        engines = self.engines
        named = {info.name: key for key, info in engines.items()} | {key: key for key in engines}
        return [named[name] for name in names if name in named]

    @property
    def lost(self) -> str | None:
        """Why the cluster is out of reach; None while it is not."""
        return self._lost

    def wait_for(self, names: Collection[str], *, timeout: float, progress: bool = False) -> None:
        """Wait until all engines of these names are up.

        Raises
        ------
        EngineError
            As soon as one of them is known to have ended.
        TimeoutError
            When they are not up in time.
        """
        up = 0

        def ready() -> bool:
            nonlocal up
            if dead := [name for name in names if name in self._down]:
                raise EngineError(
                    f"{len(dead)} of {len(names)} engines ended while they were starting;"
                    f" engine {dead[0]}: {self._down[dead[0]]}"
                )
            before, up = up, len(self.named(names))
            bar.update(up - before)
            return up == len(names)

        with progress_bar(
            total=len(names), unit="engine", file=aside(), disable=None if progress else True
        ) as bar:
            if not self._wait(ready, timeout):
                raise TimeoutError(f"{up} of {len(names)} engines registered within {timeout:g} s")

    def expect(self, names: Collection[str]) -> None:
        """Engines were started that are to be heard of."""
        with self._changed:
            heard = {info.name for info in self._engines.values()} | self._down.keys()
            self._expected.update(name for name in names if name not in heard)

    def settle(self, names: Collection[str], *, timeout: float) -> None:
        """Wait until those of these engines that were just started are up, or have ended."""
        if not self._wait(lambda: self._expected.isdisjoint(names), timeout):
            left = len(self._expected.intersection(names))
            raise TimeoutError(f"{left} engines are still starting after {timeout:g} s")

    def wait_gone(self, keys: Collection[str], *, timeout: float) -> None:
        """Wait until none of these engines is up any more."""
        if not self._wait(lambda: not self._engines.keys() & set(keys), timeout):
            raise TimeoutError(f"the engines {', '.join(keys)} did not end within {timeout:g} s")

    def has_ended(self, keys: Collection[str], *, timeout: float) -> bool:
        """Whether one of these engines ends within some seconds, or has ended."""
        return self._wait(lambda: not self._engines.keys() >= set(keys), timeout)

    def wait_lost(self) -> str:
        """Wait until the cluster is out of reach; why it is."""
        with self._changed:
            while self._lost is None:
                self._changed.wait()
            return self._lost

    def _wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not ready():
                if self._lost is not None:
                    raise EngineError(f"the cluster is out of reach: {self._lost}")
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    # -- EventSink ----------------------------------------------------------------

    def engine_up(self, info: EngineInfo) -> None:
        with self._changed:
            self._engines[info.key] = info
            self._down.pop(info.name, None)  # it was restarted
            self._expected.discard(info.name)
            self._changed.notify_all()

    def engine_down(self, key: str, reason: str) -> None:
        with self._changed:
            info = self._engines.pop(key, None)
            name = info.name if info is not None else key
            self._down[name] = reason
            self._expected.discard(name)
            self._changed.notify_all()

    def disconnected(self, reason: str) -> None:
        with self._changed:
            self._lost = reason
            self._engines.clear()
            self._changed.notify_all()

    def engines_starting(self) -> None: ...  # whoever waits, waits for some by name

    # What is said about requests: there are none.
    def fates(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        return {}

    def sent(self, msg_id: str) -> None: ...
    def started(self, msg_id: str, key: str) -> None: ...
    def output(self, msg_id: str, event: OutputEvent) -> None: ...
    def reply(self, reply: Reply) -> None: ...
