"""When and where balanced requests may run: dependencies, retries, timeouts, aborting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from pxcompat import serialize
from pxcompat.balance import Balancer
from pxcompat.dependency import Dependency
from pxcompat.error import EngineError, NoEnginesRegistered, RemoteError, TaskAborted
from pxcompat.futures import MessageFuture
from pxcompat.hub import Hub
from pxcompat.protocol import Reply

CALL = (serialize.dumps(len), serialize.dumps((("abc",), {})))


class Timer:
    """A threading.Timer that a test fires."""

    made: ClassVar[list[Timer]] = []

    def __init__(self, seconds: float, function: Any, args: list[Any]) -> None:
        self.fire = lambda: function(*args)
        self.seconds = seconds
        self.cancelled = False
        Timer.made.append(self)

    def start(self) -> None: ...

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def balancer(backend, monkeypatch) -> Iterator[Balancer]:
    monkeypatch.setattr(threading, "Timer", Timer)
    Timer.made.clear()
    # nobody else's requests
    backend.answers["attach"] = lambda key, args: None
    backend.answers["unassigned"] = lambda key, args: []
    backend.answers["fates"] = lambda key, args: {}
    monkeypatch.setattr("pxcompat.hub.ARRIVAL", 0.0)
    balancer = Balancer(backend.sink, Hub(backend.sink))
    yield balancer
    balancer.close()


def submit(balancer: Balancer, n: int = 1, **options: Any) -> list[MessageFuture]:
    given = dict.fromkeys(("targets", "after", "follow", "timeout", "header"))
    given |= {"label": "len", "map": False, "retries": 0, **options}
    return balancer.submit([CALL] * n, **given)


def error_of(future: MessageFuture) -> str:
    error = future.exception(0)
    assert isinstance(error, RemoteError)
    return error.ename


# -- placing ------------------------------------------------------------------------


def test_simple_calls_go_to_the_scheduler_at_once(backend, balancer):
    futures = submit(balancer, 3)
    assert [(where, r.msg_id) for where, r in backend.balanced] == [
        (None, f.msg_id) for f in futures
    ]
    submit(balancer, targets=["b"])
    assert backend.balanced[-1][0] == ["b"]
    assert balancer.knows(futures[0].msg_id)
    backend.ok(futures[0].msg_id, 3)
    assert futures[0].result(0) == 3 and futures[0].metadata["engine_id"] == 0
    assert not balancer.knows(futures[0].msg_id)


def test_the_first_of_many_are_placed_while_the_others_are_got_ready(
    backend, balancer, monkeypatch
):
    registered = []
    place = backend.send_balanced

    def send_balanced(requests, candidates):
        registered.append(len(backend.sink.outstanding))
        place(requests, candidates)

    monkeypatch.setattr(backend, "send_balanced", send_balanced)
    futures = submit(balancer, 1000)
    assert registered[0] < 100 and registered[-1] == 1000
    assert [request.msg_id for _, request in backend.balanced] == [f.msg_id for f in futures]


def test_the_header_keeps_what_the_user_said(backend, balancer):
    (first,) = submit(balancer)
    submit(balancer, after=Dependency(first.msg_id), retries=2, header={"label": "mine"})
    backend.ok(first.msg_id)
    header = backend.balanced[-1][1].header
    assert (header["after"], header["retries"], header["label"]) == ([first.msg_id], 2, "mine")


def test_without_engines_nothing_is_taken_on(backend, balancer):
    backend.sink.engine_down("a", "killed")
    backend.sink.engine_down("b", "killed")
    with pytest.raises(NoEnginesRegistered):
        submit(balancer)
    assert not backend.balanced and not backend.sink.outstanding


# -- dependencies -------------------------------------------------------------------


def test_after_waits_for_all(backend, balancer):
    one, other = submit(balancer, 2)
    (last,) = submit(balancer, after=Dependency([one.msg_id, other.msg_id]))
    assert last.msg_id not in [r.msg_id for _, r in backend.balanced]
    backend.ok(one.msg_id)
    assert last.msg_id not in [r.msg_id for _, r in backend.balanced]
    backend.ok(other.msg_id)
    assert backend.balanced[-1] == (None, backend.balanced[-1][1])
    assert backend.balanced[-1][1].msg_id == last.msg_id


def test_after_any(backend, balancer):
    one, other = submit(balancer, 2)
    (last,) = submit(balancer, after=Dependency([one.msg_id, other.msg_id], all=False))
    backend.ok(other.msg_id)
    assert backend.balanced[-1][1].msg_id == last.msg_id


def test_after_a_direct_request(backend, balancer):
    (direct,) = backend.sink.apply(["b"], *CALL, label="len")
    submit(balancer, after=Dependency(direct.msg_id))
    assert not backend.balanced
    backend.ok(direct.msg_id, engine="b")
    assert len(backend.balanced) == 1


def test_what_ended_before_is_met_at_once(backend, balancer):
    (first,) = submit(balancer)
    backend.ok(first.msg_id)
    (last,) = submit(balancer, after=Dependency(first.msg_id))
    assert backend.balanced[-1][1].msg_id == last.msg_id


def test_a_failure_makes_a_dependency_impossible(backend, balancer):
    (first,) = submit(balancer)
    (last,) = submit(balancer, after=Dependency(first.msg_id))
    (anyway,) = submit(balancer, after=Dependency(first.msg_id, failure=True))
    backend.error(first.msg_id)
    assert error_of(last) == "ImpossibleDependency"
    assert backend.balanced[-1][1].msg_id == anyway.msg_id
    assert last.output.done() and not balancer.knows(last.msg_id)


def test_follow_goes_where_the_other_ran(backend, balancer):
    (first,) = submit(balancer)
    submit(balancer, follow=Dependency(first.msg_id))
    backend.ok(first.msg_id, engine="b")
    assert backend.balanced[-1][0] == ["b"]


def test_follow_two_that_ran_apart_is_impossible(backend, balancer):
    one, other = submit(balancer, 2)
    both = [one.msg_id, other.msg_id]
    (never,) = submit(balancer, follow=Dependency(both))
    (either,) = submit(balancer, follow=Dependency(both, all=False))
    backend.ok(one.msg_id, engine="a")
    backend.ok(other.msg_id, engine="b")
    assert error_of(never) == "ImpossibleDependency"
    assert backend.balanced[-1][1].msg_id == either.msg_id


def test_follow_outside_of_the_targets_is_impossible(backend, balancer):
    (first,) = submit(balancer)
    (never,) = submit(balancer, follow=Dependency(first.msg_id), targets=["a"])
    backend.ok(first.msg_id, engine="b")
    assert error_of(never) == "ImpossibleDependency"


def test_a_dependency_that_nobody_knows_is_invalid(backend, balancer):
    futures = submit(balancer, 2, after=Dependency("of nobody"))
    assert [error_of(f) for f in futures] == ["InvalidDependency"] * 2
    assert {key for key, op, _ in backend.asked if op == "attach"} == {"a", "b"}
    assert "of nobody" in str(futures[0].exception(0))
    assert not backend.sink.outstanding


def test_another_clients_request_can_be_waited_for(backend, balancer):
    header = {"msg_type": "apply_request"}
    record = {"header": header, "submitted": 1.0, "started": 2.0, "status": "running"}
    backend.answers["attach"] = lambda key, args: record if key == "b" else None
    submit(balancer, follow=Dependency("theirs"))
    assert not backend.balanced
    # the engine tells us when it ends
    backend.ok("theirs", engine="b")
    assert backend.balanced[-1][0] == ["b"]


def test_of_a_thousand_that_wait_only_those_that_are_affected_are_looked_at(
    backend, balancer, monkeypatch
):
    one, other = submit(balancer, 2)
    submit(balancer, 1000, after=Dependency(one.msg_id))
    (last,) = submit(balancer, after=Dependency(other.msg_id))
    judged = []
    judge = balancer._judge
    monkeypatch.setattr(balancer, "_judge", lambda job, e: judged.append(job) or judge(job, e))
    backend.ok(other.msg_id)
    assert [job.request.msg_id for job in judged] == [last.msg_id]
    # those that can go at once are sent at once
    calls = len(backend.batches)
    backend.ok(one.msg_id)
    assert len(backend.batches) == calls + 1 and len(backend.batches[-1]) == 1000


def test_a_long_chain_fails_with_its_first(backend, balancer):
    (first,) = chain = submit(balancer)
    for _ in range(3000):  # deeper than Python's stack
        chain += submit(balancer, after=Dependency(chain[-1].msg_id))
    backend.error(first.msg_id)
    assert {error_of(future) for future in chain[1:]} == {"ImpossibleDependency"}
    assert not backend.sink.outstanding


def test_an_impossible_dependency_says_why(backend, balancer):
    one, other = submit(balancer, 2)
    (after,) = submit(balancer, after=Dependency([one.msg_id, other.msg_id]))
    (failure,) = submit(balancer, after=Dependency(other.msg_id, success=False, failure=True))
    (follow,) = submit(balancer, follow=Dependency(other.msg_id), targets=["a"])
    backend.error(one.msg_id)
    backend.ok(other.msg_id, engine="b")
    assert f"['{one.msg_id}'], which failed" in str(after.exception(0))
    assert f"['{other.msg_id}'], which succeeded" in str(failure.exception(0))
    assert f"{other.msg_id} on 1" in str(follow.exception(0))
    assert "among [0]" in str(follow.exception(0))


# -- retries ------------------------------------------------------------------------


def test_a_retry_avoids_the_engine_that_failed(backend, balancer):
    (future,) = submit(balancer, retries=1)
    assert backend.balanced[-1][0] is None
    backend.error(future.msg_id, engine="a")
    assert not future.done()
    assert backend.balanced[-1][0] == ["b"]
    backend.ok(future.msg_id, 5, engine="b")
    assert future.result(0) == 5


def test_retries_end_with_the_error(backend, balancer):
    backend.engines("c")
    (future,) = submit(balancer, retries=1)
    backend.error(future.msg_id, "KeyError", engine="a")
    backend.error(future.msg_id, "ZeroDivisionError", engine="b")
    assert error_of(future) == "ZeroDivisionError"


def test_more_retries_than_engines_end_with_the_last_error(backend, balancer):
    (future,) = submit(balancer, retries=9)
    backend.error(future.msg_id, "KeyError", engine="a")
    backend.error(future.msg_id, "ZeroDivisionError", engine="b")
    assert error_of(future) == "ZeroDivisionError"
    assert len(backend.balanced) == 2


def test_a_refusal_moves_a_call_on_until_every_engine_has_refused(backend, balancer):
    (future,) = submit(balancer)
    backend.error(future.msg_id, "UnmetDependency", engine="b")
    assert backend.balanced[-1][0] == ["a"]
    backend.error(future.msg_id, "UnmetDependency", engine="a")
    assert error_of(future) == "ImpossibleDependency"


def test_a_call_without_retries_fails_once(backend, balancer):
    (future,) = submit(balancer)
    backend.error(future.msg_id)
    assert error_of(future) == "ValueError"
    assert len(backend.balanced) == 1


def test_a_call_whose_engine_dies_is_retried_elsewhere(backend, balancer):
    (future,) = submit(balancer, retries=1)
    backend.sink.started(future.msg_id, "a")
    backend.sink.engine_down("a", "killed")
    assert not future.done()
    assert backend.balanced[-1][0] is None, "the one that is left"
    backend.ok(future.msg_id, 7, engine="b")
    assert future.result(0) == 7


def test_a_call_whose_engines_all_die_fails_with_the_last_death(backend, balancer):
    (future,) = submit(balancer, retries=5)
    for engine in "ab":
        backend.sink.started(future.msg_id, engine)
        backend.sink.engine_down(engine, "killed by signal 9")
    assert isinstance(future.exception(0), EngineError)
    assert "Engine 1 died" in str(future.exception(0))
    assert not balancer.knows(future.msg_id)


def test_without_retries_a_call_ends_with_its_engine(backend, balancer):
    (future,) = submit(balancer)
    backend.sink.started(future.msg_id, "a")
    backend.sink.engine_down("a", "killed")
    assert isinstance(future.exception(0), EngineError)
    assert not balancer.knows(future.msg_id)


def test_an_error_of_no_engine_is_not_retried(backend, balancer):
    (future,) = submit(balancer, retries=3)
    backend.error(future.msg_id, "EngineError", engine=None)
    assert error_of(future) == "EngineError"


# -- timeouts -----------------------------------------------------------------------


def test_a_timeout_ends_the_wait_for_dependencies(backend, balancer):
    (first,) = submit(balancer)
    (late,) = submit(balancer, after=Dependency(first.msg_id), timeout=0.5)
    (timer,) = Timer.made
    assert timer.seconds == 0.5
    timer.fire()
    assert error_of(late) == "TaskTimeout"
    backend.ok(first.msg_id)
    assert late.msg_id not in [r.msg_id for _, r in backend.balanced]


def test_a_timeout_says_what_did_not_end(backend, balancer):
    (first,) = submit(balancer)
    (late,) = submit(balancer, after=Dependency(first.msg_id), timeout=0.5)
    Timer.made[0].fire()
    assert f"['{first.msg_id}'] had not ended" in str(late.exception(0))


def test_a_timeout_is_about_waiting_not_about_running(backend, balancer):
    (future,) = submit(balancer, timeout=0.5)
    Timer.made[0].fire()
    assert not future.done()
    backend.ok(future.msg_id, 1)
    assert future.result(0) == 1


def test_with_a_timeout_retries_wait_for_an_engine_to_come(backend, balancer):
    (future,) = submit(balancer, retries=5, timeout=0.5)
    backend.error(future.msg_id, engine="a")
    backend.error(future.msg_id, engine="b")
    assert not future.done()
    backend.engines("c")
    assert backend.balanced[-1][0] == ["c"]
    backend.error(future.msg_id, engine="c")
    Timer.made[0].fire()
    assert error_of(future) == "TaskTimeout"


def test_time_that_is_up_while_a_try_runs_is_up_for_the_next(backend, balancer):
    (future,) = submit(balancer, retries=5, timeout=0.5)
    backend.error(future.msg_id, engine="a")
    Timer.made[0].fire()
    assert not future.done()
    backend.error(future.msg_id, engine="b")
    assert error_of(future) == "TaskTimeout"


def test_a_timer_ends_with_its_call(backend, balancer):
    (future,) = submit(balancer, timeout=0.5)
    backend.ok(future.msg_id)
    assert Timer.made[0].cancelled


# -- aborting and closing -----------------------------------------------------------


def test_what_waits_is_aborted_without_asking_the_backend(backend, balancer):
    placed, other, one, two = submit(balancer, 4)
    (waiting,) = submit(balancer, after=Dependency(other.msg_id))
    ids = [placed.msg_id, waiting.msg_id, "of nobody"]
    assert balancer.cancel_waiting(ids) == [waiting.msg_id]
    with pytest.raises(TaskAborted):
        waiting.result(0)
    assert not placed.done()
    # kept, so that it can be submitted again
    assert backend.sink.unsent[waiting.msg_id].arguments == CALL[1]
    # so is what an engine refused, which may not have had more than its name
    backend.sink.reply(Reply(placed.msg_id, "aborted", "a"))
    assert backend.sink.unsent[placed.msg_id].arguments == CALL[1]
    # but not any amount of it
    backend.sink.unsent.max_bytes = 2 * len(CALL[1][0])
    for future in (one, two):
        backend.sink.reply(Reply(future.msg_id, "aborted", "a"))
    assert list(backend.sink.unsent) == [one.msg_id, two.msg_id]
    backend.ok(other.msg_id)
    assert waiting.msg_id not in [r.msg_id for _, r in backend.balanced]


def test_a_dead_engine_is_not_a_candidate(backend, balancer):
    backend.engines("c")
    (future,) = submit(balancer, retries=1)
    backend.sink.engine_down("b", "killed")
    backend.error(future.msg_id, engine="a")
    assert backend.balanced[-1][0] == ["c"]


def test_close_forgets_what_waits(backend, balancer):
    (first,) = submit(balancer)
    submit(balancer, after=Dependency(first.msg_id), timeout=9)
    balancer.close()
    assert Timer.made[0].cancelled
    backend.ok(first.msg_id)
    assert len(backend.balanced) == 1
