"""The backend's options, and what they mean for a cluster's registry and engines."""

from __future__ import annotations

from typing import Any

__all__ = ["OPTIONS", "PATIENCE", "asked", "registry_order"]

#: seconds for Ray to find a place for an engine
PATIENCE = 30
#: options of engines' actors, which Ray understands
ACTOR = ("num_cpus", "num_gpus", "resources", "runtime_env", "scheduling_strategy")
#: all options of the backend
OPTIONS = (*ACTOR, "patience", "address", "namespace", "init", "engine", "upload")


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """What a client says of engines that it starts besides those of a registry: what it leaves
    open is as the registry's; see :meth:`registry.Registry.start_engines`."""
    said: dict[str, Any] = {"actor": {n: options[n] for n in ACTOR if options.get(n) is not None}}
    if "patience" in options:
        said["patience"] = options["patience"]
    if "engine" in options:
        said["engine"] = options["engine"]
    return said


def registry_order(
    options: dict[str, Any],
    setup: dict[str, Any],
    namespace: str,
    logs: str,
    *,
    own: bool,
    folder: str = "",
    adopted: bool = False,
) -> dict[str, Any]:
    """What a registry is told; see :class:`registry.Registry`."""
    actor = {name: options[name] for name in ACTOR if options.get(name) is not None}
    # on a Ray of their own engines always fit, and leave the CPUs to Ray's tasks
    actor.setdefault("num_cpus", 0 if own else 1)
    return {
        "adopted": adopted,
        "namespace": namespace,
        "actor": actor,
        "patience": options.get("patience", PATIENCE),
        "setup": {
            "namespace": namespace,
            "cwd": setup["cwd"],
            "path": setup["path"],
            "env": setup["env"],
            "logs": logs,
            "folder": folder,
            "engine": options.get("engine", {}),
        },
    }
