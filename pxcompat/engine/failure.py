"""What went wrong on an engine, told so that the client's user can mend it."""

from __future__ import annotations

import os
import traceback
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .shell import EngineShell

__all__ = ["describe_failure", "end_with_users"]

_ENGINE = os.path.dirname(os.path.abspath(__file__))
_OURS = os.path.dirname(_ENGINE)
#: what ``print`` and ``display`` call on an engine
_OUTPUT = os.path.join(_ENGINE, "output.py")


def describe_failure(
    error: BaseException,
    engine_info: dict[str, Any],
    shell: EngineShell,
    rendered: list[str] | None = None,
) -> dict[str, Any]:
    """An exception as the content of an error reply.

    Parameters
    ----------
    rendered : list of str, optional
        The traceback, when the shell has rendered it already.
    """
    lines = rendered or _render(error, shell)
    evalue = _text(error)
    hint = _hint(error, engine_info["method"])
    if hint:
        evalue = f"{evalue} ({hint})"
        lines = [*lines, f"On engine {engine_info['engine_id']}: {hint}"]
    return {
        "ename": type(error).__name__,
        "evalue": evalue,
        "traceback": lines,
        "engine_info": engine_info,
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # a user's __str__ may fail; that must not hide the error
        return f"<{type(error).__name__} whose str() fails>"


def end_with_users(tb: types.TracebackType | None) -> None:
    """Cut off a traceback where a user's code printed or displayed something.

    Most of printing is work of the engine's own, so that is where most interrupts of a
    loop that prints are raised; which line of it was running explains nothing.
    """
    last = None  # the last frame that is not the engine's own
    while tb is not None and tb.tb_frame.f_code.co_filename != _OUTPUT:
        if not tb.tb_frame.f_code.co_filename.startswith(_ENGINE):
            last = tb
        tb = tb.tb_next
    if last is not None:
        last.tb_next = None


def _render(error: BaseException, shell: EngineShell) -> list[str]:
    end_with_users(error.__traceback__)
    tb = _users_part(error.__traceback__)
    try:
        stb = shell.InteractiveTB.structured_traceback(type(error), error, tb)
        return list(stb)
    except BaseException:  # a traceback that IPython cannot draw is drawn plainly
        return "".join(traceback.format_exception(type(error), error, tb)).splitlines()


def _users_part(tb: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the first frame that is not the engine's own."""
    start = tb
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_OURS):
        start = start.tb_next
    return start or tb


def _in_function(tb: types.TracebackType | None) -> bool:
    """Whether an error came out of a function, rather than of an expression."""
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and tb.tb_frame.f_code.co_name != "<module>"


def _hint(error: BaseException, method: str) -> str | None:
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        if method != "apply" or not _in_function(error.__traceback__):
            return None  # code that was typed for the engine needs no lesson
        name = getattr(error, "name", None) or "it"
        return (
            f"functions look names up on the engine; supply {name} there with %px, view.push, "
            "view.sync_imports(), or send yours along with view.use_cloudpickle()"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name} where the engines run, or start them where it can be imported"
    return None
