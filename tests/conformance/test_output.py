"""Clause 5 of the seam: output is captured per request, live, and complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .test_requests import hold


def test_each_request_has_its_own_output(e0: ipp.DirectView) -> None:
    ars = [e0.execute(f"print({n})", block=False) for n in range(20)]
    for n, ar in enumerate(ars):
        ar.get(PATIENCE)
        assert ar.wait_for_output(PATIENCE)
        assert ar.stdout == f"{n}\n"


def test_output_arrives_while_the_request_runs(e0: ipp.DirectView, tmp_path: Any) -> None:
    e0.push({"hold": hold, "path": str(tmp_path / "go")})
    ar = e0.execute("print('early'); hold(path); print('late')", block=False)
    wait_until(lambda: ar.stdout == "early\n")
    assert not ar.ready()
    (tmp_path / "go").touch()
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout == "early\nlate\n"


def test_output_of_apply_and_of_silent_code_is_kept(e0: ipp.DirectView) -> None:
    def shout() -> None:
        import sys

        print("out")
        print("err", file=sys.stderr)

    ar = e0.apply_async(shout)
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert (ar.stdout, ar.stderr) == ("out\n", "err\n")
    quiet = e0.execute("print('also'); 5", silent=True, block=False)
    quiet.get(PATIENCE)
    quiet.wait_for_output(PATIENCE)
    assert quiet.stdout == "also\n"
    assert quiet.execute_result is None


def test_output_of_child_processes_and_c_code_is_captured(e0: ipp.DirectView) -> None:
    ar = e0.execute("import os; status = os.system('echo from a child')", block=False)
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.stdout == "from a child\n"
    code = "import subprocess, sys; subprocess.run('echo out; echo err >&2', shell=True, {})"
    ar = e0.execute(code.format("stdout=sys.stdout, stderr=sys.stderr"), block=False)
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert (ar.stdout, ar.stderr) == ("out\n", "err\n")


def test_output_of_processes_that_a_request_forks_off_is_captured(e0: ipp.DirectView) -> None:
    """As ``multiprocessing`` does: what they print and show, however much, and their errors."""
    code = """
import multiprocessing
def child():
    print("x" * 100 + "\\n", end="")
    display("shown")
    for n in range(20_000):
        print("much", n, "y" * 500)
    raise ValueError("of a child")
print("before")
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
print("after", process.exitcode)"""
    ar = e0.execute(code, block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    lines = ar.stdout.splitlines()
    assert lines[:3] == ["before", "x" * 100, "'shown'"]
    assert lines[3:-1] == [f"much {n} {'y' * 500}" for n in range(20_000)]
    assert lines[-1] == "after 1"
    assert ar.stderr.splitlines()[-1] == "ValueError: of a child"


def test_nothing_can_be_read_on_an_engine(e0: ipp.DirectView) -> None:
    """And nobody who tries waits for it."""
    ar = e0.execute("import os, sys; os.system('cat'); read = sys.stdin.read()", block=False)
    ar.get(PATIENCE)
    assert e0["read"] == ""
    for code in ("input('name?')", "from getpass import getpass; getpass()", "breakpoint()"):
        with pytest.raises(ipp.RemoteError, match="StdinNotImplementedError"):
            e0.execute(code, block=False).get(PATIENCE)


def test_a_threads_output_belongs_to_the_request_that_started_it(e0: ipp.DirectView) -> None:
    ar = e0.execute(
        "import threading; t = threading.Thread(target=print, args=('threaded',)); "
        "t.start(); t.join()",
        block=False,
    )
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.stdout.strip() == "threaded"


def test_what_an_event_loop_prints_belongs_to_the_request_that_has_it_do_so(
    e0: ipp.DirectView,
) -> None:
    """IPython runs all scripts of ``%%bash`` and its like by one loop, on a thread that stays."""
    for n in range(3):
        ar = e0.execute(f"%%bash\necho out {n}\necho err {n} >&2", block=False)
        ar.get(PATIENCE)
        assert ar.wait_for_output(PATIENCE)
        assert (ar.stdout, ar.stderr) == (f"out {n}\n", f"err {n}\n")


def test_what_a_thread_prints_after_its_request_is_not_lost(
    e0: ipp.DirectView, tmp_path: Any
) -> None:
    code = f"""
import os, threading, time
printed = threading.Event()
def go_on():
    print("early")
    printed.set()
    while not os.path.exists({str(tmp_path / "go on")!r}):
        time.sleep(0.01)
    print("late")
threading.Thread(target=go_on).start()
printed.wait()"""
    ar = e0.execute(code, block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout == "early\n"
    (tmp_path / "go on").touch()
    wait_until(lambda: ar.stdout == "early\nlate\n")


@pytest.mark.parametrize(
    "code",
    [
        "%run {script}",
        "%run {script}\nprint('goes on')",
        "class Bad:\n    def __repr__(self): raise ValueError('as written')\nBad()",
        "try:\n    raise ValueError('as written')\nexcept ValueError:\n"
        "    get_ipython().showtraceback()\n1 / 1",
    ],
)
def test_tracebacks_that_are_not_the_cells_own_are_shown(
    e0: ipp.DirectView, tmp_path: Any, code: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('as written')\n")
    ar = e0.execute(code.format(script=script), silent=False, block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stderr.count(": as written\n") == 1
    # once: what fails afterwards has a traceback of its own
    with pytest.raises(ipp.RemoteError) as caught:
        e0.execute("1 / 0", silent=False).get(PATIENCE)
    assert "as written" not in "\n".join(caught.value.render_traceback())


def test_an_interrupt_while_a_traceback_is_formatted(e0: ipp.DirectView) -> None:
    """The traceback is shown whole, and the interrupt ends the cell that would have gone on."""
    e0.execute(
        "import os, signal\n"
        "class Loud(Exception):\n"
        "    said = False\n"
        "    def __str__(self):\n"
        "        if not Loud.said:\n"
        "            Loud.said = True\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return 'as written'",
        block=True,
    )
    ar = e0.execute(
        "try:\n    raise Loud\nexcept Loud:\n    get_ipython().showtraceback()\nprint('on')",
        silent=False,
        block=False,
    )
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt"):
        ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout == ""
    assert ar.stderr.count(": as written\n") == 1
    assert "IPython/core" not in ar.stderr


def test_names_that_are_not_utf_8_can_be_printed(e0: ipp.DirectView) -> None:
    ar = e0.execute("import os; name = os.fsdecode(b'caf\\xe9.txt'); print(name)", block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout.startswith("caf") and ar.stdout.endswith(".txt\n")
    with pytest.raises(ipp.RemoteError, match=r"ValueError.*caf.*\.txt"):
        e0.apply_async(exec, "raise ValueError(name)", {"name": e0["name"]}).get(PATIENCE)
    assert e0["name"] == "caf\udce9.txt"


def test_much_output_is_complete_and_in_order(e0: ipp.DirectView) -> None:
    ar = e0.execute("for i in range(20_000): print(i)", block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout.split() == [str(i) for i in range(20_000)]


def test_output_waits_for_a_slow_network(e0: ipp.DirectView) -> None:
    ar = e0.execute("for i in range(1500): print('x' * 70_000)", block=False)
    ar.get(PATIENCE)
    assert ar.wait_for_output(PATIENCE)
    assert len(ar.stdout) == 1500 * 70_001


def test_a_carriage_return_overwrites_the_line(e0: ipp.DirectView) -> None:
    ar = e0.execute(r"print('one\rtwo'); print('a\rb', end='\r'); print('c')", block=False)
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.stdout == "two\nc\n"


def test_displays_and_results(e0: ipp.DirectView) -> None:
    code = "from IPython.display import display, HTML; display(HTML('<b>hi</b>')); 6 * 7"
    ar = e0.execute(code, silent=False, block=False)
    reply = ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.outputs[0]["data"]["text/html"] == "<b>hi</b>"
    assert reply.execute_result["data"]["text/plain"] == "42"


def test_inline_plots_arrive_as_images(e0: ipp.DirectView) -> None:
    pytest.importorskip("matplotlib")
    e0.execute("%matplotlib inline\nimport matplotlib.pyplot as plt")
    ar = e0.execute("plt.plot([1, 2])", silent=False, block=False)
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert "image/png" in ar.outputs[0]["data"]


def test_data_published_while_running(e0: ipp.DirectView, tmp_path: Any) -> None:
    e0.push({"hold": hold, "path": str(tmp_path / "go")})
    code = (
        "from pxcompat.engine.calls import publish_data\n"
        "publish_data({'step': 1}); hold(path); publish_data({'step': 2})"
    )
    ar = e0.execute(code, block=False)
    wait_until(lambda: ar.data == {"step": 1})
    (tmp_path / "go").touch()
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.data == {"step": 2}


def test_top_level_await(e0: ipp.DirectView) -> None:
    e0.execute("import asyncio; await asyncio.sleep(0.001); waited = 1")
    assert e0["waited"] == 1


def test_coroutine_functions_are_awaited(e0: ipp.DirectView) -> None:
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.001)
        return x + 1

    assert e0.apply_sync(later, 1) == 2


def test_items_of_a_map_are_counted_while_it_runs(rc: ipp.Client, tmp_path: Any) -> None:
    view = rc[rc.ids[:2]]
    path = str(tmp_path / "go")

    def wait_at_the_end(i: int, path: str = path) -> int:
        import os
        import time

        end = time.monotonic() + 90
        while i % 10 == 9 and not os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.06)
        return i

    ar = view.map_async(wait_at_the_end, range(20))
    wait_until(lambda: ar.progress >= 8)
    assert not any(part.ready() for part in ar.split())
    assert ar.progress < len(ar) == 20
    (tmp_path / "go").touch()
    assert ar.get(PATIENCE) == list(range(20))
    assert ar.progress == 20
    # the count is no output: another client finds the result, and its output complete
    other = rc.get_result(ar.msg_ids, owner=False)
    assert other.wait_for_output(PATIENCE)


@pytest.mark.parametrize(
    "loop, shown",
    [
        ("print(n)", lambda ar: ar.stdout.split()),
        ("print(n, flush=True)", lambda ar: ar.stdout.split()),
        ("display(n)", lambda ar: [output["data"]["text/plain"] for output in ar.outputs]),
    ],
)
def test_an_interrupt_of_a_loop_that_prints(
    rc: ipp.Client, e0: ipp.DirectView, loop: str, shown: Callable[[Any], list[str]]
) -> None:
    """It shows the user's line, not the engine's; what was shown is neither lost nor torn."""
    code = f"from IPython.display import display\nn = 0\nwhile True:\n    {loop}\n    n += 1"
    ar = e0.execute(code, silent=False, block=False)
    wait_until(lambda: len(shown(ar)) > 20)
    rc.send_signal("SIGINT", targets=e0.targets, block=True)
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt") as failed:
        ar.get(PATIENCE)
    traceback = "\n".join(failed.value.render_traceback())
    assert "while" in traceback
    assert "pxcompat/engine" not in traceback
    assert "display" in loop or "File " not in traceback  # IPython displays, as it does here
    assert ar.wait_for_output(PATIENCE)
    lines = shown(ar)
    assert lines == [str(i) for i in range(len(lines))]
    assert len(lines) - e0["n"] in (0, 1)
    assert e0.apply_sync(len, "abc") == 3
