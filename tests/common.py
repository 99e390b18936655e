"""What tests of live clusters share."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pxcompat import DirectView, interactive

__all__ = [
    "PATIENCE",
    "held",
    "interrupted_at",
    "let_go",
    "logged",
    "may_drop",
    "surroundings",
    "wait_until",
]

#: seconds for anything to happen that a test waits for, on the slowest machine
PATIENCE = 90


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {condition}"
        time.sleep(0.02)
    return value


#: for tests that press Ctrl-C everywhere: one in a finalizer is dropped, and Python says so
may_drop = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def interrupted_at(
    count: int, call: Callable[[], Any], *files: str, what: str = "call"
) -> tuple[bool, KeyboardInterrupt | None]:
    """Press Ctrl-C as a call comes to the so-and-so-manieth function written in Python, or "line",
    of those in some files where any are named: whether it came so far, and what it raised."""
    left = count

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if event == what and (not files or frame.f_code.co_filename in files):
            left -= 1
            if not left:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace if what == "line" else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt as interrupt:
        return True, interrupt
    finally:
        sys.settrace(before)
    return left <= 0, None


def logged(caplog: pytest.LogCaptureFixture, by: str = "pxcompat", level: int = 0) -> list[str]:
    """What was logged by us, or somebody else, at a level or above; threads of libraries that
    earlier tests have loaded log what they like."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.split(".")[0] == by and record.levelno >= level
    ]


@contextlib.contextmanager
def surroundings(ipython: Path) -> Iterator[None]:
    """Profiles of our own, no progress bars, and temporary files where they can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", os.fspath(ipython))
        patch.setenv("PXCOMPAT_NONINTERACTIVE", "1")
        # a short name: sockets in it must have valid ones
        with tempfile.TemporaryDirectory(prefix="px") as folder:
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
            yield


@interactive
def held() -> set[int]:
    """The shared memory that an engine has open, by its inodes."""
    import contextlib
    import gc
    import os

    gc.collect()
    found = set()
    for n in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "memfd:pxcompat" in os.readlink(f"/proc/self/fd/{n}"):
                found.add(os.stat(f"/proc/self/fd/{n}").st_ino)
    return found


def let_go(view: DirectView, before: list[set[int]]) -> bool:
    """Whether engines hold no more than they did before."""
    return all(now <= then for now, then in zip(view.apply_sync(held), before, strict=True))
