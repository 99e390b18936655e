"""Large buffers between a client and engines near it, past Ray's store: in memory that both map."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

import pxcompat as ipp
from pxcompat.backends import shared
from pxcompat.backends.ray import lending
from pxcompat.backends.ray.lending import Borrowed, Lender, Proof, hand_over
from pxcompat.backends.ray.wire import pack_frames, pack_reply, unpack_frames, unpack_reply
from pxcompat.backends.shared import LEAST, MARK, SharedFrames, kept, on_the_way
from pxcompat.error import EngineError
from pxcompat.protocol import Reply

from ..common import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(not shared.can_share(), reason="needs memfd_create and /proc")

FRAMES = [b"pickle", bytearray(b"x" * LEAST)]


@pytest.fixture(autouse=True)
def nothing_stays_on_the_way() -> Any:
    before = on_the_way()
    yield
    gc.collect()
    assert on_the_way() <= before


def test_arguments_are_mapped_by_an_engine_that_is_near() -> None:
    handed = hand_over(FRAMES, near=True)
    assert isinstance(handed, SharedFrames)
    there = unpack_frames(pack_frames(handed))
    assert there == FRAMES
    there[1][0] = 0  # its own
    assert unpack_frames(pack_frames(handed)) == FRAMES


def test_memory_goes_with_the_last_who_has_some_of_it() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:pxcompat")

    before = mapped()
    there = SharedFrames(FRAMES).frames()
    part = there[1][10:20]
    del there
    assert mapped() == before + 1 and bytes(part) == b"x" * 10
    del part
    assert mapped() == before


@pytest.mark.parametrize(
    "frames", [None, [b"pickle"], [bytes(LEAST)], [b"pickle", bytearray(LEAST // 2)]]
)
def test_what_is_small_or_all_pickle_goes_as_it_is(frames: Any) -> None:
    assert hand_over(frames, near=True) is frames


def test_another_engine_gets_frames_however_they_were_handed_over_before() -> None:
    assert hand_over(FRAMES, near=False) is FRAMES
    assert hand_over(hand_over(FRAMES, near=True), near=False) == FRAMES


def test_no_more_is_handed_over_than_may_be_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "MOST", on_the_way() + 2 * LEAST)
    first = hand_over(FRAMES, near=True)
    assert hand_over(FRAMES, near=True) is FRAMES
    assert isinstance(first, SharedFrames)


def test_an_engine_is_near_when_each_can_map_the_others_memory() -> None:
    proof, other, lender = Proof(), Proof(), Lender()
    field = lender.prove("client", proof.field)
    assert proof.given(field)
    assert not other.given(field)
    assert not proof.given(None)
    lender.forget("client")
    assert not proof.given(field)
    gone = {MARK: [os.getpid(), 9999, [16], 0, b""]}
    assert lender.prove("client", gone) is None


def lent(lender: Lender, msg_id: str = "id") -> tuple[Any, Any]:
    """What a client gets of a result that an engine lends it."""
    frames = kept(FRAMES)
    lender.met("client", near=True)
    field = lender.lend("client", msg_id, frames)
    return pack_reply(Reply(msg_id, "ok", result=frames), lent=field)


def test_a_result_is_lent_until_it_was_looked_at() -> None:
    lender = Lender()
    head, apart = lent(lender)
    assert apart is None
    ended = []
    reply = unpack_reply(head, Borrowed(head[5], lambda: ended.append("id")))
    result: Any = reply.result
    assert result.nbytes == sum(map(len, FRAMES))
    assert on_the_way() >= result.nbytes
    assert not ended
    assert result.fetch() == FRAMES == result.fetch()
    assert ended == ["id"]
    lender.take_back("id")
    result.fetch()[1][0] = 0  # mapped is mapped, and the client's own


def test_a_result_that_nobody_wants_is_given_back() -> None:
    lender, ended = Lender(), []
    head, _ = lent(lender)
    borrowed = Borrowed(head[5], lambda: ended.append("id"))
    del borrowed
    assert ended == ["id"]
    lender.forget("client")


def test_nothing_is_lent_to_a_client_that_is_not_near_or_has_gone() -> None:
    lender = Lender()
    assert lender.lend("client", "id", kept(FRAMES)) is None
    lender.met("client", near=False)
    assert lender.lend("client", "id", kept(FRAMES)) is None
    lender.met("client", near=True)
    lender.forget("client")
    assert lender.lend("client", "id", kept(FRAMES)) is None  # its request ran on without it


def test_a_result_whose_engine_ended_too_soon_is_an_error() -> None:
    lender = Lender()
    head, _ = lent(lender)
    lender.take_back("id")
    with pytest.raises(EngineError, match="is lost: its engine ended before"):
        Borrowed(head[5], lambda: None).fetch()


def test_an_engine_lends_no_more_than_may_be_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    lender = Lender()
    first = lent(lender)
    monkeypatch.setattr(lending, "MOST", on_the_way())
    head, apart = lent(lender, "another")
    assert head[5] == sum(map(len, FRAMES))
    assert unpack_frames(apart) == FRAMES
    lender.forget("client")
    assert first[1] is None


def test_an_engine_that_ends_waits_for_what_it_lent_just_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(lending.time, "sleep", slept.append)
    lender = Lender()
    lender.wait()
    assert not slept
    lent(lender)
    lender.wait()
    assert 0 < slept[0] <= lending.GRACE
    lender.forget("client")


# -- on live engines ---------------------------------------------------------------------

MB = 1 << 20


@pytest.fixture
def near(rc: ipp.Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[ipp.Client]:
    """A client whose engines are known to be near; what it puts into the store is an error."""
    engines: Any = rc._backend
    wait_until(lambda: all(engine.near for engine in engines.engines()))
    monkeypatch.setattr(ray, "put", lambda value: pytest.fail("put into the store"))
    yield rc


def test_arrays_are_the_engines_own_and_in_memory_once(near: ipp.Client) -> None:
    view, size = near[:], 64 * MB
    processes = [psutil.Process(pid) for pid in view.apply_sync(os.getpid)]

    def private() -> list[int]:
        return [process.memory_full_info().uss for process in processes]

    before = private()
    view.push({"x": np.ones(size // 8)}, block=True)
    assert view["float(x.sum()), x.flags.writeable"] == [(size // 8, True)] * 2
    assert all(n - b < size // 4 for n, b in zip(private(), before, strict=True))
    near[near.ids[0]].execute("x[:] = 2", block=True)
    assert view["float(x.sum())"] == [size // 4, size // 8]


def test_parts_come_back_and_nothing_stays_lent(near: ipp.Client) -> None:
    view = near[:]
    view.scatter("part", np.arange(4 * MB), block=True)
    whole = view.gather("part", block=True)
    assert (whole == np.arange(4 * MB)).all()
    whole += 1
    assert [int(part[-1]) for part in view["part"]] == [2 * MB - 1, 4 * MB - 1]

    def held() -> int:
        import gc

        from pxcompat.backends.shared import on_the_way

        gc.collect()
        return on_the_way()

    wait_until(lambda: not any(view.apply_sync(held)))
    wait_until(lambda: on_the_way() == 0)


def test_an_array_outlives_its_engine(cluster: ipp.Cluster, near: ipp.Client) -> None:
    name = cluster.start_engines_sync(1)
    near.wait_for_engines(3, timeout=PATIENCE)
    last = near.ids[-1]
    engines: Any = near._backend
    wait_until(lambda: all(engine.near for engine in engines.engines()))
    result = near[last].apply_async(np.ones, MB)
    result.wait(PATIENCE)
    cluster.stop_engines_sync(name)
    wait_until(lambda: last not in near.ids)
    assert result.get(PATIENCE).sum() == MB
