"""How what is heavy is imported."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pxcompat.backends.loading import load


def test_two_threads_may_need_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    signs: Any = SimpleNamespace(begun=begun, go=go)
    monkeypatch.setitem(sys.modules, "heavy_signs", signs)
    body = "import heavy_signs\nheavy_signs.begun.set()\nheavy_signs.go.wait()\nready = True\n"
    (tmp_path / "heavy_module.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load, "heavy_module")
        begun.wait()
        second = pool.submit(lambda: load("heavy_module").ready)
        threading.Timer(0.1, go.set).start()
        assert second.result()
        assert first.result().ready
    monkeypatch.delitem(sys.modules, "heavy_module")
