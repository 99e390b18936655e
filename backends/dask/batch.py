"""Batches of balanced calls: what a Dask task carries, and what its key says.

The key of a batch is ``<name>-<number>-<session>_<numbers>``: the name for the dashboard, a
number for Dask, which must not take two for one, and the msg_ids of its calls, so that
whoever sees the task knows whose they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pxcompat.protocol import Frames, Request

from .objects import pack_natives, unpack_natives
from .wire import Blob

__all__ = ["Batch", "ids_of_key", "key_of", "pack", "unpack"]


@dataclass(eq=False)
class Batch:
    """Calls that were sent to an engine or the scheduler together."""

    key: str
    kind: Any
    requests: list[Request]
    candidates: tuple[str, ...] | None
    #: the engine that it was sent to, where it did not go through the scheduler
    engine: str | None = None
    left: set[str] = field(default_factory=set)


def key_of(requests: Sequence[Request], number: int) -> str:
    """The key of these calls, which are one client's and have one name."""
    # Dask takes what comes before the first number for the name of the task
    name = requests[0].name.replace("-", "_")
    session = requests[0].msg_id.rpartition("_")[0]
    runs: list[list[int]] = []
    for request in requests:
        count = int(request.msg_id.rpartition("_")[2])
        if runs and runs[-1][1] == count - 1:
            runs[-1][1] = count
        else:
            runs.append([count, count])
    numbers = "+".join(str(a) if a == b else f"{a}:{b}" for a, b in runs)
    return f"{name}-{number}-{session}_{numbers}"


def ids_of_key(key: str) -> Iterator[str]:
    """The msg_ids in a batch's key."""
    session, _, numbers = key.rpartition("-")[2].rpartition("_")
    for run in numbers.split("+"):
        first, _, last = run.partition(":")
        for count in range(int(first), int(last or first) + 1):
            yield f"{session}_{count}"


def pack(requests: Sequence[Request]) -> bytes:
    """The calls as bytes; what they share, such as the function of a map, is in it once."""
    return pickle.dumps(
        [
            (
                r.msg_id,
                r.kind,
                r.label,
                r.content,
                _plain(r.function),
                _plain(r.arguments),
                r.header,
                pack_natives(r.natives),
            )
            for r in requests
        ],
        protocol=5,
    )


def _plain(frames: Any) -> Any:
    if isinstance(frames, Blob):
        return ("blob", frames.id, frames.address, frames.nbytes)
    if frames is None:
        return None  # of code, which is in the request's content
    if len(frames) == 1 and type(frames[0]) is bytes:
        return frames  # as it is: pickle knows it again in the next call
    return [frames[0] if type(frames[0]) is bytes else bytes(frames[0])] + [
        bytearray(frame) for frame in frames[1:]
    ]


def _revived(frames: Any) -> Frames | Blob | None:
    return Blob(*frames[1:]) if isinstance(frames, tuple) else frames


def unpack(data: bytes) -> list[Request]:
    """The inverse of :func:`pack`."""
    requests = []
    for msg_id, kind, label, content, function, arguments, header, natives in pickle.loads(data):
        requests.append(
            Request(
                msg_id,
                kind,
                label,
                content,
                _revived(function),
                _revived(arguments),
                dict(header),
                unpack_natives(natives),
            )
        )
    return requests
