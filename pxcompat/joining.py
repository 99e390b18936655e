"""Large arrays from several engines made one, without the parts and the whole in memory at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .children import reply_error_of
from .futures import MessageFuture
from .mapping import Map

__all__ = ["LARGE", "join_arrays"]

#: bytes of a part from which on it is worth it
LARGE = 1 << 20


def join_arrays(children: Sequence[MessageFuture], mapping: Map) -> Any:
    """The arrays that finished requests have as their results, joined; None where these are
    anything else, or small.

    Each is let go when it has been copied into the whole: its request's result is from
    then on the part of the whole where it went.
    """
    if not children or any(reply_error_of(c) is not None or c.nbytes < LARGE for c in children):
        return None
    try:
        parts = [child.lend() for child in children]
    except Exception:
        return None  # who asks for the results in the usual way is told
    numpy = sys.modules.get("numpy")  # whoever has an array has imported numpy
    if numpy is None or not all(
        type(part) is numpy.ndarray
        and part.ndim
        and part.flags.c_contiguous
        and (part.dtype, part.shape[1:]) == (parts[0].dtype, parts[0].shape[1:])
        for part in parts
    ):
        return None
    whole = numpy.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    places = mapping.places([len(part) for part in parts])

    def join(index: int) -> None:
        part, parts[index] = parts[index], None
        whole[places[index]] = part
        children[index].settle(whole[places[index]])

    # the system gives a fresh array its memory as it is written: the processors share that
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        list(pool.map(join, range(len(parts))))
    return whole
