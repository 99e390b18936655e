"""Output as it arrives, on a terminal, in a file and in a notebook's cell."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyte
import pytest
from tqdm import tqdm

from pxcompat import streaming
from pxcompat.dispatch import _record
from pxcompat.display import show_folded_errors, show_outputs
from pxcompat.error import CompositeError, ErrorItem
from pxcompat.futures import MessageFuture, Metadata
from pxcompat.protocol import OutputEvent
from pxcompat.streaming import OutputStreamer

from ..common import wait_until


class Engine:
    """A request on an engine, which says what it is told to."""

    def __init__(self, number: int) -> None:
        self.future = MessageFuture(f"m{number}", "execute")
        self.future.metadata["engine_id"] = number
        self._count = 0

    def say(self, type: str, **content: Any) -> None:
        event = OutputEvent(self._count, type, content)
        self._count += 1
        self.future.write_output(event, lambda metadata: _record(metadata, event))

    def print(self, text: str, name: str = "stdout") -> None:
        self.say("stream", name=name, text=text)


class Output(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def screen(self) -> list[str]:
        """The lines a terminal shows in the end, empty ones left out."""
        screen = pyte.Screen(80, 100)
        screen.set_mode(pyte.modes.LNM)
        pyte.Stream(screen).feed(self.getvalue())
        return [line for shown in screen.display if (line := shown.rstrip())]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Output]:
    """Makes stdout and stderr one terminal, or one file."""

    def make(terminal: bool) -> Output:
        output = Output(terminal)
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", output)
        return output

    return make


def streamed(*engines: Engine) -> OutputStreamer:
    return OutputStreamer([(engine.future, None) for engine in engines])


def test_pieces_of_several_engines(out: Callable[[bool], Output]) -> None:
    output, a, b = out(False), Engine(0), Engine(1)
    a.print("early\n")
    with streamed(a, b):
        b.print("one ")
        b.print("line\n")
        a.print("no newline")
        b.print("then b\n")
    assert output.getvalue().splitlines() == [
        "[stdout:0] ",
        "early",
        "[stdout:1] ",
        "one line",
        "[stdout:0] ",
        "no newline",
        "[stdout:1] ",
        "then b",
    ]


def test_bars_in_a_file_are_written_when_they_are_finished(out: Callable[[bool], Output]) -> None:
    output, a, b = out(False), Engine(0), Engine(1)
    with streamed(a, b):
        for done in range(10):
            a.print(f"\r{done}0%", "stderr")
            b.print(f"\r{done}/10", "stderr")
        a.print("\r100%", "stderr")
        a.print("\nafter\n", "stderr")
    assert output.getvalue().splitlines() == ["[stderr:0] ", "100%", "after", "[stderr:1] ", "9/10"]


def test_bars_on_a_terminal_keep_their_lines(out: Callable[[bool], Output]) -> None:
    output, a, b = out(True), Engine(0), Engine(1)
    shown: list[list[str]] = []
    streamer = streamed(b, a)
    with streamer:
        for done in (1, 2):
            b.print(f"\rb {done}")
            a.print(f"\ra {done}")
        a.print("\rthe end\n")
        streamer._queue.put(lambda: shown.append(output.screen()))
        b.print("\rb 3")
    assert shown == [["[stdout:0]", "the end", "[stdout:1] b 2"]]
    assert output.screen() == ["[stdout:0]", "the end", "[stdout:1]", "b 3"]


def test_a_bar_here_that_ends_keeps_its_line_beneath_those_of_engines(
    out: Callable[[bool], Output],
) -> None:
    output, a, b = out(True), Engine(0), Engine(1)
    with streamed(a, b):
        a.print("\ra 1")
        b.print("\rb 1")
        wait_until(lambda: output.screen() == ["[stdout:0] a 1", "[stdout:1] b 1"])
        with tqdm(total=2, desc="%px", file=output) as bar:
            drawn = output.getvalue().count("a 1")
            wait_until(lambda: output.getvalue().count("a 1") > drawn)
            bar.update(2)
            with bar.get_lock():
                bar.close()
        a.print("\ra 2\n")
    bar_line, *rest = (line for line in output.screen() if not line.startswith("[stdout"))
    assert bar_line.startswith("%px: 100%")
    assert rest == ["a 2", "b 1"]


def test_of_many_bars_a_terminal_shows_some(
    out: Callable[[bool], Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "REDRAW", 0)
    output, engines = out(True), [Engine(i) for i in range(30)]
    shown: list[list[str]] = []
    streamer = streamed(*engines)
    with streamer:
        for engine in engines:
            engine.print("\r50%")
        streamer._queue.put(lambda: shown.append(output.screen()))
    assert len(shown[0]) == streaming.LIVE_LINES
    assert shown[0][-1] == "... and 21 more"
    assert len(output.screen()) == 60


@pytest.mark.parametrize("redraw, drawn", [(1000, ["0%", "100%"]), (0.05, ["0%", "99%", "100%"])])
def test_bars_are_redrawn_only_so_often(
    out: Callable[[bool], Output], monkeypatch: pytest.MonkeyPatch, redraw: float, drawn: list[str]
) -> None:
    monkeypatch.setattr(streaming, "REDRAW", redraw)
    output, a = out(True), Engine(0)
    begun = threading.Event()
    streamer = streamed(a)
    with streamer:
        a.print("\r0%")
        streamer._queue.put(begun.set)
        assert begun.wait(90)
        a.print("\r99%")
        deadline = time.monotonic() + 90
        while "99%" in drawn and "99%" not in output.getvalue():
            assert time.monotonic() < deadline, "what was held back was not drawn when it was due"
            time.sleep(0.01)
        a.print("\r100%")
    assert list(dict.fromkeys(re.findall(r"\d+%", output.getvalue()))) == drawn


def test_show_until_done_ends_by_itself(out: Callable[[bool], Output]) -> None:
    output, a = out(False), Engine(0)
    streamer = streamed(a)
    streamer.show_until_done()
    a.print("live\n")
    a.future.output.set_result(None)
    streamer._thread.join(90)
    assert not streamer._thread.is_alive()
    assert output.getvalue() == "[stdout:0] \nlive\n"


class Publisher:
    """A notebook's display publisher, which notes what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[Any, str | None, bool]] = []
        self.then: Callable[[str], None] = lambda text: None

    def publish(
        self, data: Any, metadata: Any = None, *, transient: Any, update: bool = False
    ) -> None:
        self.published.append((data["text/plain"], transient.get("display_id"), update))
        self.then(data["text/plain"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """Makes this process a kernel, for what shows output."""
    publisher = Publisher()
    shell = SimpleNamespace(kernel=True, display_pub=publisher, colors="nocolor")
    monkeypatch.setattr("pxcompat.streaming.get_shell", lambda: shell)
    monkeypatch.setattr("pxcompat.streaming.in_kernel", lambda: True)
    return publisher


def test_a_stream_in_a_cell_grows_in_place(cell: Publisher) -> None:
    a = Engine(0)
    with streamed(a):
        a.print("\r1")
        a.print("\r2\n")
        a.print("more\n")
    texts = [text for text, _, _ in cell.published]
    assert texts[-1] == "[stdout:0] 2\nmore\n"
    ids = {(display_id, update) for _, display_id, update in cell.published}
    assert ids <= {("m0-stdout", False), ("m0-stdout", True)}
    assert [update for _, _, update in cell.published].count(False) == 1


def test_each_of_several_results_of_a_cell_is_shown(cell: Publisher) -> None:
    a = Engine(0)
    both_are_here = threading.Event()

    def hold_back(text: str) -> None:
        both_are_here.wait(5)

    cell.then = hold_back
    with streamed(a):
        a.print("first\n")
        for text in ("1", "2"):
            a.say("execute_result", data={"text/plain": text}, metadata={}, execution_count=3)
        both_are_here.set()
    assert [text for text, _, _ in cell.published[-2:]] == ["Out[0:3]: 1", "Out[0:3]: 2"]


def test_a_long_stream_is_shown_less_often(
    cell: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "RATE", 1)
    a, shown = Engine(0), threading.Event()
    streamer = streamed(a)
    with streamer:
        a.print("x" * 1000)
        streamer._queue.put(shown.set)
        assert shown.wait(90)
        for _ in range(10):
            a.print("y")
    assert [text.count("y") for text, _, _ in cell.published] == [0, 10]


def test_what_was_held_back_is_shown_when_it_is_due(
    cell: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "RATE", 10)
    a, b = Engine(0), Engine(1)
    up_to_date = threading.Event()

    def note(text: str) -> None:
        if text.endswith("y"):
            up_to_date.set()

    cell.then = note
    streamer, begun = streamed(a, b), threading.Event()
    with streamer:
        a.print("x")
        streamer._queue.put(begun.set)
        assert begun.wait(90)
        a.print("y")
        assert up_to_date.wait(90)


def test_clearing_takes_away_at_once(cell: Publisher) -> None:
    a = Engine(0)
    streamer, shown = streamed(a), threading.Event()
    with streamer:
        a.print("gone\n")
        a.say("display_data", data={"text/plain": "picture"})
        streamer._queue.put(shown.set)
        assert shown.wait(90)
        a.say("clear_output", wait=False)
    by_id = {display_id: text for text, display_id, _ in cell.published}
    assert by_id["m0-stdout"] == "[stdout:0] "
    assert by_id["m0-0"] == ""


# -- afterwards ------------------------------------------------------------------


def finished(number: int, text: str) -> Metadata:
    return Metadata(msg_id=f"m{number}", engine_id=number, stdout=text)


def test_folding(capsys: pytest.CaptureFixture[str]) -> None:
    requests = [finished(i, "odd\n" if i % 2 else "same\n") for i in (0, 1, 2, 4, 6, 7, 8)]
    requests[4]["stdout"] = "odd\n"
    requests[6]["stdout"] = ""
    show_outputs(requests, groupby="folded")
    assert capsys.readouterr().out.splitlines() == [
        "[stdout:0,2,4] ",
        "same",
        "[stdout:1,6-7] ",
        "odd",
    ]
    # results, for use after streaming, are nothing without a shell
    show_outputs(requests, groupby="folded", result_only=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="'folded', not 'sorted'"):
        show_outputs(requests, groupby="sorted")


def test_folding_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def failed(number: int, evalue: str) -> ErrorItem:
        text = f"Cell In[{number}], line 1\nValueError: {evalue}"
        return "ValueError", evalue, text, {"engine_id": number, "method": "execute"}

    several = [failed(i, "all alike") for i in range(90)]
    single = [failed(i, f"number {i}") for i in range(90, 95)]
    show_folded_errors(CompositeError("", several + single))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["[0-89:execute]", "Cell In[0], line 1", "ValueError: all alike"]
    # of errors that are all different, as many tracebacks as ever
    assert lines[-2:] == [f"[{i}:execute] ValueError: number {i}" for i in (93, 94)]
    assert sum(line.startswith("Cell In") for line in lines) == CompositeError.tb_limit
