"""Balanced calls that go from one engine to another; told by hand what engines would say."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from pxcompat.backends.ray.balanced import Placer
from pxcompat.backends.ray.outbox import Pace
from pxcompat.protocol import Reply, Request


class _Backend:
    """Of a client with two engines; ``slow`` is the key of one that is at one request for long."""

    capabilities = SimpleNamespace(grows=False)
    sink = SimpleNamespace(started=lambda msg_id, key: None)

    def __init__(self) -> None:
        self.pace = Pace()
        self.pace.note("px:apply:f", Reply("c_0", "ok", "a", 10.0, 10.0))
        self.slow = ""
        self.has: dict[str, list[str]] = {"a": [], "b": []}
        self.asked: list[tuple[list[str], Future[list[str]]]] = []
        self._engines = [
            SimpleNamespace(info=SimpleNamespace(key=key), released=set()) for key in self.has
        ]

    def engines(self) -> list[Any]:
        return self._engines

    def load(self, engine: Any) -> int:
        return len(self.has[engine.info.key])

    def stuck(self, engine: Any) -> bool:
        return bool(engine.info.key == self.slow)

    def unanswered(self, engine: Any) -> list[str]:
        return list(self.has[engine.info.key])

    def send(self, key: str, requests: list[Request]) -> None:
        self.has[key] += [request.msg_id for request in requests]

    def take_back(self, engine: Any, msg_ids: list[str]) -> Future[list[str]]:
        released: Future[list[str]] = Future()
        engine.released.update(msg_ids)
        self.asked.append((list(msg_ids), released))
        return released


def test_an_engine_is_asked_once_to_give_a_call_back():
    # asked again it may say that it has it no more, and then its refusal, still on its way, would
    # look like that of a call that somebody cancelled
    backend = _Backend()
    placer = Placer(backend)  # type: ignore[arg-type]
    requests = [Request(f"c_{n}", "apply", "f", {}, [b"f"], [b"x"], {}) for n in range(3)]
    placer.submit(requests, ["a"])
    assert backend.has["a"] == ["c_0", "c_1", "c_2"]
    backend.slow = "a"
    placer.take_back()
    placer.take_back()
    assert [ids for ids, _ in backend.asked] == [["c_1", "c_2"]]
    # what it did not give back can be asked for again
    backend.engines()[0].released.clear()
    backend.asked[0][1].set_result([])
    placer.take_back()
    assert [ids for ids, _ in backend.asked] == [["c_1", "c_2"]] * 2
