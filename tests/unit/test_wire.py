"""Requests, replies and output as messages of a channel, there and back."""

from __future__ import annotations

from typing import Any

import pytest
from distributed.protocol import dumps, loads
from distributed.protocol.serialize import Serialized

from pxcompat.backends.dask import wire
from pxcompat.backends.dask.wire import Blob
from pxcompat.error import EngineError, unwrap_exception
from pxcompat.protocol import Handle, OutputEvent, Reply, Request

FRAMES = [b"pickle", bytearray(b"buffer"), memoryview(b"view")]


def through_dask(message: Any) -> Any:
    """As one end of a comm writes it and the other reads it."""
    frames = [bytes(frame) for frame in dumps([message], context={"compression": None})]
    (received,) = loads(frames, deserialize=False)
    return received


def as_bytes(frames: Any) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("frames", [FRAMES, [b""], [b"p", bytearray()], []])
def test_requests(frames):
    header = {"client": "c", "submitted": 1.5, "after": ["x"], "label": None}
    request = Request("id", "apply", "f", {"map": True}, [b"f"], frames, header)
    got = wire.unpack_request(through_dask(wire.pack_request(request)))
    assert (got.msg_id, got.kind, got.label) == ("id", "apply", "f")
    assert (got.content, dict(got.header, after=list(got.header["after"]))) == (
        {"map": True},
        header,
    )
    assert as_bytes(got.function) == [b"f"]
    assert as_bytes(got.arguments) == as_bytes(frames)


def test_an_execute_request_has_no_frames():
    content = {"code": "é = 1", "silent": False, "store_history": True}
    got = wire.unpack_request(
        through_dask(wire.pack_request(Request("i", "execute", "l", content)))
    )
    assert (got.content, got.function, got.arguments) == (content, None, None)


def test_a_value_held_elsewhere_is_an_address():
    blob = Blob("b", "tls://host:1", 7)
    assert isinstance(blob, Handle)
    request = Request("id", "apply", "f", function=[b"f"], arguments=blob)
    got = wire.unpack_request(through_dask(wire.pack_request(request))).arguments
    assert isinstance(got, Blob)
    assert (got.id, got.address, got.nbytes) == ("b", "tls://host:1", 7)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("id", "ok", "e", 1.0, 2.0, FRAMES, {}, 3),
        Reply("id", "error", "e", 1.0, 2.0, None, {"ename": "E", "traceback": ["a", "b"]}),
        Reply("id", "aborted"),
    ],
)
def test_replies(reply):
    got = wire.unpack_reply(through_dask(wire.pack_reply(reply)))
    for name in ("msg_id", "status", "engine", "started", "completed", "outputs"):
        assert getattr(got, name) == getattr(reply, name)
    assert got.content.get("ename") == reply.content.get("ename")
    assert list(got.content.get("traceback", [])) == reply.content.get("traceback", [])
    if reply.result is None:
        assert got.result is None
    else:
        assert as_bytes(got.result) == as_bytes(reply.result)


def test_a_result_whose_memory_went_with_its_engine_is_an_engines_error():
    message = wire.pack_reply(Reply("id", "ok", "e", 1.0, 2.0, FRAMES, {}, 3))
    got = wire.unpack_reply(tuple(None if _framed(item) else item for item in message))
    assert (got.status, got.result, got.outputs) == ("error", None, 3)
    with pytest.raises(EngineError, match="result"):
        raise unwrap_exception(got.content)
    # of a cell there is none
    executed = Reply("id", "ok", "e", 1.0, 2.0, None, {"execution_count": 1})
    assert wire.unpack_reply(wire.pack_reply(executed)).status == "ok"


def test_output():
    event = OutputEvent(4, "stream", {"name": "stdout", "text": "é\n"})
    msg_id, got = wire.unpack_output(through_dask(wire.pack_output("id", event)))
    assert (msg_id, got) == ("id", event)


def test_published_data_travels_as_frames():
    event = OutputEvent(0, "data", {"frames": FRAMES})
    _, got = wire.unpack_output(through_dask(wire.pack_output("id", event)))
    assert as_bytes(got.content["frames"]) == as_bytes(FRAMES)
    assert event.content["frames"] is FRAMES


def test_packing_shares_the_buffers_and_leaves_the_list_alone():
    (packed,) = (item for item in wire.pack_reply(Reply("i", "ok", result=FRAMES)) if _framed(item))
    assert packed.frames[1] is FRAMES[1]
    packed.frames.append(b"more")
    assert len(FRAMES) == 3


def _framed(item: Any) -> bool:
    return isinstance(item, Serialized)
