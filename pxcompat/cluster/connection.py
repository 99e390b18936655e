"""Connection files: how one process tells another where a cluster is and how to talk to it.

A connection file holds the cluster's credentials.  Whoever can read it can run code, so it is
written with mode 0600 into a folder of mode 0700, and refused when others can read it.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from ..error import ConnectionFileError, KernelError

__all__ = [
    "VERSION",
    "AlreadyRunning",
    "Connection",
    "MissingConnectionFile",
    "StaleConnectionFile",
    "read",
    "remove",
    "running",
    "update",
    "write",
]

#: Version of the format.
VERSION = 1

#: Keys that give away whose file it is that we were given instead of ours.
_FOREIGN = (
    (
        {"registration", "task_scheduler"},
        "a connection file of ipyparallel's own controller, which speaks ZeroMQ. Start a cluster"
        " with `pxcluster start` and use its file, or run `pxcompat disable` to use ipyparallel",
    ),
    (
        {"cluster", "controller"},
        "a cluster file of ipyparallel's own ipcluster. Start a cluster with `pxcluster start`",
    ),
    ({"shell_port", "iopub_port"}, "the connection file of a Jupyter kernel, not of a cluster"),
    (
        {"type", "id", "address", "workers"},
        "the file of a Dask scheduler. Connect with"
        " `Client(distributed.Client(scheduler_file=...))`",
    ),
)


class MissingConnectionFile(ConnectionFileError, FileNotFoundError):
    """There is no such connection file."""


class StaleConnectionFile(ConnectionFileError):
    """The process that wrote the connection file, and its cluster with it, is gone."""


class AlreadyRunning(KernelError, RuntimeError):
    """A cluster of this profile and cluster_id is running."""


@dataclass(slots=True)
class Connection:
    """A running cluster, as its connection file describes it.

    Attributes
    ----------
    backend
        Name of the backend the cluster runs on.
    info
        What the backend's provider needs to connect: addresses and credentials.
    cluster_id, profile, profile_dir
        Under which name the cluster is found.
    pid, host
        The process that owns the cluster, and ends with it.
    started
        POSIX seconds.
    dedicated
        Whether the owner exists only to hold the cluster, so that a SIGTERM to it is the
        way to stop both.
    engines
        Names of the engines by engine set, as they were started.
    mpi
        By engine set whose engines are an MPI world: the command that starts its ranks, before
        and after their number.
    """

    backend: str
    info: dict[str, Any]
    cluster_id: str = ""
    profile: str = "default"
    profile_dir: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    started: float = field(default_factory=time.time)
    dedicated: bool = False
    engines: dict[str, list[str]] = field(default_factory=dict)
    mpi: dict[str, list[list[str]]] = field(default_factory=dict)
    version: int = VERSION

    @property
    def address(self) -> str:
        """Where the cluster's controller listens."""
        return str(self.info.get("address", ""))

    @property
    def local(self) -> bool:
        """Whether the owner is a process of this host."""
        return self.host == socket.gethostname()

    def owner(self) -> psutil.Process | None:
        """The owner's process, when it runs on this host."""
        if not self.local:
            return None
        try:
            process = psutil.Process(self.pid)
            # A process younger than the cluster only inherited the number.
            same = process.create_time() <= self.started + 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def is_same(self, other: Connection) -> bool:
        """Whether both describe the same run of a cluster."""
        return (self.pid, self.host, self.started) == (other.pid, other.host, other.started)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "connection info") -> Connection:
        """Check what was read from ``where``.

        Raises
        ------
        ConnectionFileError
            When it is of another version or of something else.
        """
        _check_foreign(content, where)
        if "backend" not in content or "version" not in content:
            raise ConnectionFileError(
                f"{where} is not a connection file of pxcompat: it has no 'backend' or no"
                " 'version'. `pxcluster start` writes one."
            )
        if content["version"] != VERSION:
            raise ConnectionFileError(
                f"{where} has version {content['version']!r}, and this pxcompat reads version"
                f" {VERSION}: the cluster was started by another version. Stop it with the"
                " `pxcluster` that started it, or use the same version here."
            )
        known = {f.name for f in fields(cls)}
        try:
            connection = cls(**{k: v for k, v in content.items() if k in known})
        except TypeError as exc:
            raise ConnectionFileError(f"{where} is incomplete: {exc}.") from exc
        if not isinstance(connection.info, dict) or not isinstance(connection.pid, int):
            raise ConnectionFileError(f"{where} is damaged: its 'info' or 'pid' has a wrong type.")
        return connection


def read(path: str | os.PathLike[str], *, allow_stale: bool = False) -> Connection:
    """Read a connection file.

    Raises
    ------
    MissingConnectionFile
        When there is no such file.
    StaleConnectionFile
        When its owner is gone, unless ``allow_stale``.
    ConnectionFileError
        When it cannot be read, others can read it, or it is not ours.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            stat = os.fstat(file.fileno())
            content = json.load(file)
    except FileNotFoundError:
        if path.name.startswith("ipcontroller"):  # as ipyparallel's are called
            ours = path.with_name("pxcompat" + path.name.removeprefix("ipcontroller"))
            if ours.exists():
                return read(ours, allow_stale=allow_stale)
        raise MissingConnectionFile(
            f"There is no connection file {path}: no cluster is running there."
            " `pxcluster start` starts one, `pxcluster list` shows what runs."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ConnectionFileError(f"The connection file {path} is not JSON: {exc}.") from exc
    except OSError as exc:
        raise ConnectionFileError(
            f"The connection file {path} cannot be read: {exc.strerror}."
        ) from exc
    if not isinstance(content, dict):
        raise ConnectionFileError(f"The connection file {path} holds no JSON object.")

    _check_foreign(content, f"The file {path}")  # others' files may be open to everybody
    _check_access(path, stat)
    connection = Connection.from_dict(content, f"The file {path}")
    if not allow_stale and connection.local and connection.owner() is None:
        raise StaleConnectionFile(
            f"The connection file {path} is stale: process {connection.pid}, which held the"
            " cluster, is gone. `pxcluster clean` removes such files, `pxcluster start` starts"
            " a new cluster."
        )
    return connection


def _check_foreign(content: Mapping[str, Any], where: str) -> None:
    for keys, what in _FOREIGN:
        if keys <= content.keys():
            raise ConnectionFileError(f"{where} is {what}.")


def _check_access(path: Path, stat: os.stat_result) -> None:
    if os.name != "posix":
        return
    if os.geteuid() not in (0, stat.st_uid):
        raise ConnectionFileError(
            f"The connection file {path} belongs to another user (uid {stat.st_uid}); it could"
            " lead anywhere, and is not used."
        )
    if stat.st_mode & 0o077:
        raise ConnectionFileError(
            f"The connection file {path} is open to other users (mode {stat.st_mode & 0o777:04o}),"
            " who could run code in the cluster with it. Restart the cluster, or, if nobody can"
            f" have read it: chmod 600 {path}"
        )


def write(path: str | os.PathLike[str], connection: Connection, *, new: bool = False) -> None:
    """Write a connection file, so that it is at every moment absent or whole.

    Raises
    ------
    AlreadyRunning
        With ``new``, when the file exists: another process was quicker.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".pxcompat-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(connection.to_dict(), file, indent=1)
        if new:
            os.link(temporary, path)  # unlike a rename, fails when the name is taken
        else:
            os.replace(temporary, path)
    except FileExistsError:
        raise AlreadyRunning(f"A cluster was started at the same time: {path} exists.") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def update(
    path: str | os.PathLike[str], connection: Connection, change: Callable[[Connection], object]
) -> None:
    """Change the file of a cluster that is still the same; else leave it alone."""
    try:
        current = read(path, allow_stale=True)
    except MissingConnectionFile:
        return
    if current.is_same(connection):
        change(current)
        write(path, current)


def remove(path: str | os.PathLike[str], connection: Connection) -> None:
    """Remove the file of a cluster, unless it is another's by now."""
    try:
        if read(path, allow_stale=True).is_same(connection):
            Path(path).unlink(missing_ok=True)
    except MissingConnectionFile:
        return


def running(path: str | os.PathLike[str]) -> Connection | None:
    """The running cluster that a connection file describes; None when there is none.

    A stale file is removed.  Raises ConnectionFileError as :func:`read` does, for files
    that may belong to a running cluster that we cannot talk to.
    """
    try:
        return read(path)
    except MissingConnectionFile:
        return None
    except StaleConnectionFile:
        Path(path).unlink(missing_ok=True)
        return None
