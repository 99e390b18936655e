"""A cluster's connection file, which others find it by."""

from __future__ import annotations

import os
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


def test_nobody_else_gets_at_the_files_of_a_cluster(rc: ipp.Client) -> None:
    def folder() -> str | None:
        from pxcompat.engine import engine_of_process

        engine = engine_of_process()
        assert engine is not None
        return engine.folder

    for path in rc[:].apply_sync(folder):
        assert path is not None
        cluster = next(p for p in [Path(path), *Path(path).parents] if "pxcompat-" in p.name)
        assert cluster.stat().st_uid == os.getuid()
        assert cluster.stat().st_mode & 0o077 == 0
