"""Cells that are ended early: when their time is up, or when one engine has failed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from pxcompat.error import InvalidEngineId, RemoteError, TaskAborted
from pxcompat.futures import MessageFuture
from pxcompat.magics.watch import CellTimeout, Watch


class WatchedClient:
    """What a Watch needs of a client; where a request still waits, it can be taken back."""

    def __init__(self, waiting: set[str]) -> None:
        self.waiting = waiting
        self.signals: list[tuple[Any, Any]] = []

    def _abort(self, msg_ids: list[str]) -> list[Future[list[str]]]:
        answer: Future[list[str]] = Future()
        answer.set_result([m for m in msg_ids if m in self.waiting])
        return [answer]

    def send_signal(self, signal: Any, targets: Any, block: bool) -> None:
        assert not block
        if targets == [9]:
            raise InvalidEngineId("gone")
        self.signals.append((signal, targets))


def watched(n: int) -> Any:
    children = [MessageFuture(f"m{i}") for i in range(n)]
    targeted = [(child, i) for i, child in enumerate(children)]
    return SimpleNamespace(_children=children, _targeted=lambda: targeted)


def wait_for_late(watch: Watch) -> str:
    deadline = time.monotonic() + 90
    while (late := watch.late()) is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    return str(late)


def test_one_failure_interrupts_the_others_once() -> None:
    client, result = WatchedClient({"m2"}), watched(10)
    watch = Watch(client, result, "SIGTERM", on_error=True)  # type: ignore[arg-type]
    result._children[0].finish_value(1)
    assert client.signals == []
    result._children[1].fail(RemoteError("ValueError", "v", None))
    # neither those that have ended, nor the one that waits behind others, nor the dead one
    assert client.signals == [("SIGTERM", [i]) for i in range(3, 9)]
    result._children[2].fail(TaskAborted("m2"))
    assert len(client.signals) == 6
    assert watch.late() is None


def test_time_is_up() -> None:
    client, result = WatchedClient({"m1"}), watched(4)
    result._children[0].finish_value(1)
    watch = Watch(client, result, "SIGINT", timeout=0.01)  # type: ignore[arg-type]
    text = wait_for_late(watch)
    assert text.startswith("%px was to take 0.01 s; engine")
    deadline = time.monotonic() + 90
    while len(client.signals) < 2:
        assert time.monotonic() < deadline
    assert client.signals == [("SIGINT", [2]), ("SIGINT", [3])]
    result._children[1].fail(TaskAborted("m1"))
    result._children[2].finish_value(1)
    assert str(watch.late()) == (
        "%px was to take 0.01 s; engine 1 had other work and never began it; engines 2-3 had not"
        " finished and got SIGINT; engine 3 still at work: client.send_signal('SIGKILL',"
        " targets=[3]) would end them"
    )
    assert CellTimeout("x")._render_traceback_() == ["TimeoutError: x"]


def test_in_time() -> None:
    result = watched(2)
    before = threading.active_count()
    watch = Watch(WatchedClient(set()), result, 2, timeout=60)  # type: ignore[arg-type]
    for child in result._children:
        child.finish_value(1)
    deadline = time.monotonic() + 90
    while threading.active_count() > before:
        assert time.monotonic() < deadline, "the timer goes on"
    assert watch.late() is None


def test_signal_0_interrupts_nobody() -> None:
    client, result = WatchedClient(set()), watched(1)
    watch = Watch(client, result, 0, timeout=0.01)  # type: ignore[arg-type]
    assert "engine 0 still at work" in wait_for_late(watch)
    assert client.signals == []
