"""The record of work: what engines remember of requests, asked and answered.

ipyparallel's Hub keeps every request in a database of its own.  Here each engine
remembers, within bounds, the requests it ran, and these functions put the answers
together.  What an engine remembered goes with the engine.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any, TypeVar

from .dispatch import Dispatcher
from .engine.interrupts import uninterrupted
from .engine.records import KEYS, check
from .error import EngineError, UnknownRequest
from .foreign import LOST, Foreign
from .futures import MessageFuture, Metadata
from .protocol import Fate, Request

__all__ = ["Hub"]

T = TypeVar("T")

#: seconds for engines to answer questions, which never wait for running code
TIMEOUT = 10
#: seconds for another client's request to arrive, of which we have heard already
ARRIVAL = 0.5
#: the keys of records that are times
TIMES = frozenset({"submitted", "started", "completed", "received"})


class Hub:
    """Questions to all engines of a client's cluster."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._foreign = Foreign(dispatcher, self)

    def close(self) -> None:
        """Wait for nobody's requests any more."""
        self._foreign.close()

    def ask(self, question: str, args: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """The answers of those engines that are still there, by key."""
        backend = self._dispatcher.backend
        asked = {key: backend.control(key, question, args) for key in keys}
        deadline = time.monotonic() + TIMEOUT
        answers = {}
        for key, future in asked.items():
            try:
                answers[key] = future.result(max(0.0, deadline - time.monotonic()))
            except EngineError:
                continue  # it died meanwhile, and its records with it
        return answers

    def _everybody(self) -> list[str]:
        return list(self._dispatcher.engines)

    # -- results -----------------------------------------------------------------

    def fetch(self, msg_ids: Sequence[str]) -> list[MessageFuture]:
        """Futures of requests that this client did not send, or has forgotten.

        Raises
        ------
        UnknownRequest
            When no engine knows one of them.
        """
        dispatcher = self._dispatcher
        futures = []
        engines = set(self._everybody())
        for msg_id in msg_ids:
            future = MessageFuture(msg_id, metadata=Metadata(msg_id=msg_id))
            future.sent_latch.set()
            futures.append(future)
        try:
            for future in futures:
                dispatcher.track(future, None)
            for future in futures:
                found = self._patiently(functools.partial(self._attach, future.msg_id))
                if found is None:
                    raise UnknownRequest(
                        f"No engine knows the request {future.msg_id!r}: it was purged, is older "
                        "than what engines remember, or its engine is gone"
                    )
                key, record = found
                if record is not None:
                    self._describe(future, key, record)
                if record is None or not self._foreign.settle(future.msg_id, key, record):
                    self._foreign.follow(future.msg_id, set(engines))
        except BaseException:  # nobody will have them, and who waits for all would wait for them
            with uninterrupted():
                for future in futures:
                    dispatcher.forget(future.msg_id)
            raise
        return futures

    def _attach(self, msg_id: str) -> tuple[str, Mapping[str, Any] | None] | None:
        """Have output and reply of a request sent here; where it is and its record.

        An engine that does not have it yet sends them when it gets it.
        """
        answers = self.ask("attach", {"msg_id": msg_id}, self._everybody())
        found = [(key, record) for key, record in answers.items() if record is not None]
        if found:  # the latest try
            return max(found, key=lambda place: place[1]["started"] or math.inf)
        waits = msg_id in self.unassigned() or self.fates([msg_id]).get(msg_id, LOST)[0] == "held"
        return ("", None) if waits else None

    def unassigned(self) -> list[str]:
        """Ids of balanced requests that no engine has, as far as the cluster knows."""
        return list(self._dispatcher.backend.control(None, "unassigned", {}).result(TIMEOUT))

    def fates(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        """What other clients that are there say of requests of theirs."""
        theirs = [m for m in msg_ids if not m.startswith(self._dispatcher.session)]
        if not theirs:
            return {}
        asked = self._dispatcher.backend.control(None, "fates", {"msg_ids": theirs})
        return dict(asked.result(TIMEOUT))

    def places(self, msg_ids: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Engines that know of requests, with ``msg_id``, ``status`` and ``header``."""
        question = {"query": {"msg_id": {"$in": list(msg_ids)}}, "keys": ["status", "header"]}
        answers = self.ask("query", question, self._everybody())
        return [(key, row) for key, rows in answers.items() for row in rows]

    @staticmethod
    def _patiently(find: Callable[[], T | None]) -> T | None:
        """Look again for a moment: another client's request may still be on its way."""
        deadline = time.monotonic() + ARRIVAL
        while (found := find()) is None and time.monotonic() < deadline:
            time.sleep(ARRIVAL / 10)
        return found

    def _describe(self, future: MessageFuture, key: str, record: Mapping[str, Any]) -> None:
        header = record["header"]
        future.method = header["msg_type"].partition("_")[0]
        md = future.metadata
        md["submitted"] = _datetime(record["submitted"])
        md["started"] = md["started"] or _datetime(record["started"])
        md["label"] = header.get("label")
        md["after"] = list(header.get("after") or ())
        md["follow"] = list(header.get("follow") or ())
        md["engine_uuid"] = key
        md["engine_id"] = self._dispatcher.ids.get(key)

    def resubmit(
        self, msg_ids: Sequence[str], send: Callable[[Request], MessageFuture]
    ) -> list[MessageFuture]:
        """Run requests again.

        Raises
        ------
        UnknownRequest
            When no engine remembers one of them.
        ValueError
            When the arguments of one were too large to be remembered.
        """
        requests = []
        engines: dict[str, str] = {}
        for msg_id in msg_ids:
            request = self._dispatcher.unsent.get(msg_id)
            if request is None:
                recalled = self.ask("recall", {"msg_id": msg_id}, self._everybody())
                for key, found in recalled.items():
                    if found is not None:
                        request, engines[msg_id] = found, key
            if request is None:
                raise UnknownRequest(f"No engine remembers the request {msg_id!r}")
            if request.kind == "apply" and request.arguments is None:
                raise ValueError(
                    f"the arguments of the request {msg_id!r} were too large for its engine to "
                    "remember; call it again with them"
                )
            requests.append(request)
        futures = []
        for msg_id, request in zip(msg_ids, requests, strict=True):
            header = {k: v for k, v in request.header.items() if k != "tries"}
            future = send(dataclasses.replace(request, header=header))
            futures.append(future)
            if msg_id in engines:
                again = {"msg_id": msg_id, "again": future.msg_id}
                self.ask("resubmitted", again, [engines[msg_id]])
        return futures

    # -- records -----------------------------------------------------------------

    def query(self, query: Mapping[str, Any], keys: Sequence[str] | None) -> list[dict[str, Any]]:
        """Records that match, oldest first (``db_query``)."""
        check(query)
        unknown = set(keys or ()) - set(KEYS)
        if unknown:
            raise KeyError(f"records have no {sorted(unknown)}; they have {', '.join(KEYS)}")
        asked = sorted({"submitted", *keys}) if keys else None  # the order is by it
        question = {"query": _plain(query), "keys": asked}
        answers = self.ask("query", question, self._everybody())
        rows = [self._row(row) for found in answers.values() for row in found]
        rows.sort(key=lambda row: (row["submitted"] is None, row["submitted"]))
        return [{k: row[k] for k in ("msg_id", *keys)} for row in rows] if keys else rows

    @staticmethod
    def _row(row: dict[str, Any]) -> dict[str, Any]:
        row = {key: _datetime(value) if key in TIMES else value for key, value in row.items()}
        if "header" in row:
            header = dict(row["header"])
            header["date"] = _datetime(header.pop("submitted", None))
            for internal in ("client", "balanced", "heard", "nested", "copy", "in_band", "tries"):
                header.pop(internal, None)
            row["header"] = header
        return row

    def history(self) -> list[str]:
        """Ids of all requests that engines remember, of all clients, oldest first."""
        rows = [(row["submitted"], row["msg_id"]) for row in self.query({}, ["submitted"])]
        # aborted before any engine had them
        for request in list(self._dispatcher.unsent.values()):
            rows.append((_datetime(request.header["submitted"]), request.msg_id))
        # one may have come to an engine all the same, which then refused it
        return [msg_id for _, msg_id in sorted(set(rows))]

    def purge(self, msg_ids: Sequence[str] | None, keys: Sequence[str]) -> None:
        """Have engines forget requests; all, when None."""
        ids = None if msg_ids is None else list(msg_ids)
        for msg_id in list(self._dispatcher.unsent) if ids is None else ids:
            self._dispatcher.unsent.pop(msg_id, None)
        self.ask("purge", {"msg_ids": ids}, keys)

    def status(self, msg_ids: Sequence[str]) -> dict[str, str]:
        """The state of requests, by msg_id: queued, running, ok, error, aborted.

        Raises
        ------
        UnknownRequest
            When no engine knows one of them.
        """
        found: dict[str, str] = {}

        def find() -> bool | None:
            missing = [m for m in msg_ids if m not in found]
            question = {"query": {"msg_id": {"$in": missing}}, "keys": ["status"]}
            for rows in self.ask("query", question, self._everybody()).values():
                found.update((row["msg_id"], row["status"]) for row in rows)
            if set(missing) - set(found):
                found.update((m, "queued") for m in self.unassigned() if m in missing)
            if rest := [m for m in missing if m not in found]:
                fates = self.fates(rest)
                found.update((m, "queued") for m, (fate, _) in fates.items() if fate == "held")
            return True if set(msg_ids) <= set(found) else None

        self._patiently(find)
        missing = [m for m in msg_ids if m not in found]
        if missing:
            raise UnknownRequest(f"No engine knows the request(s) {missing}")
        return found

    def queue_status(self, keys: Sequence[str], verbose: bool) -> dict[Any, Any]:
        """How busy engines are, by id, and how many balanced requests are on none yet."""
        unassigned: Future[Any] = self._dispatcher.backend.control(None, "unassigned", {})
        status: dict[Any, Any] = {}
        arrived: set[str] = set()
        done: Mapping[str, Any] = {}
        if verbose:
            question = {"query": {"completed": {"$exists": True}}, "keys": ()}
            done = self.ask("query", question, keys)
        for key, answer in self.ask("status", {}, keys).items():
            queue, tasks = list(answer["queue"]), list(answer["tasks"])
            arrived.update(tasks)
            status[self._dispatcher.ids[key]] = {
                "queue": queue if verbose else len(queue),
                "completed": (
                    [row["msg_id"] for row in done.get(key, ())] if verbose else answer["completed"]
                ),
                "tasks": tasks if verbose else len(tasks),
            }
        # one that an engine gave back is named again by what carried it there
        waiting = [m for m in dict.fromkeys(unassigned.result(TIMEOUT)) if m not in arrived]
        return {"unassigned": waiting if verbose else len(waiting), **status}


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def _plain(query: Any, *, time: bool = False) -> Any:
    """A query with times as the POSIX seconds that records hold, and sets as lists."""
    if isinstance(query, Mapping):
        return {key: _plain(value, time=time or key in TIMES) for key, value in query.items()}
    if isinstance(query, (list, tuple, set, frozenset)):
        return [_plain(value, time=time) for value in query]
    if time and isinstance(query, str):
        query = datetime.fromisoformat(query)
    return query.timestamp() if isinstance(query, datetime) else query
