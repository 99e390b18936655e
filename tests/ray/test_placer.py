"""Balanced calls that go from one engine to another; told by hand what engines would say."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from pxcompat.backends.ray.balanced import Placer
from pxcompat.backends.ray.outbox import Pace
from pxcompat.protocol import Reply, Request


class _Peer:
    """One of two engines."""

    def __init__(self, key: str) -> None:
        self.info = SimpleNamespace(key=key)
        self.has: list[str] = []
        self.stuck = False
        self.released: set[str] = set()
        self.asked: list[tuple[list[str], Future[list[str]]]] = []
        #: calls that it has done, and not told of
        self.done = 0

    @property
    def load(self) -> int:
        return len(self.has)

    def left(self, seconds: float | None) -> float:
        return self.load - self.done

    def unanswered(self) -> list[str]:
        return list(self.has)

    def take_back(self, msg_ids: list[str]) -> Future[list[str]]:
        released: Future[list[str]] = Future()
        self.released.update(msg_ids)
        self.asked.append((list(msg_ids), released))
        return released


class _Backend:
    """Of a client with two engines."""

    capabilities = SimpleNamespace(grows=False)
    sink = SimpleNamespace(started=lambda msg_id, key: None)

    def __init__(self) -> None:
        self.pace = Pace()
        self.pace.note("f", Reply("c_0", "ok", "a", 10.0, 10.0))
        self.peers = {"a": _Peer("a"), "b": _Peer("b")}

    def engines(self) -> list[Any]:
        return list(self.peers.values())

    def send(self, key: str, requests: list[Request]) -> None:
        self.peers[key].has += [request.msg_id for request in requests]


def calls(numbers: range) -> list[Request]:
    return [Request(f"c_{n}", "apply", "f", {}, [b"f"], [b"x"], {}) for n in numbers]


def test_the_last_calls_go_to_who_will_be_done_first() -> None:
    backend = _Backend()
    first, second = backend.peers.values()
    placer = Placer(backend)  # type: ignore[arg-type]
    placer.submit(calls(range(20)), None)
    assert (first.load, second.load) == (10, 10)
    first.done = 8
    placer.submit(calls(range(20, 30)), None)
    # then they have eleven each to do
    assert (first.load, second.load) == (19, 11)


def test_an_engine_is_asked_once_to_give_a_call_back() -> None:
    # asked again it may say that it has it no more, and then its refusal, still on its way, would
    # look like that of a call that somebody cancelled
    backend = _Backend()
    engine = backend.peers["a"]
    placer = Placer(backend)  # type: ignore[arg-type]
    placer.submit(calls(range(3)), ["a"])
    assert engine.has == ["c_0", "c_1", "c_2"]
    engine.stuck = True
    placer.take_back()
    placer.take_back()
    assert [ids for ids, _ in engine.asked] == [["c_1", "c_2"]]
    # what it did not give back can be asked for again
    engine.released.clear()
    engine.asked[0][1].set_result([])
    placer.take_back()
    assert [ids for ids, _ in engine.asked] == [["c_1", "c_2"]] * 2


def test_calls_that_engines_give_back_wait_in_their_order() -> None:
    backend = _Backend()
    first, second = backend.peers.values()
    placer = Placer(backend)  # type: ignore[arg-type]
    placer.submit(calls(range(20)), None)
    assert (first.has[0], second.has[0]) == ("c_0", "c_10")
    for stuck, other in ((first, second), (second, first)):
        stuck.stuck, other.stuck = True, False
        placer.take_back()
    first.stuck = True  # neither takes anything now
    for engine in (first, second):  # the later calls come last, and would be put first
        engine.asked[0][1].set_result(engine.asked[0][0])
    assert placer.unassigned() == [f"c_{n}" for n in (*range(1, 10), *range(11, 20))]
