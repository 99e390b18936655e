"""A Cluster's connection file, written and removed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import connection as connections
from .connection import Connection

if TYPE_CHECKING:
    from .launcher import EngineSet

__all__ = ["ClusterFile"]


class ClusterFile:
    """The part of a Cluster that is about its connection file.

    A cluster writes its file when it starts, keeps it up to date and removes it in the end:
    these are for a file that was lost, or is wanted elsewhere.
    """

    cluster_file: Any
    engines: Any
    log: Any

    @property
    def connection(self) -> Connection:
        """How the running cluster is reached."""
        raise NotImplementedError

    def _is_running(self) -> bool:
        raise NotImplementedError

    def write_cluster_file(self) -> None:
        """Write the file anew, for ``from_file`` and ``Client``.

        Raises
        ------
        RuntimeError
            When the cluster is not running.
        """
        sets: Mapping[str, EngineSet] = self.engines
        names = {key: engine_set.names for key, engine_set in sets.items() if engine_set.running}
        self.log.debug("Updating %s", self.cluster_file)
        connections.write(self.cluster_file, dataclasses.replace(self.connection, engines=names))

    def remove_cluster_file(self) -> None:
        """Remove the file, if it is there.  A cluster that runs cannot be found without it."""
        Path(self.cluster_file).unlink(missing_ok=True)
        self.log.debug("Removed cluster file: %s", self.cluster_file)

    def update_cluster_file(self) -> None:
        """Write the file while the cluster runs, and remove it otherwise.

        Does nothing where ``cluster_file`` is ``""``.
        """
        if not self.cluster_file:
            return
        if self._is_running():
            self.write_cluster_file()
        else:
            self.remove_cluster_file()
