"""A Cluster as a description and back, and from its connection file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from traitlets import import_item

from ..error import ConnectionFileError
from . import connection as connections
from .profiles import Profile

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["describe", "from_connection_file", "from_description"]


def describe(cluster: Cluster) -> dict[str, Any]:
    """What ``Cluster.to_dict`` gives, in the shape that ipyparallel's has."""
    description: dict[str, Any] = {
        "cluster": {name: getattr(cluster, name) for name in sorted(cluster.traits(to_dict=True))}
    }
    kind = type(cluster)
    description["cluster"]["class"] = f"{kind.__module__}.{kind.__qualname__}"
    if cluster._is_running():
        connection = cluster.connection
        description["controller"] = {
            "class": cluster.backend,
            "state": {
                "state": "running",
                "cluster_file": cluster.cluster_file,
                "pid": connection.pid,
                "host": connection.host,
                "address": connection.address,
                "started": connection.started,
            },
        }
    description["engines"] = {
        "class": cluster.backend,
        "sets": {
            engine_set_id: {"n": engine_set.n, "engines": engine_set.names}
            for engine_set_id, engine_set in cluster.engines.items()
            if engine_set.running
        },
    }
    return description


def from_description(
    cls: type[Cluster], description: Mapping[str, Any], kwargs: dict[str, Any]
) -> Cluster:
    """What ``Cluster.from_dict`` gives."""
    fields = dict(description["cluster"])
    name = fields.pop("class", None)
    if name and (specified := import_item(name)) is not cls:
        return cast("Cluster", specified.from_dict(description, **kwargs))
    path = ((description.get("controller") or {}).get("state") or {}).get("cluster_file")
    if path:
        fields["cluster_file"] = path
    cluster = cls(**{"shutdown_atexit": False, **fields, **kwargs})
    if path:
        try:
            cluster._attach(connections.read(path))
        except ConnectionFileError as exc:
            cluster.log.error("Cluster %s is not running: %s", cluster.cluster_id, exc)
    return cluster


def from_connection_file(
    cls: type[Cluster], path: Path, place: Profile, kwargs: dict[str, Any]
) -> Cluster:
    """What ``Cluster.from_file`` gives."""
    connection = connections.read(path)
    fields = {
        "profile_dir": connection.profile_dir or str(place.path),
        "cluster_id": connection.cluster_id,
        "cluster_file": str(path),
        "backend": connection.backend,
        "shutdown_atexit": False,
    }
    cluster = cls(**{**fields, **kwargs})
    cluster._attach(connection)
    return cluster
