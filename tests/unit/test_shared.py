"""Large buffers handed over in memory."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from distributed.protocol.serialize import Serialized

from pxcompat.backends import memory, shared
from pxcompat.backends.dask import wire
from pxcompat.backends.dask.sharing import Sharing
from pxcompat.backends.shared import LEAST, SharedFrames, kept
from pxcompat.protocol import Reply

from ..common import wait_until

pytestmark = pytest.mark.skipif(not shared.can_share(), reason="needs memfd_create and /proc")

BIG = bytearray(b"x" * LEAST)


@pytest.fixture
def here() -> Any:
    """One side of a channel, which has tried the other."""
    side = Sharing()
    answer = Sharing().hear(side.question())  # type: ignore[arg-type]
    side.hear(answer)  # type: ignore[arg-type]
    assert side.ready
    return side


@pytest.fixture
def none_spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is kept that other tests had."""
    with monkeypatch.context() as patch:
        patch.setattr(memory, "SECONDS", 0)
        memory._wake.put(None)
        wait_until(lambda: not memory._spare and not memory._given_back)
    yield


def shared_descriptors() -> set[str]:
    """Those of shared memory; others come and go with threads of other tests."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
                found.add(fd)
    return found


def test_small_buffers_stay_in_the_message(here: Sharing) -> None:
    message = ("request", {"a": 1}, Serialized({}, [b"pickle", b"small"]))
    assert here.outgoing(message) == message
    assert Sharing().incoming(message) == (message, [])


def test_large_buffers_arrive_and_each_side_has_its_own(here: Sharing) -> None:
    sent = here.outgoing(("request", "id", Serialized({}, [b"pickle", BIG, b"", b"odd"])))
    there = Sharing()
    (kind, msg_id, field), tickets = there.incoming(sent)
    assert (kind, msg_id) == ("request", "id")
    assert [bytes(f) for f in field.frames] == [b"pickle", bytes(BIG), b"", b"odd"]
    (_, _, again), _ = there.incoming(sent)
    field.frames[1][0] = 0
    assert again.frames[1][0] == BIG[0] == ord("x")
    for ticket in tickets:
        here.hear(("mapped", ticket))
    assert bytes(again.frames[1]) == bytes(BIG)  # mapped is mapped


def test_nothing_is_kept_open_for_what_has_arrived(
    here: Sharing, none_spare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SECONDS", 0.01)
    before = shared_descriptors()
    sent = here.outgoing(("put", "id", Serialized({}, [b"pickle", BIG])))
    _, tickets = Sharing().incoming(sent)
    assert len(tickets) == 1
    here.hear(("mapped", tickets[0]))
    here.outgoing(("put", "id", Serialized({}, [b"pickle", BIG])))
    here.close()  # the other side went
    gc.collect()
    wait_until(lambda: shared_descriptors() <= before)


def test_memory_that_is_gone_is_nothing(here: Sharing) -> None:
    frames = SharedFrames([b"pickle", BIG])
    field = frames.field()
    del frames
    gc.collect()
    assert Sharing().incoming(("request", field)) == (("request", None), [])


def test_a_side_that_sees_something_else_is_not_shared_with() -> None:
    side = Sharing()
    side.question()
    side.hear(("share!", b"another token"))
    assert not side.ready
    assert Sharing().hear(("share?", {shared.MARK: [os.getpid(), 9999, [16], 0, b""]})) is None


def test_descriptors_are_not_used_up(here: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", len(memory._in_use))
    field = Serialized({}, [b"pickle", BIG])
    assert here.outgoing(("request", field)) == ("request", field)
    assert type(kept([b"pickle", BIG])) is list


def test_a_result_is_copied_once_for_sending_and_remembering(here: Sharing) -> None:
    value = bytearray(BIG)
    frames = kept([b"pickle", value])
    value[0] = 0  # what is returned may change afterwards
    message = wire.pack_reply(Reply("id", "ok", result=frames))
    fd = frames.shared  # type: ignore[attr-defined]
    sent = here.outgoing(message)
    assert fd is None and len(here._held) == 1
    (*_, field, _, _), _ = Sharing().incoming(sent)
    assert bytes(field.frames[1]) == bytes(BIG)
    # for another client, later
    again = wire.pack_reply(Reply("id", "ok", result=frames))
    assert bytes(next(i for i in again if isinstance(i, Serialized)).frames[1]) == bytes(BIG)


# -- used again ---------------------------------------------------------------------------

reused = pytest.mark.skipif(not memory._can_tell(), reason="needs leases on such memory")


def which(frames: SharedFrames) -> int:
    """The memory that frames are in."""
    return os.fstat(frames.field()[shared.MARK][1]).st_ino


def handed_over(byte: bytes = b"x", size: int = LEAST) -> SharedFrames:
    return SharedFrames([b"pickle", byte * size])


@reused
def test_memory_that_nobody_has_is_used_again(none_spare: None) -> None:
    first = handed_over()
    inode = which(first)
    second = handed_over()
    assert which(second) != inode  # it is in use
    del first
    again = handed_over(b"y")
    assert which(again) == inode
    assert bytes(again.frames()[1]) == b"y" * LEAST


@reused
def test_memory_that_is_mapped_is_not(none_spare: None) -> None:
    first = handed_over()
    inode, there = which(first), first.frames()
    part = there[1][:1]
    del first, there
    second = handed_over(b"y")
    assert which(second) != inode
    assert bytes(part) == b"x"
    del second, part
    assert inode in {which(frames) for frames in [handed_over(), handed_over()]}


@reused
def test_memory_that_a_fork_of_its_receiver_has_mapped_is_not(none_spare: None) -> None:
    first = handed_over()
    inode, there = which(first), first.frames()
    reader, writer = os.pipe()
    answer, said = os.pipe()
    if not (pid := os.fork()):
        os.read(reader, 1)
        os.write(said, bytes(there[1][-1:]))
        os._exit(0)
    try:
        del first, there
        assert which(handed_over(b"y")) != inode
    finally:
        os.write(writer, b"!")
        seen = os.read(answer, 1)
        os.waitpid(pid, 0)
        for fd in (reader, writer, answer, said):
            os.close(fd)
    assert seen == b"x"
    assert inode in {which(frames) for frames in [handed_over(), handed_over()]}


@reused
def test_what_comes_late_does_not_get_another_message(none_spare: None) -> None:
    first = handed_over()
    inode, late = which(first), first.field()
    del first
    second = handed_over(b"y")
    assert which(second) == inode
    with pytest.raises(OSError, match="not used for this any more"):
        shared.mapped(late)
    assert Sharing().incoming(("request", late)) == (("request", None), [])


@reused
def test_much_larger_memory_is_not_used_for_little(none_spare: None) -> None:
    large = handed_over(size=2 * LEAST)
    inode = which(large)
    del large
    assert which(handed_over()) != inode
    assert which(handed_over(size=2 * LEAST - LEAST // 8)) == inode


@reused
def test_no_more_is_kept_than_may_be(none_spare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_most", lambda: 2.5 * LEAST)
    several = [handed_over() for _ in range(4)]
    before = shared_descriptors()
    del several
    wait_until(lambda: len(before - shared_descriptors()) == 2)
    assert memory._spare


@reused
def test_what_is_not_used_again_goes_and_so_does_who_waits_for_that(
    none_spare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SECONDS", 0.05)
    before = shared_descriptors()
    handed_over()
    wait_until(lambda: shared_descriptors() <= before)
    gc.collect()
    if not memory.on_the_way():  # of other tests
        wait_until(lambda: "px-memory" not in [t.name for t in threading.enumerate()])


@reused
def test_a_process_that_forked_off_does_not_use_what_its_parent_keeps(none_spare: None) -> None:
    first, held = handed_over(), handed_over()
    inodes = {which(first), which(held)}
    del first
    if not (pid := os.fork()):
        del held
        try:
            mine = {which(frames) for frames in [handed_over(b"z"), handed_over(b"z")]}
        finally:
            os._exit(0 if mine.isdisjoint(inodes) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(held.frames()[1]) == b"x" * LEAST
    del held
    assert {which(frames) for frames in [handed_over(), handed_over()]} & inodes


def test_nothing_is_kept_where_the_system_cannot_tell(
    none_spare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_can_tell", lambda: False)
    before = shared_descriptors()
    handed_over()
    assert shared_descriptors() <= before and not memory._spare


def test_a_signal_handler_waits_for_nothing(none_spare: None) -> None:
    with memory._lock:  # what it has interrupted
        frames = handed_over(b"y")
    assert bytes(frames.frames()[1]) == b"y" * LEAST
    before = shared_descriptors()
    del frames
    assert len(before - shared_descriptors()) == 1  # it is not kept


def test_a_result_is_not_kept_twice(none_spare: None) -> None:
    frames: Any = kept([b"pickle", BIG])
    assert frames.shared is not None
    before = shared_descriptors()
    frames.shared = None  # who was to have it has it; here it stays mapped
    assert len(before - shared_descriptors()) == 1 and not memory._given_back
    assert bytes(frames[1]) == bytes(BIG)
