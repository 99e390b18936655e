"""Connection files: written whole and closed, and refused for a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pxcompat.cluster import connection as connections
from pxcompat.cluster.connection import (
    AlreadyRunning,
    Connection,
    MissingConnectionFile,
    StaleConnectionFile,
    read,
    remove,
    running,
    update,
    write,
)
from pxcompat.error import ConnectionFileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "security" / "pxcompat-client.json"


def a_connection(**fields: Any) -> Connection:
    return Connection(backend="dask", info={"address": "tcp://h:1", "key": "PEM"}, **fields)


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_round_trip(path: Path) -> None:
    connection = a_connection(cluster_id="x", engines={"1": ["a", "b"]})
    write(path, connection)
    assert read(path) == connection
    assert read(path).address == "tcp://h:1"


@pytest.mark.parametrize("infix", ["", "-x"])
def test_found_by_the_name_that_it_has_in_ipyparallel(path: Path, infix: str) -> None:
    theirs = path.with_name(f"ipcontroller{infix}-client.json")
    with pytest.raises(MissingConnectionFile, match="ipcontroller"):
        read(theirs)
    connection = a_connection(cluster_id=infix[1:])
    write(path.with_name(f"pxcompat{infix}-client.json"), connection)
    assert read(theirs) == connection


def test_nobody_else_can_read_it(path: Path) -> None:
    write(path, a_connection())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_replaced_as_a_whole(path: Path) -> None:
    write(path, a_connection())
    with path.open() as reader:
        write(path, a_connection(cluster_id="x" * 10_000))
        assert json.load(reader)["cluster_id"] == ""
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_write_leaves_the_old_file_and_no_other(path: Path) -> None:
    write(path, a_connection())
    with pytest.raises(TypeError):
        write(path, Connection(backend="dask", info={"a": object()}))
    assert read(path).backend == "dask"
    assert os.listdir(path.parent) == [path.name]


def test_only_one_can_be_new(path: Path) -> None:
    first = a_connection()
    write(path, first, new=True)
    with pytest.raises(AlreadyRunning, match=str(path)):
        write(path, a_connection(cluster_id="second"), new=True)
    assert read(path) == first


class TestRefused:
    def refused(self, path: Path, kind: type[Exception] = ConnectionFileError) -> str:
        with pytest.raises(kind) as raised:
            read(path)
        assert isinstance(raised.value, OSError)
        assert path.name in str(raised.value)
        return str(raised.value)

    def put(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(0o600)

    def test_missing(self, path: Path) -> None:
        assert "pxcluster start" in self.refused(path, MissingConnectionFile)
        self.refused(path, FileNotFoundError)

    def test_not_json(self, path: Path) -> None:
        self.put(path, "{")
        assert "is not JSON" in self.refused(path)

    def test_no_object(self, path: Path) -> None:
        self.put(path, [1])
        assert "no JSON object" in self.refused(path)

    def test_not_a_file(self, path: Path) -> None:
        path.mkdir(parents=True)
        assert "cannot be read" in self.refused(path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_not_readable(self, path: Path) -> None:
        self.put(path, {})
        path.chmod(0)
        assert "cannot be read: Permission denied" in self.refused(path)

    def test_open_to_others(self, path: Path) -> None:
        write(path, a_connection())
        path.chmod(0o640)
        message = self.refused(path)
        assert "mode 0640" in message and f"chmod 600 {path}" in message

    def test_another_user_s(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(path, a_connection())
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert "belongs to another user" in self.refused(path)

    def test_another_version(self, path: Path) -> None:
        self.put(path, {**a_connection().to_dict(), "version": 99})
        message = self.refused(path)
        assert "version 99" in message and f"version {connections.VERSION}" in message

    def test_unknown_content(self, path: Path) -> None:
        self.put(path, {"hello": 1})
        assert "not a connection file of pxcompat" in self.refused(path)

    def test_incomplete(self, path: Path) -> None:
        self.put(path, {"version": connections.VERSION, "backend": "dask"})
        assert "incomplete" in self.refused(path)

    def test_damaged(self, path: Path) -> None:
        self.put(path, {**a_connection().to_dict(), "info": "?"})
        assert "damaged" in self.refused(path)

    def test_ipyparallel_s(self, path: Path) -> None:
        self.put(
            path,
            {"registration": 1, "task_scheduler": "leastload", "key": "k", "iopub": 2, "ssh": ""},
        )
        message = self.refused(path)
        assert "ipyparallel's own controller" in message and "pxcluster start" in message

    def test_ipyparallel_s_cluster_file(self, path: Path) -> None:
        self.put(path, {"cluster": {}, "controller": {}, "engines": {}})
        assert "ipyparallel's own ipcluster" in self.refused(path)

    def test_a_kernel_s(self, path: Path) -> None:
        self.put(path, {"shell_port": 1, "iopub_port": 2, "key": ""})
        assert "Jupyter kernel" in self.refused(path)

    def test_a_dask_scheduler_s(self, path: Path) -> None:
        self.put(path, {"type": "Scheduler", "id": "S", "address": "tcp://a:1", "workers": {}})
        path.chmod(0o644)  # as Dask writes it
        assert "distributed.Client(scheduler_file=" in self.refused(path)

    def test_stale(self, path: Path, dead_pid: int) -> None:
        write(path, a_connection(pid=dead_pid))
        message = self.refused(path, StaleConnectionFile)
        assert f"process {dead_pid}" in message and "pxcluster start" in message


def test_a_process_that_inherited_the_number_is_not_the_owner(path: Path) -> None:
    write(path, a_connection(started=time.time() - 10**8))
    with pytest.raises(StaleConnectionFile):
        read(path)


def test_a_zombie_is_gone(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # to its end, which is the process's
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert a_connection(pid=process.pid).owner() is None
    finally:
        process.wait()
        process.stdout.close()


def test_of_another_host_nothing_is_known(path: Path, dead_pid: int) -> None:
    write(path, a_connection(pid=dead_pid, host="elsewhere"))
    assert read(path).owner() is None


def test_running(path: Path, dead_pid: int) -> None:
    assert running(path) is None
    write(path, a_connection())
    assert running(path) == read(path)
    write(path, a_connection(pid=dead_pid))
    assert running(path) is None
    assert not path.exists()


def test_only_its_own_file_is_removed(path: Path) -> None:
    mine = a_connection(started=1)
    write(path, a_connection())
    remove(path, mine)
    assert path.exists()
    remove(path, read(path))
    assert not path.exists()
    remove(path, mine)


def test_only_its_own_file_is_updated(path: Path) -> None:
    def rename(connection: Connection) -> None:
        connection.profile = "changed"

    mine = a_connection()
    update(path, mine, rename)
    assert not path.exists()
    write(path, mine)
    update(path, a_connection(started=1), rename)
    assert read(path).profile == "default"
    update(path, mine, rename)
    assert read(path).profile == "changed"
