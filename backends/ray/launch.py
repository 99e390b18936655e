"""Starting a Ray cluster of engines, and finding one that is there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, cast

from pxcompat.error import ConnectionFileError
from pxcompat.protocol import Backend, LaunchSpec

from ..controlled import LaunchedCluster, check_host, start
from ..loading import load
from ..options import check
from . import session
from .order import OPTIONS

__all__ = ["RayProvider", "provider"]

#: characters that the path of a cluster's folder may have, for Ray's sockets in it to have valid
#: ones
LONGEST = 36

# found missing now, and not in the middle of something; loaded when it is needed
session.require_ray()


class RayProvider:
    """The Ray backend's :class:`pxcompat.protocol.Provider`.

    Its options, as ``c.RayBackend.<name>`` in ``pxcompat_config.py`` or arguments of a Client:

    ``num_cpus``, ``num_gpus``, ``resources``, ``runtime_env``, ``scheduling_strategy``
        What each engine asks Ray for.  Default: one CPU on a cluster that somebody else runs,
        nothing on one that is started for the engines.
    ``patience``
        Seconds for Ray to find a place for an engine (default 30).
    ``address``
        Start the engines of a new cluster on the Ray that runs there.
    ``namespace``
        On a Ray that somebody else runs: which engines there (default "pxcompat").
    ``init``
        Further arguments of ``ray.init`` for a Ray that is started: ``object_store_memory``,
        ``dashboard_port`` ...
    ``engine``
        Options of :class:`pxcompat.engine.runtime.Engine`.
    """

    name = "ray"
    options = OPTIONS
    starting = ("address", "init")

    def launch(self, spec: LaunchSpec, *, timeout: float = 60) -> LaunchedCluster:
        check("Ray", spec.options, OPTIONS)
        environ: dict[str, str] = {}
        if not spec.options.get("address"):
            check_host(spec.host)
            session.prepare_head(environ, spec.host)
        return start(
            "pxcompat.backends.ray.controller",
            spec,
            what="the Ray cluster",
            timeout=timeout,
            env=environ,
            longest=LONGEST,
            # needed next
            meanwhile=_backend,
        )

    def connect(self, info: Mapping[str, Any]) -> Backend:
        address = info.get("address")
        if not address:
            raise ConnectionFileError("the connection info of a Ray cluster has no 'address'")
        if session.taken(address):
            from .relay import RelayBackend

            return RelayBackend(info)
        return cast(Backend, _backend().RayBackend(info))

    def adopt(self, target: Any, *, n: int | None = None, **options: Any) -> Backend | None:
        address: str | None
        if target is None:
            address = session.ambient()
        elif isinstance(target, str):
            known = target.startswith("ray://") or target == "auto"
            plain = re.fullmatch(r"[\w.\-]+:\d+", target) is not None
            address = target if known or plain else None
        else:
            address = _address_of(target)
        if address is None:
            return None
        check("Ray", options, OPTIONS)
        return self.connect(
            {
                "backend": "ray",
                "address": address,
                "namespace": options.pop("namespace", "pxcompat"),
                "adopt": {
                    "n": n,
                    "options": options,
                    "setup": {
                        "cwd": None,
                        "path": [],
                        "env": {
                            name: value
                            for name, value in os.environ.items()
                            if name.startswith("PXCOMPAT_PROFILE")
                        },
                    },
                },
            }
        )


def _backend() -> Any:
    session.import_ray()
    return load("pxcompat.backends.ray.backend")


def _address_of(target: Any) -> str | None:
    """The address of Ray's own context, cluster or module; asked without importing Ray."""
    if getattr(target, "__name__", None) == "ray":
        return session.ambient()
    modules = {cls.__module__.partition(".")[0] for cls in type(target).__mro__}
    if "ray" not in modules:
        return None
    info = getattr(target, "address_info", None)
    if info:
        return str(info["address"])
    address = getattr(target, "address", None)
    return str(address) if address else session.ambient()


provider = RayProvider()
