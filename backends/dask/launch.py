"""Starting a Dask cluster of engines, and finding one that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from pxcompat.error import BackendError
from pxcompat.protocol import Backend, LaunchSpec

from ..controlled import LaunchedCluster, check_host, start
from ..loading import load
from ..options import check

__all__ = ["DaskProvider", "provider"]


#: settings of a cluster that is started
STARTING = ("tls", "port", "dashboard_address")
#: settings for one that somebody else runs
ADOPTING = ("upload", "security", "security_object")


class DaskProvider:
    """The Dask backend's :class:`pxcompat.protocol.Provider`."""

    name = "dask"
    options = (*STARTING, "engine", *ADOPTING)
    starting = STARTING

    def launch(self, spec: LaunchSpec, *, timeout: float = 30) -> LaunchedCluster:
        check("Dask", spec.options, self.options)
        if not hasattr(os, "fork"):
            raise BackendError(
                "local Dask engines need a system with fork (Linux, macOS); start the cluster "
                "on one and connect to it with its connection file"
            )
        check_host(spec.host)
        return start(
            "pxcompat.backends.dask.controller",
            spec,
            what="the Dask cluster",
            timeout=timeout,
            # needed next
            meanwhile=_backend,
        )

    def connect(self, info: Mapping[str, Any]) -> Backend:
        return cast(Backend, _backend().DaskBackend(info))

    def adopt(self, target: Any, *, n: int | None = None, **options: Any) -> Backend | None:
        check("Dask", options, self.options)
        if target is None:
            return None  # a Dask client is often one of many in a process: it has to be given
        if isinstance(target, str):
            if not target.startswith(
                ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")
            ):
                return None
            return self.connect({"backend": "dask", "address": target, "adopt": True, **options})
        # asked without importing: who has one of these has imported distributed
        modules = {cls.__module__.partition(".")[0] for cls in type(target).__mro__}
        if not modules & {"distributed", "dask"} and not hasattr(target, "scheduler_address"):
            return None
        return cast(Backend, _backend().DaskBackend.around(target, **options))


def _backend() -> Any:
    return load("pxcompat.backends.dask.backend")


provider = DaskProvider()
