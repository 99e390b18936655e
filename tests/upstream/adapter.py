"""What ipyparallel's tests ask of their own package: ``from ipyparallel.tests import ...``.

``conftest.py`` copies this file to be the ``__init__`` of the temporary package ``ipp_upstream``,
beside copies of the test modules. Engines import the package too, since the tests send functions
such as ``clienttest.crash`` by reference; so nothing here may need pytest or a cluster at import.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import ipyparallel as ipp

PROFILE = "iptest"
#: how long engines may take to start, in seconds
START_TIMEOUT = 90

#: processes that upstream's teardown would have to end; ours belong to the cluster
launchers: list[Any] = []

_clusters: list[Any] = []

#: classes that upstream's modules name, if only in tests that are excluded
LAUNCHERS = {
    "LocalControllerLauncher": "Controller",
    "LocalProcessLauncher": "Controller",
    "LocalEngineSetLauncher": "EngineSet",
    "SGEEngineSetLauncher": "EngineSet",
}


def register() -> None:
    """Be ``ipyparallel.tests``, and supply what the test modules import for excluded tests."""
    sys.modules["ipyparallel.tests"] = sys.modules[__name__]
    if not ipp.Client.__module__.startswith("pxcompat"):
        return
    launcher = importlib.import_module("pxcompat.cluster.launcher")
    for name, ours in LAUNCHERS.items():
        if not hasattr(launcher, name):
            setattr(launcher, name, getattr(launcher, ours))
    for name, module in {"cluster.launcher": launcher, "engine.app": ModuleType("app")}.items():
        sys.modules.setdefault(f"ipyparallel.{name}", module)


register()


def setup() -> None:
    """Start the cluster of one test module, with one engine."""
    backend = os.environ.get("PXCOMPAT_TEST_BACKEND", "dask")
    options = {} if backend == "ipyparallel" else {"backend": backend}
    cluster = ipp.Cluster(profile=PROFILE, cluster_id="", n=1, **options)
    _clusters.append(cluster)
    cluster.start_cluster_sync()
    with ipp.Client(profile=PROFILE) as rc:
        rc.wait_for_engines(1, timeout=START_TIMEOUT)
        _prepare(rc[:])


def _prepare(engines: Any) -> None:
    """Have tracebacks without escapes, as upstream does with an argument of its engines.

    The first function of a test module that comes to an engine imports pytest there and the
    package; tests that count tenths of a second would count that.
    """
    engines.execute("%colors nocolor", block=True)
    engines.apply_sync(_import_tests)


def _import_tests() -> None:
    importlib.import_module(f"{__name__}.clienttest")


def add_engines(n: int = 1, profile: str = PROFILE, total: bool = False) -> list[str]:
    """Start ``n`` engines, or as many as bring the cluster up to ``n`` when ``total``.

    Returns one item an engine started: the tests count them.
    """
    with ipp.Client(profile=profile) as rc:
        base = len(rc)
        if total:
            n = max(n - base, 0)
        if n:
            name = _clusters[-1].start_engines_sync(n)
            rc.wait_for_engines(base + n, timeout=START_TIMEOUT)
            _prepare(rc[-n:])
    return [f"{name}-{i}" for i in range(n)] if n else []


def teardown() -> None:
    """Stop the module's cluster."""
    while _clusters:
        _clusters.pop().stop_cluster_sync()
