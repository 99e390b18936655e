"""The one writer of futures, told by hand what a backend would say."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from pxcompat import dispatch, serialize
from pxcompat.dispatch import Results
from pxcompat.error import EngineDied, EngineError, RemoteError, TaskAborted
from pxcompat.futures import MessageFuture
from pxcompat.protocol import EngineInfo, OutputEvent, Reply

F = serialize.dumps(len)
ARGS = serialize.dumps((("abc",), {}))


def call(backend: Any, *keys: str, **kw: Any) -> list[MessageFuture]:
    return backend.sink.apply(keys or ["a"], F, ARGS, label="len", **kw)


def text(seq: int, text: str, name: str = "stdout") -> OutputEvent:
    return OutputEvent(seq, "stream", {"name": name, "text": text})


# -- sending ------------------------------------------------------------------------


def test_a_call_is_sent_and_its_reply_ends_it(backend):
    (future,) = call(backend, header={"label": "mine"})
    key, request = backend.sent[0]
    assert (key, request.msg_id, request.kind, request.label) == (
        "a",
        future.msg_id,
        "apply",
        "len",
    )
    assert request.header["client"] == backend.sink.session
    assert request.msg_id.startswith(backend.sink.session)
    assert (request.function, request.arguments) == (F, ARGS)
    assert not future.done()
    assert future.metadata["label"] == "mine"
    backend.ok(future.msg_id, 3)
    assert future.result(0) == 3
    assert future.output.done() and future.sent.done()
    md = future.metadata
    assert (md["status"], md["engine_id"], md["engine_uuid"]) == ("ok", 0, "a")
    assert md["started"].timestamp() == 1.0 and md["completed"].timestamp() == 2.0
    assert md["submitted"] <= md["received"]
    assert not backend.sink.outstanding and not backend.sink.by_engine["a"]


def test_each_engine_gets_a_request_of_its_own(backend):
    futures = call(backend, "a", "b")
    assert [key for key, _ in backend.sent] == ["a", "b"]
    assert [f.metadata["engine_id"] for f in futures] == [0, 1]
    assert list(backend.sink.history) == [f.msg_id for f in futures]
    assert backend.sink.by_engine == {"a": {futures[0].msg_id}, "b": {futures[1].msg_id}}


def test_a_large_value_for_several_engines_is_put_once_and_held_until_the_reply(backend):
    large = serialize.dumps(((bytes(2000),), {}))
    one, other = backend.sink.apply(["a", "b"], F, large, label="len")
    assert len(backend.held) == 1
    assert [r.arguments for _, r in backend.sent] == [backend.held[0]] * 2
    backend.ok(one.msg_id)
    assert one.held is None and other.held[0] is backend.held[0]
    backend.sink.apply(["a"], F, large, label="len")
    assert len(backend.held) == 1


def test_buffers_are_sent_when_the_backend_says_so(backend):
    numpy = pytest.importorskip("numpy")
    (copied,) = call(backend)
    assert copied.sent.done()
    arguments = serialize.dumps(((numpy.zeros(100_000),), {}))
    (shared,) = backend.sink.apply(["a"], F, arguments, label="f")
    assert not shared.sent.done()
    backend.sink.sent(shared.msg_id)
    assert shared.sent.done()
    backend.sink.sent("of nobody")


def test_an_execute_request(backend):
    future = backend.sink.execute("b", "1/0", silent=False, store_history=True, label="1/0")
    _, request = backend.sent[0]
    assert request.content == {"code": "1/0", "silent": False, "store_history": True}
    assert future.metadata["execute_input"] == "1/0"
    reply = Reply(future.msg_id, "ok", "b", content={"execution_count": 7})
    backend.sink.reply(reply)
    assert future.result(0).execution_count == 7


def test_what_is_for_an_engine_that_is_gone_is_not_sent(backend):
    backend.sink.engine_down("a", "killed")
    (future,) = call(backend, "a")
    assert not backend.sent
    with pytest.raises(EngineDied, match="it is gone"):
        future.result(0)


# -- replies ------------------------------------------------------------------------


def test_an_error_is_raised_with_its_engine(backend):
    (future,) = call(backend, "b")
    content = {"ename": "ValueError", "evalue": "bad", "traceback": ["tb"]}
    content["engine_info"] = {"engine_uuid": "b", "engine_id": None, "method": "apply"}
    backend.sink.reply(Reply(future.msg_id, "error", "b", content=content))
    with pytest.raises(RemoteError, match="bad") as caught:
        future.result(0)
    assert caught.value.engine_info["engine_id"] == 1
    assert future.metadata["error"] is caught.value
    assert future.metadata["status"] == "error"


def test_an_abort_is_a_TaskAborted(backend):
    (future,) = call(backend)
    backend.sink.reply(Reply(future.msg_id, "aborted", "a"))
    with pytest.raises(TaskAborted):
        future.result(0)
    assert future.metadata["status"] == "aborted"


def test_only_the_first_reply_counts(backend):
    (future,) = call(backend)
    backend.ok(future.msg_id, 1)
    backend.ok(future.msg_id, 2)
    backend.error(future.msg_id)
    backend.sink.engine_down("a", "killed")
    assert future.result(0) == 1
    assert future.metadata["status"] == "ok"
    backend.ok("of nobody", 3)


def test_a_reply_that_is_taken_care_of_is_not_the_last_word(backend):
    (future,) = call(backend)
    backend.sink.intercept = lambda reply: reply.status == "error"
    backend.error(future.msg_id)
    assert not future.done() and future.metadata["status"] is None
    backend.ok(future.msg_id, 1, engine="b")
    assert future.result(0) == 1
    assert future.metadata["engine_id"] == 1


def test_a_result_that_cannot_be_unpickled_fails_where_it_is_asked_for(backend):
    (future,) = call(backend)
    backend.sink.reply(Reply(future.msg_id, "ok", "a", result=[b"no pickle"]))
    assert future.done()
    with pytest.raises(pickle.UnpicklingError):
        future.result(0)


def test_every_outcome_is_told(backend):
    told = []
    backend.sink.on_change = lambda ended: told.append(dict(backend.sink.outcomes))
    (good,), (bad,) = call(backend), call(backend, "b")
    backend.ok(good.msg_id)
    assert told == [{good.msg_id: ("ok", "a")}]
    backend.error(bad.msg_id, engine="b")
    assert told[-1][bad.msg_id] == ("error", "b")


def test_fail_ends_a_request_that_was_never_sent(backend):
    future = backend.sink.register("apply", "f", None)
    backend.sink.fail(future.msg_id, RemoteError("ImpossibleDependency", "never", None))
    with pytest.raises(RemoteError, match="never"):
        future.result(0)
    assert future.output.done()
    backend.sink.fail("of nobody", RuntimeError())


# -- output -------------------------------------------------------------------------


def test_output_is_recorded_in_order(backend):
    (future,) = call(backend)
    heard: list[int] = []
    future.listen(lambda event: heard.append(event.seq), lambda md: None)
    sink = backend.sink
    sink.output(future.msg_id, text(0, "a"))
    assert future.metadata["stdout"] == "a"
    sink.output(future.msg_id, text(1, "b"))
    sink.output(future.msg_id, text(2, "e", "stderr"))
    backend.ok(future.msg_id, outputs=3)
    assert (future.metadata["stdout"], future.metadata["stderr"]) == ("ab", "e")
    assert heard == [0, 1, 2]
    assert future.output.done()


def test_output_after_the_reply_completes_it(backend):
    (future,) = call(backend)
    backend.sink.output(future.msg_id, text(0, "a"))
    backend.ok(future.msg_id, 1, outputs=3)
    assert future.result(0) == 1
    assert not future.output.done()
    backend.sink.output(future.msg_id, text(1, "b"))
    assert not future.output.done()
    backend.sink.output(future.msg_id, text(2, "c"))
    assert future.output.done()
    assert future.metadata["stdout"] == "abc"
    # a thread that outlived the request
    backend.sink.output(future.msg_id, text(-1, "d"))
    assert future.metadata["stdout"] == "abcd"


def test_a_carriage_return_overwrites_its_line(backend):
    (future,) = call(backend)
    for seq, piece in enumerate(["kept\n10%", "\r50%", "\r", "99%\nnext", "\r\nlast"]):
        backend.sink.output(future.msg_id, text(seq, piece))
    assert future.metadata["stdout"] == "kept\n99%\nnext\nlast"


def test_displays_updates_and_clearing(backend):
    (future,) = call(backend)

    def say(seq: int, type: str, content: dict[str, Any]) -> None:
        backend.sink.output(future.msg_id, OutputEvent(seq, type, content))

    def shown() -> list[Any]:
        return [output["data"] for output in future.metadata["outputs"]]

    one = {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "x"}}
    say(0, "display_data", one)
    say(1, "display_data", {"data": {"text/plain": "other"}, "metadata": {}})
    say(2, "update_display_data", {**one, "data": {"text/plain": "2"}})
    assert shown() == [{"text/plain": "2"}, {"text/plain": "other"}]
    say(3, "execute_result", {"data": {}, "metadata": {}, "execution_count": 3})
    assert future.metadata["execute_result"]["execution_count"] == 3
    say(4, "data", {"frames": serialize.dumps({"a": 1})})
    say(5, "data", {"frames": serialize.dumps({"b": 2})})
    assert future.metadata["data"] == {"a": 1, "b": 2}
    say(6, "stream", {"name": "stdout", "text": "gone"})
    say(7, "clear_output", {"wait": False})
    assert shown() == [] and future.metadata["stdout"] == ""


def test_a_streamed_error_names_its_engine(backend):
    (future,) = call(backend, "b")
    info = {"engine_uuid": "b", "engine_id": None, "method": "execute"}
    content = {"ename": "E", "evalue": "v", "traceback": [], "engine_info": info}
    heard = []
    future.listen(heard.append, lambda md: None)
    backend.sink.output(future.msg_id, OutputEvent(0, "error", content))
    assert heard[0].content["engine_info"]["engine_id"] == 1
    assert future.metadata["error"].ename == "E"


# -- engines ------------------------------------------------------------------------


def test_a_dead_engine_fails_what_is_stranded_and_nothing_else(backend):
    stranded, fine = call(backend, "a", "b")
    backend.sink.engine_down("a", "its process was killed by signal 9")
    with pytest.raises(EngineDied, match=r"Engine 0 died .*signal 9") as caught:
        stranded.result(0)
    assert isinstance(caught.value, EngineError) and caught.value.ename == "EngineError"
    assert stranded.output.done() and stranded.sent.done()
    assert not fine.done()
    backend.ok(fine.msg_id, 1, engine="b")
    assert fine.result(0) == 1


def test_a_started_balanced_call_dies_with_its_engine_and_a_waiting_one_does_not(backend):
    running, waiting = (backend.sink.register("apply", "f", None) for _ in range(2))
    backend.sink.started(running.msg_id, "a")
    backend.sink.engine_down("a", "killed")
    assert running.done() and not waiting.done()


def test_a_balanced_call_that_went_elsewhere_outlives_the_engine_that_had_it_first(backend):
    future = backend.sink.register("apply", "f", None)
    backend.sink.started(future.msg_id, "a")
    backend.sink.started(future.msg_id, "b")
    backend.sink.engine_down("a", "killed")
    assert not future.done()
    backend.ok(future.msg_id, 1, engine="b")
    assert future.result(0) == 1


def test_engines_come_and_go_under_the_eyes_of_callbacks(backend):
    events = []

    def broken(event: dict[str, Any]) -> None:
        raise ValueError("a user's")

    backend.sink.engine_callbacks += [broken, events.append]
    backend.sink.engine_up(EngineInfo("c", 2, 1, "here"))
    backend.sink.engine_down("c", "shut down")
    assert events == [
        {"event": "register", "id": 2, "uuid": "c"},
        {"event": "unregister", "id": 2, "uuid": "c"},
    ]


def test_an_engine_that_never_came_up_is_remembered(backend):
    backend.sink.engine_down("x", "exit status 3")
    assert "exit status 3" in backend.sink.hopeless
    backend.sink.engines_starting()
    assert backend.sink.hopeless is None
    assert set(backend.sink.engines) == {"a", "b"}


def test_a_lost_cluster_fails_everything(backend):
    (direct,) = call(backend)
    balanced = backend.sink.register("apply", "f", None)
    backend.sink.disconnected("the scheduler is gone")
    for future in (direct, balanced):
        with pytest.raises(EngineError, match="the scheduler is gone"):
            future.result(0)
    assert not backend.sink.engines
    backend.sent.clear()
    (late,) = call(backend)
    assert not backend.sent
    with pytest.raises(EngineError, match="the scheduler is gone"):
        late.result(0)


def test_who_waits_for_engines_hears_that_the_cluster_is_lost(backend):
    sink = backend.sink
    for key in ("a", "b"):  # these went first
        sink.engine_down(key, "killed")
    waiting, heard = threading.Event(), []

    def wait() -> None:
        with sink.engines_changed:
            waiting.set()
            heard.append(sink.engines_changed.wait_for(lambda: sink.lost))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(90)
    sink.disconnected("the scheduler is gone")
    thread.join(90)
    assert heard == ["the scheduler is gone"]


# -- what is kept -------------------------------------------------------------------


def test_results_are_bounded(backend, monkeypatch):
    monkeypatch.setattr(backend.sink.results.futures, "max_count", 3)
    futures = [call(backend)[0] for _ in range(5)]
    for n, future in enumerate(futures):
        backend.ok(future.msg_id, n)
    results = backend.sink.results
    assert list(results) == [f.msg_id for f in futures[2:]]
    assert [results[m] for m in results] == [2, 3, 4]
    # who holds the future has its result all the same
    assert futures[0].result(0) == 0


def test_results_are_bounded_in_bytes(backend, monkeypatch):
    monkeypatch.setattr(backend.sink.results.futures, "max_bytes", 10_000)
    futures = [call(backend)[0] for _ in range(3)]
    for future in futures:
        backend.ok(future.msg_id, bytes(4000))
    assert list(backend.sink.results) == [f.msg_id for f in futures[1:]]


def test_results_may_be_set_and_are_popped_unread():
    results = Results()
    results["x"] = 5
    assert results["x"] == 5 and "x" in results
    assert results.pop("x") is None
    assert "x" not in results and results.pop("x", 1) == 1


def test_unknown_metadata_is_new(backend):
    md = backend.sink.metadata["unknown"]
    assert md["msg_id"] == "unknown"
    assert backend.sink.metadata["unknown"] is md


def test_the_bounds_are_the_documented_ones(backend):
    assert dispatch.MAX_RESULTS == backend.sink.results.futures.max_count == 1024
    assert dispatch.MAX_RESULT_BYTES == 1 << 30
    assert backend.sink.history.limit == backend.sink.metadata.max_count == 65_536
