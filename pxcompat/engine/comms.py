"""Widgets on an engine: their messages travel as output, to the notebook that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import comm
from comm.base_comm import BaseComm

from .output import plain

if TYPE_CHECKING:
    from .runtime import Engine

__all__ = ["EngineComm", "hear", "install"]


class EngineComm(BaseComm):
    """A widget's end of its comm.

    Its messages belong to the output of the request that made the widget, also when
    that has ended: who sent the request has the other end.
    """

    engine: ClassVar[Engine]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._output = self.engine.shell.output
        super().__init__(*args, **kwargs)

    def publish_msg(
        self,
        msg_type: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: list[bytes] | None = None,
        **keys: Any,
    ) -> None:
        if self._output is None:
            return  # made while the engine started: nobody looks on
        message = {"comm_id": self.comm_id, "data": data or {}, "metadata": metadata or {}, **keys}
        content = {"msg_type": msg_type, "engine": self.engine.key, **plain(message)}
        content["buffers"] = [bytes(buffer) for buffer in buffers or ()]
        self._output.emit("comm", content)


def install(engine: Engine) -> None:
    """Have the widgets of this process, which is the engine's alone, use such comms."""
    EngineComm.engine = engine
    comm.create_comm = EngineComm


def hear(msg_type: str, content: dict[str, Any], buffers: list[bytes]) -> None:
    """What a browser says to a widget here; it may be gone."""
    manager = comm.get_comm_manager()
    if content["comm_id"] not in manager.comms:
        return
    message = {"content": content, "buffers": [memoryview(buffer) for buffer in buffers]}
    if msg_type == "comm_close":
        manager.comm_close(None, "", message)  # type: ignore[arg-type]
    else:
        manager.comm_msg(None, "", message)  # type: ignore[arg-type]
