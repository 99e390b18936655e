"""A cluster's connection file, which others find it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

import pxcompat as ipp


def test_a_file_that_was_lost_is_written_again(rc: ipp.Client, cluster: Any) -> None:
    path = Path(cluster.cluster_file)
    before = ipp.Cluster.from_file(path)
    cluster.remove_cluster_file()
    cluster.remove_cluster_file()
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        ipp.Cluster.from_file(path)
    cluster.update_cluster_file()
    assert path.stat().st_mode & 0o777 == 0o600
    found = ipp.Cluster.from_file(path)
    assert found.connection.is_same(before.connection)
    assert {key: s.names for key, s in found.engines.items()} == {
        key: s.names for key, s in cluster.engines.items()
    }
    with ipp.Client(path) as other:
        assert other.ids == rc.ids


def test_without_a_cluster_there_is_no_file(backend: str) -> None:
    cluster = ipp.Cluster(backend=backend)
    path = Path(cluster.cluster_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    cluster.update_cluster_file()
    assert not path.exists()
    with pytest.raises(RuntimeError):
        cluster.write_cluster_file()
    ipp.Cluster(backend=backend, cluster_file="").update_cluster_file()


def test_the_profiles_configuration(backend: str) -> None:
    config = Config()
    config.Cluster.n = 7
    cluster = ipp.Cluster(backend=backend, profile_config=config)
    assert cluster.n == 7
    assert cluster.profile_config.Cluster.n == 7
    assert ipp.Cluster(backend=backend, load_profile=False).profile_config == {}
