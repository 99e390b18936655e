"""Items of a map, counted while it runs."""

from __future__ import annotations

from typing import Any

from pxcompat.engine.counting import counted


def test_counts_are_of_items_that_are_done() -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    taken = counted("abc", lambda type, content: said.append((type, content)), interval=0)
    assert next(taken) == "a" and said == []
    assert next(taken) == "b" and said == [("progress", {"done": 1})]
    assert list(taken) == ["c"]
    assert said[-1] == ("progress", {"done": 3})


def test_a_short_map_is_not_counted() -> None:
    said: list[Any] = []
    assert list(counted(range(1000), lambda *event: said.append(event), interval=60)) == list(
        range(1000)
    )
    assert said == []
