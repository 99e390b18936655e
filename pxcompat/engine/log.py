"""A logging handler that publishes an engine's records (``ipyparallel.engine.log``).

Engines have none of their own here.  Libraries look for one among an engine's handlers, to set its
level, or add one that leads to a collector of theirs.
"""

from __future__ import annotations

from typing import Any

from zmq.log.handlers import PUBHandler

__all__ = ["EnginePUBHandler"]


class EnginePUBHandler(PUBHandler):
    """Publishes records on a ZeroMQ socket, under the engine's id.

    Parameters
    ----------
    engine : object
        What has the engine's ``id``, an int once it is known.
    *args, **kwargs : Any
        Of pyzmq's ``PUBHandler``: an address to bind, or a socket.
    """

    def __init__(self, engine: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = engine

    @property
    def root_topic(self) -> str:
        """What topics begin with: ``engine.0``, or ``engine`` while there is no id."""
        number = getattr(getattr(self, "engine", None), "id", None)
        return f"engine.{number}" if isinstance(number, int) else "engine"

    @root_topic.setter
    def root_topic(self, topic: str) -> None:
        """Ignore pyzmq's, which an engine's id takes the place of."""
