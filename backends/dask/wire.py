"""Requests, replies and output as messages of a channel.

A message is a tuple: its kind, then plain (msgpack-able) fields.  Frames ride along as
``Serialized`` objects, which Dask's comms pass on without looking into them.
"""

from __future__ import annotations

from typing import Any

from distributed.protocol.serialize import Serialized

from pxcompat.protocol import Frames, OutputEvent, Reply, Request

from ..shared import KeptFrames, SharedFrames
from .objects import pack_natives, unpack_natives

__all__ = ["Blob", "Message", "encodable"]

Message = tuple[Any, ...]

#: bytes of a pickle without buffers that goes within its message
SMALL = 16 * 1024


class Blob:
    """A :class:`pxcompat.protocol.Handle`: frames held by one engine, for several.

    Attributes
    ----------
    id
        Name of the blob at its holder.
    address
        Address of the worker that holds it.
    """

    __slots__ = ("__weakref__", "address", "id", "nbytes")

    def __init__(self, id: str, address: str, nbytes: int) -> None:
        self.id = id
        self.address = address
        self.nbytes = nbytes


def pack_frames(frames: Frames | Blob | None) -> Any:
    """Frames, or where they are held, as a field of a message."""
    if isinstance(frames, Blob):
        return (frames.id, frames.address, frames.nbytes)
    if frames is None:
        return None
    if isinstance(frames, SharedFrames):
        return frames.field()
    if len(frames) == 1 and len(frames[0]) <= SMALL:
        return bytes(frames[0])  # in the message itself: a frame of its own costs more
    # the header must be a new dict each time: Dask notes the number of frames in it
    field: Any = Serialized({}, list(frames))
    if isinstance(frames, KeptFrames):
        field.px_shared, frames.shared = frames.shared, None
    return field


def unpack_frames(field: Any) -> Frames | Blob | None:
    """The inverse of :func:`pack_frames`."""
    if field is None:
        return None
    if isinstance(field, bytes):
        return [field]
    if isinstance(field, Serialized):
        return list(field.frames)
    return Blob(*field)


def encodable(value: Any) -> Any:
    """Plain data with what UTF-8 has no bytes for as escapes: msgpack refuses lone surrogates, as
    they come of file names that are not UTF-8."""
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="backslashreplace").decode()
        return value
    if type(value) is dict:
        return {encodable(key): encodable(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(encodable, value))
    return value


def pack_request(request: Request) -> Message:
    return (
        "request",
        request.msg_id,
        request.kind,
        encodable(request.label),
        encodable(request.content),
        encodable(request.header),
        pack_frames(request.function),  # type: ignore[arg-type]
        pack_frames(request.arguments),  # type: ignore[arg-type]
        pack_natives(request.natives),
    )


def unpack_request(message: Message) -> Request:
    _, msg_id, kind, label, content, header, function, arguments, natives = message
    return Request(
        msg_id,
        kind,
        label,
        content,
        unpack_frames(function),
        unpack_frames(arguments),
        header,
        unpack_natives(natives),
    )


def pack_reply(reply: Reply) -> Message:
    return (
        "reply",
        reply.msg_id,
        reply.status,
        reply.engine,
        reply.started,
        reply.completed,
        pack_frames(reply.result),  # type: ignore[arg-type]  # an engine's: frames
        encodable(reply.content),
        reply.outputs,
    )


def unpack_reply(message: Message) -> Reply:
    _, msg_id, status, engine, started, completed, result, content, outputs = message
    frames = unpack_frames(result)
    if frames is None and status == "ok" and "execution_count" not in content:
        status, content = "error", _without_result(engine)
    return Reply(
        msg_id,
        status,
        engine,
        started,
        completed,
        frames,  # type: ignore[arg-type]
        content,
        outputs,
    )


def _without_result(engine: str | None) -> dict[str, Any]:
    """The failure of a call whose result was in memory of its engine, which went first."""
    return {
        "ename": "EngineError",
        "evalue": "the memory that its result was in is gone, or finds no room here: an engine"
        " that dies takes along what nobody has fetched",
        "traceback": [],
        "engine_info": {"engine_uuid": engine, "engine_id": None, "method": "apply"},
    }


def pack_output(msg_id: str, event: OutputEvent) -> Message:
    content = encodable(event.content)
    if "frames" in content:
        content["frames"] = pack_frames(event.content["frames"])
    return ("output", msg_id, event.seq, event.type, content)


def unpack_output(message: Message) -> tuple[str, OutputEvent]:
    _, msg_id, seq, type, content = message
    if "frames" in content:
        content = {**content, "frames": unpack_frames(content["frames"])}
    return msg_id, OutputEvent(seq, type, content)
