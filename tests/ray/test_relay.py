"""The client of a second Ray cluster, in a process of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pxcompat.backends.ray.relay import _Sink


def test_what_became_of_its_requests_is_answered_at_once() -> None:
    said: list[Any] = []
    child: Any = SimpleNamespace(say=said.append)
    assert _Sink(child, "s").fates(["s_1"]) == {"s_1": ("held", None)}
    assert not said
