"""Small helpers that code written for ipyparallel imports (``ipyparallel.util``).

Those that are about ZeroMQ's sockets and ipyparallel's launchers are not here.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import shlex
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, TypeVar

from .progress import progress
from .serialize.canning import interactive

__all__ = [
    "ISO8601",
    "ISO8601_PAT",
    "Namespace",
    "ReverseDict",
    "abbreviate_profile_dir",
    "become_dask_worker",
    "compare_datetimes",
    "disambiguate_ip_address",
    "disambiguate_url",
    "ensure_timezone",
    "extract_dates",
    "int_keys",
    "integer_loglevel",
    "interactive",
    "ip_for_host",
    "is_ip",
    "is_url",
    "local_logger",
    "log_errors",
    "progress",
    "select_random_ports",
    "shlex_join",
    "split_url",
    "stop_distributed_worker",
    "utc",
    "utcnow",
    "validate_url",
    "validate_url_container",
]

F = TypeVar("F", bound=Callable[..., Any])

utc = timezone.utc


# -- dicts ---------------------------------------------------------------------------


class Namespace(dict[str, Any]):
    """A dict whose keys are attributes too (ipyparallel.util.Namespace)."""

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise NameError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if hasattr(dict, key):
            raise KeyError(f"{key!r} is a method of dict and cannot be a key by attribute")
        self[key] = value


class ReverseDict(dict[Any, Any]):
    """A dict that finds a key by its value too (ipyparallel.util.ReverseDict).

    Iteration, ``len`` and ``in`` know only the keys.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reverse = {value: key for key, value in self.items()}

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except KeyError:
            return self._reverse[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self._reverse:
            raise KeyError(f"{key!r} is a value already and cannot be a key too")
        if key in self:
            del self[key]
        super().__setitem__(key, value)
        self._reverse[value] = key

    def __delitem__(self, key: Any) -> None:
        del self._reverse[super().__getitem__(key)]
        super().__delitem__(key)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a key, and return its value."""
        if key not in self and default:
            return default[0]
        value = super().__getitem__(key)
        del self[key]
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or the key of a value, or ``default``."""
        try:
            return self[key]
        except KeyError:
            return default


def int_keys(dikt: dict[Any, Any]) -> dict[Any, Any]:
    """Turn keys that JSON made strings back into numbers, in place.

    Raises
    ------
    KeyError
        When the number is a key already.
    """
    for key in list(dikt):
        number = _number(key) if isinstance(key, str) else None
        if number is None:
            continue
        if number in dikt:
            raise KeyError(f"already have key {number!r}")
        dikt[number] = dikt.pop(key)
    return dikt


def _number(text: str) -> float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


# -- times ---------------------------------------------------------------------------

# what jupyter's JSON writes; datetime.fromisoformat reads all of it only from Python 3.11 on
ISO8601 = "%Y-%m-%dT%H:%M:%S.%f"
ISO8601_PAT = re.compile(
    r"^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(\.\d{1,6})?(Z|[+-]\d{2}:?\d{2})?$"
)


def utcnow() -> datetime:
    """The time, with timezone UTC."""
    return datetime.now(utc)


def ensure_timezone(dt: datetime) -> datetime:
    """A datetime with a timezone; the local one where it had none."""
    return dt.astimezone() if dt.tzinfo is None else dt


def compare_datetimes(a: datetime, b: datetime) -> timedelta:
    """``a - b``, where one without a timezone is taken for local time if the other has one."""
    if (a.tzinfo is None) != (b.tzinfo is None):
        a, b = ensure_timezone(a), ensure_timezone(b)
    return a - b


def extract_dates(obj: Any) -> Any:
    """Turn ISO 8601 strings into datetimes, at any depth of dicts and lists."""
    if isinstance(obj, dict):
        return {key: extract_dates(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [extract_dates(item) for item in obj]
    return _parse_date(obj) if isinstance(obj, str) else obj


def _parse_date(text: Any) -> Any:
    match = ISO8601_PAT.match(text) if text else None
    if match is None:
        return text
    seconds, fraction, zone = match.groups("")
    if zone:
        zone = "+00:00" if zone == "Z" else f"{zone[:3]}:{zone[-2:]}"
    return ensure_timezone(datetime.fromisoformat(f"{seconds}{fraction or '.0':0<7}{zone}"))


# -- addresses -----------------------------------------------------------------------

_PROTOCOLS = frozenset({"tcp", "pgm", "epgm", "ipc", "inproc"})
_HOST = re.compile(r"^([\w\d]([\w\d\-]{0,61}[\w\d])?\.)*[\w\d]([\w\d\-]{0,61}[\w\d])?$")


def is_url(url: str) -> bool:
    """Whether a string is an address like ``tcp://127.0.0.1:5555``."""
    protocol, separator, _ = url.partition("://")
    return bool(separator) and protocol.lower() in _PROTOCOLS


def split_url(url: str) -> tuple[str, str, str]:
    """``("tcp", "127.0.0.1", "5555")`` of ``tcp://127.0.0.1:5555``.

    Raises
    ------
    AssertionError
        When it is not of that form.
    """
    protocol, separator, address = url.partition("://")
    host, colon, port = address.partition(":")
    if not (separator and colon) or ":" in port:
        raise AssertionError(f"Invalid url: {url!r}")
    return protocol, host, port


def validate_url(url: str) -> bool:
    """True for an address like ``tcp://127.0.0.1:5555``.

    Raises
    ------
    TypeError
        When ``url`` is no string.
    AssertionError
        When it is another kind of string.
    """
    if not isinstance(url, str):
        raise TypeError(f"a url must be a string, not {type(url).__name__}")
    if not is_url(url):
        raise AssertionError(f"Invalid url: {url!r}")
    if url.lower().startswith("tcp://"):
        _, host, port = split_url(url.lower())
        if not port.isdigit():
            raise AssertionError(f"Invalid port {port!r} in url: {url!r}")
        if host != "*" and not _HOST.match(host):
            raise AssertionError(f"Invalid url: {url!r}")
    return True


def validate_url_container(container: Any) -> None:
    """:func:`validate_url` of each url in a collection of urls and collections."""
    if isinstance(container, str):
        validate_url(container)
        return
    for element in container.values() if isinstance(container, Mapping) else container:
        validate_url_container(element)


def is_ip(location: str) -> bool:
    """Whether a location looks like an IPv4 address, rather than a host's name."""
    return bool(re.match(r"(\d+\.){3}\d+", location))


@lru_cache
def ip_for_host(host: str) -> str:
    """An IP of a host; the host itself, with a warning, where none can be found."""
    try:
        return socket.gethostbyname_ex(host)[2][0]
    except (OSError, IndexError) as error:
        warnings.warn(
            f"IPython could not determine IPs for {host}: {error}", RuntimeWarning, stacklevel=2
        )
        return host


def disambiguate_ip_address(ip: str, location: str | None = None) -> str:
    """An address to connect to, for one to listen on.

    Parameters
    ----------
    ip : str
        What is listened on.  Anything but ``0.0.0.0`` and ``*`` is returned as it is.
    location : str, optional
        IP or name of the machine that listens; default this one.
    """
    if ip not in {"0.0.0.0", "*"}:
        return ip
    from jupyter_client.localinterfaces import is_public_ip, localhost, public_ips

    if not location or location == socket.gethostname():
        return str(localhost())
    if not is_ip(location):
        location = ip_for_host(location)
    if is_public_ip(location):
        return str(localhost())
    if not public_ips():
        warnings.warn("IPython could not determine public IPs", RuntimeWarning, stacklevel=2)
    return location


def disambiguate_url(url: str, location: str | None = None) -> str:
    """The same for ``tcp://host:port``; other urls are returned as they are."""
    try:
        protocol, ip, port = split_url(url)
    except AssertionError:
        return url
    return f"{protocol}://{disambiguate_ip_address(ip, location)}:{port}"


def select_random_ports(n: int) -> list[int]:
    """``n`` different TCP ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


# -- the rest ------------------------------------------------------------------------


def log_errors(f: F) -> F:
    """Decorate a method to log what it raises, with ``self.log``, and return None instead."""

    @functools.wraps(f)
    def logs_errors(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = f(self, *args, **kwargs)
        except Exception:
            self.log.exception("Uncaught exception in %s", f)
            return None
        return watch(self, result) if inspect.isawaitable(result) else result

    async def watch(self: Any, awaitable: Any) -> Any:
        try:
            return await awaitable
        except Exception:
            self.log.exception("Uncaught exception in %s", f)
            return None

    return logs_errors  # type: ignore[return-value]


def integer_loglevel(loglevel: int | str) -> int:
    """The number of a log level given as ``10``, ``"10"`` or ``"DEBUG"``."""
    try:
        return int(loglevel)
    except ValueError:
        return int(getattr(logging, str(loglevel)))


def local_logger(logname: str, loglevel: int | str = logging.DEBUG) -> logging.Logger | None:
    """A logger that writes to stderr; None where one of that name writes to a stream already."""
    logger = logging.getLogger(logname)
    if any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
        return None
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s.%(msecs).03d [%(name)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )
    )
    logger.addHandler(handler)
    logger.setLevel(integer_loglevel(loglevel))
    return logger


def become_dask_worker(address: str, nanny: bool = False, **kwargs: Any) -> None:
    """Have the engine that calls this work for a Dask scheduler as well.

    To be sent to engines, which find the worker under the names ``dask_worker`` and
    ``distributed_worker``; one that works for a scheduler already goes on with that.
    :meth:`Client.become_dask` needs none of it.

    Parameters
    ----------
    address : str
        The scheduler's, as ``tcp://10.0.0.1:8786``.
    nanny : bool
        Whether the worker is a process of its own, which Dask restarts.
    **kwargs
        Passed to ``distributed.Worker``, or with ``nanny`` to ``distributed.Nanny``.
    """
    from .backends.dask import guest

    guest.join(address, nanny=nanny, **kwargs)


def stop_distributed_worker() -> None:
    """Undo :func:`become_dask_worker` on the engine that calls this."""
    from .backends.dask import guest

    guest.leave()


def shlex_join(cmd: Iterable[str]) -> str:
    """:func:`shlex.join`."""
    return shlex.join(list(cmd))


def abbreviate_profile_dir(profile_dir: str) -> str:
    """The name of a profile that lies in the IPython directory; another's path as it is."""
    from IPython.paths import get_ipython_dir

    return profile_dir.removeprefix(os.path.join(get_ipython_dir(), "profile_"))
