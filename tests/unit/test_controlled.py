"""Starting a controller: one that does not answer is ended, and leaves nothing."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import psutil
import pytest

from pxcompat.backends import controlled
from pxcompat.error import BackendError
from pxcompat.protocol import LaunchSpec

from ..common import PATIENCE, wait_until

STUBBORN = """
import json, os, subprocess, sys, time

order = json.loads(sys.stdin.readline())
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(os.path.join(order["folder"], "some"), "w") as some:
    some.write("file")
with open({path!r}, "w") as pids:
    pids.write(f"{{os.getpid()}} {{child.pid}}\\n")
{then}
"""


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("time.sleep(600)", "did not answer within 0.5 s"),
        (f"os.kill(os.getpid(), {signal.SIGKILL:d})", "did not answer"),
        ("print(json.dumps({'error': 'no'}), flush=True); time.sleep(600)", "did not start: no"),
    ],
    ids=["silent", "killed", "fails"],
)
def test_a_controller_that_does_not_end_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, said: str
) -> None:
    monkeypatch.setattr(controlled, "GRACE", 0.1)
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    module = STUBBORN.format(path=str(pids), then=then)
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(module))
    spec = LaunchSpec(0, cwd=str(tmp_path), env={"TMPDIR": str(temporary)})
    # long enough for what is written to be there
    with pytest.raises(BackendError, match=said):
        controlled.start(
            "stubborn", spec, what="it", timeout=0.5, meanwhile=lambda: wait_until(pids.exists)
        )
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))


def test_a_controller_that_cannot_even_start(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('this will not do')\n")
    spec = LaunchSpec(0, cwd=str(tmp_path), env={"TMPDIR": str(tmp_path)})
    # not that it did not answer in a minute
    with pytest.raises(BackendError, match=r"(?s)exited with status 1.*this will not do"):
        controlled.start("broken", spec, what="it", timeout=60)


def test_ctrl_c_twice_while_one_starts(tmp_path: Path) -> None:
    """The second comes while the controller is waited for, that it may clean up."""
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    then = f"sys.stdin.read()\nos.kill(os.getppid(), {signal.SIGINT:d})\ntime.sleep(600)"
    (tmp_path / "stubborn.py").write_text(STUBBORN.format(path=str(pids), then=then))
    spec = LaunchSpec(0, cwd=str(tmp_path), env={"TMPDIR": str(temporary)})

    def press() -> None:
        wait_until(pids.exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controlled.start("stubborn", spec, what="it", timeout=PATIENCE, meanwhile=press)
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))
