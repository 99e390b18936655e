"""Requests and replies as arguments and return values of actor calls.

Small frames travel inside the call.  Large ones are buffers that Ray writes into its object
store once and gives to the engine as read-only views of it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from pxcompat.protocol import Frames, OutputEvent, Reply, Request
from pxcompat.serialize.memory import owned

from ..shared import KeptFrames, SharedFrames, mapped

__all__ = [
    "LARGE",
    "StoredFrames",
    "pack_frames",
    "pack_output",
    "pack_reply",
    "pack_request",
    "size",
    "unpack_frames",
    "unpack_output",
    "unpack_reply",
    "unpack_request",
]

#: bytes from which on frames go through the object store; Ray's own limit for what it puts
#: into the message of a call
LARGE = 100 * 1024


class StoredFrames:
    """Frames in Ray's object store (:class:`pxcompat.protocol.Handle`).

    Attributes
    ----------
    ref
        Their ObjectRef, which keeps them there.
    """

    __slots__ = ("__weakref__", "nbytes", "ref")

    def __init__(self, ref: Any, nbytes: int) -> None:
        self.ref = ref
        self.nbytes = nbytes


def size(frames: Frames | None) -> int:
    """Bytes in all."""
    nbytes = 0
    for frame in frames or ():
        nbytes += len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes
    return nbytes


def pack_frames(
    frames: Frames | StoredFrames | SharedFrames | None, *, in_band: bool = False
) -> Any:
    """Frames as an argument or return value; ``in_band`` for ways that know no buffers."""
    if frames is None:
        return None
    if isinstance(frames, StoredFrames):
        return frames.ref
    if isinstance(frames, SharedFrames):
        return frames.field()
    if len(frames) == 1 or in_band or size(frames) < LARGE:
        return [*map(bytes, frames)]
    return [bytes(frames[0]), *(pickle.PickleBuffer(frame) for frame in frames[1:])]


def unpack_frames(
    field: Sequence[Any] | dict[str, Any] | None, *, copy: bool = True
) -> Frames | None:
    """The inverse of :func:`pack_frames`.

    With ``copy`` the buffers are writable memory of this process; without they are what came:
    read-only, in the object store if they are large.
    """
    if field is None:
        return None
    if isinstance(field, dict):
        return mapped(field)
    if len(field) == 1:
        return [field[0]]
    buffers = (memoryview(buffer) for buffer in field[1:])
    return [field[0], *(owned(b) if copy else b.toreadonly() for b in buffers)]


def pack_request(request: Request) -> tuple[Any, Any, Any]:
    """The three arguments of a request's call."""
    head = (request.msg_id, request.kind, request.label, request.content, request.header)
    function, arguments = request.function, request.arguments
    return (
        head,
        None if function is None else pack_frames(function),  # type: ignore[arg-type]
        None if arguments is None else pack_frames(arguments),  # type: ignore[arg-type]
    )


def unpack_request(head: tuple[Any, ...], function: Any = None, arguments: Any = None) -> Request:
    msg_id, kind, label, content, header = head
    return Request(
        msg_id,
        kind,
        label,
        content,
        unpack_frames(function),
        unpack_frames(arguments, copy=header.get("copy", True)),
        header,
    )


def pack_reply(
    reply: Reply, *, in_band: bool = False, lent: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], Any]:
    """The reply, and apart from it a result that is too large to go with it; ``lent`` says where
    it is in memory that the client can map."""
    frames: Any = reply.result  # an engine's, so never one that stays elsewhere
    result: Any = lent
    apart, nbytes = None, size(frames)
    if lent is None:
        result = pack_frames(frames, in_band=in_band)
        if nbytes >= LARGE:
            result, apart = nbytes, result
    if isinstance(frames, KeptFrames):
        frames.shared = None  # whom it was lent to has it; what is remembered stays mapped
    head = (
        reply.msg_id,
        reply.status,
        reply.engine,
        reply.started,
        reply.completed,
        result,
        reply.content,
        reply.outputs,
    )
    return head, apart


def unpack_reply(head: tuple[Any, ...], apart: Any = None) -> Reply:
    """The inverse of :func:`pack_reply`; ``apart`` is a reference to the result, or the result."""
    msg_id, status, engine, started, completed, result, content, outputs = head
    frames: Any
    if result is None:
        frames = None
    elif isinstance(result, (int, dict)):
        frames = unpack_frames(apart) if isinstance(apart, (list, tuple)) else apart
    else:
        frames = unpack_frames(result)
    return Reply(msg_id, status, engine, started, completed, frames, content, outputs)


def pack_output(event: OutputEvent) -> tuple[Any, ...]:
    content = event.content
    if "frames" in content:
        content = {**content, "frames": pack_frames(content["frames"])}
    return (event.seq, event.type, content)


def unpack_output(seq: int, type: str, content: dict[str, Any]) -> OutputEvent:
    if "frames" in content:
        content = {**content, "frames": unpack_frames(content["frames"])}
    return OutputEvent(seq, type, content)
