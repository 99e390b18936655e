"""A request's future, and helpers for futures of any kind."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import sys
import threading
from concurrent.futures import CancelledError, Future

import pytest
from IPython.lib.pretty import pretty

from pxcompat.futures import (
    MessageFuture,
    Metadata,
    future_add_done_callback,
    future_set_exc_info,
    future_set_result_unless_cancelled,
    multi_future,
)

from ..common import logged


def test_made_as_ipyparallels_is():
    future = MessageFuture("m", {"msg_type": "apply_request"}, track=True)
    assert (future.msg_id, future.header["msg_type"], future.track) == ("m", "apply_request", True)
    assert MessageFuture("m", method="execute").header == {"msg_type": "execute_request"}


def test_wait_says_whether_it_is_done():
    future = MessageFuture("m")
    assert future.wait(0) is False
    future.finish_value(1)
    assert future.wait(0) is True and future.wait() is True


def test_its_tracker_is_done_when_it_was_sent():
    future = MessageFuture("m")
    assert not future.tracker.done()
    future.sent.set_result(None)
    assert future.tracker.done()


def test_a_result_for_a_future_that_was_cancelled():
    future: Future[int] = Future()
    future.cancel()
    future_set_result_unless_cancelled(future, 1)
    assert future.cancelled()
    other: Future[int] = Future()
    future_set_result_unless_cancelled(other, 1)
    assert other.result() == 1


def test_an_exception_as_sys_gives_it():
    future: Future[int] = Future()
    error = ValueError("x")
    future_set_exc_info(future, (ValueError, error, None))
    assert future.exception() is error


def test_a_callback_of_what_is_done_runs_at_once():
    called: list[object] = []

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_result(1)
        future_add_done_callback(future, called.append)  # asyncio's own would wait for the loop
        assert called == [future]

    asyncio.run(main())


class TestMultiFuture:
    def test_results_in_order(self) -> None:
        a, b = Future[int](), Future[int]()
        together = multi_future([a, b, a])
        b.set_result(2)
        assert not together.done()
        a.set_result(1)
        assert together.result(0) == [1, 2, 1]

    def test_nothing(self) -> None:
        assert multi_future([]).result(0) == []

    def test_the_first_exception_counts_and_others_are_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        futures = [Future[int]() for _ in range(3)]
        together = multi_future(futures)
        with caplog.at_level(logging.ERROR):
            futures[2].set_exception(KeyError("second"))
            futures[0].set_result(1)
            futures[1].set_exception(ValueError("first"))
        with pytest.raises(ValueError, match="first"):
            together.result(0)
        assert len(logged(caplog)) == 1

    def test_one_that_was_cancelled(self) -> None:
        future = Future[int]()
        together = multi_future([future])
        future.cancel()
        with pytest.raises(CancelledError):
            together.result(0)


def test_text_that_comes_while_somebody_looks_is_not_lost():
    metadata, lines = Metadata(), [f"{i}\n" for i in range(5000)]
    thread = threading.Thread(target=lambda: [metadata.add_text("stdout", s) for s in lines])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # each step of the one may fall between any two of the other
    try:
        thread.start()
        while thread.is_alive():
            assert metadata["stdout"][:2] in ("", "0\n")
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert metadata["stdout"] == "".join(lines)


def test_what_is_known_of_a_request_can_be_copied_and_pickled():
    metadata = Metadata(msg_id="m0", engine_id=0)
    metadata.add_text("stdout", "printed")
    for same in (
        copy.copy(metadata),
        copy.deepcopy(metadata),
        pickle.loads(pickle.dumps(metadata)),
    ):
        assert type(same) is Metadata
        assert same == metadata
        assert same.stdout == "printed"
    assert copy.deepcopy(metadata).outputs is not metadata.outputs


def test_what_is_known_of_a_request_is_shown_a_line_a_key():
    metadata = Metadata(msg_id="m0", engine_id=0)
    metadata.add_text("stdout", "printed")
    assert pretty(metadata) == pretty(dict(metadata))
    assert pretty([metadata]).startswith("[{'msg_id': 'm0',\n  'submitted': None,\n")
    assert " 'stdout': 'printed',\n" in pretty(metadata)
