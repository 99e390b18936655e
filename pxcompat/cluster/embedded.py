"""Embedded clusters: owned by this process, shared by its clients, written to no file.

The first ``Client()`` of a profile that has no running cluster starts one, and further
clients share it.  It belongs to the process, not to its clients: code written for
ipyparallel closes a client and makes another, and expects engines, names and running work
to be where they were.  It ends with the process, or by ``client.shutdown(hub=True)``.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..protocol import Backend, Launched, LaunchSpec, Provider

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["Key", "Share", "find", "take"]


class Key(NamedTuple):
    """What clients must agree on to share a cluster."""

    profile_dir: str
    cluster_id: str
    backend: str
    #: a fork has its parent's clusters in memory and cannot use them
    pid: int


class _Shared:
    """One embedded cluster."""

    def __init__(self) -> None:
        self.starting = threading.Lock()
        self.launched: Launched | None = None
        #: what its backend was told
        self.options: dict[str, Any] = {}
        #: how many engines it was started with
        self.first = 0
        #: how many engines it has, or will have
        self.n = 0
        #: whether some of them are still on their way, as far as clients know
        self.coming = False


_table: dict[Key, _Shared] = {}
_table_lock = threading.Lock()


class Share:
    """One client's part in an embedded cluster.

    Attributes
    ----------
    backend : Backend
        Not yet open.
    fresh : bool
        Whether the cluster was started for this client.
    options : dict
        With which it was started.
    """

    def __init__(
        self, key: Key, shared: _Shared, backend: Backend, *, at_least: int, fresh: bool
    ) -> None:
        self._key = key
        self._shared = shared
        self._at_least = at_least
        self.backend = backend
        self.fresh = fresh
        self.options = shared.options

    def complete(self, client: Client, timeout: float, *, progress: bool) -> None:
        """Start the engines that are missing, by the client, and wait for all, each for so many
        seconds; a client to which they do not come is closed."""
        from .launcher import result

        missing, expected = self.count(len(client))
        try:
            if missing:
                starting = self.backend.start_engines(missing)
                result(starting, "start engines", timeout)
            if len(client) < expected:
                client.wait_for_engines(expected, timeout=timeout, interactive=progress)
        except BaseException as error:
            client.close()
            if isinstance(error, Exception):  # after a Ctrl-C they may come
                self.failed()
            raise
        self.came(len(client))

    def count(self, up: int) -> tuple[int, int]:
        """How many engines this client is to start, and how many there are then.

        ``up`` is how many it has met.  Where none is left, as many as at first are wanted.
        """
        shared = self._shared
        with shared.starting:
            if not shared.coming:
                shared.n = up  # engines may have ended since
            missing = max(0, (self._at_least or (0 if shared.n else shared.first)) - shared.n)
            shared.n += missing
            shared.coming = shared.coming or missing > 0
            return missing, shared.n

    def came(self, up: int) -> None:
        """The engines that the client waited for are there."""
        with self._shared.starting:
            if up >= self._shared.n:
                self._shared.coming = False

    def failed(self) -> None:
        """They do not come: a cluster that was started for them ends, and the next client,
        which may ask for others, counts what there is."""
        if self.fresh:
            self.ended()
        else:
            with self._shared.starting:
                self._shared.coming = False

    def ended(self) -> None:
        """The client has told the cluster to end: see it out.  Who asks for one from now on gets
        another."""
        with _table_lock:
            if _table.get(self._key) is self._shared:
                del _table[self._key]
        if self._shared.launched is not None:
            self._shared.launched.stop()


def key(profile_dir: str, cluster_id: str, backend: str) -> Key:
    return Key(profile_dir, cluster_id, backend, os.getpid())


def find(profile_dir: str, cluster_id: str, backend: str | None) -> Key | None:
    """The key of a running embedded cluster; ``backend`` None matches any."""
    with _table_lock:
        for candidate, shared in _table.items():
            wanted = key(profile_dir, cluster_id, backend or candidate.backend)
            if candidate == wanted and shared.launched and shared.launched.poll() is None:
                return candidate
    return None


def take(
    key: Key,
    provider: Provider,
    spec: Callable[[], LaunchSpec],
    *,
    at_least: int,
    timeout: float,
) -> Share:
    """A share in the cluster of that key, which is started when there is none.

    ``spec`` is asked only then; ``at_least`` so many engines are wanted in any case.
    """
    with _table_lock:
        shared = _table.get(key)
        if shared is None or (shared.launched and shared.launched.poll() is not None):
            shared = _table[key] = _Shared()
    with shared.starting:
        fresh = shared.launched is None
        if shared.launched is None:
            order = spec()
            shared.launched = provider.launch(order, timeout=timeout)
            shared.n, shared.first, shared.coming = order.n, order.n, True
            shared.options = order.options
        backend = provider.connect(shared.launched.info)
        return Share(key, shared, backend, at_least=at_least, fresh=fresh)


def _stop_all() -> None:
    with _table_lock:
        ending = [(k, s) for k, s in _table.items() if k.pid == os.getpid()]
        _table.clear()
    for _, shared in ending:
        if shared.launched is not None:
            shared.launched.stop()


atexit.register(_stop_all)
