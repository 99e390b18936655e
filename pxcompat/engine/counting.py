"""Counts the items of a map while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["counted"]

#: seconds between two counts; short maps are not counted
INTERVAL = 0.2


def counted(
    items: Iterable[Any], emit: Callable[[str, dict[str, Any]], None], interval: float = INTERVAL
) -> Iterator[Any]:
    """The items; every now and then an output event ``progress`` says how many are done."""
    due = time.monotonic() + interval
    for done, item in enumerate(items, 1):
        yield item
        # taken up again when whoever takes the items is done with this one
        now = time.monotonic()
        if now >= due:
            due = now + interval
            emit("progress", {"done": done})
