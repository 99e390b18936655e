"""``%px`` and its family on live engines.

Takes the fixture ``rc``: a client with two engines or more.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from pxcompat import interactive, magics
from pxcompat.display import ranges
from pxcompat.error import AlreadyDisplayedError, CompositeError, RemoteError, TaskAborted
from pxcompat.magics import execution

from ..common import PATIENCE, interrupted_at, may_drop, wait_until


@pytest.fixture
def view(rc: Any, ip: InteractiveShell) -> Any:
    """The blocking view that %px runs on, of all engines there are now; more may come."""
    return rc.activate(rc.ids)


_ANSI = re.compile(r"\x1b\[[\d;]*m")


class Shown:
    """What a cell showed."""

    def __init__(self, stdout: str, stderr: str, outputs: list[RichOutput]) -> None:
        self.stdout = _ANSI.sub("", stdout)
        self.stderr = _ANSI.sub("", stderr)
        self.displays = [str(o.data["text/plain"]) for o in outputs if "text/plain" in o.data]


@contextmanager
def showing() -> Iterator[list[Shown]]:
    """Collects what is shown; the list has one item at the end."""
    shown: list[Shown] = []
    with capture_output() as io:
        yield shown
    shown.append(Shown(io.stdout, io.stderr, io.outputs))


def px(ip: InteractiveShell, options: str, cell: str) -> Shown:
    with showing() as shown:
        ip.run_cell_magic("px", options, cell)
    return shown[0]


def results(shown: Shown) -> list[str]:
    """The results, as ``Out[0]: 3``, without the engines' counts."""
    texts = (re.sub(r"\[(\d+):\d+\]", r"[\1]", text) for text in shown.displays)
    return [text for text in sorted(texts) if text.startswith("Out")]


# -- output --------------------------------------------------------------------


@pytest.mark.parametrize("options", ["--stream", "--no-stream", "--no-stream -e", "--no-stream -r"])
def test_output_names_its_engine(rc: Any, ip: InteractiveShell, view: Any, options: str) -> None:
    view.scatter("rank", view.targets, flatten=True, block=True)
    code = "import sys; print('out', rank); print('err', rank, file=sys.stderr); rank + 0.5"
    shown = px(ip, options, code)
    for i in view.targets:
        assert re.search(rf"\[stdout:{i}\] ?\n?out {i}$", shown.stdout, re.M)
        assert re.search(rf"\[stderr:{i}\] ?\n?err {i}$", shown.stderr, re.M)
    assert results(shown) == [f"Out[{i}]: {i}.5" for i in view.targets]


def test_displays_come_before_the_result(rc: Any, ip: InteractiveShell, view: Any) -> None:
    code = "from IPython.display import HTML, display\ndisplay(HTML('<b>')); 6 * 7"
    shown = px(ip, "-t 0:1 --no-stream", code)
    heading, html, result = shown.displays
    assert (heading, html) == (f"[output:{rc.ids[0]}]", "<IPython.core.display.HTML object>")
    assert re.fullmatch(rf"Out\[{rc.ids[0]}:\d+\]: 42", result)


def test_output_is_shown_while_the_cell_runs(
    rc: Any, ip: InteractiveShell, view: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine waits for a file that appears once its line has been seen here."""
    seen = threading.Event()

    class Stdout:
        def write(self, text: str) -> int:
            if "begun" in text:
                seen.set()
            return len(text)

        def flush(self) -> None: ...

    view["path"] = path = str(tmp_path / "go")
    code = (
        "import os, time\nprint('begun', flush=True)\nend = time.monotonic() + 90\n"
        "while not os.path.exists(path):\n"
        "    assert time.monotonic() < end\n    time.sleep(0.01)"
    )

    def go() -> None:
        if seen.wait(PATIENCE):
            Path(path).touch()

    thread = threading.Thread(target=go)
    thread.start()
    monkeypatch.setattr(sys, "stdout", Stdout())
    ip.run_cell_magic("px", f"-t {rc.ids[0]} --stream --progress-after -1", code)
    thread.join()
    assert seen.is_set()


def test_targets_of_one_cell(rc: Any, ip: InteractiveShell, view: Any) -> None:
    first, second = view.targets[:2]
    assert results(px(ip, "--target 0:1", "1")) == [f"Out[{first}]: 1"]
    assert results(px(ip, f"-t {second}", "2")) == [f"Out[{second}]: 2"]
    assert results(px(ip, f"-t {first},{second}", "3")) == [
        f"Out[{first}]: 3",
        f"Out[{second}]: 3",
    ]
    assert view.targets == view.targets


def test_an_engine_that_does_not_exist(rc: Any, ip: InteractiveShell, view: Any) -> None:
    with pytest.raises(IndexError, match="1000"):
        ip.run_cell_magic("px", "-t 1000", "1")


def test_code_is_the_engines(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ip.user_ns["x"] = "client"
    view["x"] = "engine"
    ip.run_line_magic("px", "y = f'{x}'")
    assert view["y"] == ["engine"] * len(view.targets)


def test_magics_and_await_on_the_engines(rc: Any, ip: InteractiveShell, view: Any) -> None:
    shown = px(ip, f"-t {rc.ids[0]}", "import asyncio\n%pwd\nawait asyncio.sleep(0, 'awaited')")
    assert results(shown)[-1].endswith(": 'awaited'")


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize("code, name", [("1/0", "ZeroDivisionError"), ("x = = 1", "SyntaxError")])
def test_streamed_errors_are_counted(
    rc: Any, ip: InteractiveShell, view: Any, code: str, name: str
) -> None:
    with showing() as shown, pytest.raises(AlreadyDisplayedError) as caught:
        ip.run_cell_magic("px", "--stream", "print('before')\n" * (name[0] == "Z") + code)
    assert str(caught.value) == f"{len(view.targets)} errors"
    for i in view.targets:
        assert f"[{i}:execute]" in shown[0].stderr
    assert shown[0].stderr.count(f"{name}: ") == len(view.targets)


@pytest.mark.parametrize("code, name", [("1/0", "ZeroDivisionError"), ("x = = 1", "SyntaxError")])
def test_errors_without_streaming(
    rc: Any, ip: InteractiveShell, view: Any, code: str, name: str
) -> None:
    with showing() as shown, pytest.raises(CompositeError) as caught:
        ip.run_cell_magic("px", "--no-stream", code)
    assert {ename for ename, *_ in caught.value.elist} == {name}
    assert shown[0].stderr == ""


def test_output_before_an_error_is_shown(rc: Any, ip: InteractiveShell, view: Any) -> None:
    with showing() as shown, pytest.raises(CompositeError):
        ip.run_cell_magic("px", "--no-stream", "print('before')\n1/0")
    assert shown[0].stdout.count("before") == len(view.targets)


def test_an_error_of_a_single_engine(rc: Any, ip: InteractiveShell, view: Any) -> None:
    with showing(), pytest.raises(RemoteError) as caught:
        ip.run_cell_magic("px", f"-t {view.targets[-1]}", "1/0")
    assert caught.value.ename == "ZeroDivisionError"
    assert caught.value.engine_info["engine_id"] == view.targets[-1]


def test_a_failure_aborts_the_px_behind_it(rc: Any, ip: InteractiveShell, view: Any) -> None:
    view.block = False
    first = ip.run_line_magic("px", "import time; time.sleep(0.5); 1/0")
    ip.run_line_magic("px", "after = 1")
    assert first.wait(PATIENCE)
    with showing(), pytest.raises(TaskAborted):
        ip.run_line_magic("pxresult", "")
    view.block = True
    px(ip, "", "recovered = 'after' not in dir()")
    assert view["recovered"] == [True] * len(view.targets)


# -- Ctrl-C --------------------------------------------------------------------


@contextmanager
def ctrl_c(when: Callable[[], object]) -> Iterator[None]:
    """Press Ctrl-C once something is so."""

    def press() -> None:
        wait_until(when)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        presser.join()


@pytest.fixture
def begin(view: Any, tmp_path: Path) -> Callable[[], int]:
    """How many engines have called ``begin()``, which cells can."""

    def begin() -> None:
        open(f"{path}-{__import__('os').getpid()}", "w").close()  # type: ignore[name-defined]  # noqa: F821

    view.push({"begin": interactive(begin), "path": str(tmp_path / "begun")}, block=True)
    return lambda: len(list(tmp_path.glob("begun-*")))


needs_kill = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="no signals to threads here"
)


@needs_kill
@pytest.mark.parametrize("option, sent", [("", "SIGINT"), ("--signal-on-interrupt 2", "2")])
def test_ctrl_c_interrupts_the_engines(
    rc: Any,
    ip: InteractiveShell,
    view: Any,
    begin: Callable[[], int],
    option: str,
    sent: str,
) -> None:
    code = (
        "import time\nended = False\n"
        "try:\n    begin(); time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    print('told'); ended = True"
    )
    with ctrl_c(lambda: begin() == len(view.targets)):
        shown = px(ip, option, code)
    line = f"Received Keyboard Interrupt. Sending signal {sent} to engines...\n"
    assert line in shown.stderr
    # the engines' answers were awaited
    assert shown.stdout.count("told") == len(view.targets)
    assert view["ended"] == [True] * len(view.targets)


@needs_kill
@pytest.mark.parametrize("moment", ["it is sent", "it was sent"])
def test_ctrl_c_when_a_cell_has_begun_and_nobody_waits_yet(
    rc: Any,
    ip: InteractiveShell,
    view: Any,
    begin: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    submit, left = rc._submit_execute, list(view.targets)

    def press() -> None:
        wait_until(lambda: begin() == len(view.targets))
        signal.raise_signal(signal.SIGINT)

    def submit_and_press(*args: Any, **kwargs: Any) -> Any:
        future = submit(*args, **kwargs)
        left.pop()
        if not left:
            press()
        return future

    def press_and_collect(*args: Any, **kwargs: Any) -> bool:
        press()
        return execution.collect(*args, **kwargs)

    if moment == "it is sent":
        monkeypatch.setattr(rc, "_submit_execute", submit_and_press)
    else:
        monkeypatch.setattr("pxcompat.magics.px.collect", press_and_collect)
    shown = px(
        ip, "", "import time\ntry:\n    begin(); time.sleep(60)\nexcept KeyboardInterrupt: 3"
    )
    monkeypatch.undo()
    assert "Received Keyboard Interrupt" in shown.stderr
    assert not rc.outstanding


@may_drop
@pytest.mark.parametrize("options", ["", "--noblock"])
def test_ctrl_c_anywhere_in_a_cell_leaves_the_next_one_heard(
    ip: InteractiveShell, view: Any, options: str
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    raised = []  # which IPython keeps, with its traceback
    cell = partial(ip.run_cell_magic, "px", options, "1")
    with showing():
        for count in itertools.count(1):
            came, interrupt = interrupted_at(
                count, cell, str(magics.px.__file__), contextlib.__file__
            )
            raised.append(interrupt)
            view.apply_sync(int)
            assert signal.getsignal(signal.SIGINT) == handler
            if not came:
                break


@needs_kill
def test_ctrl_c_spares_engines_that_have_finished(
    rc: Any, ip: InteractiveShell, view: Any, begin: Callable[[], int], tmp_path: Path
) -> None:
    first, second = view.targets[:2]
    rc[[first, second]].scatter("slow", [False, True], flatten=True, block=True)
    others: list[Any] = []

    def one_has_finished() -> bool:
        if not others and begin() == 1 and len(rc.outstanding) == 1:
            # somebody else's work on the first engine, now that it is done with the cell
            others.append(rc[first].apply_async(hold, str(tmp_path / "go"), str(tmp_path / "held")))
        return (tmp_path / "held").exists()

    with ctrl_c(one_has_finished):
        shown = px(ip, f"-t {first},{second}", "import time\nif slow:\n    begin(); time.sleep(60)")
    (tmp_path / "go").touch()
    assert shown.stderr.count("KeyboardInterrupt:") == 1
    assert others[0].get(PATIENCE) == "went on"


@needs_kill
def test_ctrl_c_spares_another_clients_work_that_the_cell_waits_for(
    rc: Any, cluster: Any, ip: InteractiveShell, view: Any, tmp_path: Path
) -> None:
    first = view.targets[0]
    gate, held = tmp_path / "go", tmp_path / "held"
    with cluster.connect_client_sync() as other:
        others = other[first].apply_async(hold, str(gate), str(held))
        wait_until(held.exists)
        with ctrl_c(lambda: len(rc.outstanding) == 1):
            shown = px(ip, f"-t {first}", "ran = True")
        gate.touch()
        assert others.get(PATIENCE) == "went on"
    assert "TaskAborted" in shown.stderr
    assert not rc[first].apply_sync(lambda: "ran" in globals())


@needs_kill
def test_ctrl_c_interrupts_ones_own_work_that_the_cell_waits_for(
    rc: Any, ip: InteractiveShell, view: Any, begin: Callable[[], int]
) -> None:
    first = view.targets[0]
    before = ip.run_cell_magic(
        "px", f"-t {first} --noblock", "import time; begin(); time.sleep(60)"
    )
    with ctrl_c(lambda: begin() == 1 and len(rc.outstanding) == 2):
        px(ip, f"-t {first}", "1")
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        before.get(PATIENCE)


@needs_kill
def test_signal_0_leaves_the_engines_running(
    rc: Any, ip: InteractiveShell, view: Any, begin: Callable[[], int], tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    view["gate"] = str(gate)

    def said() -> None:
        wait_until(lambda: "Sending signal 0 to engines" in sys.stderr.getvalue())  # type: ignore[attr-defined]
        gate.touch()

    code = "import os, time; begin()\nwhile not os.path.exists(gate): time.sleep(0.01)\ndone = 1"
    with showing() as shown:
        listener = threading.Thread(target=said)
        listener.start()
        with ctrl_c(lambda: begin() == len(view.targets)):
            ip.run_cell_magic("px", "--signal-on-interrupt 0", code)
        listener.join()
    assert "Sending signal 0 to engines" in shown[0].stderr
    assert view["done"] == [1] * len(view.targets)


# -- values with a cell --------------------------------------------------------


def test_push_and_pull(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ip.user_ns.update(a=20, b=22)
    px(ip, "--push a,b --pull c", "c = a + b")
    assert ip.user_ns["c"] == [42] * len(view.targets)
    first, second = view.targets[:2]
    px(ip, f"-t {first} --pull c", "c = 'one'")
    assert ip.user_ns["c"] == "one"
    px(ip, f"-t {first},{second} --pull c", "c = 'two'")
    assert ip.user_ns["c"] == ["two", "two"]


def test_pull_without_waiting(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ip.user_ns["a"] = 5
    px(ip, "--noblock --push a --pull c", "c = a * 2")
    assert ip.user_ns["c"].get(PATIENCE) == [10] * len(view.targets)


def test_nothing_is_pulled_after_a_failure(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ip.user_ns["c"] = "kept"
    with showing(), pytest.raises(CompositeError):
        ip.run_cell_magic("px", "--no-stream --pull c", "c = 1\n1/0")
    assert ip.user_ns["c"] == "kept"


# -- engines that take too long ------------------------------------------------


#: seconds in which an engine begins with a cell, on the slowest machine
BEGUN = 4


@interactive
def hold(gate: str, held: str) -> str:
    """Run until a file is there (or the test that should make it must have failed)."""
    import os
    import time

    open(held, "w").close()
    end = time.monotonic() + 90
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.01)
    return "went on"


def test_timeout_interrupts_the_engines_at_work(rc: Any, ip: InteractiveShell, view: Any) -> None:
    first, second = view.targets[:2]
    rc[[first, second]].scatter("slow", [False, True], flatten=True, block=True)
    with showing() as shown, pytest.raises(TimeoutError) as caught:
        ip.run_cell_magic(
            "px",
            f"-t {first},{second} --stream --timeout {BEGUN}",
            "import time\nprint('begun')\nif slow:\n    time.sleep(60)",
        )
    assert str(caught.value) == (
        f"%px was to take {BEGUN} s; engine {second} had not finished and got SIGINT"
    )
    assert shown[0].stdout.count("begun") == 2
    assert shown[0].stderr.count("KeyboardInterrupt") >= 1
    # and is free for what comes
    assert view.apply_sync(lambda: 1) == [1] * len(view.targets)


def test_timeout_takes_back_what_has_not_begun(
    rc: Any, ip: InteractiveShell, view: Any, tmp_path: Path
) -> None:
    first = view.targets[0]
    gate = tmp_path / "go"
    others = rc[first].apply_async(hold, str(gate), str(tmp_path / "held"))
    with showing(), pytest.raises(TimeoutError, match="had other work and never began it"):
        ip.run_cell_magic("px", f"-t {first} --timeout 0.5", "ran = True")
    gate.touch()
    assert others.get(PATIENCE) == "went on"
    assert not rc[first].apply_sync(lambda: "ran" in globals())


def test_timeout_of_engines_that_pay_no_heed(
    rc: Any, ip: InteractiveShell, view: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pxcompat.magics.execution.GRACE", 0.5)
    view["gate"] = str(tmp_path / "go")
    code = (
        "import os, time\nend = time.monotonic() + 90\n"
        "while not os.path.exists(gate) and time.monotonic() < end:\n"
        "    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        pass"
    )
    first = view.targets[0]
    with showing(), pytest.raises(TimeoutError, match=f"engine {first} still at work"):
        ip.run_cell_magic("px", f"-t {first} --timeout {BEGUN}", code)
    (tmp_path / "go").touch()
    assert ip.magics_manager.magics["line"]["px"].__self__.last_result.wait(PATIENCE)


def test_the_others_are_interrupted_when_one_fails(
    rc: Any, ip: InteractiveShell, view: Any, begin: Callable[[], int]
) -> None:
    view.scatter("rank", range(len(view.targets)), flatten=True, block=True)
    # once they have begun: before, they would be told not to
    code = (
        "import glob, time\nif rank:\n    begin(); time.sleep(60)\n"
        f"while len(glob.glob(path + '-*')) < {len(view.targets) - 1}: time.sleep(0.01)\n"
        "raise ValueError('the first')"
    )
    with showing(), pytest.raises(CompositeError) as caught:
        ip.run_cell_magic("px", "--no-stream --interrupt-on-error", code)
    enames = [ename for ename, *_ in caught.value.elist]
    assert enames == ["ValueError", *["KeyboardInterrupt"] * (len(view.targets) - 1)]


def test_limits_hold_without_waiting(rc: Any, ip: InteractiveShell, view: Any) -> None:
    first = view.targets[0]
    ar = ip.run_cell_magic(
        "px", f"-t {first} --noblock --timeout {BEGUN}", "import time; time.sleep(60)"
    )
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        ar.get(PATIENCE)


# -- many engines --------------------------------------------------------------


def test_identical_outputs_are_folded(rc: Any, ip: InteractiveShell, view: Any) -> None:
    view.scatter("rank", range(len(view.targets)), flatten=True, block=True)
    everyone = ranges(view.targets)
    shown = px(ip, "--fold", "print('same'); rank == 0")
    assert shown.stdout == f"[stdout:{everyone}] \nsame\n"
    rest = ranges(view.targets[1:])
    assert [re.sub(r":\d+", "", text) for text in shown.displays] == [
        f"Out[{view.targets[0]}]: True",
        f"Out[{rest}]: False",
    ]


@pytest.mark.parametrize("magic", ["px", "pxresult"])
def test_identical_errors_are_folded(rc: Any, ip: InteractiveShell, view: Any, magic: str) -> None:
    view.execute("pass", targets=view.targets[0], silent=False, block=True)  # counts its cells
    if magic == "pxresult":
        px(ip, "--noblock", "1/0")
    with showing() as pieces, pytest.raises(AlreadyDisplayedError) as caught:
        if magic == "px":
            ip.run_cell_magic("px", "--fold", "1/0")
        else:
            ip.run_line_magic("pxresult", "--fold")
    assert str(caught.value) == f"{len(view.targets)} errors"
    (shown,) = pieces
    assert shown.stderr.count("ZeroDivisionError: division by zero") == 1
    assert shown.stderr.startswith(f"[{ranges(view.targets)}:execute]\n")


def test_who(rc: Any, ip: InteractiveShell, view: Any) -> None:
    view.push({"same": 1, "text": "abc"})
    view.scatter("part", range(len(view.targets) + 1), block=True)
    rc[view.targets[-1]].push({"only": [1, 2]}, block=True)
    with showing() as shown:
        ip.run_line_magic("pxwho", "")
    lines = shown[0].displays[0].splitlines()
    table = {tuple(line.replace("≠", "").split()[:2]): line for line in lines[2:]}
    everyone = ranges(view.targets)
    assert re.search(r"int +\d+ +1$", table["same", everyone])
    assert "≠" not in table["same", everyone] and "'abc'" in table["text", everyone]
    assert re.match(
        rf"≠  only +{view.targets[-1]} +list +len 2 ", table["only", str(view.targets[-1])]
    )
    assert sum(line.startswith("≠  part") for line in lines) == 2
    with showing() as shown:
        ip.run_line_magic("pxwho", f"-t {view.targets[0]} s* te*")
    assert [line.split()[0] for line in shown[0].displays[0].splitlines()[2:]] == ["same", "text"]


# -- the rest of the family ----------------------------------------------------


def test_results_afterwards(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ar = ip.run_cell_magic("px", "--noblock --name kept", "print('there')\n6 * 7")
    assert ip.user_ns["kept"] is ar
    with showing() as shown:
        ip.run_line_magic("pxresult", "")
    assert shown[0].stdout.count("there") == len(view.targets)
    assert results(shown[0]) == [f"Out[{i}]: 42" for i in view.targets]


def test_config(rc: Any, ip: InteractiveShell, view: Any) -> None:
    ip.run_line_magic("pxconfig", "--verbose --noblock -t 0:2")
    assert (view.block, view.targets) == (False, rc.ids[:2])
    shown = px(ip, "--block", "1")
    assert shown.stdout.startswith(f"Parallel execution on engine(s): {rc.ids[:2]}\n")


@pytest.mark.parametrize("magic, options", [("px", "--local"), ("pxlocal", "")])
def test_here_and_there(rc: Any, ip: InteractiveShell, view: Any, magic: str, options: str) -> None:
    with showing() as shown:
        ip.run_cell_magic(magic, options, "class Both: pass\nwhere = 'any'\n1 + 1")
    assert ip.user_ns["where"] == "any"
    assert view["where"] == ["any"] * len(view.targets)
    assert re.search(r"^(Out\[\d+\]: )?2$", shown[0].stdout, re.M)
    assert results(shown[0])[-len(view.targets) :] == [f"Out[{i}]: 2" for i in view.targets]
    # an instance made here is one of the class there
    view["both"] = ip.user_ns["Both"]()
    ip.run_line_magic("px", "same = isinstance(both, Both)")
    assert view["same"] == [True] * len(view.targets)


def test_autopx(rc: Any, ip: InteractiveShell, view: Any) -> None:
    with showing() as shown:
        ip.run_cell("%autopx")
        ip.run_cell("a = 5\nb = 12345")
        ip.run_cell("b *= 2")
        ip.run_cell("print(b)\na")
        failed = ip.run_cell("a/0")
        ip.run_cell("%autopx")
        ip.run_cell("here = 1")
    assert shown[0].stdout.startswith("%autopx enabled\n")
    assert shown[0].stdout.rstrip().endswith("%autopx disabled")
    assert shown[0].stdout.count("24690") == len(view.targets)
    assert results(shown[0]) == [f"Out[{i}]: 5" for i in view.targets]
    assert isinstance(failed.error_in_exec, (AlreadyDisplayedError, CompositeError))
    assert "a" not in ip.user_ns and ip.user_ns["here"] == 1
    assert view["b"] == [24690] * len(view.targets)


def test_sets_with_a_suffix(rc: Any, ip: InteractiveShell, view: Any) -> None:
    rc.activate(view.targets[0], "_one")
    with showing() as shown:
        ip.run_line_magic("px_one", "1")
    assert results(shown[0]) == [f"Out[{view.targets[0]}]: 1"]


def test_px_goes_back_to_the_client_that_is_left(
    cluster: Any, rc: Any, ip: InteractiveShell, view: Any
) -> None:
    """As when a library takes ``%px`` for a client of its own, which it closes."""
    with cluster.connect_client_sync() as other:
        other.activate(view.targets[:1])
        assert results(px(ip, "", "1")) == [f"Out[{view.targets[0]}]: 1"]
    assert results(px(ip, f"-t {view.targets[1]}", "2")) == [f"Out[{view.targets[1]}]: 2"]


def test_plots_come_back(rc: Any, ip: InteractiveShell, view: Any) -> None:
    pytest.importorskip("matplotlib")
    px(ip, f"-t {rc.ids[0]}", "%matplotlib inline\nimport matplotlib.pyplot as plt")
    with capture_output() as io:
        ip.run_cell_magic("px", f"-t {rc.ids[0]}", "plt.plot([1, 2, 3])")
    assert any("image/png" in output.data for output in io.outputs)


def test_variables_are_stored_and_restored(rc: Any, ip: InteractiveShell, view: Any) -> None:
    px(ip, f"-t {rc.ids[0]}", "kept = [1, 2]\n%store kept\ndel kept")
    px(ip, "", "%store -r kept")
    assert view["kept"] == [[1, 2]] * len(view)
