"""This process's connection to Ray.

A process can be connected to one Ray cluster at a time, so the connection is shared by all
clients of the process, and by its own use of Ray.  What Ray changes in the process beyond
that is put back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pxcompat.engine.interrupts import Condition, uninterrupted
from pxcompat.error import BackendError, ConnectError, EngineError

from .later import Later, postponed

__all__ = [
    "Session",
    "ambient",
    "import_ray",
    "join",
    "prepare_head",
    "require_ray",
    "start_head",
    "taken",
    "user_token",
]

log = logging.getLogger("pxcompat.ray")
_worker_log = logging.getLogger("ray._private.worker")

_lock = threading.RLock()
_current: Session | None = None

#: seconds for other threads to come out of Ray before it is shut down
DISCONNECT_TIMEOUT = 5
#: Ray reads "0" as: use the loopback interface, as on Windows and macOS
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


class Session:
    """A connection to Ray.

    Attributes
    ----------
    address
        Of the cluster.
    own
        Whether pxcompat connected, and not the user.
    dashboard
        URL of the cluster's dashboard, or "".
    """

    def __init__(self, address: str, *, own: bool, dashboard: str) -> None:
        self.address = address
        self.own = own
        self.dashboard = dashboard
        self._users = 0
        #: how many threads are in one of Ray's functions
        self._using = 0
        self._ending = False
        self._changed = Condition()

    @property
    def alive(self) -> bool:
        """Whether the process is still connected: anybody may disconnect it."""
        return _current is self and bool(sys.modules["ray"].is_initialized())

    @property
    def remote(self) -> bool:
        """Whether Ray Client connects us (``ray://``), with no object store in this process."""
        return self.address.startswith("ray://")

    def __enter__(self) -> None:
        """Stay connected until the end of the block: Ray ends a process that calls it after it
        disconnected, or starts a cluster for it.

        Raises
        ------
        EngineError
            When the process is not connected any more.
        """
        with self._changed:
            # as alive has it; each request comes by here
            if self._ending or _current is not self or not sys.modules["ray"].is_initialized():
                raise EngineError("this process is not connected to its Ray cluster any more")
            self._using += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._using -= 1
            if self._ending:
                self._changed.notify_all()

    def _disconnect(self) -> None:
        ray = sys.modules["ray"]
        with self._changed:
            self._ending = True
            idle = self._changed.wait_for(lambda: not self._using, DISCONNECT_TIMEOUT)
        if not idle:
            log.warning("staying connected to Ray, which another thread is still waiting for")
        elif ray.is_initialized():
            with _process_kept():
                ray.shutdown()

    def leave(self) -> None:
        """One user less; the last one disconnects, unless it was the user who connected."""
        global _current
        with _lock:
            self._users -= 1
            if self._users > 0 or _current is not self:
                return
            if self.own:
                self._disconnect()
            _current = None

    def lost(self) -> None:
        """The cluster is gone: disconnect, for Ray would end this process over it."""
        global _current
        with _lock:
            if _current is self and self.own:
                self._disconnect()
                _current = None


def require_ray() -> None:
    """Raise ModuleNotFoundError where Ray is not installed, without importing it."""
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")


def import_ray() -> Any:
    """Ray, imported without changing the process's environment.

    An interrupt waits until it is: half imported, Ray cannot be imported again.
    """
    with uninterrupted(), _process_kept():
        import ray
    return ray


def _of_other_than_sigterm(record: logging.LogRecord) -> bool:
    return "SIGTERM handler" not in str(record.msg)


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what Ray changes in a process for its own ends."""
    breakpoint_hook = os.environ.get("PYTHONBREAKPOINT")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    # elsewhere it sets no handler and warns of that, in the user's notebook: nobody wants one
    _worker_log.addFilter(_of_other_than_sigterm)
    try:
        yield
    finally:
        _worker_log.removeFilter(_of_other_than_sigterm)
        if breakpoint_hook is None:
            os.environ.pop("PYTHONBREAKPOINT", None)
        else:
            os.environ["PYTHONBREAKPOINT"] = breakpoint_hook
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def ambient() -> str | None:
    """The address of the Ray cluster that the user has connected this process to."""
    ray = sys.modules.get("ray")
    with _lock:
        if ray is None or not ray.is_initialized():
            return None
        if _current is not None and _current.alive:
            return None if _current.own else _current.address
        return _connected_to(ray)


def _connected_to(ray: Any) -> str:
    if ray.util.client.ray.is_connected():
        return "ray://"  # by Ray's client; it does not say where
    return str(ray.get_runtime_context().gcs_address)


def taken(address: str) -> bool:
    """Whether this process is connected to another cluster."""
    ray = sys.modules.get("ray")
    if address == "auto" or ray is None:
        return False
    with _lock:  # all of it: a client that is just closing may be disconnecting this process
        if not ray.is_initialized():
            return False
        there = _current.address if _current and _current.alive else _connected_to(ray)
        return address != there


def join(info: Mapping[str, Any], timeout: float) -> Session:
    """Connect to a cluster, or share the connection that there is.

    Parameters
    ----------
    info : dict
        ``address``; ``token``, where the cluster asks for one that is not the user's own.
    timeout : float
        Seconds for the cluster to answer.

    Raises
    ------
    ConnectError
        When it does not, naming the stage.
    BackendError
        When the process is connected to another cluster.
    """
    global _current
    ray = import_ray()
    address = str(info["address"])
    with _lock:
        if _current is not None and not _current.alive:
            _current = None  # somebody called ray.shutdown()
        if ray.is_initialized():
            there = _current.address if _current is not None else _connected_to(ray)
            if address not in ("auto", there):
                raise BackendError(
                    f"this process is connected to the Ray cluster at {there}, and Ray allows one "
                    f"connection a process: close its clients (or call ray.shutdown()) before "
                    f"connecting to {address}"
                )
            if _current is None:
                _current = Session(there, own=False, dashboard=_dashboard(ray))
        else:
            _current = _connect(ray, address, info, timeout)
        _current._users += 1
        return _current


def _connect(ray: Any, address: str, info: Mapping[str, Any], timeout: float) -> Session:
    deadline = time.monotonic() + timeout
    token = info.get("token")
    try:
        address = _reachable(address, timeout)
        while True:
            try:
                context = _init(ray, address, info, token)
                break
            except Exception as error:
                why = _all_of(error)
                # a Ray with a token, and nobody said which: the user's, if anybody's
                if "InvalidAuthToken" in why and not token and (token := known_token()):
                    continue
                # one that is coming up: it answers before it knows its node
                if "node info" not in why or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
    except ConnectError:
        raise
    except Exception as error:
        hint = "is RAY_AUTH_TOKEN, or ~/.ray/auth_token, the cluster's token?"
        if "any running Ray" in str(error):
            hint = "`ray start --head` starts one; of one elsewhere give the address"
        raise ConnectError(
            f"cannot connect to the Ray cluster at {address} (stage: ray.init; {hint}): "
            f"{type(error).__name__}: {error}"
        ) from error
    dashboard = getattr(context, "dashboard_url", None) or ""
    there = address if address.startswith("ray://") else _connected_to(ray)
    return Session(there, own=True, dashboard=f"http://{dashboard}" if dashboard else "")


def _init(ray: Any, address: str, info: Mapping[str, Any], token: str | None) -> Any:
    with _process_kept(), _ray_settings(address), _token(token):
        return ray.init(
            address=address,
            namespace=info.get("namespace"),
            logging_level="ERROR",
            log_to_driver=False,
            configure_logging=False,
        )


def _all_of(error: BaseException | None) -> str:
    """What an error and its causes say."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "; ".join(texts)


def _dashboard(ray: Any) -> str:
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else ""


def _reachable(address: str, timeout: float) -> str:
    """Find out quickly, and quietly, what Ray finds out after many seconds and lines; the address,
    and for "auto" which one that is.

    Raises
    ------
    ConnectError
        When nothing answers there.
    """
    if address == "auto":  # which Ray takes from there, first of all
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local" or os.environ.get("RAY_USE_TLS") == "1":
        return address
    candidates = _running() if address == "auto" else [address]
    for candidate in candidates:
        if _answers(candidate, timeout / len(candidates)):
            return candidate
    hint = "is it running, and reachable from here?"
    if address == "auto":
        hint = "it may just be ending, or have ended without a word: `ray start --head` starts one"
    raise ConnectError(
        f"cannot connect to the Ray cluster at {', '.join(candidates)} (stage: connecting; waited "
        f"{timeout:g} s at most); {hint}"
    )


def _running() -> list[str]:
    """Where Ray runs on this machine, or is said to run; first where Ray itself would look.

    Raises
    ------
    ConnectionError
        When there is none.
    """
    from ray._private import services

    # it remembers the one that was there when this process last looked
    services.find_gcs_addresses.cache_clear()
    first = services.get_ray_address_from_environment("auto", None)
    return list(dict.fromkeys([first, *sorted(services.find_gcs_addresses())]))


def _answers(address: str, timeout: float) -> bool:
    import grpc

    channel = grpc.insecure_channel(address.removeprefix("ray://"))
    try:
        grpc.channel_ready_future(channel).result(timeout)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


@contextlib.contextmanager
def _ray_settings(address: str) -> Iterator[None]:
    """Have Ray take a loopback address for what it is, not for this host's other address, and
    give up soon where its token is refused."""
    from ray._private import ray_constants

    changes: dict[str, Any] = {"NUM_REDIS_GET_RETRIES": 2}
    if address.rpartition(":")[0] in _LOOPBACK_NAMES:
        changes["ENABLE_RAY_CLUSTER"] = False
    before = {name: getattr(ray_constants, name) for name in changes}
    try:
        vars(ray_constants).update(changes)
        yield
    finally:
        vars(ray_constants).update(before)


@contextlib.contextmanager
def _token(token: str | None) -> Iterator[None]:
    """Have Ray use a cluster's token; it keeps it for as long as it is connected."""
    if not token:
        yield
        return
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    os.environ.update({"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"})
    try:
        _reread_token()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reread_token() -> None:
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:
        return  # a Ray that knows no tokens
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def start_head(host: str, folder: str, token: str, init: Mapping[str, Any]) -> tuple[Any, Later]:
    """Start Ray on this machine; its context, and what is not started yet.

    Parameters
    ----------
    host
        Interface to listen on.
    folder
        In a folder of that, which Ray has everybody write to, Ray keeps its sockets, logs and
        what workers are to run; so nobody else may get into this one.
    init
        Further arguments of ``ray.init``.
    """
    ray = import_ray()
    with _process_kept(), _token(token), postponed(init) as later:
        context = ray.init(
            **{
                "namespace": "pxcompat",
                "_node_ip_address": None if host in (*_LOOPBACK_NAMES, "0.0.0.0") else host,
                "_temp_dir": os.path.join(folder, "ray"),
                "dashboard_host": host,
                "logging_level": "ERROR",
                "log_to_driver": False,
                "configure_logging": False,
                **init,
            }
        )
    return context, later


def known_token() -> str | None:
    """The user's token, where there is one and the user has not said that it is not to be used."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return _token_file().read_text().strip() or None
    except OSError:
        return None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def user_token() -> str:
    """The user's token for Ray, as Ray itself finds it; made, for the user alone, if need be."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = _token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)  # Ray makes it as readable as the umask allows
        return path.read_text().strip()
    except OSError:
        return secrets.token_hex(32)  # no home to keep it in: for this cluster alone


def prepare_head(environ: dict[str, str], host: str) -> None:
    """The environment of a process that starts a Ray cluster: loopback, and token."""
    if host in _LOOPBACK_NAMES:
        environ[_LOOPBACK] = "0"
    environ.setdefault("RAY_AUTH_MODE", "token")
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environ.setdefault("RAY_DEDUP_LOGS", "0")
    # engines run as the user's programs do; by Ray's default every other program comes first
    environ.setdefault("RAY_worker_niceness", "0")
