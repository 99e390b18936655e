"""What the cells of a notebook show, as text in a terminal or a log (``pxcompat run``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from .display import ANSI, WIDGET, StreamPrinter

__all__ = ["IMAGES", "Transcript"]

#: pictures, which become files, by the suffix of these
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
#: how what an engine prints begins beneath a cell (see ``streaming``)
_HEADING = re.compile(r"\[(stdout|stderr):[^\]\n]*\] ")
#: a progress bar as it was when it was made, which is all that its text tells
_BAR = re.compile(r"\d+%\|")


class Transcript:
    """Prints outputs as they come.

    What an engine prints is one display that grows.  Here its lines are printed as they are
    finished, so that of a line that overwrites itself, as a progress bar does, the last state
    is what stays; and under the engine's heading whenever somebody else spoke before.
    """

    def __init__(self) -> None:
        self._printer = StreamPrinter()
        #: by display id: the lines printed, and what has begun
        self._printed: dict[str, str] = {}
        self._begun: dict[str, tuple[str, TextIO, str]] = {}

    def stream(self, name: str, text: str) -> None:
        """Something that a cell printed here."""
        file = sys.stderr if name == "stderr" else sys.stdout
        if self._printer.heading:
            self._printer.interrupted(file)
        self._print(text, "", file)

    def display(self, data: Mapping[str, Any], display_id: str | None) -> None:
        """Something displayed, or what became of it."""
        text = data.get("text/plain")
        if text is None or IMAGES.keys() & data.keys() or (WIDGET in data and _BAR.search(text)):
            return
        heading = _HEADING.match(text)
        if heading is not None and display_id is not None:
            self._grown(display_id, heading, text[heading.end() :])
        elif text:
            self._printer.interrupted(sys.stdout)
            self._print(f"{text}\n", "", sys.stdout)

    def _grown(self, display_id: str, heading: re.Match[str], text: str) -> None:
        file = sys.stderr if heading[1] == "stderr" else sys.stdout
        end = text.rfind("\n") + 1
        done, before = text[:end], self._printed.get(display_id, "")
        # it is another text after clear_output
        self._print(done.removeprefix(before), heading[0], file)
        self._printed[display_id] = done
        self._begun[display_id] = heading[0], file, text[end:]

    def end_of_cell(self) -> None:
        """Print lines that nobody will finish."""
        begun, self._begun = self._begun, {}
        for heading, file, text in begun.values():
            self._print(text and f"{text}\n", heading, file)
        self._printer.interrupted(sys.stdout)

    def _print(self, text: str, heading: str, file: TextIO) -> None:
        self._printer.print(text if file.isatty() else ANSI.sub("", text), heading, file)
        file.flush()
