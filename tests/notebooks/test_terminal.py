"""Terminal IPython, typed at: prompts, live output, Ctrl-C."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .jupyter import BACKENDS, PATIENCE, PYTHONS

pexpect = pytest.importorskip("pexpect")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

#: the terminal says ^C when it comes to it: on a busy machine after IPython has heard of the key
#: and has written its next prompt
PROMPT = r"\nIn \[\d+\]: (?:\^C)?$"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """IPython in a terminal."""

    def __init__(self, python: str, folder: Path, env: dict[str, str]) -> None:
        options = ["--simple-prompt", "--no-banner", "--no-confirm-exit", "--colors=nocolor"]
        self.child = pexpect.spawn(
            python,
            ["-m", "IPython", *options, "--HistoryManager.enabled=False"],
            cwd=str(folder),
            env={**os.environ, **env},
            dimensions=(50, 900),  # what is typed is echoed on one line
            encoding="utf-8",
            timeout=PATIENCE,
        )
        self.until(r"In \[1\]: $")

    def type(self, line: str) -> None:
        """Type a line, and see it echoed."""
        self.child.sendline(line)
        self.child.expect_exact(line[-20:])

    def until(self, pattern: str) -> str:
        """What is written until a pattern comes up, that included."""
        self.child.expect(pattern)
        text = self.child.before + self.child.after
        return _CONTROL.sub("", text).replace("\r\n", "\n")

    def run(self, line: str) -> str:
        """What a line writes, until the next prompt."""
        self.type(line)
        return self.until(PROMPT).rpartition("\n\nIn [")[0]

    def ctrl_c(self) -> None:
        """Press Ctrl-C."""
        self.child.sendintr()


@pytest.fixture(scope="module", params=[(p, b) for p in PYTHONS for b in BACKENDS])
def terminal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    """A terminal with a client of two engines."""
    python, backend = request.param
    folder = tmp_path_factory.mktemp("terminal")
    env = {
        "IPYTHONDIR": str(folder / "ipython"),
        "PXCOMPAT_NONINTERACTIVE": "",
        "PXCOMPAT_BACKEND": backend,
        "TERM": "xterm",
    }
    terminal = Terminal(python, folder, env)
    try:
        terminal.run("import os, time, pxcompat as ipp; rc = ipp.Client(n=2); dv = rc[:]")
        terminal.run("_ = dv.execute('import os, sys, time', block=True)")
        yield terminal
        terminal.type("exit")
        terminal.child.expect(pexpect.EOF)
    finally:
        terminal.child.close(force=True)
    assert terminal.child.exitstatus == 0


@pytest.fixture
def hold(tmp_path: Path, terminal: Terminal) -> Path:
    """The folder in which ``hold()`` of the engines, and here, says that it has begun and waits
    for the file ``gate``."""
    terminal.run(
        "code = '''def hold(*ignored):\\n    import os, time\\n    pid = os.getpid()\\n"
        f"    open({str(tmp_path)!r} + f'/{{pid}}', 'w').close()\\n"
        "    end = time.monotonic() + 60\\n"
        f"    while not os.path.exists({str(tmp_path)!r} + '/gate') and time.monotonic() < end:"
        " time.sleep(0.01)\\n    return pid''';"
        " exec(code); _ = dv.execute(code, block=True)"
    )
    return tmp_path


def both_have_begun(folder: Path) -> None:
    """Wait until both engines are in ``hold()``."""
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline, "the engines have not begun"
        time.sleep(0.01)


def test_prompts_name_the_engines(terminal: Terminal) -> None:
    said = terminal.run("%px print('hello'); 6 * 7")
    for i in (0, 1):
        assert f"[stdout:{i}] \nhello\n" in said
        assert re.search(rf"^Out\[{i}:\d+\]: 42$", said, re.M), said


def test_what_follows_a_result_is_on_a_line_of_its_own(terminal: Terminal) -> None:
    said = terminal.run("%px print('no end', end=''); get_ipython().displayhook(1); print('more')")
    for i in (0, 1):
        assert re.search(rf"^Out\[{i}:\d+\]: 1$", said, re.M), said
    assert said.count("no end") == said.count("more") == 2


def test_bars_of_engines_are_redrawn_in_place(terminal: Terminal) -> None:
    terminal.run("%px from tqdm import tqdm")
    terminal.type("%px _ = [time.sleep(0.02) for i in tqdm(range(50))]")
    drawn = terminal.until(PROMPT)
    # halfway through, and once each at the end
    assert len(re.findall(r"\[stderr:[01]\]  ?[1-9]\d%\|", drawn)) > 4
    for i in (0, 1):
        assert len(re.findall(rf"\[stderr:{i}\] \n100%\|█+\| 50/50", drawn)) == 1, drawn


def test_a_bar_for_those_who_wait_long(terminal: Terminal) -> None:
    terminal.run("%pxconfig --progress-after 0.1")
    assert "%px: 100%" in terminal.run("%px time.sleep(0.5)")
    terminal.run("%pxconfig --progress-after 2")
    assert "%px:" not in terminal.run("%px 1")


def test_ctrl_c_in_a_cell(terminal: Terminal, hold: Path) -> None:
    terminal.type("%px hold()")
    both_have_begun(hold)
    terminal.ctrl_c()
    said = terminal.until(PROMPT)
    assert "Received Keyboard Interrupt. Sending signal SIGINT to engines..." in said
    for i in (0, 1):
        assert f"[{i}:execute]" in said
    assert said.count("KeyboardInterrupt: \n") == 2
    # and nothing of it afterwards
    assert "Out[0:" in terminal.run("%px 'still there'")


@pytest.mark.parametrize(
    "call, ends_as",
    [
        ("dv.apply_sync(hold)", "<AsyncResult(hold): pending>"),
        ("dv.map_sync(hold, [0, 0])", "<AsyncMapResult(hold): pending>"),
        ("dv.apply_async(hold).get()", "KeyboardInterrupt"),
    ],
)
def test_ctrl_c_in_a_call_leaves_the_engines_at_work(
    terminal: Terminal, hold: Path, call: str, ends_as: str
) -> None:
    pids = terminal.run("print(*sorted(dv.apply_sync(os.getpid)))").split()
    terminal.type(call)
    both_have_begun(hold)
    terminal.ctrl_c()
    assert ends_as in terminal.until(PROMPT)
    (hold / "gate").touch()
    answers = terminal.run("print(rc.get_result(rc.history[-2:]).get())")
    assert sorted(re.findall(r"\d+", answers)) == sorted(pids)


def test_autopx(terminal: Terminal) -> None:
    assert "%autopx enabled" in terminal.run("%autopx")
    assert "[stdout:1]" in terminal.run("print(os.getpid())")
    assert "%autopx disabled" in terminal.run("%autopx")
    assert "stdout" not in terminal.run("print(os.getpid())")


def test_who_is_a_table(terminal: Terminal) -> None:
    terminal.run("dv.scatter('part', range(3), block=True)")
    said = terminal.run("%pxwho part")
    assert re.search(r"^≠  part  0  +(range|list) +len 2 ", said, re.M), said
    assert re.search(r"^≠  part  1  +(range|list) +len 1 ", said, re.M), said
