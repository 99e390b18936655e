"""Finding the clusters of all profiles, and cleaning up after those that are gone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from traitlets import Dict
from traitlets.config import LoggingConfigurable

from ..error import ConnectionFileError
from . import connection as connections, profiles
from .cluster import Cluster
from .connection import StaleConnectionFile
from .profiles import Profile

__all__ = ["ClusterManager", "clean_cluster_files"]


class ClusterManager(LoggingConfigurable):
    """The clusters of several profiles (ipyparallel.cluster.ClusterManager).

    Attributes
    ----------
    clusters : dict
        ``"<profile>:<cluster_id>"`` -> :class:`Cluster`.
    """

    clusters = Dict(help="The clusters that are known.")

    @staticmethod
    def _cluster_key(cluster: Cluster) -> str:
        return f"{profiles.find(profile_dir=cluster.profile_dir, must_exist=False).name}:" + str(
            cluster.cluster_id
        )

    def load_clusters(
        self,
        *,
        profile_dirs: Iterable[str] | None = None,
        profile_dir: str | None = None,
        profiles: Iterable[str] | None = None,
        profile: str | None = None,
        init_default_clusters: bool = False,
        **kwargs: Any,
    ) -> dict[str, Cluster]:
        """Find running clusters by their connection files.

        Parameters
        ----------
        profile_dirs, profile_dir, profiles, profile
            Where to look, the first that is given; default is every profile.
        init_default_clusters : bool
            Have a Cluster, not started, for a profile with no running one.

        Returns
        -------
        dict
            :attr:`clusters`, without those that have ended.
        """
        clusters: dict[str, Cluster] = {
            key: cluster
            for key, cluster in self.clusters.items()
            # one that has not been started yet stays
            if cluster.controller is None or cluster._is_running()
        }
        known = {cluster.cluster_file for cluster in clusters.values()}
        for place in _places(profile_dirs, profile_dir, profiles, profile):
            files = place.connection_files()
            for file in files:
                if str(file) in known:
                    continue
                try:
                    cluster = Cluster.from_file(str(file), parent=self)
                except ConnectionFileError as exc:
                    self.log.warning("%s", exc)
                else:
                    clusters[self._cluster_key(cluster)] = cluster
            if init_default_clusters and not files:
                cluster = Cluster(profile_dir=str(place.path), cluster_id="", parent=self)
                clusters.setdefault(self._cluster_key(cluster), cluster)
        self.clusters = clusters
        return clusters

    def new_cluster(self, **kwargs: Any) -> tuple[str, Cluster]:
        """A new cluster, not started, and its key.

        Raises
        ------
        KeyError
            When there is one of that profile and cluster_id.
        """
        cluster = Cluster(parent=self, **kwargs)
        key = self._cluster_key(cluster)
        if key in self.clusters:
            raise KeyError(f"there is a cluster {key} already")
        self.clusters = {**self.clusters, key: cluster}
        return key, cluster

    def get_cluster(self, cluster_id: str) -> Cluster:
        """The cluster of that key."""
        cluster: Cluster = self.clusters[cluster_id]
        return cluster

    def remove_cluster(self, cluster_id: str) -> None:
        """Forget the cluster of that key; it runs on."""
        remaining = dict(self.clusters)
        del remaining[cluster_id]
        self.clusters = remaining


def clean_cluster_files(
    profile_dirs: str | Iterable[str] | None = None, *, log: Any = None, force: bool = False
) -> None:
    """Remove what clusters that are gone left in profiles: connection files and logs.

    ipyparallel's own connection, cluster and log files go too.

    Parameters
    ----------
    profile_dirs : str or iterable of str
        Default is every profile.
    force : bool
        Remove the files of running clusters too, which then cannot be found any more.

    Raises
    ------
    ValueError
        When a cluster is running, unless ``force``.
    """
    if isinstance(profile_dirs, str):
        profile_dirs = [profile_dirs]
    for place in _places(profile_dirs):
        theirs = list(place.security_dir.glob("cluster-*.json"))
        if not force:
            _refuse_running(place, theirs)
        log_files = (path for path in place.log_dir.rglob("*") if path.is_file())
        for path in [
            *place.connection_files(),
            *theirs,
            *place.security_dir.glob("ipcontroller-*.json"),
            *log_files,
        ]:
            if log:
                log.debug("Removing %s", path)
            path.unlink(missing_ok=True)


def _refuse_running(place: Profile, theirs: list[Path]) -> None:
    running = []
    for file in place.connection_files():
        try:
            connections.read(file)
        except StaleConnectionFile:
            continue
        except ConnectionFileError:
            # damaged, or another version's: nobody can connect by it
            continue
        running.append(file)
    running += [file for file in theirs if _ipyparallel_runs(file)]
    if running:
        raise ValueError(
            f"A cluster is still running: {running[0]}. Stop it first, or use force (--force)"
            " to remove its files all the same."
        )


def _ipyparallel_runs(cluster_file: Path) -> bool:
    """Whether the controller that ipyparallel's cluster file names is there."""
    try:
        pid = json.loads(cluster_file.read_text())["controller"]["state"]["pid"]
        return bool(psutil.pid_exists(pid))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _places(
    profile_dirs: Iterable[str] | None = None,
    profile_dir: str | None = None,
    names: Iterable[str] | None = None,
    name: str | None = None,
) -> list[Profile]:
    if profile_dirs is None and profile_dir is not None:
        profile_dirs = [profile_dir]
    if profile_dirs is not None:
        return [profiles.find(profile_dir=path) for path in profile_dirs]
    if names is None and name is not None:
        names = [name]
    if names is not None:
        return [profiles.find(one) for one in names]
    return profiles.all_profiles()
