"""Embedded clusters: owned by this process, shared by its clients, written to no file.

The first ``Client()`` of a profile that has no running cluster starts one; further clients
share it; it ends with the last of them, or with the process.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
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
    """One embedded cluster and how many clients use it."""

    def __init__(self) -> None:
        self.starting = threading.Lock()
        self.launched: Launched | None = None
        self.n = 0
        self.users = 0


_table: dict[Key, _Shared] = {}
_table_lock = threading.Lock()


class Share:
    """One client's part in an embedded cluster."""

    def __init__(self, key: Key, shared: _Shared, provider: Provider) -> None:
        assert shared.launched is not None
        self.n = shared.n
        self.backend: Backend = provider.connect(shared.launched.info)
        self._key = key
        self._shared: _Shared | None = shared

    def release(self) -> None:
        """Give the share back; the last one ends the cluster.  Idempotent."""
        with _table_lock:
            shared, self._shared = self._shared, None
        if shared is not None:
            _leave(self._key, shared)


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


def take(key: Key, provider: Provider, spec: Callable[[], LaunchSpec], *, timeout: float) -> Share:
    """A share in the cluster of that key, which is started when there is none.

    ``spec`` is asked only then.
    """
    with _table_lock:
        shared = _table.get(key)
        if shared is None or (shared.launched and shared.launched.poll() is not None):
            # those who share one that died still hold it, and release it on their own
            shared = _table[key] = _Shared()
        shared.users += 1
    try:
        with shared.starting:
            if shared.launched is None:
                order = spec()
                shared.launched = provider.launch(order, timeout=timeout)
                shared.n = order.n
            return Share(key, shared, provider)
    except BaseException:
        _leave(key, shared)
        raise


def _leave(key: Key, shared: _Shared) -> None:
    with _table_lock:
        shared.users -= 1
        if shared.users:
            return
        if _table.get(key) is shared:
            del _table[key]
    if shared.launched is not None and key.pid == os.getpid():
        shared.launched.stop()


def _stop_all() -> None:
    with _table_lock:
        ending = [(k, s) for k, s in _table.items() if k.pid == os.getpid()]
        _table.clear()
    for _, shared in ending:
        if shared.launched is not None:
            shared.launched.stop()


atexit.register(_stop_all)
