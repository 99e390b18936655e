"""Coroutine methods from blocking ones."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["twin"]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def twin(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The coroutine method ``name`` that does on a thread what ``name_sync`` does."""

    @functools.wraps(method)
    async def coroutine(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # looked up by name, so that a subclass need override only one of the two
        blocking = functools.partial(getattr(self, method.__name__), *args, **kwargs)
        return await asyncio.to_thread(blocking)

    coroutine.__name__ = method.__name__.removesuffix("_sync")
    coroutine.__qualname__ = method.__qualname__.removesuffix("_sync")
    return coroutine
