"""Signals to engines, on whatever node."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Signallers", "send_signal"]


class Signallers:
    """Actors beside engines of other nodes: that works even when an engine holds its
    interpreter's lock."""

    def __init__(self) -> None:
        self._by_node: dict[str, Any] = {}

    async def send(self, node: str, pid: int, signum: int) -> str:
        """Send a signal to a process of a node; "" or why it cannot be done."""
        signaller = self._by_node.get(node)
        if signaller is None:
            affinity = NodeAffinitySchedulingStrategy(node, soft=False)
            signaller = self._by_node[node] = (
                ray.remote(_Signaller)
                .options(num_cpus=0, max_restarts=-1, scheduling_strategy=affinity)
                .remote()
            )
        return str(await signaller.send.remote(pid, signum))

    def close(self) -> None:
        """End them."""
        for signaller in self._by_node.values():
            ray.kill(signaller)
        self._by_node.clear()


class _Signaller:
    """Sends signals on its node."""

    def send(self, pid: int, signum: int) -> str:
        return send_signal(pid, 0, signum)


def send_signal(pid: int, born: float, signum: int) -> str:
    """Send a signal to a process of this host, if it is still the same; "" or why not."""
    try:
        process = psutil.Process(pid)
        if born and process.create_time() != born:
            return f"its process {pid} has ended"
        os.kill(pid, signum)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return f"its process {pid} has ended"
    return ""
