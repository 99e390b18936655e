"""The public names of the installed ipyparallel, held against pxcompat's.

Needs no cluster; ``tests/api`` has the walk, the table of what is not here, and the page
``docs/compat.md`` that is written from both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..api import compare, document, surface
from ..api.surface import Name


def problems(theirs: Callable[..., Any], ours: Callable[..., Any]) -> list[str]:
    return list(compare.call_problems(surface.parameters(theirs), surface.parameters(ours)))


def test_every_public_name_is_here_or_in_the_table() -> None:
    missing = {f.name: f.problems for f in compare.compare() if f.problems and not f.exemption}
    assert not missing


def test_the_table_names_nothing_that_is_here() -> None:
    assert compare.unused() == []


def test_what_is_absent_for_good_has_a_reason_and_a_substitute() -> None:
    absent = [row for row in compare.exemptions() if row.kind == "absent"]
    assert len(absent) <= 15, "one short table"
    assert all(row.reason and row.instead for row in absent)
    # nothing but what is about these may stand there
    about = ("ZeroMQ", "launch script", "database driver")
    assert [row.names for row in absent if not any(word in row.reason for word in about)] == []


def test_the_page_is_what_the_walk_says() -> None:
    assert document.PATH.read_text(encoding="utf-8") == document.document(), (
        "write it anew: python -m tests.api.document"
    )


class TestWalk:
    """That it sees what there is to see."""

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("Client", "class"),
            ("client.client.Client.ids", "property"),
            ("client.client.Client.wait_for_engines", "method"),
            ("client.client.Client.debug", "attribute"),
            ("client.view.LoadBalancedView.retries", "attribute"),
            ("client.view.View.executor", "attribute"),
            ("cluster.cluster.Cluster.start_cluster", "coroutine"),
            ("cluster.cluster.Cluster.start_cluster_sync", "method"),
            ("cluster.cluster.Cluster.n", "setting"),
            ("client.asyncresult.AsyncResult.__getitem__", "method"),
            ("controller.hub.Hub", "class"),
            ("util.utcnow", "function"),
            ("ALL_COMPLETED", "constant"),
            ("%%px --targets", "option"),
            ("ipcluster start --daemonize", "flag"),
            ("ipengine -c", "flag"),
        ],
    )
    def test_a_name(self, name: str, kind: str) -> None:
        assert compare.theirs()[name].kind == kind

    def test_other_peoples_names_are_not_ipyparallels(self) -> None:
        names = compare.theirs()
        assert "client.view.HasTraits" not in names
        assert "client.client.Client.observe" not in names


class TestCalls:
    """What a call that is valid there would notice here."""

    def test_nothing(self) -> None:
        def theirs(a, b=1, *, c=2): ...
        def ours(a, b=1, d=3, *, c=2, e=4): ...

        assert problems(theirs, ours) == []
        assert problems(theirs, lambda *args, **kwargs: None) == []

    def test_a_name_that_is_not_there(self) -> None:
        assert problems(lambda a, b: 0, lambda a, c: 0) == ["c in the place of b", "no b by name"]
        assert problems(lambda *, key: 0, lambda: 0) == ["no key by name"]

    def test_one_argument_too_many(self) -> None:
        assert problems(lambda a, b=1: 0, lambda a, *, b=1: 0) == ["no b by position"]
        assert problems(lambda *args: 0, lambda a=1, b=2: 0) == ["no *args"]
        assert problems(lambda **kwargs: 0, lambda a=1: 0) == ["no **kwargs"]

    def test_one_too_few(self) -> None:
        assert problems(lambda a=1: 0, lambda a: 0) == ["a is required"]
        assert problems(lambda: 0, lambda a: 0) == ["a is required"]

    def test_another_default(self) -> None:
        assert problems(lambda a=1: 0, lambda a=2: 0) == ["a=2, not 1"]
        assert problems(lambda a=[]: 0, lambda a=(): 0) == []

    def test_names_that_nobody_passes(self) -> None:
        assert problems(lambda _f, a: 0, lambda f, a, /: 0) == ["no a by name"]


class TestMembers:
    class Ours:
        async def start(self) -> None: ...

        @property
        def ids(self) -> list[int]:
            return []

    @pytest.mark.parametrize(
        ("name", "kind", "found"),
        [
            ("start", "coroutine", []),
            ("start", "method", ["a coroutine"]),
            ("ids", "property", []),
            ("ids", "method", ["not a method"]),
            ("stop", "method", ["missing"]),
            ("start", "property", ["a method"]),
        ],
    )
    def test_is_of_its_kind(self, name: str, kind: str, found: list[str]) -> None:
        assert list(compare._member_problems(self.Ours, name, Name(kind, []))) == found
