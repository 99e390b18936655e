"""The record of work: what engines remember of requests, asked and answered.

ipyparallel's Hub keeps every request in a database of its own.  Here each engine
remembers, within bounds, the requests it ran, and these functions put the answers
together.  What an engine remembered goes with the engine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any

from .dispatch import Dispatcher
from .error import EngineError
from .futures import MessageFuture, Metadata
from .protocol import Request

__all__ = ["Hub"]

#: seconds for engines to answer questions, which never wait for running code
TIMEOUT = 10


class Hub:
    """Questions to all engines of a client's cluster."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

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
        KeyError
            When no engine knows one of them.
        """
        dispatcher = self._dispatcher
        futures = []
        for msg_id in msg_ids:
            future = MessageFuture(msg_id, metadata=Metadata(msg_id=msg_id))
            future.sent.set_result(None)
            dispatcher.track(future, None)
            futures.append(future)
        keys = self._everybody()
        unassigned: list[str] | None = None
        for future in futures:
            found = None
            for key, record in self.ask("attach", {"msg_id": future.msg_id}, keys).items():
                if record is not None:
                    found = key, record
            if found is None:
                if unassigned is None:
                    unassigned = list(dispatcher.backend.control(None, "unassigned", {}).result(TIMEOUT))
                if future.msg_id in unassigned:
                    continue  # the engine that gets it will tell
                for missing in futures:
                    dispatcher.forget(missing.msg_id)
                raise KeyError(
                    f"No engine knows the request {future.msg_id!r}: it was purged, is older than "
                    "what engines remember, or its engine is gone"
                )
            self._describe(future, *found)
        return futures

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
        KeyError
            When no engine remembers one of them.
        ValueError
            When one has not ended yet, or its arguments were too large to be remembered.
        """
        requests = []
        for msg_id in msg_ids:
            if msg_id in self._dispatcher.outstanding:
                raise ValueError(f"the request {msg_id!r} has not ended yet")
            recalled = self.ask("recall", {"msg_id": msg_id}, self._everybody())
            request = next((r for r in recalled.values() if r is not None), None)
            if request is None:
                raise KeyError(f"No engine remembers the request {msg_id!r}")
            if request.kind == "apply" and request.arguments is None:
                raise ValueError(
                    f"the arguments of the request {msg_id!r} were too large for its engine to "
                    "remember; call it again with them"
                )
            requests.append(request)
        return [send(dataclasses.replace(r, header=dict(r.header))) for r in requests]

    # -- records -----------------------------------------------------------------

    def query(self, query: Mapping[str, Any], keys: Sequence[str] | None) -> list[dict[str, Any]]:
        """Records that match, oldest first (``db_query``)."""
        answers = self.ask("query", {"query": _plain(query)}, self._everybody())
        rows = [self._row(row) for found in answers.values() for row in found]
        rows.sort(key=lambda row: (row["submitted"] is None, row["submitted"]))
        if keys is not None:
            wanted = {"msg_id", *keys}
            rows = [{k: v for k, v in row.items() if k in wanted} for row in rows]
        return rows

    @staticmethod
    def _row(row: dict[str, Any]) -> dict[str, Any]:
        row = dict(row)
        for key in ("submitted", "started", "completed"):
            row[key] = _datetime(row[key])
        header = dict(row["header"])
        header["date"] = _datetime(header.pop("submitted", None))
        for internal in ("client", "balanced", "resubmitted"):
            header.pop(internal, None)
        row["header"] = header
        return row

    def history(self) -> list[str]:
        """Ids of all requests that engines remember, of all clients, oldest first."""
        return [row["msg_id"] for row in self.query({}, ["submitted"])]

    def purge(self, msg_ids: Sequence[str] | None, keys: Sequence[str]) -> None:
        """Have engines forget requests; all, when None."""
        ids = None if msg_ids is None else list(msg_ids)
        self.ask("purge", {"msg_ids": ids}, keys)

    def status(self, msg_ids: Sequence[str]) -> dict[str, str]:
        """The state of requests, by msg_id: queued, running, ok, error, aborted.

        Raises
        ------
        KeyError
            When no engine knows one of them.
        """
        found: dict[str, str] = {}
        query = {"msg_id": {"$in": list(msg_ids)}}
        for rows in self.ask("query", {"query": query}, self._everybody()).values():
            found.update((row["msg_id"], row["status"]) for row in rows)
        if set(msg_ids) - set(found):
            waiting = self._dispatcher.backend.control(None, "unassigned", {}).result(TIMEOUT)
            found.update((m, "queued") for m in waiting if m in msg_ids)
        missing = [m for m in msg_ids if m not in found]
        if missing:
            raise KeyError(f"No engine knows the request(s) {missing}")
        return found

    def queue_status(self, keys: Sequence[str], verbose: bool) -> dict[Any, Any]:
        """How busy engines are, by id, and how many balanced requests are on none yet."""
        unassigned: Future[Any] = self._dispatcher.backend.control(None, "unassigned", {})
        status: dict[Any, Any] = {}
        for key, answer in self.ask("status", {}, keys).items():
            queue, tasks = list(answer["queue"]), list(answer["tasks"])
            status[self._dispatcher.ids[key]] = {
                "queue": queue if verbose else len(queue),
                "completed": answer["completed"],
                "tasks": tasks if verbose else len(tasks),
            }
        waiting = list(unassigned.result(TIMEOUT))
        status["unassigned"] = waiting if verbose else len(waiting)
        return status


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def _plain(query: Any) -> Any:
    """A query with datetimes as the POSIX seconds that records hold, and sets as lists."""
    if isinstance(query, Mapping):
        return {key: _plain(value) for key, value in query.items()}
    if isinstance(query, (list, tuple, set, frozenset)):
        return [_plain(value) for value in query]
    return query.timestamp() if isinstance(query, datetime) else query
