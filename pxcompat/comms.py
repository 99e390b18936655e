"""Widgets of engines in this notebook: what they and the browser say to each other.

A widget is made on an engine.  Here it has a comm of the same id, known to the notebook's
kernel, that passes on what comes from either side.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .display import in_kernel

if TYPE_CHECKING:
    from comm.base_comm import BaseComm

__all__ = ["ToEngine", "relay"]

#: sends a message to the engine of that key: its type, content and buffers
ToEngine = Callable[[str, str, dict[str, Any], list[bytes]], object]


def relay(
    content: Mapping[str, Any], to_engine: ToEngine, context: contextvars.Context | None
) -> None:
    """Pass an engine's message on to the browser, where there is one.

    Parameters
    ----------
    content : dict
        ``msg_type``, ``engine``, ``comm_id``, ``data``, ``metadata``, ``buffers``; of
        ``comm_open`` also ``target_name`` and ``target_module``.
    to_engine : callable
        Takes what the browser answers.
    context : contextvars.Context, optional
        Of the cell that the widget is of.
    """
    if not in_kernel():
        return
    if context is None:
        _relay(content, to_engine)
    else:
        # a copy: the context may be in use elsewhere
        context.copy().run(_relay, content, to_engine)


def _relay(content: Mapping[str, Any], to_engine: ToEngine) -> None:
    import comm

    manager = comm.get_comm_manager()
    message = dict(content)
    kind, key, comm_id = (message.pop(name) for name in ("msg_type", "engine", "comm_id"))
    if kind == "comm_open" and comm_id not in manager.comms:
        opened = comm.create_comm(
            comm_id=comm_id, primary=False, target_name=message["target_name"]
        )
        opened.on_msg(_passing(to_engine, key))
        opened.on_close(_passing(to_engine, key))
        manager.register_comm(opened)
    ours: BaseComm | None = manager.comms.get(comm_id)
    if ours is None:
        return  # the browser has closed it
    if kind == "comm_close":
        ours.close(message["data"], message["metadata"], message["buffers"])
    else:
        ours.publish_msg(kind, **message)


def _passing(to_engine: ToEngine, key: str) -> Callable[[dict[str, Any]], None]:
    def pass_on(message: dict[str, Any]) -> None:
        kind = message["header"]["msg_type"]
        to_engine(key, kind, message["content"], [bytes(b) for b in message.get("buffers") or ()])

    return pass_on
