"""Runs snippets on one side, in a process of its own: ``python runner.py SIDE OUT NAME...``.

SIDE is ``ipyparallel`` (the real one) or a pxcompat backend's name. OUT gets a JSON object of
outcomes, one line of text a snippet.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from reader import Snippet, load
from traitlets import Type
from traitlets.config import Config

ENGINES = 3
#: seconds a snippet may take
TIMEOUT = 30


class QuietHook(DisplayHook):
    """Keeps a cell's value without showing it."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        pass

    def finish_displayhook(self) -> None:
        pass


class QuietShell(InteractiveShell):
    """A shell that prints what the code prints and nothing of its own."""

    displayhook_class = Type(QuietHook)

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        pass


class Hung(BaseException):
    """A snippet took too long; nothing that it calls is to catch this."""


def normalise(text: str) -> str:
    """Without what differs from run to run, on one line."""
    text = re.sub(r"(\x1b|\\x1b)\[[0-9;]*m", "", text)
    # ipyparallel prints a reply that comes after the notice of its engine's death, with its
    # message, into whatever cell is running
    text = re.sub(r"(?m)^got (stale|unknown) result: .*\n(.*\n\{'header': .*\n)?", "", text)
    text = re.sub(r"[^\r\n]*\d+%\|[^\r\n]*\]", "", text)  # a progress bar
    text = re.sub(r"0x[0-9a-f]{6,}", "0x?", text)
    text = re.sub(r"Out\[(\d+):\d+\]", r"Out[\1:?]", text)
    text = re.sub(r"\(\S+, line (\d+)\)", r"(line \1)", text)
    return re.sub(r"\s*[\r\n]\s*", " | ", text.strip())


def describe(error: BaseException, ipp: Any) -> str:
    """The exception as its handlers see it; a remote one with its remote class and message."""
    name = type(error).__name__
    if isinstance(error, ipp.error.CompositeError):
        inside = ", ".join(f"{ename}: {evalue}" for ename, evalue, *_ in error.elist)
        return f"raised {name} [{inside}]"
    if isinstance(error, ipp.error.AlreadyDisplayedError):
        return f"raised {name} {error}"
    if isinstance(error, ipp.error.RemoteError):
        return f"raised {name} {error.ename}: {error.evalue}"
    return f"raised {name}"


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def expire(signum: int, frame: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


class Side:
    """One implementation with a cluster, ready for snippets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: dict[str, Any] = {"n": ENGINES}
        if name != "ipyparallel":
            import pxcompat

            pxcompat.enable()
            self.options["backend"] = name
        import ipyparallel as ipp

        self.ipp = ipp
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        self.shell = QuietShell.instance(config=config)
        self.shared = self._start()

    def _start(self) -> Any:
        cluster = self.ipp.Cluster(**self.options)
        rc = cluster.start_and_connect_sync()
        rc.wait_for_engines(ENGINES, timeout=60)
        return rc

    def stop(self, rc: Any) -> None:
        cluster = rc.cluster
        rc.close()
        cluster.stop_cluster_sync()

    def run(self, snippet: Snippet) -> str:
        rc = self._start() if snippet.fresh else self.shared
        try:
            return self._run(snippet.code, rc)
        finally:
            if snippet.fresh:
                self.stop(rc)

    def _run(self, code: str, rc: Any) -> str:
        rc.block = False
        rc[:].use_pickle()
        rc.clear(block=True)
        self.shell.reset(new_session=False)
        rc.activate().activate()
        dv = rc[:]
        one = dv.targets
        self.shell.push(
            {
                "ipp": self.ipp,
                "rc": rc,
                "dv": dv,
                "e0": rc[one[0]],
                "e1": rc[one[1]],
                "lv": rc.load_balanced_view(),
            }
        )
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
            try:
                with deadline(TIMEOUT):
                    result = self.shell.run_cell(code, store_history=True)
            except Hung:
                return "hung"
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, Hung):
            outcome = "hung"
        elif error is not None:
            outcome = describe(error, self.ipp)
        else:
            outcome = repr(result.result)
        return normalise(f"{stdout.getvalue()}\n{outcome}")


def main(side: str, out: str, names: list[str]) -> None:
    snippets = load()
    outcomes: dict[str, str] = {}
    # so that the cluster is stopped when the tests are given up
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    running = Side(side)
    try:
        for name in names:
            began = time.monotonic()
            outcomes[name] = running.run(snippets[name])
            print(f"{time.monotonic() - began:6.2f} s  {name}", flush=True)
            Path(out).write_text(json.dumps(outcomes, indent=1))
    finally:
        running.stop(running.shared)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
