"""Requests of other clients that this one waits for, where nobody knows yet which engine's end
would end that.

They are on no engine yet, or may be tried on another one.  Whichever engine gets one says what
becomes of it; what no engine will ever say is asked for again and again: whether an engine came
that does not know who waits, whether it runs now, and whether its client still wants it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, TypeGuard

from .dispatch import Dispatcher
from .engine.records import moves
from .error import BackendError, EngineError
from .protocol import Fate, Reply

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["LOST", "Foreign"]

log = logging.getLogger("pxcompat")

#: of what nobody knows
LOST: Fate = ("", None)
#: seconds between two looks, and for each request
PAUSE = 0.5
EACH = 0.001
#: looks in which nobody has a request, after which it is lost: it may move meanwhile
MISSES = 2


class _Sought:
    """A request that is waited for."""

    def __init__(self, asked: set[str]) -> None:
        #: engines that send what becomes of it when they have it
        self.asked = asked
        #: of a try that failed: the last word, if there is no other
        self.last: Reply | None = None
        self.missed = 0


class Foreign:
    """Follows them; on a thread of its own, while there are any.  Thread-safe."""

    def __init__(self, dispatcher: Dispatcher, hub: Hub) -> None:
        self._dispatcher = dispatcher
        self._hub = hub
        self._lock = threading.Lock()
        self._sought: dict[str, _Sought] = {}
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        dispatcher.may_move = self._note

    def follow(self, msg_id: str, asked: set[str]) -> None:
        """Follow a request from now on; those engines have been asked for it."""
        with self._lock:
            self._sought.setdefault(msg_id, _Sought(asked))
            self._start()

    def settle(self, msg_id: str, key: str, record: Mapping[str, Any]) -> bool:
        """Whether a request can end nowhere but on this engine, with which it ends then."""
        header, status = record["header"], record["status"]
        if header.get("balanced") and (
            status in ("queued", "error") or (status == "running" and moves(header))
        ):
            return False  # it may be given to another one
        self._dispatcher.found(msg_id, key)
        return True

    def close(self) -> None:
        """Follow nothing any more."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(PAUSE)

    def _note(self, reply: Reply) -> None:
        """A try has failed, and there may be another one."""
        with self._lock:
            sought = self._sought.setdefault(reply.msg_id, _Sought({reply.engine or ""}))
            sought.last = reply
            self._start()

    def _start(self) -> None:
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._run, name="pxcompat-follow", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(max(PAUSE, len(self._sought) * EACH)):
            outstanding = self._dispatcher.outstanding
            with self._lock:
                self._sought = {m: s for m, s in self._sought.items() if m in outstanding}
                if not self._sought:
                    self._thread = None
                    return
                sought = dict(self._sought)
            try:
                self._look(sought)
            except (BackendError, EngineError, FutureTimeoutError) as error:
                log.debug("where requests of others are is not known: %s", error)

    def _look(self, sought: Mapping[str, _Sought]) -> None:
        engines = set(self._dispatcher.engines)
        for msg_id, one in sought.items():
            if new := engines - one.asked:
                one.asked |= new
                self._hub.ask("attach", {"msg_id": msg_id}, new)
        missing = set(sought)
        for key, row in self._hub.places(list(sought)):
            one = sought[row["msg_id"]]
            if one.last is not None and one.last.engine == key:
                continue  # what it was tried on before
            missing.discard(row["msg_id"])
            one.missed = 0
            if self.settle(row["msg_id"], key, row):
                with self._lock:
                    self._sought.pop(row["msg_id"], None)
        if missing:
            missing.difference_update(self._hub.unassigned())
        fates = self._hub.fates(list(missing)) if missing else {}
        for msg_id in missing:
            self._judge(msg_id, sought[msg_id], fates.get(msg_id, LOST))

    def _judge(self, msg_id: str, one: _Sought, said: Fate) -> None:
        """Nobody has a request but, perhaps, its client, who says this of it."""
        fate, key = said
        if fate == "held":
            one.missed = 0
            return
        one.missed += 1
        if fate == "aborted":
            self._dispatcher.reply(Reply(msg_id, "aborted"))
        elif fate == "error" and self._went_with(key, one):
            self._dispatcher.found(msg_id, key)
        elif one.last is not None and (fate == "error" or one.missed >= MISSES):
            content = {k: v for k, v in one.last.content.items() if k != "moves"}
            if content.get("ename") == "UnmetDependency":
                content["ename"] = "ImpossibleDependency"
            self._dispatcher.reply(dataclasses.replace(one.last, content=content))
        elif one.missed >= MISSES:
            engine = self._dispatcher.ids.get(key) if key else None
            why = _why(fate, "its engine" if engine is None else f"engine {engine}")
            self._dispatcher.fail(msg_id, EngineError(f"task {msg_id!r} {why}"))

    def _went_with(self, key: str | None, one: _Sought) -> TypeGuard[str]:
        """Whether the end of this engine was a request's, and no failure on it before."""
        gone = key in self._dispatcher.ids and key not in self._dispatcher.engines
        return gone and (one.last is None or one.last.engine != key)


def _why(fate: str, engine: str) -> str:
    """Why nothing more is to come."""
    if not fate:
        return "will not be done: its client is gone, and no engine has it"
    how = "was done" if fate == "ok" else "failed"
    return f"{how}, and {engine} has forgotten it, or is gone"
