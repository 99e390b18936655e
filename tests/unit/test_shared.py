"""Large buffers handed over in memory."""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any

import pytest
from distributed.protocol.serialize import Serialized

from pxcompat.backends import shared
from pxcompat.backends.dask import wire
from pxcompat.backends.dask.sharing import Sharing
from pxcompat.backends.shared import LEAST, SharedFrames, kept
from pxcompat.protocol import Reply

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


def test_nothing_is_kept_open_for_what_has_arrived(here: Sharing) -> None:
    before = shared_descriptors()
    sent = here.outgoing(("put", "id", Serialized({}, [b"pickle", BIG])))
    _, tickets = Sharing().incoming(sent)
    assert len(tickets) == 1
    here.hear(("mapped", tickets[0]))
    here.outgoing(("put", "id", Serialized({}, [b"pickle", BIG])))
    here.close()  # the other side went
    gc.collect()
    assert shared_descriptors() <= before


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
    assert Sharing().hear(("share?", {shared.MARK: [os.getpid(), 9999, [16], 0]})) is None


def test_descriptors_are_not_used_up(here: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MOST", len(shared._open))
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
