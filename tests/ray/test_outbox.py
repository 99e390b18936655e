"""Which requests share a call of an engine's actor; told by hand what Ray would say."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock

import pytest

from pxcompat.backends.ray.backend import RayBackend
from pxcompat.backends.ray.outbox import AHEAD, BUSY, HOLD, MOST, MOST_BYTES, Call, Outbox, Pace
from pxcompat.backends.ray.peer import Peer
from pxcompat.backends.ray.wire import StoredFrames
from pxcompat.protocol import EngineInfo, Reply, Request


@pytest.fixture
def pace() -> Pace:
    return Pace()


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def outbox(pace: Pace, calls: list[Call]) -> Outbox:
    return Outbox(pace, calls.append)


def request(n: int, label: str = "short", arguments: Any = None) -> Request:
    return Request(f"c_{n}", "apply", label, {}, [b"f"], arguments or [b"x"], {"client": "c"})


def known(pace: Pace, label: str, seconds: float) -> None:
    pace.note(label, Reply("c_0", "ok", "e", 10.0, 10.0 + seconds))


def ids(calls: list[Call]) -> list[list[int]]:
    return [[int(r.msg_id[2:]) for r in call.requests] for call in calls]


def busy(outbox: Outbox, calls: list[Call]) -> None:
    """Have as many calls under way as there are before requests wait."""
    for n in range(BUSY):
        outbox.add([request(1000 + n, "unknown")])
    assert len(calls) == BUSY
    calls.clear()


def test_an_idle_engine_has_its_request_at_once(outbox, calls):
    assert not outbox.add([request(0)])
    assert ids(calls) == [[0]] and outbox.due is None


def test_what_a_signal_handler_sends_meanwhile_leaves_after_what_waits(pace, calls):
    def leave(call: Call) -> None:
        if [r.msg_id for r in call.requests] == ["c_0"]:
            outbox.add([request(2)])
        calls.append(call)

    outbox = Outbox(pace, leave)
    outbox.add([request(0), request(1)])
    assert ids(calls) == [[0], [1], [2]]


def test_short_ones_that_wait_share_a_call(outbox, calls, pace):
    known(pace, "short", 0.0001)
    busy(outbox, calls)
    before = time.monotonic()
    assert outbox.add([request(0)])  # to be looked after
    assert not outbox.add([request(1)])
    assert not calls and before <= outbox.due - HOLD <= time.monotonic()
    outbox.returned()
    outbox.flush()
    assert ids(calls) == [[0, 1]] and outbox.due is None
    assert [fields[0][0] for fields in pickle.loads(calls[0].arguments[0])] == ["c_0", "c_1"]
    assert calls[0].name == "px:apply:short x2"


def test_what_is_unknown_or_takes_long_goes_alone_and_in_order(outbox, calls, pace):
    known(pace, "short", 0.0001)
    known(pace, "long", 2 * AHEAD)
    outbox.add(
        [
            request(n, label)
            for n, label in enumerate(["short", "short", "new", "short", "long", "short", "short"])
        ]
    )
    assert ids(calls) == [[0, 1], [2], [3], [4], [5, 6]]


def test_a_call_has_a_few_milliseconds_of_work(outbox, calls, pace):
    known(pace, "some", AHEAD / 4)
    known(pace, "short", 0)
    outbox.add([request(n, "some") for n in range(6)])
    assert ids(calls) == [[0, 1, 2, 3], [4, 5]]
    calls.clear()
    outbox.add([request(n) for n in range(MOST + 10)])
    outbox.flush()
    assert ids(calls) == [[*range(MOST)], [*range(MOST, MOST + 10)]]


def test_one_that_took_long_is_believed_at_once(pace):
    known(pace, "f", 0)
    known(pace, "f", 1)
    assert pace.expected("f") == 1
    known(pace, "f", 0)
    assert 0.5 < pace.expected("f") < 1


def test_large_ones_leave_at_once_and_alone(outbox, calls, pace):
    known(pace, "short", 0)
    busy(outbox, calls)
    large = bytearray(MOST_BYTES + 1)
    stored = StoredFrames("ref", 10)
    outbox.add([request(0)])
    outbox.add([request(1, arguments=[b"p", large])])
    assert ids(calls) == [[0], [1]]  # its owner may change it now
    outbox.add([request(2, arguments=stored), request(3)])
    assert ids(calls) == [[0], [1], [2], [3]]
    assert calls[2].arguments[2] == "ref"
    # arguments of middling size do not add up to a large call
    calls.clear()
    outbox.add([request(n, arguments=[b"p", bytearray(MOST_BYTES // 2 - 10)]) for n in range(3)])
    outbox.flush()
    assert ids(calls) == [[0, 1], [2]]


def test_buffers_are_their_owners_again(outbox, calls, pace):
    busy(outbox, calls)
    mine = bytearray(b"before")
    outbox.add([request(0, arguments=[b"p", mine])])
    mine[:] = b"after!"
    outbox.flush()
    assert pickle.loads(calls[0].arguments[0])[2] == [b"p", b"before"]


def test_large_results_share_no_call(outbox, calls, pace):
    reply = Reply("c_0", "ok", "e", 10.0, 10.0, StoredFrames("ref", 1 << 20))
    pace.note("short", reply)
    outbox.add([request(0), request(1)])
    assert ids(calls) == [[0], [1]]


class Actor:
    """An engine's actor, of which both methods are one: calls end when they are told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Future[Any]]] = []
        self.run = self.run_all = self

    def options(self, *, name: str, num_returns: int = 1) -> Any:
        return Mock(remote=lambda packed: self._called(pickle.loads(packed), num_returns))

    def _called(self, given: Any, num_returns: int) -> Any:
        ids = [fields[0][0] for fields in ([given] if num_returns == 2 else given)]
        ended: Future[Any] = Future()
        self.calls.append((ids, ended))
        call = Mock(future=lambda: ended)
        return (call, None) if num_returns == 2 else call

    def end(self, took: float) -> None:
        """The oldest call ends, each of its requests after so many seconds."""
        ids, call = self.calls.pop(0)
        replies = [("reply", (i, "ok", "e", 10.0, 10.0 + took, [b""], {}, 0)) for i in ids]
        call.set_result(pickle.dumps(replies if len(ids) > 1 else (replies[0][1], [])))


def test_balanced_calls_fill_those_of_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over when an engine is given work would have a call, a millisecond, for itself."""
    backend = RayBackend({})
    events: list[Callable[[], None]] = []
    monkeypatch.setattr(backend, "connected", nullcontext)
    monkeypatch.setattr(backend, "later", events.append)
    backend.sink = Mock(session="c")
    actor = Actor()
    backend._peers["e"] = Peer(EngineInfo("e", 0, 1, "host"), actor, backend)
    known(backend.pace, "some", AHEAD / 7.5)
    backend.send_balanced([request(n, "some") for n in range(100)], None)
    sizes = []
    while actor.calls:
        sizes.append(len(actor.calls[0][0]))
        actor.end(AHEAD / 9.5)  # quicker than it was known to be
        while events:
            events.pop(0)()
    assert sum(sizes) == 100
    print(sizes)
    assert min(sizes[:-2]) == 7 and 9 in sizes
