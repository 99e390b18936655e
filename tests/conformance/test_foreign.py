"""Requests that one client waits for and another one has sent, wherever they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until
from .test_requests import hold


@pytest.fixture
def other(cluster: Any) -> Iterator[ipp.Client]:
    """The client that sends."""
    with cluster.connect_client_sync() as client:
        yield client


def begin(began: str, path: str) -> str:
    """Say on which engine it runs, then run until a file is there; fail if it says so."""
    import os
    import pathlib
    import time

    pathlib.Path(began).write_text(str(os.getpid()))
    while not os.path.exists(path):
        time.sleep(0.01)
    text = pathlib.Path(path).read_text()
    if text == str(os.getpid()):
        raise ValueError(text)
    return text


def runs_on(began: Path) -> str:
    """The process of the engine that a request runs on."""
    return str(wait_until(lambda: began.exists() and began.read_text()))


def kill(rc: ipp.Client, pid: str) -> None:
    (target,) = [
        i for i, info in rc._engines.items() if str(rc._dispatcher.engines[info].pid) == pid
    ]
    rc.send_signal("SIGKILL", targets=target)


def test_it_is_on_no_engine_yet_and_its_engine_dies(
    rc: ipp.Client, other: ipp.Client, tmp_path: Path
) -> None:
    view = other.load_balanced_view()
    busy = view.map_async(hold, [str(tmp_path / "go")] * 4 * len(rc))
    began = tmp_path / "began"
    sent = view.apply_async(begin, str(began), str(tmp_path / "never"))
    assert rc.result_status(sent.msg_ids)["pending"] == sent.msg_ids
    seen = rc.get_result(sent.msg_ids[0], owner=False)
    (tmp_path / "go").touch()
    busy.get(PATIENCE)
    kill(rc, runs_on(began))
    for ar in (sent, seen):
        with pytest.raises(error.EngineError):
            ar.get(PATIENCE)


@pytest.mark.parametrize("how", ["dies", "fails"])
def test_it_is_tried_again_elsewhere(
    rc: ipp.Client, other: ipp.Client, tmp_path: Path, how: str
) -> None:
    view = other.load_balanced_view()
    view.retries = 1
    began, go = tmp_path / "began", tmp_path / "go"
    sent = view.apply_async(begin, str(began), str(go))
    first = runs_on(began)
    seen = rc.get_result(sent.msg_ids[0], owner=False)
    began.unlink()
    if how == "dies":
        kill(rc, first)
    else:
        (tmp_path / "new").write_text(first)
        (tmp_path / "new").rename(go)
    if how == "dies":
        assert runs_on(began) != first
        (tmp_path / "new").write_text("done")
        (tmp_path / "new").rename(go)
        assert seen.get(PATIENCE) == sent.get(PATIENCE) == "done"
    else:  # the other one finds that the file does not name it
        assert seen.get(PATIENCE) == sent.get(PATIENCE) == first


@pytest.mark.parametrize("how", ["dies", "fails"])
def test_it_cannot_be_tried_again(
    rc: ipp.Client, other: ipp.Client, tmp_path: Path, how: str
) -> None:
    view = other.load_balanced_view(rc.ids[-1])
    view.retries = 3
    began, go = tmp_path / "began", tmp_path / "go"
    sent = view.apply_async(begin, str(began), str(go))
    first = runs_on(began)
    seen = rc.get_result(sent.msg_ids[0], owner=False)
    if how == "dies":
        kill(rc, first)
    else:
        (tmp_path / "new").write_text(first)
        (tmp_path / "new").rename(go)
    for ar in (sent, seen):
        with pytest.raises(error.EngineError if how == "dies" else error.RemoteError):
            ar.get(PATIENCE)


def test_it_waits_for_others_and_comes(rc: ipp.Client, other: ipp.Client, tmp_path: Path) -> None:
    view = other.load_balanced_view()
    first = view.apply_async(hold, str(tmp_path / "go"))
    with view.temp_flags(after=first):
        sent = view.apply_async(lambda: 5)
    seen = rc.get_result(sent.msg_ids[0], owner=False)
    (tmp_path / "go").touch()
    assert seen.get(PATIENCE) == sent.get(PATIENCE) == 5


@pytest.mark.parametrize("how", ["closed", "aborted"])
def test_its_client_gives_it_up(
    rc: ipp.Client, other: ipp.Client, tmp_path: Path, how: str
) -> None:
    view = other.load_balanced_view()
    first = view.apply_async(hold, str(tmp_path / "go"))
    with view.temp_flags(after=first):
        sent = view.apply_async(lambda: 5)
    seen = rc.get_result(sent.msg_ids[0], owner=False)
    if how == "closed":
        other.close()
    else:
        other.abort(sent, block=True)
    with pytest.raises(error.EngineError if how == "closed" else ipp.TaskAborted):
        seen.get(PATIENCE)
    (tmp_path / "go").touch()
