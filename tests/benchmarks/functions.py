"""What the engines are asked to do.  As in a notebook: functions of ``__main__``, sent as code."""

from __future__ import annotations

from typing import Any


def nothing(x: Any = None) -> Any:
    return x


def wait(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


for _function in (nothing, wait):
    _function.__module__ = "__main__"
