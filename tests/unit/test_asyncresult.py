"""AsyncResult and its kin, with futures completed by hand: no client, no cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pxcompat.asyncresult import AsyncHubResult, AsyncMapResult, AsyncResult, ExecuteReply
from pxcompat.display import show_outputs
from pxcompat.error import CompositeError, RemoteError, TaskAborted
from pxcompat.futures import MessageFuture, Metadata
from pxcompat.mapping import Map, RoundRobinMap
from pxcompat.protocol import OutputEvent

from ..common import PATIENCE, logged, wait_until

T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeClient:
    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.metadata: dict[str, Metadata] = {}
        self._futures: dict[str, MessageFuture] = {}
        self.aborted: list[Any] = []

    def abort(self, jobs: Any, *, block: bool | None) -> None:
        self.aborted.append((jobs, block))

    def _abort(self, msg_ids: Any) -> None:
        self.aborted.append(msg_ids)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def pending(n: int, method: str = "apply") -> list[MessageFuture]:
    """``n`` requests, the i-th to engine i."""
    children = [MessageFuture(f"m{i}", method=method) for i in range(n)]
    for i, child in enumerate(children):
        child.metadata.update(engine_id=i, engine_uuid=f"u{i}", submitted=T0)
    return children


def end(child: MessageFuture, value: Any = None, error: BaseException | None = None) -> None:
    child.sent.set_result(None)
    child.metadata["started"] = T0 + timedelta(seconds=1)
    child.metadata["completed"] = T0 + timedelta(seconds=3)
    child.metadata["received"] = T0 + timedelta(seconds=4)
    if error is None:
        child.finish_value(value)
    else:
        child.fail(error)
    child.output.set_result(None)


def done(*values: Any) -> list[MessageFuture]:
    children = pending(len(values))
    for child, value in zip(children, values, strict=True):
        end(child, value)
    return children


def remote_error(i: int = 0) -> RemoteError:
    info = {"engine_id": i, "engine_uuid": f"u{i}", "method": "apply"}
    return RemoteError("ZeroDivisionError", "division by zero", "the traceback", info)


def write(child: MessageFuture, kind: str, **content: Any) -> None:
    """A piece of output, recorded as dispatch does."""

    def record(metadata: Metadata) -> None:
        if kind == "stream":
            metadata[content["name"]] += content["text"]
        elif kind == "display_data":
            metadata["outputs"].append({"output_type": kind, **content})
        elif kind != "update_display_data":
            metadata[kind] = content

    child.write_output(OutputEvent(0, kind, content), record)


# -- shapes ----------------------------------------------------------------------


def test_single_request_gives_bare_value(client: FakeClient) -> None:
    (child,) = done([1, 2])
    ar = AsyncResult(client, child)
    assert ar.get() == [1, 2]
    assert (ar[0], ar[:]) == (1, [1, 2])
    assert ar.get_dict() == {0: [1, 2]}
    assert ar.metadata is child.metadata
    assert len(ar) == 1
    with pytest.raises(TypeError, match="not iterable"):
        iter(ar)


def test_list_of_requests_gives_list(client: FakeClient) -> None:
    assert AsyncResult(client, done(5)).get() == [5]
    ar = AsyncResult(client, done(5, 6))
    assert ar.get() == ar.r == list(ar) == [5, 6]
    assert ar.result_dict == {0: 5, 1: 6}
    assert (ar[1], ar[-1:]) == (6, [6])
    assert ar.msg_ids == ["m0", "m1"]
    assert ar.metadata == [child.metadata for child in ar._children]


def test_no_requests_is_ready_and_empty(client: FakeClient) -> None:
    ar = AsyncResult(client, [])
    assert (ar.ready(), ar.get(), len(ar)) == (True, [], 0)
    assert ar.wait_for_output(0)
    assert AsyncMapResult(client, [], Map()).get() == []


def test_get_dict_refuses_two_requests_on_one_engine(client: FakeClient) -> None:
    children = done(1, 2)
    children[1].metadata["engine_id"] = 0
    with pytest.raises(ValueError, match="2 jobs ran on engine #0"):
        AsyncResult(client, children).get_dict()


def test_get_dict_of_chunked_map_gives_chunks(client: FakeClient) -> None:
    amr = AsyncMapResult(client, done([1, 2], [3]), Map())
    assert amr.get_dict() == {0: [1, 2], 1: [3]}


def test_msg_ids_are_looked_up(client: FakeClient) -> None:
    (running,) = pending(1)
    client._futures["m0"] = running
    client.results = {"kept": 7, "broken": remote_error()}
    client.metadata = {name: Metadata(msg_id=name) for name in ("kept", "broken")}
    assert AsyncResult(client, "m0")._children == [running]
    kept = AsyncResult(client, "kept")
    assert (kept.get(), kept.sent, kept.wait_for_output(0)) == (7, True, True)
    with pytest.raises(RemoteError):
        AsyncResult(client, "broken").get()
    with pytest.raises(KeyError, match="unheard-of"):
        AsyncResult(client, ["unheard-of"])


def test_hub_result_is_an_async_result(client: FakeClient) -> None:
    assert AsyncHubResult(client, done(1, 2)).get() == [1, 2]


# -- readiness -------------------------------------------------------------------


def test_ready_with_the_last_child(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children, fname="f")
    assert repr(ar) == "<AsyncResult(f): pending>"
    end(children[1], 1)
    assert not ar.ready()
    assert ar.wait(0) is False
    assert ar._success is None
    with pytest.raises(TimeoutError):
        ar.get(0)
    with pytest.raises(TimeoutError):
        ar[0]
    with pytest.raises(RuntimeError):
        ar.successful()
    with pytest.raises(concurrent.futures.TimeoutError):
        ar.result(0)
    end(children[0], 0)
    assert ar.ready()
    assert ar.wait() is True
    assert ar.successful() is True
    assert repr(ar) == "<AsyncResult(f): finished>"


def test_get_waits_for_another_thread(client: FakeClient) -> None:
    (child,) = pending(1)
    ar = AsyncResult(client, child)
    timer = threading.Timer(0.01, end, (child, 3))
    timer.start()
    assert ar.get(timeout=90) == 3
    timer.join()


def test_result_is_unpickled_once_by_who_asks(client: FakeClient) -> None:
    decoders: list[threading.Thread] = []

    def decode(frames: Any) -> int:
        decoders.append(threading.current_thread())
        return 42

    (child,) = pending(1)
    ar = AsyncResult(client, child)
    called: list[Future[Any]] = []
    ar.add_done_callback(called.append)
    receiver = threading.Thread(target=child.finish, args=([], decode))
    receiver.start()
    receiver.join()
    assert called == [ar]
    assert ar.ready() and "finished" in repr(ar)
    assert decoders == []
    assert ar.get() == ar.get() == 42
    assert decoders == [threading.current_thread()]


def test_who_waits_for_many_unpickles_those_that_are_there(client: FakeClient) -> None:
    decoded: dict[int, str] = {}
    children = pending(100)

    def finish(i: int) -> None:
        def decode(frames: Any) -> int:
            assert i not in decoded
            decoded[i] = threading.current_thread().name
            return i

        # one is large: it may be put together with others without ever being there by itself
        children[i].finish([], decode, nbytes=1 << 20 if i == 5 else 10)

    ar = AsyncResult(client, children)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(ar.get()), name="waits", daemon=True)
    waiting.start()
    for i in range(60):
        finish(i)
    wait_until(lambda: len(decoded) >= 50)
    assert 5 not in decoded and not got
    with pytest.raises(TimeoutError):
        ar.get(timeout=0.01)
    for i in reversed(range(60, 100)):
        finish(i)
    waiting.join(PATIENCE)
    assert got == [list(range(100))]
    assert set(decoded.values()) <= {"waits", threading.current_thread().name}


def test_result_that_cannot_be_unpickled_is_an_error(client: FakeClient) -> None:
    def decode(frames: Any) -> None:
        raise ValueError("no such class")

    (child,) = pending(1)
    ar = AsyncResult(client, [child])
    child.finish([], decode)
    assert ar.successful() is False
    with pytest.raises(ValueError, match="no such class"):
        ar.get()
    assert "failed" in repr(ar)


def test_finished_children_do_not_keep_the_result_alive(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    for i, child in enumerate(children):
        end(child, i)
    alive = weakref.ref(ar)
    gc.disable()
    try:
        assert ar.get() == [0, 1]
        del ar
        assert alive() is None
    finally:
        gc.enable()


def test_interrupt_leaves_the_result_usable(client: FakeClient) -> None:
    (child,) = pending(1)
    ar = AsyncResult(client, child)
    for wait in (ar.get, ar.wait, ar.wait_for_output, lambda: ar.wait(-1, FIRST_EXCEPTION)):
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            wait()
        timer.join()
    end(child, "still here")
    assert ar.get() == "still here"


# -- errors ----------------------------------------------------------------------


def test_one_engine_raises_its_remote_error(client: FakeClient) -> None:
    (child,) = pending(1)
    ar = AsyncResult(client, child)
    error = remote_error()
    end(child, error=error)
    for _ in range(2):
        with pytest.raises(RemoteError) as raised:
            ar.get()
        assert raised.value is error
    assert ar.exception() is error
    assert ar.get(return_exceptions=True) is error
    assert ar.successful() is False
    assert repr(ar) == "<AsyncResult(unknown): failed>"


def test_several_engines_raise_a_composite_error(client: FakeClient) -> None:
    children = pending(3)
    ar = AsyncResult(client, children, fname="div")
    end(children[0], 1)
    end(children[1], error=remote_error(1))
    end(children[2], error=remote_error(2))
    with pytest.raises(CompositeError, match="one or more exceptions raised in: div") as raised:
        ar.get()
    assert [item[3]["engine_id"] for item in raised.value.elist] == [1, 2]
    with pytest.raises(CompositeError):
        ar[0]
    values = ar.get(return_exceptions=True)
    assert values[0] == 1
    assert values[1:] == [child.exception() for child in children[1:]]


def test_made_to_return_exceptions(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children, return_exceptions=True)
    end(children[0], 1)
    end(children[1], error=remote_error())
    assert ar.get() == list(ar) == ar.result() == [1, children[1].exception()]
    assert ar.successful()
    single = AsyncResult(client, children[1], return_exceptions=True)
    assert single.get() is children[1].exception()
    assert not single.successful()


def test_aborted_request_among_several_is_raised(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    end(children[0], 1)
    end(children[1], error=TaskAborted("m1"))
    with pytest.raises(TaskAborted):
        ar.get()


def test_aborted_request_beside_a_failed_one_is_listed(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    end(children[0], error=TaskAborted("m0"))
    end(children[1], error=remote_error(1))
    with pytest.raises(CompositeError) as raised:
        ar.get()
    assert [item[0] for item in raised.value.elist] == ["TaskAborted", "ZeroDivisionError"]
    assert raised.value.elist[0][3] == {"engine_id": 0, "engine_uuid": "u0", "method": "apply"}


def test_returned_exception_is_a_value(client: FakeClient) -> None:
    value = ValueError("returned")
    assert AsyncResult(client, done(value)[0]).get() is value
    assert AsyncResult(client, done(value, value)).get() == [value, value]


def test_get_first_exception_does_not_wait_for_the_rest(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    end(children[1], error=remote_error(1))
    with pytest.raises(RemoteError, match="division by zero"):
        ar.get(timeout=1, return_when=FIRST_EXCEPTION)
    assert not ar.done()
    end(children[0], 1)
    with pytest.raises(CompositeError):
        ar.get(return_when=FIRST_EXCEPTION)


def test_get_first_exception_without_one_times_out(client: FakeClient) -> None:
    with pytest.raises(TimeoutError):
        AsyncResult(client, pending(2)).get(timeout=0, return_when=FIRST_EXCEPTION)


def test_get_first_completed_is_refused_politely(client: FakeClient) -> None:
    ar = AsyncResult(client, done(1, 2))
    with pytest.warns(UserWarning, match="FIRST_COMPLETED"):
        assert ar.get(return_when=FIRST_COMPLETED) == [1, 2]


# -- as a Future -----------------------------------------------------------------


def test_wait_and_as_completed(client: FakeClient) -> None:
    children = pending(2)
    first, second = (AsyncResult(client, child) for child in children)
    end(children[1], error=remote_error(1))
    finished, rest = concurrent.futures.wait([first, second], 5, FIRST_EXCEPTION)
    assert (finished, rest) == ({second}, {first})
    end(children[0], 1)
    assert set(concurrent.futures.as_completed([first, second], 5)) == {first, second}


def test_waiter_is_woken_by_a_failure(client: FakeClient) -> None:
    children = pending(2)
    results = [AsyncResult(client, [child]) for child in children]
    timer = threading.Timer(0.01, end, (children[1],), {"error": remote_error()})
    timer.start()
    finished, _ = concurrent.futures.wait(results, 5, FIRST_EXCEPTION)
    assert finished == {results[1]}
    timer.join()


async def test_await(client: FakeClient) -> None:
    children = pending(2)
    good, bad = (AsyncResult(client, child) for child in children)
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, end, children[0], 1)
    loop.call_later(0.01, end, children[1], None, remote_error())
    assert await good == 1
    with pytest.raises(RemoteError):
        await bad
    assert await asyncio.wrap_future(good) == 1


def test_cancel_wakes_waiters_and_aborts(
    client: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    assert ar.cancel() and ar.cancel()
    assert client.aborted == [["m0", "m1"]]
    assert (ar.done(), ar.cancelled(), ar.successful()) == (True, True, False)
    assert repr(ar) == "<AsyncResult(unknown): cancelled>"
    assert concurrent.futures.wait([ar], 5).done == {ar}
    with pytest.raises(concurrent.futures.CancelledError):
        ar.get()
    with pytest.raises(concurrent.futures.CancelledError):
        ar.get(return_exceptions=True)
    for child in children:
        end(child, error=TaskAborted(child.msg_id))
    assert ar.cancelled()
    assert ar.wait_for_output(5)
    assert not logged(caplog, "concurrent")  # concurrent.futures logs what goes wrong in callbacks


def test_cannot_cancel_or_abort_what_is_done(client: FakeClient) -> None:
    ar = AsyncResult(client, done(1))
    assert ar.cancel() is False
    with pytest.raises(RuntimeError, match="already done"):
        ar.abort()
    assert client.aborted == []
    assert ar.get() == [1]


def test_abort_asks_the_client(client: FakeClient) -> None:
    ar = AsyncResult(client, pending(2), targets=[0, 1])
    ar.abort()
    assert client.aborted == [(["m0", "m1"], True)]


# -- parts -----------------------------------------------------------------------


def test_split_and_join(client: FakeClient) -> None:
    children = pending(3)
    ar = AsyncResult(client, children, fname="f", targets=[0, 1, 2])
    parts = ar.split()
    assert ar.split() == parts
    assert [part.msg_ids for part in parts] == [["m0"], ["m1"], ["m2"]]
    assert parts[0].split() == (parts[0],)
    joined = AsyncResult.join(*parts)
    assert AsyncResult.join(parts[0]) is parts[0]
    for i, child in enumerate(children):
        end(child, i)
    assert [part.get() for part in parts] == joined.get() == [0, 1, 2]
    assert joined._targets == [0, 1, 2]
    with pytest.raises(ValueError):
        AsyncResult.join()


def test_split_and_join_map(client: FakeClient) -> None:
    amr = AsyncMapResult(client, done([1], [2]), Map())
    parts = amr.split()
    assert [type(part) for part in parts] == [AsyncResult, AsyncResult]
    assert [part.get() for part in parts] == [[[1]], [[2]]]
    assert AsyncMapResult.join(amr, amr).get() == [1, 2, 1, 2]


def test_wait_return_when_gives_parts(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    end(children[0], 0)
    finished, rest = ar.wait(0, return_when=FIRST_COMPLETED)
    assert [part.msg_ids for part in finished] == [["m0"]]
    assert [part.msg_ids for part in rest] == [["m1"]]


def test_progress_counts_items(client: FakeClient) -> None:
    children = pending(2)
    amr = AsyncMapResult(client, children, Map(), chunk_sizes={"m0": 3, "m1": 2})
    assert (len(amr), amr.progress) == (5, 0)
    end(children[0], [1, 2, 3])
    assert amr.progress == 3


# -- maps ------------------------------------------------------------------------


def test_map_joins_parts(client: FakeClient) -> None:
    amr = AsyncMapResult(client, done([1, 2], [3]), Map())
    assert amr.get() == list(amr) == [1, 2, 3]
    assert amr[1:] == [2, 3]


def test_map_iterates_in_order_as_chunks_come(client: FakeClient) -> None:
    children = pending(2)
    items = iter(AsyncMapResult(client, children, Map()))
    end(children[1], [3])
    timer = threading.Timer(0.01, end, (children[0], [1, 2]))
    timer.start()
    assert list(items) == [1, 2, 3]
    timer.join()


def test_unordered_map_iterates_as_results_come(client: FakeClient) -> None:
    children = pending(3)
    items = iter(AsyncMapResult(client, children, Map(), ordered=False))
    end(children[2], ["c"])
    assert next(items) == "c"
    end(children[0], ["a"])
    assert next(items) == "a"
    end(children[1], ["b"])
    assert list(items) == ["b"]


@pytest.mark.parametrize("finished_first", [True, False])
def test_iteration_goes_on_after_an_error(client: FakeClient, finished_first: bool) -> None:
    children = pending(3)
    amr = AsyncMapResult(client, children, Map())
    items: Iterator[Any] = iter(amr)
    ends = [([1.0], None), (None, remote_error(1)), ([0.5], None)]
    if finished_first:
        for child, (value, error) in zip(children, ends, strict=True):
            end(child, value, error)
    else:
        end(children[0], [1.0])
    assert next(items) == 1.0
    if not finished_first:
        end(children[1], None, remote_error(1))
        end(children[2], [0.5])
    with pytest.raises(CompositeError):
        next(items)
    assert list(items) == [0.5]
    with pytest.raises(CompositeError):
        list(amr)


def test_map_returning_exceptions(client: FakeClient) -> None:
    children = pending(2)
    asked = AsyncMapResult(client, children, Map())
    made = AsyncMapResult(client, children, Map(), return_exceptions=True)
    end(children[0], [1, 2])
    end(children[1], error=remote_error(1))
    expected = [1, 2, children[1].exception()]
    assert asked.get(return_exceptions=True) == made.get() == list(made) == expected


def test_gathered_scalars_and_tuples_iterate_as_they_join(client: FakeClient) -> None:
    for values in ((5, 6), ("ab", "cd"), ((1, 2), (3,))):
        amr = AsyncMapResult(client, done(*values), Map())
        assert list(amr) == list(amr.get())


def test_round_robin_map_iterates_in_the_order_of_the_input(client: FakeClient) -> None:
    amr = AsyncMapResult(client, done([0, 2, 4], [1, 3]), RoundRobinMap())
    assert list(amr) == amr.get() == [0, 1, 2, 3, 4]


# -- metadata and times ----------------------------------------------------------


def test_metadata_are_items_and_attributes(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    assert ar.completed == ar["completed"] == [None, None]
    assert ar.engine_id == [0, 1]
    children[0].metadata["stdout"] = "early"
    assert ar.stdout == ["early", ""]
    with pytest.raises(KeyError):
        ar["foo"]
    with pytest.raises(TypeError):
        ar[1.0]
    assert not hasattr(ar, "foo")
    assert not hasattr(ar, "__length_hint__")
    assert {"stdout", "get", "msg_ids"} <= set(dir(ar))


def test_times(client: FakeClient) -> None:
    children = pending(2)
    children[0].metadata["submitted"] = T0 - timedelta(seconds=1)
    ar = AsyncResult(client, children)
    for name in ("wall_time", "serial_time"):
        with pytest.raises(TimeoutError):
            getattr(ar, name)
    waited = (datetime.now(timezone.utc) - T0).total_seconds()
    assert ar.elapsed == pytest.approx(waited + 1, abs=5)
    for child in children:
        end(child)
    assert ar.wall_time == ar.elapsed == 5
    assert ar.serial_time == 4
    assert ar.timedelta(ar.submitted, ar.started, start_key=max, end_key=min) == 1
    naive = T0.astimezone().replace(tzinfo=None)
    assert ar.timedelta(naive, T0) == 0


def test_times_of_requests_that_never_ran(client: FakeClient) -> None:
    children = pending(2)
    end(children[0])
    end(children[1], error=TaskAborted("m1"))
    children[1].metadata.update(started=None, completed=None, received=None)
    ar = AsyncResult(client, children)
    assert (ar.serial_time, ar.wall_time) == (2, 4)


# -- sending, ownership ----------------------------------------------------------


def test_sent_when_all_buffers_have_left(client: FakeClient) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    children[0].sent.set_result(None)
    assert not ar.sent and not ar._tracker.done
    with pytest.raises(TimeoutError):
        ar.wait_for_send(0)
    children[1].sent.set_result(None)
    ar.wait_for_send()
    assert ar.sent and ar._sent_event.is_set()


@pytest.mark.parametrize("owner", [True, False])
def test_owner_makes_the_client_forget(client: FakeClient, owner: bool) -> None:
    (child,) = pending(1)
    client.results["m0"] = client.metadata["m0"] = child.metadata
    ar = AsyncResult(client, child, owner=owner)
    child.finish_value(1)
    assert ("m0" in client.results) is not owner
    assert "m0" in client.metadata
    assert not ar.wait_for_output(0) and not ar._output_ready
    child.output.set_result(None)
    assert ar.wait_for_output() and ar._output_ready
    assert ("m0" in client.metadata) is not owner
    assert (ar.get(), ar.engine_id) == (1, 0)


# -- waiting with a bar ----------------------------------------------------------


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PXCOMPAT_NONINTERACTIVE", "IPP_NONINTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is stdout now say that it is a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def test_wait_interactive_draws_a_bar(
    client: FakeClient,
    bars: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_a_terminal(monkeypatch)
    children = pending(2)
    ar = AsyncResult(client, children, fname="slow")
    timers = [threading.Timer(0.01 * i, end, (child,)) for i, child in enumerate(children)]
    for timer in timers:
        timer.start()
    ar.wait_interactive()
    for timer in timers:
        timer.join()
    assert ar.done()
    out = capsys.readouterr().out
    assert "slow: 100%" in out and "2/2" in out


def test_the_bar_counts_items_of_requests_under_way(
    client: FakeClient,
    bars: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_a_terminal(monkeypatch)
    children = pending(2)
    ar = AsyncResult(client, children, chunk_sizes={"m0": 4, "m1": 4})
    end(children[0], value=[0] * 4)
    children[1].write_output(OutputEvent(0, "progress", {"done": 3}), lambda metadata: None)
    assert (ar.progress, len(ar)) == (7, 8)
    ar.wait_interactive(timeout=0.01)
    assert "7/8" in capsys.readouterr().out


def test_no_bar_in_a_log(
    client: FakeClient, bars: None, capsys: pytest.CaptureFixture[str]
) -> None:
    AsyncResult(client, done(1)).wait_interactive()
    assert capsys.readouterr() == ("", "")


def test_wait_interactive_stops_early(client: FakeClient, bars: None) -> None:
    children = pending(2)
    ar = AsyncResult(client, children)
    ar.wait_interactive(timeout=0.01)
    end(children[0], error=remote_error())
    ar.wait_interactive(return_when=FIRST_EXCEPTION)
    ar.wait_interactive(return_when=FIRST_COMPLETED)
    assert not ar.done()
    with pytest.raises(ValueError, match="return_when"):
        ar.wait_interactive(return_when="NEVER")


@pytest.mark.parametrize("name", ["PXCOMPAT_NONINTERACTIVE", "IPP_NONINTERACTIVE"])
def test_no_bar_when_noninteractive(
    client: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    on_a_terminal(monkeypatch)
    monkeypatch.setenv(name, "1")
    AsyncResult(client, done(1)).wait_interactive()
    assert capsys.readouterr() == ("", "")


# -- output ----------------------------------------------------------------------


def test_display_streams_by_type_and_engine(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    children = pending(2)
    for i, child in enumerate(children):
        write(child, "stream", name="stdout", text=f"out{i}\n")
        write(child, "stream", name="stderr", text=f"err{i}\n")
    ar = AsyncResult(client, children)
    with pytest.raises(TimeoutError):
        ar.display_outputs()
    for child in children:
        end(child)
    for groupby in ("type", "engine", "order"):
        ar.display_outputs(groupby)
        out, err = capsys.readouterr()
        assert out == "[stdout:0] \nout0\n[stdout:1] \nout1\n"
        assert err == "[stderr:0] \nerr0\n[stderr:1] \nerr1\n"
    ar.display_outputs(result_only=True)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="groupby"):
        ar.display_outputs("colour")


def test_what_was_set_on_the_result_is_displayed_in_the_place_of_its_output(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    children = pending(3)
    for i, child in enumerate(children):
        child.metadata["engine_id"] = i
        write(child, "stream", name="stdout", text=f"out{i}\n")
        end(child)
    ar = AsyncResult(client, children)
    ar.stdout = []  # shown already
    ar.display_outputs()
    assert capsys.readouterr() == ("", "")
    ar.engine_id, ar.stdout = [2, 0], ["out2\n", "out0\n"]  # of some engines alone
    ar.display_outputs()
    assert capsys.readouterr() == ("[stdout:2] \nout2\n[stdout:0] \nout0\n", "")
    one = AsyncResult(client, children[1])
    one.stdout = "mine\n"
    one.display_outputs()
    assert capsys.readouterr() == ("mine\n", "")
    assert children[1].metadata["stdout"] == "out1\n"


def test_display_single_has_no_heading(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    (child,) = pending(1)
    write(child, "stream", name="stdout", text="hello\n")
    end(child)
    AsyncResult(client, child).display_outputs()
    assert capsys.readouterr() == ("hello\n", "")


def test_stream_output_shows_past_and_present_once(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    children = pending(2, "execute")
    write(children[0], "stream", name="stdout", text="early\n")
    ar = AsyncResult(client, children, targets=[0, 1])
    with ar.stream_output():
        write(children[0], "stream", name="stdout", text="late\n")
        write(children[1], "stream", name="stdout", text="no newline")
        write(children[0], "stream", name="stderr", text="oops\n")
    write(children[0], "stream", name="stdout", text="after\n")
    out, err = capsys.readouterr()
    assert out == "[stdout:0] \nearly\nlate\n[stdout:1] \nno newline"
    assert err == "\n[stderr:0] \noops\n"


def test_stream_output_loses_nothing_to_a_race(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    (child,) = pending(1)
    ar = AsyncResult(client, [child])
    lines = [f"{i}\n" for i in range(300)]

    def talk() -> None:
        for line in lines:
            write(child, "stream", name="stdout", text=line)

    talker = threading.Thread(target=talk)
    talker.start()
    with ar.stream_output():
        talker.join()
    assert capsys.readouterr().out == "[stdout:0] \n" + "".join(lines)


def test_stream_output_shows_errors_briefly_after_the_limit(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    children = pending(6, "execute")
    content = {
        "ename": "RuntimeError",
        "evalue": "oops",
        "traceback": ["tb", "RuntimeError: oops"],
        "engine_info": {"engine_id": None, "engine_uuid": "u", "method": "execute"},
    }
    write(children[0], "error", **content)
    ar = AsyncResult(client, children, targets=list(range(6)))
    with ar.stream_output():
        for child in children[1:]:
            write(child, "error", **content)
    err = capsys.readouterr().err
    assert err.count("tb\nRuntimeError: oops") == CompositeError.tb_limit
    assert err.count("RuntimeError: oops") == 6
    assert "[5:execute] RuntimeError: oops" in err


def test_stream_output_survives_what_cannot_be_shown(
    client: FakeClient, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (child,) = pending(1)
    with AsyncResult(client, [child]).stream_output():
        write(child, "error", ename="not even an evalue")
        write(child, "stream", name="stdout", text="next\n")
    assert "next" in capsys.readouterr().out
    assert "could not be shown" in caplog.text


# -- in IPython ------------------------------------------------------------------


class Shell:
    """The part of an IPython shell that displaying touches."""

    def __init__(self, *, kernel: object = None, colors: str = "nocolor") -> None:
        self.kernel = kernel
        self.colors = colors
        self.published: list[dict[str, Any]] = []
        self.shown = threading.Event()
        self.display_pub = self

    def publish(self, data: Any, metadata: Any = None, **options: Any) -> None:
        self.published.append({"data": data, "metadata": metadata, **options})
        self.shown.set()

    @property
    def texts(self) -> list[str]:
        return [item["data"]["text/plain"] for item in self.published]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    from IPython.core import display_functions

    shell = Shell()

    def publish(data: Any, metadata: Any = None, **options: Any) -> None:
        shell.publish(data, metadata, **options)

    def display(obj: Any, raw: bool = False, **_: Any) -> None:
        shell.publish(*(obj._repr_mimebundle_()))

    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(display_functions, "publish_display_data", publish)
    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    monkeypatch.setattr("IPython.display.display", display)
    return shell


def png(i: int) -> dict[str, Any]:
    return {"data": {"text/plain": f"<png {i}>"}, "metadata": {}}


def executed(n: int, plots: int) -> list[MessageFuture]:
    children = pending(n, "execute")
    for i, child in enumerate(children):
        child.metadata["msg_id"] = child.msg_id
        for k in range(plots):
            write(child, "display_data", **png(10 * i + k))
        write(child, "execute_result", data={"text/plain": f"r{i}"}, metadata={}, execution_count=7)
        end(child)
    return children


@pytest.mark.parametrize(
    ("groupby", "expected"),
    [
        (
            "type",
            "[output:0] <png 0> <png 1> [output:1] <png 10> <png 11> Out[0:7]: r0 Out[1:7]: r1",
        ),
        (
            "engine",
            "[output:0] <png 0> <png 1> Out[0:7]: r0 [output:1] <png 10> <png 11> Out[1:7]: r1",
        ),
        (
            "order",
            "[output:0] <png 0> [output:1] <png 10> [output:0] <png 1> [output:1] <png 11>"
            " Out[0:7]: r0 Out[1:7]: r1",
        ),
    ],
)
def test_display_groupings(client: FakeClient, shell: Shell, groupby: str, expected: str) -> None:
    ar = AsyncResult(client, executed(2, plots=2))
    ar.display_outputs(groupby)
    assert " ".join(shell.texts) == expected
    plot = next(item for item in shell.published if item["data"] == {"text/plain": "<png 10>"})
    assert plot["metadata"] == {"engine": 1}


def test_display_by_order_of_unequal_counts(shell: Shell) -> None:
    first, second = executed(1, plots=2) + executed(1, plots=1)
    show_outputs([first.metadata, second.metadata], groupby="order")
    assert shell.texts.count("<png 0>") == 2
    assert shell.texts.count("<png 1>") == 1


def test_display_single_and_result_only(client: FakeClient, shell: Shell) -> None:
    (child,) = executed(1, plots=1)
    AsyncResult(client, child).display_outputs()
    assert shell.texts == ["<png 0>", "Out[0:7]: r0"]
    shell.published.clear()
    AsyncResult(client, [child]).display_outputs(result_only=True)
    assert shell.texts == ["Out[0:7]: r0"]
    shell.published.clear()
    AsyncResult(client, [child]).display_outputs("engine", result_only=True)
    assert shell.texts == ["[output:0]", "Out[0:7]: r0"]


def test_stream_output_in_a_kernel_grows_one_display_a_stream(
    client: FakeClient, shell: Shell
) -> None:
    shell.kernel = object()
    (child,) = pending(1, "execute")
    write(child, "stream", name="stdout", text="a\n")
    with AsyncResult(client, [child]).stream_output():
        assert shell.shown.wait(90)
        write(child, "stream", name="stdout", text="b\n")
    assert shell.texts == ["[stdout:0] a\n", "[stdout:0] a\nb\n"]
    assert [item["update"] for item in shell.published] == [False, True]
    assert {item["transient"]["display_id"] for item in shell.published} == {"m0-stdout"}


def test_stream_output_shows_displays_and_results(client: FakeClient, shell: Shell) -> None:
    (child,) = pending(1, "execute")
    child.metadata["msg_id"] = "m0"
    with AsyncResult(client, [child]).stream_output():
        write(child, "display_data", **png(0), transient={"display_id": "bar"})
        write(child, "update_display_data", **png(1), transient={"display_id": "bar"})
        write(child, "execute_result", data={"text/plain": "5"}, metadata={}, execution_count=2)
    assert shell.texts == ["[output:0]", "<png 0>", "<png 1>", "Out[0:2]: 5"]
    shown, updated = shell.published[1:3]
    assert shown["transient"] == updated["transient"] == {"display_id": "bar-0"}
    assert (shown["update"], updated["update"]) == (False, True)


# -- ExecuteReply ----------------------------------------------------------------


def reply(data: dict[str, Any] | None = None, metadata: Any = None) -> ExecuteReply:
    result = data and {"data": data, "metadata": metadata or {}, "execution_count": 3}
    md = Metadata(msg_id="m0", engine_id=0, execute_result=result, stdout="printed")
    return ExecuteReply("m0", {"execution_count": 3}, md)


def test_execute_reply_repr_and_metadata() -> None:
    er = reply({"text/plain": "5"})
    assert str(er) == "<ExecuteReply[3]: 5>"
    assert repr(reply({"text/plain": "x" * 40})) == f"<ExecuteReply[3]: {'x' * 29}...>"
    assert repr(reply()) == "<ExecuteReply[3]: >"
    assert er.stdout == er["stdout"] == "printed"
    assert er.execute_result["data"]["text/plain"] == "5"
    assert (er.source, er.data, reply().data) == ("", {"text/plain": "5"}, {})
    assert not hasattr(er, "nonsense")
    assert copy.copy(er).msg_id == "m0"


def test_execute_reply_rich() -> None:
    er = reply({"image/png": "Z2FyYmFnZQ==", "text/html": "<b>"}, {"image/png": {"width": 10}})
    assert er._repr_png_() == ("Z2FyYmFnZQ==", {"width": 10})
    assert er._repr_html_() == "<b>"
    assert er._repr_svg_() is None
    assert er._repr_mimebundle_() == (er.data, {"image/png": {"width": 10}})


def test_execute_reply_plain_text_names_the_engine(shell: Shell) -> None:
    er = reply({"text/plain": "5"})
    assert er._plaintext() == "Out[0:3]: 5"
    assert reply({"text/plain": "a\nb"})._plaintext() == "Out[0:3]: \na\nb"
    assert reply()._plaintext() == ""
    shell.colors = "Neutral"
    assert er._plaintext() == "\033[0;31mOut[0:3]: \033[0m5"
    assert er._repr_mimebundle_()[0] == {"text/plain": er._plaintext()}
    shell.colors = "NoColor"
    assert er._plaintext() == "Out[0:3]: 5"
