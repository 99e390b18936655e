"""What is known of the requests behind a result, finished or not: metadata, times, output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timezone
from functools import cached_property
from itertools import chain, repeat
from typing import Any

from .display import show_outputs
from .engine.interrupts import OwnFuture
from .engine.nested import help_until
from .futures import Latch, MessageFuture, Metadata
from .streaming import OutputStreamer
from .waiting import seconds

__all__ = ["RequestInfo"]

#: what is displayed of a request, and what each is where there is none
NOTHING: dict[str, Any] = {
    "engine_id": None,
    "stdout": "",
    "stderr": "",
    "outputs": (),
    "execute_result": None,
}


class RequestInfo(OwnFuture[Any]):
    """The half of an AsyncResult that tells of its requests.

    Keys of the metadata are items and attributes: ``ar["started"]``, ``ar.stdout``.
    """

    _children: list[MessageFuture]
    _targets: Sequence[int] | None
    _chunk_sizes: dict[str, int]
    #: whether there is one request, whose metadata come bare instead of in a list
    _single_result: bool
    #: set when all output has arrived and a client that is told to has forgotten the requests
    _output_event: Latch

    # made when somebody looks: of many that are outstanding each object counts, in memory and in
    # the garbage collector's time

    @cached_property
    def msg_ids(self) -> list[str]:
        """The requests' ids."""
        return [child.msg_id for child in self._children]

    @cached_property
    def _metadata(self) -> list[Metadata]:
        return [child.metadata for child in self._children]

    def __len__(self) -> int:
        """Number of tasks: items of a map, else requests."""
        return sum(self._chunk_sizes.get(child.msg_id, 1) for child in self._children)

    @property
    def progress(self) -> int:
        """How many of the ``len(ar)`` tasks are done, those of unfinished requests included."""
        sizes = [self._chunk_sizes.get(child.msg_id, 1) for child in self._children]
        return sum(
            size if child.done() else min(child.items_done, size)
            for child, size in zip(self._children, sizes, strict=True)
        )

    def _targeted(self) -> list[tuple[MessageFuture, int | None]]:
        """Each child with the engine it was sent to, None where a scheduler chose."""
        targets: Sequence[int | None] = self._targets or [None] * len(self._children)
        return list(zip(self._children, targets, strict=False))

    def _check_ready(self) -> None:
        if not self.done():
            raise TimeoutError("Result not ready.")

    @property
    def metadata(self) -> Metadata | list[Metadata]:
        """What is known of the request, or a list for several."""
        return self._metadata[0] if self._single_result else self._metadata

    def _lookup(self, key: str) -> Any:
        values = [metadata[key] for metadata in self._metadata]
        return values[0] if self._single_result else values

    def __getattr__(self, key: str) -> Any:
        # no key of the metadata is private, and before __init__ there is none at all
        if not key.startswith("_"):
            with suppress(KeyError):
                return self._lookup(key)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {key!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *Metadata()})

    # -- times -------------------------------------------------------------------

    def timedelta(
        self,
        start: datetime | Sequence[datetime | None],
        end: datetime | Sequence[datetime | None],
        start_key: Callable[[list[datetime]], datetime] = min,
        end_key: Callable[[list[datetime]], datetime] = max,
    ) -> float:
        """Seconds between two timestamps, or lists of them.

        Parameters
        ----------
        start, end : datetime, or list of datetime
            For example ``ar.submitted`` and ``ar.received``.
        start_key, end_key : callable
            Which of a list to take: the earliest start and the latest end by default.
        """
        return (_instant(end, end_key) - _instant(start, start_key)).total_seconds()

    @property
    def elapsed(self) -> float:
        """Seconds since the first request was submitted; ``wall_time`` once all are done."""
        if self.done():
            return self.wall_time
        now = datetime.now(timezone.utc)
        return self.timedelta([now, *(m["submitted"] for m in self._metadata)], now)

    @property
    def serial_time(self) -> float:
        """Seconds the engines spent on this, summed over the requests.

        Raises
        ------
        TimeoutError
            When the result is not there.
        """
        self._check_ready()
        ran = [m for m in self._metadata if m["started"] and m["completed"]]
        return sum((self.timedelta(m["started"], m["completed"]) for m in ran), 0.0)

    @property
    def wall_time(self) -> float:
        """Seconds from the first request submitted to the last reply received.

        Raises
        ------
        TimeoutError
            When the result is not there.
        """
        self._check_ready()
        return self.timedelta(self._lookup("submitted"), self._lookup("received"))

    # -- output ------------------------------------------------------------------

    @property
    def _output_ready(self) -> bool:
        return self._output_event.is_set()

    def wait_for_output(self, timeout: float | None = -1) -> bool:
        """Wait until all output has arrived, which may be after the result.

        Returns whether it has, within ``timeout`` seconds; None or negative: no limit.
        """
        left = help_until(self, seconds(timeout))
        return self._output_event.wait(left)

    def stream_output(self, *, errors: bool = True) -> AbstractContextManager[None]:
        """Context manager during which output is shown as it arrives, what has arrived first.

        Parameters
        ----------
        errors : bool
            Whether to show errors too, for those who do not raise them afterwards.
        """
        return OutputStreamer(self._targeted(), errors=errors)

    def display_outputs(self, groupby: str = "type", result_only: bool = False) -> None:
        """Show the output of the finished requests, and their results.

        Parameters
        ----------
        groupby : {"type", "engine", "order", "folded"}
            ``"type"``: everyone's stdout, then stderr, then displays; ``"engine"``: all
            of one engine, then of the next; ``"order"``: as ``"type"``, with everyone's first
            display before everyone's second; ``"folded"``: as ``"type"``, with what is the
            same on several engines shown once.
        result_only : bool
            Show results only, for use after ``stream_output``.

        Raises
        ------
        TimeoutError
            When the result is not there.
        """
        self._check_ready()
        self.wait_for_output()
        show_outputs(
            self._shown(),
            groupby=groupby,
            result_only=result_only,
            headings=not self._single_result,
        )

    def _shown(self) -> list[Metadata]:
        """The metadata with what was set on this object, such as ``ar.stdout = []`` by those who
        have shown it, in their place."""
        own = {key: value for key, value in vars(self).items() if key in NOTHING}
        if not own:
            return self._metadata
        if self._single_result:
            own = {key: [value] for key, value in own.items()}
        count = len(own.get("engine_id", self._metadata))
        shown = [Metadata(metadata.copy()) for metadata in self._metadata[:count]]
        for key, values in own.items():
            for metadata, value in zip(shown, chain(values, repeat(NOTHING[key])), strict=False):
                metadata[key] = value
        return shown


def _instant(
    stamps: datetime | Sequence[datetime | None], choose: Callable[[list[datetime]], datetime]
) -> datetime:
    if not isinstance(stamps, datetime):
        # None: has not happened, as a request that was aborted never started
        stamps = choose([stamp for stamp in stamps if stamp is not None])
    # a user's own may be naive, which means local time
    return stamps if stamps.tzinfo else stamps.astimezone()
