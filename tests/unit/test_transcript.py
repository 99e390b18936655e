"""What the cells of a notebook show, as text in a log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pxcompat.display import WIDGET
from pxcompat.transcript import Transcript

Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def text(what: str) -> dict[str, str]:
    return {"text/plain": what}


def test_lines_of_engines_are_printed_as_they_are_finished(printed: Printed) -> None:
    transcript = Transcript()
    transcript.display(text("[stdout:0] one\ntw"), "a")
    assert printed() == "[stdout:0] \none\n"
    transcript.display(text("[stdout:1] one\n"), "b")
    transcript.display(text("[stdout:0] one\ntwo\n"), "a")
    assert printed() == "[stdout:1] \none\n[stdout:0] \ntwo\n"
    transcript.stream("stdout", "here\n")
    transcript.display(text("[stdout:0] one\ntwo\nthree\n"), "a")
    assert printed() == "here\n[stdout:0] \nthree\n"


def test_of_a_line_that_overwrites_itself_the_last_state_stays(printed: Printed) -> None:
    transcript = Transcript()
    for state in ("0%", "50%", "100%"):
        transcript.display(text(f"[stdout:0] first\n{state}"), "a")
    assert printed() == "[stdout:0] \nfirst\n"
    transcript.end_of_cell()
    assert printed() == "100%\n"
    transcript.end_of_cell()
    assert printed() == ""


def test_other_displays_are_printed_whole(printed: Printed) -> None:
    transcript = Transcript()
    transcript.stream("stdout", "begun")
    transcript.display(text("\x1b[31mOut[0:1]: \x1b[0m42"), None)
    transcript.display(text("a state"), "a")
    transcript.display(text("another"), "a")
    assert printed() == "begun\nOut[0:1]: 42\na state\nanother\n"


def test_pictures_and_bars_are_not_for_a_log(printed: Printed) -> None:
    transcript = Transcript()
    transcript.display({**text("<Figure>"), "image/png": "iVBOR"}, None)
    transcript.display({**text("engines:   0%|          | 0/2"), WIDGET: "{}"}, None)
    transcript.display({**text("IntSlider(value=3)"), WIDGET: "{}"}, None)
    assert printed() == "IntSlider(value=3)\n"
