"""What an engine remembers of its requests: bounded, queryable, fetchable by any client."""

from __future__ import annotations

import fnmatch
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil

from ..protocol import Frames, OutputEvent, Reply, Request
from ..serialize.memory import owned

__all__ = ["KEYS", "Record", "Records", "check", "matches"]

#: output events remembered per request, in characters; more is not remembered
OUTPUT_LIMIT = 1 << 20
#: arguments larger than this are not remembered, so their request cannot be resubmitted
ARGUMENT_LIMIT = 1 << 20
#: bytes remembered where nothing is said: at most; and of a machine's memory by as many engines as
#: it has processors
MOST_BYTES, SHARE = 1 << 30, 1 / 8


#: the keys of a description
KEYS = (
    "msg_id",
    "header",
    "content",
    "metadata",
    "label",
    "client_uuid",
    "engine_uuid",
    "submitted",
    "started",
    "completed",
    "received",
    "queue",
    "status",
    "result_header",
    "result_metadata",
    "result_content",
    "resubmitted",
    "execute_input",
    "execute_result",
    "error",
    "stdout",
    "stderr",
)


def _share() -> int:
    """Bytes that an engine remembers where nothing is said."""
    memory = psutil.virtual_memory().total * SHARE
    return min(MOST_BYTES, int(memory / (os.cpu_count() or 1)))


class Record:
    """A request on this engine, from its arrival until it is forgotten."""

    __slots__ = (
        "arrived",
        "events",
        "events_size",
        "reply",
        "request",
        "resubmitted",
        "started",
        "truncated",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.started: float | None = None
        self.reply: Reply | None = None
        #: the msg_id under which it was run again
        self.resubmitted: str | None = None
        self.events: list[OutputEvent] = []
        self.events_size = 0
        self.truncated = False

    @property
    def nbytes(self) -> int:
        """Bytes that the record keeps alive."""
        size = 1024 + self.events_size
        for frames in (self.request.function, self.request.arguments):
            if isinstance(frames, list):
                size += sum(map(len, frames))
        if self.reply is not None and isinstance(self.reply.result, list):
            size += sum(map(len, self.reply.result))
        return size

    def add(self, event: OutputEvent) -> None:
        """Remember an output event, within :data:`OUTPUT_LIMIT`."""
        if event.type in ("progress", "comm"):
            return  # of no interest afterwards
        size = sum(len(v) for v in event.content.values() if isinstance(v, str)) + 64
        if event.type not in ("stream", "clear_output"):
            size = len(repr(event.content))
        if self.events_size + size > OUTPUT_LIMIT:
            self.truncated = True
            return
        self.events_size += size
        self.events.append(event)

    def forget_large_arguments(self) -> None:
        """Drop arguments that are large, or that user code may have changed in place."""
        arguments = self.request.arguments
        if self.request.natives:
            # what they stand for is held for this request, not for another
            self.request.natives = {}
            self.request.arguments = None
        elif not isinstance(arguments, list) or (
            len(arguments) > 1 or len(arguments[0]) > ARGUMENT_LIMIT
        ):
            self.request.arguments = None

    def describe(self, engine: str) -> dict[str, Any]:
        """The record as ``db_query`` shows it, times in POSIX seconds."""
        request, reply, header = self.request, self.reply, self.request.header
        status = reply.status if reply else ("running" if self.started else "queued")
        label = header.get("label")
        loud = request.kind == "execute" and not request.content["silent"]
        said: dict[str, Any] = {"stdout": "", "stderr": "", "execute_result": None, "error": None}
        for event in self.events:
            if event.type == "stream":
                said[event.content["name"]] += event.content["text"]
            elif event.type in said:
                said[event.type] = event.content
        if reply and status == "error":
            said["error"] = reply.content  # of a call, too, whose error is no output
        return {
            "msg_id": request.msg_id,
            "header": {
                "msg_id": request.msg_id,
                "msg_type": f"{request.kind}_request",
                "name": request.label,
                "session": header.get("client"),
                **header,
            },
            "content": request.content,
            "metadata": {
                "label": label,
                "after": list(header.get("after") or ()),
                "follow": list(header.get("follow") or ()),
            },
            "label": label,
            "client_uuid": header.get("client"),
            "engine_uuid": engine,
            "submitted": header.get("submitted"),
            "started": self.started,
            "completed": reply.completed if reply else None,
            # when it left here: who received it is not known here
            "received": reply.completed if reply else None,
            "queue": "mux" if not header.get("balanced") else "task",
            "status": status,
            "result_header": {"msg_type": f"{request.kind}_reply"} if reply else None,
            "result_metadata": (
                {"engine": engine, "status": status, "label": label} if reply else None
            ),
            "result_content": dict(reply.content, status=status) if reply else None,
            "resubmitted": self.resubmitted,
            "execute_input": request.content["code"] if loud else None,
            **said,
        }


class Records:
    """The records of one engine, oldest first, bounded in number and in bytes.

    Unfinished requests are always remembered.  Not thread-safe: the engine's lock is
    held by whoever calls.

    Parameters
    ----------
    max_count : int
    max_bytes : int, optional
        Default: this engine's share of an eighth of the machine's memory, 1 GB at most.
    """

    def __init__(self, max_count: int = 1024, max_bytes: int | None = None) -> None:
        self.max_count = max_count
        self.max_bytes = _share() if max_bytes is None else max_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._finished: OrderedDict[str, int] = OrderedDict()
        self._nbytes = 0

    def __contains__(self, msg_id: str) -> bool:
        return msg_id in self._records

    def get(self, msg_id: str) -> Record | None:
        """The record of a request, if it is remembered."""
        return self._records.get(msg_id)

    def add(self, record: Record) -> None:
        """Remember a request that arrived."""
        self._records[record.request.msg_id] = record

    def finish(self, record: Record) -> None:
        """Note that a request has its reply; forget the oldest where it is too much."""
        msg_id = record.request.msg_id
        if msg_id not in self._records:
            return
        self._finished[msg_id] = nbytes = record.nbytes
        self._nbytes += nbytes
        if nbytes > self.max_bytes:  # all others would have to go, and then it would, too
            self.forget(msg_id)
        while self._finished and (
            len(self._finished) > self.max_count or self._nbytes > self.max_bytes
        ):
            self.forget(next(iter(self._finished)))

    def forget(self, msg_id: str) -> bool:
        """Forget a finished request; whether there was one."""
        if msg_id not in self._finished:
            return False
        self._nbytes -= self._finished.pop(msg_id)
        del self._records[msg_id]
        return True

    def drop(self, msg_id: str) -> None:
        """Forget a request that never came."""
        self._records.pop(msg_id, None)

    def purge(self, msg_ids: Iterable[str] | None) -> int:
        """Forget finished requests, all of them when None; how many."""
        if msg_ids is None:
            # also those whose reply has just gone out and that are not yet noted as finished
            done = [m for m, record in self._records.items() if record.reply is not None]
            for msg_id in done:
                self._nbytes -= self._finished.pop(msg_id, 0)
                del self._records[msg_id]
            return len(done)
        return sum(self.forget(msg_id) for msg_id in msg_ids)

    def query(
        self, query: Mapping[str, Any], engine: str, keys: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Descriptions of the requests that match (see :func:`matches`), or some of their keys."""
        wanted = query.get("msg_id")
        records: Iterable[Record] = self._records.values()
        if isinstance(wanted, Mapping) and isinstance(wanted.get("$in"), (list, tuple)):
            ids = {msg_id for msg_id in wanted["$in"] if isinstance(msg_id, str)}
            records = [record for msg_id, record in self._records.items() if msg_id in ids]
        elif isinstance(wanted, str):
            record = self._records.get(wanted)
            records = [record] if record else []
        found = (record.describe(engine) for record in records)
        rows = [row for row in found if matches(row, query)]
        if keys is not None:
            rows = [{key: row[key] for key in ("msg_id", *keys)} for row in rows]
        return rows


def moves(header: Mapping[str, Any]) -> bool:
    """Whether a request that fails, or whose engine dies, may be tried elsewhere."""
    return bool(header.get("balanced") and header.get("tries", header.get("retries")))


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda a, b: a == b,
    "$ne": lambda a, b: a != b,
    "$lt": lambda a, b: a is not None and b is not None and a < b,
    "$gt": lambda a, b: a is not None and b is not None and a > b,
    "$lte": lambda a, b: a is not None and b is not None and a <= b,
    "$gte": lambda a, b: a is not None and b is not None and a >= b,
    "$in": lambda a, b: a in b,
    "$nin": lambda a, b: a not in b,
    "$all": lambda a, b: a is not None and all(item in a for item in b),
    "$and": lambda a, b: all(_passes(a, test) for test in b),
    "$or": lambda a, b: any(_passes(a, test) for test in b),
    "$mod": lambda a, b: a is not None and a % b[0] == b[1],
    "$exists": lambda a, b: (a is not None) == bool(b),
    "$glob": lambda a, b: a is not None and fnmatch.fnmatch(a, b),
}


def _passes(value: Any, test: Any) -> bool:
    if isinstance(test, Mapping) and all(str(key).startswith("$") for key in test):
        return all(_operator(name)(value, operand) for name, operand in test.items())
    return bool(value == test)


def _operator(name: str) -> Callable[[Any, Any], bool]:
    try:
        return _OPERATORS[name]
    except KeyError:
        known = ", ".join(_OPERATORS)
        raise ValueError(f"unknown query operator {name!r}; there are {known}") from None


def check(query: Any) -> None:
    """Raise TypeError for what is no query, ValueError for an operator that does not exist."""
    if not isinstance(query, Mapping):
        raise TypeError(f"a query is a dict, not {query!r}")
    for key, value in query.items():
        if str(key).startswith("$"):
            _operator(key)
        if isinstance(value, Mapping):
            check(value)


def matches(row: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    """Whether a record matches a query in the style of ipyparallel's ``db_query``.

    Parameters
    ----------
    query : dict
        Key to value, or to a dict of operators: ``$lt $lte $gt $gte $ne $eq $in $nin $all
        $and $or $mod $exists $glob``.

    Raises
    ------
    ValueError
        For an operator that does not exist.
    """
    return all(_passes(row.get(key), test) for key, test in query.items())


def copied(frames: Frames) -> Frames:
    """The frames, with buffers that share memory with live objects copied.

    What a request returned may still be changed by the next one, while the reply is
    on its way or remembered.
    """
    return frames if len(frames) == 1 else [frames[0], *map(owned, frames[1:])]
