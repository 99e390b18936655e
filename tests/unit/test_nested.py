"""Requests from engines, run by an engine's thread while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future
from functools import partial
from typing import Any

import pytest

from pxcompat.balance import Balancer
from pxcompat.engine import nested, set_current
from pxcompat.engine.nested import help_until
from pxcompat.hub import Hub
from pxcompat.lazymap import LazyMap
from pxcompat.waiting import Items, wait_for

from .test_balance import CALL, submit
from .test_engine import PATIENCE, Driver


class Nest(Driver):
    """An engine, its client, and another client whose requests come from engines."""

    nested = False

    def request(self, kind: str, client: str = "me", **more: Any) -> Any:
        request = super().request(kind, client, **more)
        if self.nested:
            request.header["nested"] = True
        return request

    def send_nested(self, code: str) -> str:
        self.nested = True
        try:
            return self.apply(code, client="inner")
        finally:
            self.nested = False

    def wait_for(self, done: Future[Any], timeout: float | None = PATIENCE) -> str:
        """Have the engine's code wait for a future."""
        self.names["done"], self.names["timeout"] = done, timeout
        self.names["help_until"] = help_until
        return self.apply("def f(): return help_until(done, timeout)")


@pytest.fixture
def on() -> Iterator[Nest]:
    driver = Nest()
    driver.reset()
    yield driver
    driver.stop()


def test_nested_requests_run_while_the_engine_waits_and_others_after(on):
    on.names["seen"] = []
    done: Future[None] = Future()
    waiting = on.wait_for(done)
    others = [on.apply(f"def f(): seen.append({n})") for n in range(3)]
    inner = [on.send_nested(f"def f(): seen.append('inner {n}')") for n in range(3)]
    for msg_id in inner:
        on.me.wait(msg_id)
    assert on.names["seen"] == ["inner 0", "inner 1", "inner 2"]
    assert waiting not in on.me.replied() and others[0] not in on.me.replied()
    done.set_result(None)
    on.value(waiting)
    on.me.wait(others[-1])
    assert on.names["seen"][3:] == [0, 1, 2]


def test_a_nested_request_of_a_nested_one(on):
    first: Future[None] = Future()
    second: Future[None] = Future()
    outer = on.wait_for(first)
    on.names["second"] = second
    middle = on.send_nested("def f(): return help_until(second, timeout)")
    innermost = on.send_nested("def f(): return 'innermost'")
    assert on.value(innermost) == "innermost"
    # the outer one's end is no reason for the inner one not to wait
    first.set_result(None)
    assert outer not in on.me.replied()
    second.set_result(None)
    on.value(middle)
    on.value(outer)


def test_output_and_state_come_back_to_the_one_that_waited(on):
    done: Future[None] = Future()
    on.names.update(done=done, help_until=help_until)
    outer = on.apply("def f():\n    show('a')\n    help_until(done)\n    show('b')")
    inner = on.send_nested("def f(): show('inner')")
    on.me.wait(inner)
    done.set_result(None)
    on.value(outer)
    shown = {
        m: [event.content["data"]["text/plain"] for event in on.me.outputs(m)]
        for m in (outer, inner)
    }
    assert shown == {outer: ["a", "b"], inner: ["inner"]}


def test_a_nested_request_that_fails_is_its_own_affair(on):
    done: Future[None] = Future()
    outer = on.wait_for(done)
    assert on.error(on.send_nested("def f(): 1 / 0"))["ename"] == "ZeroDivisionError"
    done.set_result(None)
    on.value(outer)


def test_an_interrupt_as_one_is_taken_up_is_for_the_request_that_waits(on, monkeypatch):
    come = iter([on.engine.interrupt])
    monkeypatch.setattr(on.engine, "_drain", [lambda: next(come, int)()])
    waiting = on.wait_for(Future())
    taken_up = on.send_nested("def f(): return 1")
    assert on.value(taken_up) == 1
    assert on.error(waiting)["ename"] == "KeyboardInterrupt"


def test_the_timeout_ends_the_help(on):
    waiting = on.wait_for(Future(), 0.01)
    assert on.value(waiting) == 0.0


def test_a_deferred_request_can_be_cancelled(on):
    done: Future[None] = Future()
    waiting = on.wait_for(done)
    deferred = on.apply("def f(): return 1")
    on.me.wait(on.send_nested("def f(): return 1"))  # the other one has been put aside
    assert on.engine.tasks.cancel([deferred])["cancelled"] == [deferred]
    done.set_result(None)
    on.value(waiting)
    assert on.me.wait(deferred).status == "aborted"


def test_what_is_done_is_not_waited_for(on):
    done: Future[None] = Future()
    done.set_result(None)
    assert on.value(on.wait_for(done, 5.0)) == 5.0


def test_elsewhere_there_is_nothing_to_help_with():
    started = time.monotonic()
    assert help_until(Future(), 5.0) == 5.0
    assert help_until(Future()) is None
    assert time.monotonic() - started < 5
    assert not nested.on_an_engine() and nested.home() is None


class TestWaiting:
    """Every way to wait, on an engine."""

    def run(self, on: Nest, wait: Any, finish: list[Future[Any]]) -> Any:
        on.names["wait"] = wait
        waiting = on.apply("def f(): return wait()")
        on.me.wait(on.send_nested("def f(): return 1"))
        for future in finish:
            future.set_result(1)
        return on.value(waiting)

    def test_for_all(self, on: Nest) -> None:
        futures = [Future[int]() for _ in range(3)]
        wait = partial(wait_for, futures, PATIENCE)
        assert self.run(on, lambda: len(wait().done), futures) == 3

    @pytest.mark.parametrize("when", [FIRST_COMPLETED, FIRST_EXCEPTION])
    def test_for_some(self, on: Nest, when: str) -> None:
        futures = [Future[int]() for _ in range(3)]
        wait = partial(wait_for, futures, PATIENCE, when)
        finish = futures[1:2] if when == FIRST_COMPLETED else futures
        assert self.run(on, lambda: len(wait().done), finish) == len(finish)

    def test_for_the_first_exception(self, on: Nest) -> None:
        futures = [Future[int]() for _ in range(3)]
        on.names["wait"] = lambda: len(wait_for(futures, PATIENCE, FIRST_EXCEPTION).done)
        waiting = on.apply("def f(): return wait()")
        on.me.wait(on.send_nested("def f(): return 1"))
        futures[0].set_result(1)
        futures[2].set_exception(ValueError())
        assert on.value(waiting) == 2

    def test_for_less_than_it_takes(self, on: Nest) -> None:
        futures = [Future[int]()]
        on.names["wait"] = lambda: len(wait_for(futures, 0.01, FIRST_COMPLETED).done)
        assert on.value(on.apply("def f(): return wait()")) == 0

    @pytest.mark.parametrize("ordered", [True, False])
    def test_for_items(self, on: Nest, ordered: bool) -> None:
        futures: Any = [Future[int]() for _ in range(3)]
        items = Items(futures, lambda child: [child.result()], ordered=ordered)
        assert self.run(on, lambda: list(items), futures[::-1]) == [1, 1, 1]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_for_a_map_that_reads_as_it_goes(self, on: Nest, ordered: bool) -> None:
        class Result(Future[int]):
            def wait(self) -> None:
                help_until(self)

        made: list[Any] = []
        all_made = threading.Event()

        def send(_: int) -> Any:
            made.append(Result())
            if len(made) == 3:
                all_made.set()
            return made[-1]

        from pxcompat import lazymap

        lazy = LazyMap(
            send,
            zip(range(3)),
            ordered=ordered,
            max_running=0,
            max_unread=0,
            at_end=lambda _: None,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lazymap, "AsyncResult", Result)
            lazy.start()
            assert all_made.wait(PATIENCE)
            wait = lambda: [lazy.next().result() for _ in range(3)]  # noqa: E731
            assert self.run(on, wait, made) == [1, 1, 1]


class TestSending:
    """What a client on an engine sends."""

    @pytest.fixture(autouse=True)
    def here(self) -> Iterator[None]:
        set_current(object(), process=False)  # type: ignore[arg-type]
        yield
        set_current(None, process=False)

    @pytest.fixture
    def balancer(self, backend: Any) -> Balancer:
        return Balancer(backend.sink, Hub(backend.sink))

    def test_is_marked(self, backend: Any) -> None:
        backend.sink.apply(["a"], *CALL, label="len")
        assert backend.sent[0][1].header["nested"] is True

    def test_balanced_calls_go_straight_to_those_that_have_the_least(
        self, backend: Any, balancer: Balancer
    ) -> None:
        backend.sink.apply(["a"], *CALL, label="len")
        submit(balancer, 3)
        assert not backend.balanced
        assert [key for key, _ in backend.sent] == ["a", "b", "a", "b"]
        assert all(request.header["balanced"] for _, request in backend.sent[1:])

    def test_where_they_may(self, backend: Any, balancer: Balancer) -> None:
        submit(balancer, 2, targets=["b"])
        assert [key for key, _ in backend.sent] == ["b", "b"]

    def test_they_can_be_found_on_their_engine(self, backend: Any, balancer: Balancer) -> None:
        (future,) = submit(balancer)
        # so that aborting asks the engine, and not the backend's scheduler
        assert not balancer.knows(future.msg_id)
        assert future.metadata["engine_uuid"] == "a"

    def test_they_are_retried_elsewhere(self, backend: Any, balancer: Balancer) -> None:
        (future,) = submit(balancer, retries=1)
        backend.error(future.msg_id, engine="a")
        assert [key for key, _ in backend.sent] == ["a", "b"]
        backend.ok(future.msg_id, 3, engine="b")
        assert future.result(0) == 3
