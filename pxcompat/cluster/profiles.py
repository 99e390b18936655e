"""IPython profile directories: where configuration, connection files and logs live."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..error import ConnectionFileError

__all__ = ["Profile", "all_profiles", "create", "find"]

_PREFIX = "profile_"


@dataclass(frozen=True)
class Profile:
    """An IPython profile directory.

    Attributes
    ----------
    name
        The profile's name; the whole path for a directory that is not in the IPython directory.
    path
        The directory.  Need not exist: nothing is written before a cluster is started.
    """

    name: str
    path: Path

    @property
    def security_dir(self) -> Path:
        return self.path / "security"

    @property
    def log_dir(self) -> Path:
        return self.path / "log"

    @property
    def config_file(self) -> Path:
        return self.path / "pxcompat_config.py"

    def connection_file(self, cluster_id: str = "") -> Path:
        """Where the connection file of a running cluster is."""
        return self.security_dir / f"pxcompat{_infix(cluster_id)}-client.json"

    def connection_files(self) -> list[Path]:
        """The connection files that exist, stale ones among them."""
        return sorted(self.security_dir.glob("pxcompat*-client.json"))

    def engine_logs(self, cluster_id: str = "") -> Path:
        """Folder for the log files of a cluster's processes."""
        return self.log_dir / f"pxcompat{_infix(cluster_id)}"

    def daemon_log(self, cluster_id: str = "") -> Path:
        """What the process that holds a cluster writes."""
        return self.log_dir / f"pxcluster{_infix(cluster_id)}.log"


def _infix(cluster_id: str) -> str:
    if os.sep in cluster_id or cluster_id in {".", ".."} or "\0" in cluster_id:
        raise ValueError(
            f"cluster_id {cluster_id!r} becomes part of a file's name: use no {os.sep!r}"
        )
    return f"-{cluster_id}" if cluster_id else ""


def ipython_directory(ipython_dir: str | os.PathLike[str] | None = None) -> Path:
    """The IPython directory: the one given, ``$IPYTHONDIR``, or ``~/.ipython``."""
    if ipython_dir:
        return Path(ipython_dir).expanduser().absolute()
    from IPython.paths import get_ipython_dir

    return Path(get_ipython_dir())


def find(
    profile: str | None = None,
    *,
    profile_dir: str | os.PathLike[str] | None = None,
    ipython_dir: str | os.PathLike[str] | None = None,
    must_exist: bool = True,
) -> Profile:
    """Find a profile.

    Without a name or a directory it is ``$PXCOMPAT_PROFILE``, the profile of the running
    IPython session, or ``default``, which need not exist.

    Raises
    ------
    ConnectionFileError
        When the profile asked for does not exist, unless told that it need not.
    """
    if profile_dir:
        path = Path(profile_dir).expanduser().absolute()
        if must_exist and not path.is_dir():
            raise ConnectionFileError(f"There is no profile directory {path}.")
        return _at(path, ipython_dir)

    origin = ""
    if not profile and (profile := os.environ.get("PXCOMPAT_PROFILE")):
        origin = " (named by PXCOMPAT_PROFILE)"
    if not profile and not ipython_dir and (session := _session_profile_dir()):
        return _at(session, None)

    name = profile or "default"
    home = ipython_directory(ipython_dir)
    path = home / (_PREFIX + name)
    if must_exist and name != "default" and not path.is_dir():
        known = ", ".join(p.name for p in all_profiles(home)) or "none"
        raise ConnectionFileError(
            f"There is no IPython profile {name!r}{origin} in {home}; profiles there: {known}."
            f" `pxcluster create {name}` makes it."
        )
    return Profile(name, path)


def create(profile: Profile) -> None:
    """Make a profile's directory, or complete the one that exists."""
    from IPython.core.profiledir import ProfileDir

    profile.path.mkdir(parents=True, exist_ok=True)
    ProfileDir(location=str(profile.path))  # makes its folders, security with mode 0700


def all_profiles(ipython_dir: str | os.PathLike[str] | None = None) -> list[Profile]:
    """Every profile of the IPython directory, by name."""
    home = ipython_directory(ipython_dir)
    return [
        Profile(path.name[len(_PREFIX) :], path)
        for path in sorted(home.glob(_PREFIX + "*"))
        if path.is_dir()
    ]


def _at(path: Path, ipython_dir: str | os.PathLike[str] | None) -> Profile:
    inside = path.name.startswith(_PREFIX) and path.parent == ipython_directory(ipython_dir)
    return Profile(path.name[len(_PREFIX) :] if inside else str(path), path)


def _session_profile_dir() -> Path | None:
    """The profile directory of the IPython session we are in."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    directory = getattr(shell, "profile_dir", None)
    return Path(directory.location).absolute() if directory is not None else None
