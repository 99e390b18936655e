"""Conditions and futures that may be interrupted at; interrupts that Python drops."""

from __future__ import annotations

import concurrent.futures
import inspect
import itertools
import os
import signal
import sys
import threading
from functools import partial
from typing import Any

import pytest

from pxcompat import waiting
from pxcompat.cluster.app import _stop_signals
from pxcompat.engine import interrupts
from pxcompat.engine.interrupts import Condition, OwnFuture
from pxcompat.waiting import Items, wait_for

from ..common import PATIENCE, interrupted_at, wait_until


def test_our_futures_have_what_the_standard_librarys_have() -> None:
    future: OwnFuture[None] = OwnFuture()
    assert future._waiters == [] and future._waiters is future._waiters
    assert "_waiters" in dict(inspect.getmembers(OwnFuture))
    ours, theirs = vars(future), vars(concurrent.futures.Future())
    assert {**ours, "_condition": None} == {**theirs, "_condition": None}


@pytest.mark.parametrize("lock", [None, threading.Lock()])
def test_a_condition_wakes_those_who_wait(lock: threading.Lock | None) -> None:
    condition = Condition(lock)
    with condition:
        condition.notify_all()  # nobody
        assert not condition.wait(0)
    waiting, woken = threading.Semaphore(0), threading.Semaphore(0)

    def wait() -> None:
        with condition:
            waiting.release()
            assert condition.wait(PATIENCE)
        woken.release()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=PATIENCE)
    assert condition.acquire()  # when the last of them has let go of it, that is, waits
    condition.notify(1)
    condition.release()
    assert woken.acquire(timeout=PATIENCE)
    assert not woken.acquire(timeout=0)
    with condition:
        condition.notify_all()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_condition_wakes_those_who_wait_again() -> None:
    condition, waiting = Condition(), threading.Semaphore(0)

    def wait() -> None:
        with condition:
            for _ in range(3):
                waiting.release()
                assert condition.wait(PATIENCE)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for _ in threads:
            assert waiting.acquire(timeout=PATIENCE)
        with condition:  # when the last of them waits
            condition.notify_all()
    for thread in threads:
        thread.join(PATIENCE / 10)
        assert not thread.is_alive()


def test_an_interrupt_as_the_lock_is_let_go_of_is_the_one_that_is_raised() -> None:
    class Interrupting:
        def __init__(self) -> None:
            self._lock = threading.RLock()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lock, name)

        def _release_save(self) -> None:
            self._lock._release_save()  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    condition = Condition(Interrupting())
    with pytest.raises(KeyboardInterrupt), condition:
        condition.wait(PATIENCE)
    assert condition.acquire(blocking=False)
    condition.release()


def innermost() -> str:
    """The line of Python at which the main thread is."""
    frame = sys._current_frames()[threading.main_thread().ident]  # type: ignore[index]
    return str(inspect.getframeinfo(frame).code_context)


def test_a_wait_that_looks_up_as_it_is_notified_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PULSE", 0.01)
    condition = Condition()

    def looks_up() -> bool:
        return "_acquire_restore" in innermost()

    def notify() -> None:
        with condition:
            wait_until(looks_up)
            condition.notify_all()

    thread = threading.Thread(target=notify)
    with condition:
        thread.start()
        assert condition.wait(PATIENCE / 10)
    thread.join()


@pytest.mark.parametrize(
    "wait",
    [
        lambda future: future.result(),
        lambda future: future.result(2 * PATIENCE),
        lambda future: wait_for([future], None),
        lambda future: wait_for([future, OwnFuture()], None, "FIRST_COMPLETED"),
        lambda future: wait_for([future, OwnFuture()], None, "FIRST_EXCEPTION"),
        lambda future: next(Items([future], lambda child: [child], ordered=False)),
    ],
    ids=["future", "timeout", "all", "first", "exception", "items"],
)
def test_an_interrupt_that_ends_no_wait_of_the_systems_ends_ours(wait: Any) -> None:
    """Here since another thread has the signal; else as it comes just before the wait."""
    future = OwnFuture[int]()

    def waits() -> bool:
        return ".acquire" in innermost() or "get(" in innermost()

    def interrupt() -> None:
        wait_until(waits)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    fallback = threading.Timer(PATIENCE, future.set_exception, [TimeoutError()])
    fallback.start()
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        wait(future)
    fallback.cancel()
    thread.join()
    assert not future.done()


@pytest.mark.parametrize("when", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
def test_an_interrupt_anywhere_in_a_wait_keeps_no_reply_from_arriving(when: str) -> None:
    for count in itertools.count(1):
        futures = [OwnFuture[int](), OwnFuture[int]()]
        came, _ = interrupted_at(count, partial(wait_for, futures, 0.01, when))
        for future in futures:
            receiving = threading.Thread(target=future.set_result, args=[1], daemon=True)
            receiving.start()
            receiving.join(PATIENCE / 10)
            assert not receiving.is_alive()
        if not came:
            break


@pytest.mark.parametrize("ordered", [True, False])
def test_an_iteration_that_is_interrupted_anywhere_goes_on_to_its_end(ordered: bool) -> None:
    for count in itertools.count(1):
        futures = [OwnFuture[int](), OwnFuture[int]()]
        for future in futures:
            future.set_result(1)
        items = Items(futures, lambda child: [child], ordered=ordered)  # type: ignore[arg-type]
        came, _ = interrupted_at(count, partial(next, items), str(waiting.__file__), what="line")
        others = threading.Thread(target=list, args=[items], daemon=True)
        others.start()
        others.join(PATIENCE / 10)
        assert not others.is_alive()
        if not came:
            break


def test_waiting_again_and_again_leaves_nothing_at_a_future() -> None:
    first, second = OwnFuture[int](), OwnFuture[int]()
    for _ in range(3):
        found = wait_for([first, second], 0, "FIRST_EXCEPTION")
        assert found.not_done == {first, second}
    assert not first._done_callbacks and not second._done_callbacks
    first.set_exception(OSError())
    assert wait_for([first, second], PATIENCE, "FIRST_EXCEPTION").done == {first}


def test_futures_are_waited_for_by_the_standard_library() -> None:
    first, second = OwnFuture[int](), OwnFuture[int]()
    timer = threading.Timer(0.01, second.set_result, [5])
    timer.start()
    done, pending = concurrent.futures.wait(
        [first, second], PATIENCE, concurrent.futures.FIRST_COMPLETED
    )
    assert (done, pending) == ({second}, {first})
    timer.join()
    first.set_result(4)
    assert {f.result(0) for f in concurrent.futures.as_completed([first, second])} == {4, 5}


def test_an_interrupt_that_python_drops_stops_pxcluster_all_the_same() -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.getpid()  # the handler is called here at the latest, and what it raises goes nowhere

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt), _stop_signals():
            Finalized()
            threading.Event().wait(PATIENCE)
            pytest.fail("nobody was interrupted")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
