"""The sides of the comparison, each run once, in a process of its own, for the tests selected.

``PXCOMPAT_TEST_BACKEND`` names the backends, separated by commas (default: dask).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .reader import load, matches

SNIPPETS = load()
HERE = Path(__file__).parent
BACKENDS = os.environ.get("PXCOMPAT_TEST_BACKEND", "dask").split(",")
#: seconds that one side may take for all snippets
TIMEOUT = 900


def _start(side: str, names: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Run snippets on one side; outcomes, log and IPython folder go to ``folder``."""
    folder.mkdir()
    env = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(HERE / "runner.py"), side, str(folder / "outcomes.json"), *names]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def _outcomes(side: str, code: int, names: list[str], folder: Path) -> dict[str, str]:
    """What a side that has ended wrote down."""
    out = folder / "outcomes.json"
    found: dict[str, str] = json.loads(out.read_text()) if out.exists() else {}
    if len(found) < len(names):
        log = (folder / "log.txt").read_text()[-4000:]
        ran = f"{len(found)} of {len(names)} snippets ran"
        pytest.fail(f"{side}: {ran} (exit code {code}):\n{log}", pytrace=False)
    return found


@pytest.fixture(scope="session")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Snippet name -> outcome, under ``ipyparallel`` and under each backend's name."""
    chosen = {
        item.callspec.params["snippet"].name: None
        for item in request.session.items
        if isinstance(item, pytest.Function) and "outcomes" in item.fixturenames
    }
    names = list(chosen)
    root = tmp_path_factory.mktemp("parity")
    sides = ["ipyparallel", *BACKENDS]
    processes = {side: _start(side, names, root / side) for side in sides}
    found = {}
    try:
        for side, process in processes.items():
            process.wait(TIMEOUT)
            found[side] = _outcomes(side, process.returncode, names, root / side)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(30)
    for attempt in ("second", "third"):
        # ipyparallel's own races (its control channel overtakes, output lags): it is asked
        # again where the two differ; we never are
        unclear = [
            name
            for name in names
            if any(_differ(name, found["ipyparallel"][name], found[b][name]) for b in BACKENDS)
        ]
        if not unclear:
            break
        again = _start("ipyparallel", unclear, root / attempt)
        try:
            again.wait(TIMEOUT)
            said = _outcomes("ipyparallel", again.returncode, unclear, root / attempt)
            found["ipyparallel"].update(said)
        finally:
            again.terminate()
            again.wait(30)
    return found


def _differ(name: str, theirs: str, ours: str) -> bool:
    """Whether ipyparallel's outcome is not the one that is expected."""
    expected = SNIPPETS[name].expected
    return not matches(expected["ipyparallel"], theirs) if expected else ours != theirs
