"""What clients, views, results and clusters look like in a notebook."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pxcompat import cards
from pxcompat.asyncresult import AsyncResult
from pxcompat.cards import client_card, result_card, view_card
from pxcompat.client import Client
from pxcompat.error import EngineDied, RemoteError
from pxcompat.futures import MessageFuture
from pxcompat.protocol import EngineInfo
from pxcompat.view import DirectView

from .conftest import FakeBackend


def text(card: str) -> str:
    """What a browser shows of a card, cells apart."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", card)).strip()


class OpenClient(Client):
    """A client on a backend that is as a test has it."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend  # type: ignore[assignment]
        self._dispatcher = backend.sink
        self._closed = False
        self._profile = "<mine>"

    @property
    def profile(self) -> str:
        return self._profile


@pytest.fixture
def open_client(backend: FakeBackend) -> Any:
    backend.dashboard_link = "http://here:1?a&b"  # type: ignore[attr-defined]
    client = OpenClient(backend)
    yield client
    client._closed = True


def test_a_client(open_client: Any, backend: FakeBackend) -> None:
    backend.sink.register("execute", "1", "a", {})
    shown = text(client_card(open_client))
    assert shown.startswith("Client connected Backend fake Profile &lt;mine&gt; Engines 2 (0-1)")
    assert "Outstanding 1 requests Dashboard http://here:1?a&amp;b" in shown
    assert shown.endswith("Engine Host Process Requests 0 here 1 1 1 here 1 0")
    backend.sink.disconnected("the network is down")
    assert "lost: the network is down" in text(client_card(open_client))
    assert repr(open_client).endswith(", connection lost>")
    open_client._closed = True
    assert text(client_card(open_client)).startswith("Client closed Backend fake")


def test_many_engines_are_counted_by_host(open_client: Any, backend: FakeBackend) -> None:
    for number in range(2, 102):
        backend.sink.engine_up(EngineInfo(f"e{number}", number, number, f"node{number % 2}"))
    shown = text(client_card(open_client))
    assert "Engines 102 (0-101)" in shown
    evens, odds = (",".join(map(str, range(n, 102, 2))) for n in (2, 3))
    assert shown.endswith(f"here 0-1 2 0 node0 {evens} 50 0 node1 {odds} 50 0")


def test_a_view(open_client: Any) -> None:
    open_client.block = True
    view = DirectView(open_client, targets=[1, 7])
    shown = text(view_card(view))
    assert shown.startswith("DirectView Engines 2 (1,7) Flags block Gone 7 Engines Engine Host")
    assert shown.endswith("1 here 1 0")


def children(n: int) -> list[MessageFuture]:
    return [MessageFuture(f"m{i}") for i in range(n)]


def test_a_result(client: Any) -> None:
    requests = children(3)
    result = AsyncResult(client, requests, fname="<lambda>", targets=[0, 1, 2])
    shown = text(result_card(result))
    assert shown.startswith("AsyncResult &lt;lambda&gt; pending Done 0 of 3 Time 0.0 s")
    requests[0].finish_value(1)
    requests[1].fail(RemoteError("ValueError", "a < b", "tb", {"engine_id": 1, "method": "apply"}))
    shown = text(result_card(result))
    assert "Done 2 of 3" in shown and "Failed [1:apply] ValueError: a &lt; b Engines" in shown
    assert shown.endswith("0 finished 1 failed [1:apply] ValueError: a &lt; b 2 pending")
    requests[2].fail(EngineDied("Engine 2 died"))  # which answers nothing, and has no times
    shown = text(result_card(result))
    assert shown.startswith(
        "AsyncResult &lt;lambda&gt; failed Done 3 of 3"
        " Failed [1:apply] ValueError: a &lt; b, and 1 more Engines"
    )
    assert shown.endswith("2 failed [Engine Exception] EngineError: Engine 2 died")


def test_a_result_that_was_given_up(client: Any) -> None:
    result = AsyncResult(client, children(1), fname="f")
    client._abort = lambda msg_ids: []
    result.cancel()
    assert text(result_card(result)).startswith("AsyncResult f cancelled Done 0 of 1")


def test_a_result_of_nothing(client: Any) -> None:
    assert "Done 0 of 0" in text(result_card(AsyncResult(client, [])))


def test_a_result_of_many_requests(client: Any) -> None:
    requests = children(cards.ROWS + 4)
    result = AsyncResult(client, requests, targets=list(range(len(requests))))
    for request in requests[5:]:
        request.finish_value(None)
    assert text(result_card(result)).endswith("0-4 pending 5 of them 5-19 finished 15 of them")
