"""What is bound where, as ``%pxwho`` shows it."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

from pxcompat import engine
from pxcompat.engine.names import describe, largest, total
from pxcompat.magics.who import Names


def test_names_that_differ_are_marked() -> None:
    one = ("int", "", 28, "1")
    engines = {
        0: {"same": one, "part": ("list", "len 2", 72, ""), "only": one},
        1: {"same": one, "part": ("list", "len 2", 72, "")},
        2: {"same": one, "part": ("list", "len 1", 1064, "")},
    }
    assert repr(Names(engines)).splitlines()[2:] == [
        "≠  only  0        int                  28  1",
        "≠  only  1-2      not there",
        "≠  part  0-1      list       len 2     72",
        "≠  part  2        list       len 1  1,064",
        "   same  0-2      int                  28  1",
    ]
    page = Names(engines, differences=True)._repr_html_()
    assert "same" not in page and page.count("background") == 4
    assert repr(Names({0: {}, 1: {}})) == "no names on engines 0-1"


def test_what_was_asked_for_and_is_nowhere_is_said() -> None:
    engines = {n: {"same": ("int", "", 28, "1")} for n in range(2)}
    some = Names(engines, ["s*", "nosuch", "x?"])
    assert repr(some).splitlines()[2:] == [
        "  same  0-1      int             28  1",
        "nothing named nosuch, x? on engines 0-1",
    ]
    assert some._repr_html_().endswith("<p>nothing named nosuch, x? on engines 0-1</p>")
    assert repr(Names({0: {}, 1: {}}, ["nosuch"])) == "nothing named nosuch on engines 0-1"
    assert repr(Names(engines, ["same"], differences=True)) == "no names that differ on engines 0-1"


def test_names_of_a_namespace() -> None:
    shell = SimpleNamespace(user_ns={}, user_ns_hidden={"hidden": 1})

    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("asked for " + name)

    class Sized:
        shape, dtype, nbytes = (2, 3), "int8", 6

    shell.user_ns.update(hidden=1, _private=1, lazy=Lazy(), sized=Sized(), text="x" * 50, re=re)
    engine.set_current(SimpleNamespace(shell=shell), process=False)  # type: ignore[arg-type]
    try:
        names = describe([])
        assert describe(["_pri*", "siz?d"]).keys() == {"_private", "sized"}
    finally:
        engine.set_current(None, process=False)
    assert names.keys() == {"lazy", "sized", "text", "re"}
    assert names["sized"] == ("Sized of int8", "2x3", 6, "")
    assert names["lazy"][:2] == ("Lazy", "")
    assert names["text"] == ("str", "len 50", sys.getsizeof("x" * 50), "'" + "x" * 36 + "...")
    assert names["re"][3] == "re"


def test_what_says_to_be_larger_than_can_be_told() -> None:
    class Huge:
        nbytes = 10**30

    class Lazy(Huge):
        def __dask_graph__(self) -> None: ...

    shell: Any = SimpleNamespace(user_ns={"n" * 1000: Huge(), "b": Huge()}, user_ns_hidden={})
    assert total(shell) == (2, 2**63 - 1)
    assert {name: size for name, (_, _, size) in largest(shell, 2).items()} == {
        "n" * 97 + "...": 2**63 - 1,
        "b": 2**63 - 1,
    }
    shell.user_ns = {"lazy": Lazy()}
    assert total(shell)[1] < 1000
