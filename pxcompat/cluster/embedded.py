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
from functools import partial
from typing import NamedTuple

from ..protocol import Backend, Launched, LaunchSpec, Provider

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
        self.n = 0


_table: dict[Key, _Shared] = {}
_table_lock = threading.Lock()


class Share(NamedTuple):
    """One client's part in an embedded cluster."""

    #: not yet open
    backend: Backend
    #: engines that the cluster has once the missing ones were started
    n: int
    #: engines that this client asked for beyond those there are, and is to start
    missing: int
    #: whether the cluster was started for this client
    fresh: bool
    #: to be called by a client that has told the cluster to end
    ended: Callable[[], None]


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

    ``spec`` is asked only then; ``at_least`` so many engines are wanted of one that is there.
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
            shared.n = order.n
        missing = max(0, at_least - shared.n)
        shared.n += missing
        backend = provider.connect(shared.launched.info)
        return Share(backend, shared.n, missing, fresh, partial(_see_out, key, shared))


def _see_out(key: Key, shared: _Shared) -> None:
    """Wait for a cluster that was told to end; who asks for one from now on gets another."""
    with _table_lock:
        if _table.get(key) is shared:
            del _table[key]
    if shared.launched is not None:
        shared.launched.stop()


def _stop_all() -> None:
    with _table_lock:
        ending = [(k, s) for k, s in _table.items() if k.pid == os.getpid()]
        _table.clear()
    for _, shared in ending:
        if shared.launched is not None:
            shared.launched.stop()


atexit.register(_stop_all)
