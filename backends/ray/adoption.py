"""Nodes of a Ray that somebody else runs, and the package that they may lack."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pxcompat
from pxcompat.error import BackendError

from ..packing import NAME, pack

__all__ = ["explain", "upload_where_missing"]

#: what has to be there where an engine runs
PART = "pxcompat.backends.ray.engine"
#: seconds for a node to start a process and say what it lacks
PATIENCE = 60


def explain(address: str, runtime_env: dict[str, Any] | None, *, uploaded: bool) -> None:
    """Find out who lacks the package.

    Raises
    ------
    BackendError
        Naming the nodes, and what is missing.
    """
    if not (missing := _missing(runtime_env)):
        return
    modules = sorted(set(missing.values()))
    who = ", ".join(list(missing)[:8]) + (", ..." if len(missing) > 8 else "")
    how = "install pxcompat there"
    if uploaded:
        how += "; it was uploaded, what it depends on has to be installed"
    elif NAME in modules:
        how += ", or have it uploaded: Client(..., upload=True)"
    raise BackendError(
        f"the Ray cluster at {address} cannot import {', '.join(modules)} on {who}: {how}"
    )


def upload_where_missing(runtime_env: dict[str, Any] | None) -> dict[str, Any] | None:
    """Send the package into the cluster, if some node lacks it; engines' runtime environment."""
    if NAME not in _missing(runtime_env).values():
        return runtime_env
    from ray._private.runtime_env import packaging

    with tempfile.TemporaryDirectory(prefix="pxcompat-") as folder:
        path = Path(folder, f"pxcompat-{pxcompat.__version__}.zip")
        pack(os.fspath(path))
        uri = packaging.get_uri_for_package(path)
        if not packaging.package_exists(uri):
            packaging.upload_package_to_gcs(uri, path.read_bytes())
    env = dict(runtime_env or {})
    return {**env, "py_modules": [*env.get("py_modules", ()), uri]}


def _missing(runtime_env: dict[str, Any] | None) -> dict[str, str]:
    """Which nodes cannot import an engine's part: by name, the module that is not there."""

    def missing(module: str) -> str:
        # by value: who lacks the package could not import it from there
        import importlib

        try:
            importlib.import_module(module)
        except ImportError as error:
            return error.name or str(error)
        return ""

    probe = ray.remote(missing)
    asked = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = (
            f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID']})"
        )
        asked[name] = probe.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=there,
            runtime_env=runtime_env,
            name="px:probe",
        ).remote(PART)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
    found = {}
    for name, answer in asked.items():
        try:
            module = ray.get(answer, timeout=0)
        except GetTimeoutError:
            ray.cancel(answer)
            continue  # it is busy with something else
        except RayError:
            continue  # it left
        if module:
            found[name] = module
    return found
