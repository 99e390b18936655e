"""``pxcluster start -c CODE -s FILE``: what engines run before anybody has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_pxcluster import (
    STARTED,
    Command,
    assert_nothing_left,
    pxcluster as pxcluster,
)

pytestmark = pytest.mark.slow

WHAT_THEY_KNOW = "import pxcompat as ipp; rc = ipp.Client(); print(rc[:]['a, b'])"


def test_new_engines_run_it(pxcluster: Command, tmp_path: Path) -> None:
    script = tmp_path / "start.ipy"
    script.write_text("import os\na = 1\n%alias_magic t timeit\n")
    code = "b = a + 1"
    _, said = pxcluster(
        *("start", "-n", "2", "--daemonize", "-s", str(script), "-c", code, "--scheme=lru")
    )
    assert STARTED in said
    assert pxcluster.python(WHAT_THEY_KNOW) == "[(1, 2), (1, 2)]"
    pxcluster("engines", "-n", "1", "--daemonize", "-c", "a, b = 3, 4")
    assert pxcluster.python(WHAT_THEY_KNOW) == "[(1, 2), (1, 2), (3, 4)]"
    pxcluster("stop")


def test_a_cluster_whose_engines_cannot_start_up_is_none(pxcluster: Command) -> None:
    _, said = pxcluster("start", "-n", "2", "--daemonize", "-c", "no_such_name", code=1)
    assert "no_such_name" in said and STARTED not in said
    _, said = pxcluster("start", "-n", "1", "-s", "/nowhere.py", code=1)
    assert "/nowhere.py" in said
    assert_nothing_left(pxcluster)
