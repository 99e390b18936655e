"""The magics on a view that answers as it is told."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from pxcompat.error import (
    AlreadyDisplayedError,
    CompositeError,
    RemoteError,
    TaskAborted,
)
from pxcompat.magics import ParallelMagics, active_view, load_ipython_extension


class Request:
    """What stands behind one engine's part of a result."""

    msg_id = "m"

    def __init__(self, done: bool) -> None:
        self._done = done
        self.metadata = {"engine_uuid": "e"}

    def done(self) -> bool:
        return self._done


class FakeResult:
    """An AsyncResult that records what is asked of it."""

    def __init__(
        self, targets: Any, failure: Exception | None, done: list[bool], streamed: bool
    ) -> None:
        self._targets = targets
        self._children = [Request(d) for d in done]
        self.failure = failure
        self.metadata: list[dict[str, Any]] = [
            {"error": {} if streamed and failure else None} for _ in done
        ]
        self.asked: list[str] = []
        #: raised by the next wait
        self.interrupts: list[BaseException] = []
        #: called as output begins to be shown
        self.begins: Callable[[], None] = lambda: None

    def ready(self) -> bool:
        return all(child.done() for child in self._children)

    def wait(self, timeout: float = -1) -> bool:
        self.asked.append(f"wait {timeout}")
        if self.interrupts:
            raise self.interrupts.pop()
        if timeout < 0:
            self.finish()
        return self.ready()

    def finish(self) -> None:
        self._children = [Request(True) for _ in self._children]

    def wait_interactive(self, timeout: float) -> None:
        assert timeout == -1
        self.asked.append("bar")
        self.finish()

    def wait_for_output(self, timeout: float) -> bool:
        self.asked.append("output")
        return True

    @contextmanager
    def stream_output(self, errors: bool) -> Iterator[None]:
        assert errors is (len(self._children) > 1)
        self.begins()
        self.asked.append("stream")
        yield
        self.asked.append("unstream")

    def display_outputs(self, groupby: str) -> None:
        self.asked.append(f"display {groupby}")

    def get(self) -> None:
        if self.failure is not None:
            raise self.failure


class FakeView:
    """A DirectView whose ``execute`` records, and answers with :attr:`answer`."""

    def __init__(self) -> None:
        self.block = True
        self.targets: Any = "all"
        self.signals: list[tuple[Any, Any]] = []
        self.client = SimpleNamespace(
            ids=[0, 1, 2, 3],
            _closed=False,
            send_signal=self._signal,
            _outstanding_dict={},
            _abort=lambda msg_ids: [],
            _build_targets=lambda targets: ([], [0, 1, 2, 3] if targets == "all" else targets),
        )
        self.executed: list[tuple[str, Any]] = []
        self.failure: Exception | None = None
        self.streamed = True
        self.done = [True, True]
        self.prepare: Callable[[FakeResult], None] = lambda result: None
        #: what was pushed and pulled
        self.moved: list[tuple[str, Any, Any]] = []
        self.push_failure: Exception | None = None

    def _signal(self, sig: Any, targets: Any, block: bool) -> None:
        assert block
        self.signals.append((sig, targets))

    def push(self, values: dict[str, Any], targets: Any, block: bool) -> FakeResult:
        assert not block
        if self.push_failure is None:
            self.moved.append(("push", values, targets))
        return FakeResult(targets, self.push_failure, [True], False)

    def pull(self, name: str, targets: Any, block: bool) -> str:
        self.moved.append(("pull", name, targets))
        return f"pulled {name}, {'waited' if block else 'to be waited'} for"

    def execute(self, code: str, silent: bool, targets: Any, block: bool) -> FakeResult:
        assert not silent and not block
        self.executed.append((code, targets))
        self.result = FakeResult([4, 5], self.failure, self.done, self.streamed)
        self.prepare(self.result)
        return self.result


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[InteractiveShell]:
    """A shell of the test's own, that ``get_ipython`` finds and that writes no history."""
    InteractiveShell.clear_instance()
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(config=config, ipython_dir=str(tmp_path))
    with shell.builtin_trap:
        yield shell
    InteractiveShell.clear_instance()
    # what it would tidy up at the end, for each test's shell, takes longer than the tests
    atexit.unregister(shell.atexit_operations)


@pytest.fixture
def view(shell: InteractiveShell) -> FakeView:
    """A fake view that %px runs on."""
    view = FakeView()
    register(shell, view)
    return view


def register(shell: InteractiveShell, view: Any, suffix: str = "") -> ParallelMagics:
    magics = ParallelMagics(shell, view, suffix)
    shell.magics_manager.register(magics)
    return magics


def composite(n: int = 2) -> CompositeError:
    return CompositeError("one or more", [("ValueError", "no", "tb", {})] * n)


# -- the options line ----------------------------------------------------------


@pytest.mark.parametrize(
    "option, targets",
    [
        ("--target 0:2", [0, 1]),
        ("--targets ::2", [0, 2]),
        ("--targets=-2:", [2, 3]),
        ("-t :", [0, 1, 2, 3]),
        ("-t all", "all"),
        ("-t 'all'", "all"),
        ("-t '0:2'", [0, 1]),
        ("-t 1", 1),
        ("-t -1", -1),
        ("-t 0,2", [0, 2]),
        ("-t [1]", [1]),
        ("-t range(2)", [0, 1]),
        ("-t mine", [3, 1]),
        ("", "all"),
    ],
)
def test_targets(shell: InteractiveShell, view: FakeView, option: str, targets: Any) -> None:
    shell.user_ns["mine"] = (3, 1)
    shell.run_cell_magic("px", option, "x")
    assert view.executed == [("x", targets)]
    assert view.targets == "all"


@pytest.mark.parametrize("option", ["-t nobody", "-t ::0", "-t 1.5", "-t"])
def test_targets_that_name_no_engine(shell: InteractiveShell, view: FakeView, option: str) -> None:
    with pytest.raises(UsageError, match="targets"):
        shell.run_cell_magic("px", option, "x")
    assert view.executed == []


@pytest.mark.parametrize("option", ["--block", "-b", "--noblock", "-a"])
def test_block_holds_for_one_cell(shell: InteractiveShell, view: FakeView, option: str) -> None:
    view.block = option in {"-a", "--noblock"}
    returned = shell.run_cell_magic("px", option, "x")
    assert (returned is None) is (option in {"-b", "--block"})
    assert view.block is (option in {"-a", "--noblock"})


@pytest.mark.parametrize("option", ["-o", "--out", "--name"])
def test_name_of_the_result(shell: InteractiveShell, view: FakeView, option: str) -> None:
    shell.user_ns["which"] = "kept"
    shell.run_cell_magic("px", option + " {which}", "f'{x}'")
    assert shell.user_ns["kept"] is view.result
    assert view.executed == [("f'{x}'", "all")]


def test_code_is_sent_as_it_stands(shell: InteractiveShell, view: FakeView) -> None:
    shell.user_ns["x"] = "here"
    shell.run_line_magic("px", "f'{x}' $x --noblock")
    assert view.executed == [("f'{x}' $x --noblock", "all")]


@pytest.mark.parametrize(
    "option, grouping",
    [
        ("", "type"),
        ("-e", "engine"),
        ("-r", "order"),
        ("-g engine", "engine"),
        ("--group-outputs=order", "order"),
        ("--fold", "folded"),
    ],
)
def test_grouping(shell: InteractiveShell, view: FakeView, option: str, grouping: str) -> None:
    shell.run_cell_magic("px", "--no-stream " + option, "x")
    assert f"display {grouping}" in view.result.asked
    shell.run_line_magic("pxresult", option)
    assert view.result.asked[-1] == f"display {grouping}"


@pytest.mark.parametrize(
    "line",
    [
        "--bogus",
        "-g nothing",
        "--signal-on-interrupt SIGNONE",
        "--timeout soon",
        "--timeout -1",
        "--push a[0]",
        "--push nobody",
        "--pull a,,b",
    ],
)
def test_a_bad_option_sends_nothing(shell: InteractiveShell, view: FakeView, line: str) -> None:
    with pytest.raises(UsageError):
        shell.run_cell_magic("px", line, "x")
    assert view.executed == []


def test_help_lists_the_options() -> None:
    for method, words in {
        ParallelMagics.cell_px: ["%%px", "--targets", "--local", "--signal-on-interrupt", "--out"],
        ParallelMagics.result: ["%pxresult", "--group-outputs", "In [3]: %pxresult"],
        ParallelMagics.pxconfig: ["%pxconfig", "--progress-after"],
        ParallelMagics.px: ["%px import os"],
    }.items():
        for word in words:
            assert word in (method.__doc__ or "")


# -- waiting and showing -------------------------------------------------------


def test_output_is_streamed_and_not_shown_again(shell: InteractiveShell, view: FakeView) -> None:
    shell.run_line_magic("px", "x")
    assert view.result.asked == ["stream", "wait 2.0", "output", "unstream"]


def test_the_environment_turns_streaming_off(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PXCOMPAT_NONINTERACTIVE", "1")
    assert register(shell, FakeView()).stream_output is False


@pytest.mark.parametrize(
    "after, asked", [("0", ["bar"]), ("-1", ["wait -1"]), ("3", ["wait 3.0", "bar"])]
)
def test_progress_after(
    shell: InteractiveShell, view: FakeView, after: str, asked: list[str]
) -> None:
    view.done = [True, False]
    shell.run_cell_magic("px", f"--no-stream --progress-after {after}", "x")
    assert view.result.asked == [*asked, "output", "display type"]


def test_streamed_errors_are_only_counted(shell: InteractiveShell, view: FakeView) -> None:
    view.failure = composite()
    with pytest.raises(AlreadyDisplayedError, match="2 errors"):
        shell.run_line_magic("px", "x")


@pytest.mark.parametrize("failure", [composite(3), RemoteError("E", "v", "tb"), TaskAborted("id")])
def test_an_error_that_was_not_streamed_is_raised_in_full(
    shell: InteractiveShell, view: FakeView, failure: Exception
) -> None:
    view.failure, view.streamed = failure, False
    with pytest.raises(type(failure)) as caught:
        shell.run_line_magic("px", "x")
    assert caught.value is failure


def test_one_unstreamed_error_among_several(shell: InteractiveShell, view: FakeView) -> None:
    """Three failed and two of them said so: the third must not go unseen."""
    view.failure = composite(3)
    with pytest.raises(CompositeError):
        shell.run_line_magic("px", "x")


def test_without_streaming_output_comes_before_the_error(
    shell: InteractiveShell, view: FakeView
) -> None:
    view.failure = composite()
    with pytest.raises(CompositeError):
        shell.run_cell_magic("px", "--no-stream", "x")
    assert view.result.asked[-1] == "display type"


def test_result_shows_the_output_of_a_failure(shell: InteractiveShell, view: FakeView) -> None:
    view.failure = composite()
    shell.run_cell_magic("px", "--noblock", "x")
    with pytest.raises(CompositeError):
        shell.run_line_magic("pxresult", "")
    assert "display type" in view.result.asked
    shell.run_line_magic("result", "-o again")
    assert shell.user_ns["again"] is view.result


def test_result_before_any_px(shell: InteractiveShell, view: FakeView) -> None:
    with pytest.raises(UsageError, match="none has run"):
        shell.run_line_magic("pxresult", "")


# -- values with a cell --------------------------------------------------------


def test_values_go_along_and_come_back(shell: InteractiveShell, view: FakeView) -> None:
    shell.user_ns.update(a=1, b=2)
    shell.run_cell_magic("px", "--push a,b --pull c -t 0:2", "c = a + b")
    assert view.moved == [("push", {"a": 1, "b": 2}, [0, 1]), ("pull", "c", [0, 1])]
    assert shell.user_ns["c"] == "pulled c, waited for"
    shell.run_cell_magic("px", "--pull c,d -t 3 --noblock", "c = d = 1")
    assert view.moved[2:] == [("pull", "c", 3), ("pull", "d", 3)]
    assert shell.user_ns["d"] == "pulled d, to be waited for"


def test_after_a_failure_nothing_comes_back(shell: InteractiveShell, view: FakeView) -> None:
    view.failure = composite()
    with pytest.raises(AlreadyDisplayedError):
        shell.run_cell_magic("px", "--pull c", "c = 1")
    assert view.moved == [] and "c" not in shell.user_ns


def test_a_push_that_failed_says_so(shell: InteractiveShell, view: FakeView) -> None:
    view.push_failure, view.failure = RemoteError("UnpicklingError", "v", "tb"), composite()
    shell.user_ns["a"] = 1
    with pytest.raises(RemoteError, match="UnpicklingError"):
        shell.run_cell_magic("px", "--push a", "a")


# -- Ctrl-C --------------------------------------------------------------------


def interrupt(*errors: BaseException) -> Callable[[FakeResult], None]:
    return lambda result: result.interrupts.extend(errors)


@pytest.mark.parametrize("option, sent", [("", "SIGINT"), ("2", 2), ("SIGTERM", "SIGTERM")])
def test_ctrl_c_is_passed_on_to_engines_at_work(
    shell: InteractiveShell, view: FakeView, option: str, sent: Any
) -> None:
    view.done = [True, False]
    view.prepare = interrupt(KeyboardInterrupt())
    view.failure = composite()
    with capture_output() as io:
        shell.run_cell_magic("px", option and f"--signal-on-interrupt {option}", "x")
    expected = f"Received Keyboard Interrupt. Sending signal {sent} to engines...\n"
    assert io.stderr == expected
    assert view.signals == [(sent, [5])]
    assert view.result.asked == ["stream", "wait 2.0", "wait -1", "output", "unstream"]


def test_ctrl_c_as_the_showing_of_output_begins(shell: InteractiveShell, view: FakeView) -> None:
    view.done = [False, False]
    view.prepare = lambda result: setattr(result, "begins", lambda: os.kill(os.getpid(), 2))
    with capture_output() as io:
        shell.run_cell_magic("px", "", "x")
    assert io.stderr == "Received Keyboard Interrupt. Sending signal SIGINT to engines...\n"
    assert view.signals == [("SIGINT", [4, 5])]
    assert view.result.asked == ["stream", "wait -1", "output", "unstream"]


def test_an_interrupted_failure_that_was_not_streamed_is_printed(
    shell: InteractiveShell, view: FakeView
) -> None:
    view.done = [False, False]
    view.prepare = interrupt(KeyboardInterrupt())
    view.failure, view.streamed = TaskAborted("m1"), False
    with capture_output() as io:
        shell.run_line_magic("px", "x")
    assert io.stderr.splitlines()[1:] == ["TaskAborted: m1"]


def test_signal_0_leaves_the_engines_running(shell: InteractiveShell, view: FakeView) -> None:
    view.done = [False, False]
    view.prepare = interrupt(KeyboardInterrupt())
    with capture_output() as io:
        shell.run_cell_magic("px", "--signal-on-interrupt 0 --no-stream", "x")
    assert "Sending signal 0 to engines..." in io.stderr
    assert view.signals == []
    assert view.result.asked == ["wait 2.0"]


def test_a_second_ctrl_c_ends_the_waiting(shell: InteractiveShell, view: FakeView) -> None:
    view.done = [False, False]
    view.prepare = interrupt(KeyboardInterrupt(), KeyboardInterrupt())
    with capture_output(), pytest.raises(KeyboardInterrupt):
        shell.run_line_magic("px", "x")
    assert len(view.signals) == 1


def test_ctrl_c_during_the_local_part(shell: InteractiveShell, view: FakeView) -> None:
    view.done = [False, False]
    with capture_output():
        shell.run_cell_magic("px", "--local", "raise KeyboardInterrupt")
    assert view.signals == [("SIGINT", [4, 5])]


# -- %pxconfig -----------------------------------------------------------------


def test_config_holds_from_then_on(shell: InteractiveShell, view: FakeView) -> None:
    shell.run_line_magic("pxconfig", "-t 0:2 --no-stream --progress-after 5 --verbose")
    with capture_output() as io:
        shell.run_line_magic("px", "x")
    assert io.stdout == "Parallel execution on engine(s): [0, 1]\n"
    assert view.executed == [("x", [0, 1])]
    assert view.result.asked == ["wait 5.0", "output", "display type"]
    shell.run_line_magic("pxconfig", "--noblock")
    with capture_output() as io:
        assert shell.run_line_magic("px", "x") is view.result
    assert io.stdout == "Async parallel execution on engine(s): [0, 1]\n"
    shell.run_line_magic("pxconfig", "--fold --timeout 7 --interrupt-on-error")
    shell.run_line_magic("pxresult", "")
    assert view.result.asked[-1] == "display folded"
    magics = shell.magics_manager.magics["line"]["px"].__self__
    assert (magics.timeout, magics.interrupt_on_error) == (7, True)
    shell.run_line_magic("pxconfig", "-g type --timeout 0 --no-interrupt-on-error")
    assert (magics.timeout, magics.interrupt_on_error) == (0, False)
    shell.run_line_magic("pxconfig", f"--signal-on-interrupt {signal.SIGTERM.value} --no-verbose")
    view.done = [False, False]
    view.prepare = interrupt(KeyboardInterrupt())
    with capture_output() as io:
        shell.run_cell_magic("px", "--block", "x")
    assert view.signals == [(15, [4, 5])]
    assert io.stdout == ""


def test_many_targets_are_abbreviated(shell: InteractiveShell, view: FakeView) -> None:
    view.targets = list(range(12))
    with capture_output() as io:
        shell.run_cell_magic("px", "--verbose", "x")
    assert io.stdout.endswith(": [0, 1, 2, 3, ..., 8, 9, 10, 11]\n")


# -- here and there ------------------------------------------------------------


@pytest.mark.parametrize("magic, line", [("px", "--local"), ("pxlocal", "")])
def test_local_runs_on_both_sides(
    shell: InteractiveShell, view: FakeView, magic: str, line: str
) -> None:
    with capture_output() as io:
        shell.run_cell_magic(magic, line + " -t 0", "y = 6\ny * 7")
    assert view.executed == [("y = 6\ny * 7", 0)]
    assert shell.user_ns["y"] == 6
    assert "42" in io.stdout
    assert view.result.asked == ["wait 2.0", "output", "display type"]


def test_local_line(shell: InteractiveShell, view: FakeView) -> None:
    shell.user_ns["z"] = "expanded"
    shell.run_line_magic("pxlocal", "y = '{z}'")
    assert view.executed == [("y = '{z}'", "all")]
    assert shell.user_ns["y"] == "{z}"


def test_a_users_pxlocal_stays_theirs(shell: InteractiveShell, view: FakeView) -> None:
    """As documentation of other packages tells people to define it."""

    def pxlocal(line: str, cell: str) -> None:
        shell.run_cell_magic("px", line, cell)
        shell.run_cell(cell)

    shell.register_magic_function(pxlocal, "cell")  # type: ignore[arg-type]
    register(shell, view)  # another client
    assert shell.magics_manager.magics["cell"]["pxlocal"] is pxlocal
    shell.run_cell_magic("pxlocal", "-t 1", "y = 3")
    assert view.executed == [("y = 3", 1)]
    assert shell.user_ns["y"] == 3


# -- %autopx -------------------------------------------------------------------


def run(shell: InteractiveShell, *cells: str) -> list[Any]:
    """Run cells as a frontend does; what they printed and the results."""
    with capture_output() as io:
        results = [shell.run_cell(cell) for cell in cells]
    return [io.stdout, *results]


def test_autopx_sends_cells_until_the_next_one(shell: InteractiveShell, view: FakeView) -> None:
    before = shell.run_ast_nodes
    printed, *_ = run(shell, "%autopx", "a = 1", "%timeit\nawait b", "  %autopx", "c = 3")
    assert printed == "%autopx enabled\n%autopx disabled\n"
    assert view.executed == [("a = 1", "all"), ("%timeit\nawait b", "all")]
    assert shell.user_ns["c"] == 3
    assert "a" not in shell.user_ns
    assert shell.run_ast_nodes == before
    assert "run_ast_nodes" not in vars(shell)


def test_autopx_without_its_percent_sign(shell: InteractiveShell, view: FakeView) -> None:
    run(shell, "autopx", "a = 1", "autopx", "c = 3")
    assert view.executed == [("a = 1", "all")]


def test_autopx_by_the_hooks_that_libraries_call(shell: InteractiveShell, view: FakeView) -> None:
    magics = shell.magics_manager.magics["line"]["autopx"].__self__
    magics._enable_autopx()
    run(shell, "a = 1")
    magics._disable_autopx()
    run(shell, "c = 3")
    assert view.executed == [("a = 1", "all")]
    assert shell.user_ns["c"] == 3


def test_autopx_splits_the_cell_it_stands_in(shell: InteractiveShell, view: FakeView) -> None:
    run(shell, "a = 1\n%autopx\nb = 2", "c = 3\n%autopx\nd = 4")
    assert [code for code, _ in view.executed] == ["c = 3"]
    assert {name: shell.user_ns.get(name) for name in "abcd"} == {"a": 1, "b": 2, "c": None, "d": 4}


def test_autopx_failure_fails_the_cell(shell: InteractiveShell, view: FakeView) -> None:
    view.failure, view.streamed = composite(), False
    printed, _, failed, _ = run(shell, "%autopx", "1/0", "%autopx")
    assert failed.error_in_exec is view.failure
    assert "ValueError" in printed or "tb" in printed
    assert printed.endswith("%autopx disabled\n")


def test_autopx_survives_a_syntax_error(shell: InteractiveShell, view: FakeView) -> None:
    _, _, broken, _ = run(shell, "%autopx", "1 +", "a")
    assert isinstance(broken.error_before_exec, SyntaxError)
    assert view.executed == [("a", "all")]


def test_autopx_leaves_its_family_here(shell: InteractiveShell, view: FakeView) -> None:
    run(shell, "%autopx", "%pxconfig -t 2", "a", "%pxresult", "%%px --local -t 1\ny = 5", "%autopx")
    assert view.executed == [("a", 2), ("y = 5\n", 1)]
    assert shell.user_ns["y"] == 5


def test_autopx_of_a_second_set(shell: InteractiveShell, view: FakeView) -> None:
    other = FakeView()
    register(shell, other, "_b")
    run(shell, "%autopx", "a = 1")
    with capture_output() as io:
        shell.run_line_magic("autopx_b", "")
    assert io.stdout == "%autopx disabled\n%autopx_b enabled\n"
    run(shell, "b = 2", "%autopx_b", "c = 3")
    assert (view.executed, other.executed) == ([("a = 1", "all")], [("b = 2", "all")])
    assert shell.user_ns["c"] == 3
    assert "run_ast_nodes" not in vars(shell)


def test_autopx_under_somebody_elses_patch(shell: InteractiveShell, view: FakeView) -> None:
    run(shell, "%autopx")
    ours = shell.run_ast_nodes
    seen: list[int] = []

    async def theirs(nodes: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(nodes))
        return await ours(nodes, *args, **kwargs)

    shell.run_ast_nodes = theirs  # type: ignore[assignment,method-assign]
    run(shell, "%autopx", "c = 3", "%autopx", "d = 4", "%autopx", "e = 5")
    assert seen == [1, 1, 1, 1]  # "d = 4" and the end of that session come to ours first
    assert view.executed == [("d = 4", "all")]
    assert (shell.user_ns["c"], shell.user_ns["e"]) == (3, 5)
    assert shell.run_ast_nodes is theirs


# -- registration --------------------------------------------------------------


@pytest.mark.parametrize("magic", ["px", "autopx", "pxconfig"])
def test_before_any_client(shell: InteractiveShell, magic: str) -> None:
    load_ipython_extension(shell)
    assert active_view(shell) is None
    with pytest.raises(UsageError, match="make a client first"):
        shell.run_line_magic(magic, "")


def test_the_extension_leaves_an_active_view(shell: InteractiveShell, view: FakeView) -> None:
    load_ipython_extension(shell)
    assert active_view(shell) is view  # type: ignore[comparison-overlap]
    view.client._closed = True
    assert active_view(shell) is None


def test_suffix(shell: InteractiveShell, view: FakeView) -> None:
    even = FakeView()
    register(shell, even, "_even")
    for name in ("px", "pxresult", "pxconfig", "autopx", "pxlocal"):
        assert name + "_even" in shell.magics_manager.magics["line"]
    assert "result_even" not in shell.magics_manager.magics["line"]
    shell.run_line_magic("px_even", "x")
    shell.run_cell_magic("px_even", "", "y")
    assert (view.executed, even.executed) == ([], [("x", "all"), ("y", "all")])


def test_a_set_replaced_is_forgotten(shell: InteractiveShell, view: FakeView) -> None:
    register(shell, view, "_even")
    register(shell, view)
    register(shell, view)
    assert sum(isinstance(c, ParallelMagics) for c in shell.configurables) == 2
