"""What an engine remembers for whoever looks at it."""

from __future__ import annotations

from pxcompat.engine.journal import Journal
from pxcompat.protocol import Reply, Request


def note(journal: Journal, *numbers: int, status: str = "ok") -> None:
    for n in numbers:
        request = Request(f"m{n}", "apply", "f", header={"balanced": n == 1})
        ran = status != "aborted"
        times = {"started": float(n), "completed": n + 0.5} if ran else {}
        journal.note(request, Reply(f"m{n}", status, "e", result=[b"abc"], **times))  # type: ignore[arg-type]


def test_who_looks_again_sees_what_is_new() -> None:
    journal = Journal()
    note(journal, 0, 1)
    first = journal.since(0)
    assert [(c.msg_id, c.name, c.balanced, c.nbytes) for c in first] == [
        ("m0", "px:apply:f", False, 3),
        ("m1", "px:apply:f", True, 3),
    ]
    index = journal.index
    assert journal.since(index) == []
    note(journal, 2)
    assert [c.msg_id for c in journal.since(index)] == ["m2"]


def test_the_oldest_go_first_and_all_are_counted() -> None:
    journal = Journal(length=3)
    note(journal, *range(10))
    assert [c.msg_id for c in journal.since(0)] == ["m7", "m8", "m9"]
    assert journal.index == 10
    assert journal.totals()["ok"] == 10


def test_what_never_ran_is_counted_but_has_no_time() -> None:
    journal = Journal()
    note(journal, 1, status="error")
    note(journal, 2, status="aborted")
    assert journal.totals() == {"ok": 0, "error": 1, "aborted": 1, "seconds": 0.5}
    assert [c.msg_id for c in journal.since(0)] == ["m1"]
