"""What Ray itself shows: engines and calls in its state API, their metrics beside its own."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any

import pytest
import ray

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .conftest import shown


def get_norms(x: int) -> int:
    return x


def measured() -> dict[str, dict[str, float]]:
    """What the node's Prometheus endpoint says of engines: by name, then by engine and status."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in re.findall(r"(?m)^ray_(pxcompat_\w+)\{(.*)\} (\S+)$", text):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = of["engine"] + (f" {of['status']}" if "status" in of else "")
        found.setdefault(name, {})[key] = float(value)
    return found


def test_metrics(rc: ipp.Client) -> None:
    view = rc[:]
    calls = [view.apply_async(get_norms, n) for n in range(20)]
    for call in calls:
        call.get(PATIENCE)
    with pytest.raises(ipp.RemoteError):
        rc[0].apply_sync(lambda: 1 / 0)
    rc[1].push({"a": b"x" * 1_000_000}, block=True)
    busy = rc[0].apply_async(time.sleep, 600)
    waiting = rc[0].apply_async(get_norms, 1)

    def noted() -> Any:
        found = measured()
        there = (
            found.get("pxcompat_calls_total", {}).get("0 error", 0) >= 1
            and found["pxcompat_names_bytes"].get("1", 0) >= 1_000_000
            and found["pxcompat_running_seconds"].get("0", 0) > 0
            and found["pxcompat_waiting_calls"].get("0", 0) == 1
        )
        return found if there else None

    found = wait_until(noted, 60)
    assert found["pxcompat_calls_total"]["0 ok"] >= 20
    assert found["pxcompat_calls_total"]["1 ok"] >= 20
    assert found["pxcompat_call_duration_seconds_count"]["1"] >= 20
    assert found["pxcompat_call_seconds_total"]["0"] > 0
    assert found["pxcompat_running_seconds"]["1"] == 0
    assert found["pxcompat_names"]["1"] >= 1
    rc.abort(waiting, block=True)
    rc.send_signal("SIGINT", targets=0, block=True)
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt"):
        busy.get(PATIENCE)


def test_engines_and_calls_have_names(rc: ipp.Client) -> None:
    from ray.util.state import list_actors, list_tasks

    address = ray.get_runtime_context().gcs_address
    wait_until(shown)  # Ray's tools ask it
    calls = [rc[0].apply_async(get_norms, n) for n in range(200)]
    assert [call.get(PATIENCE) for call in calls] == list(range(200))

    def counted() -> dict[str, int]:
        """Calls by the names of their tasks, those that shared one counted each."""
        counts: dict[str, int] = {}
        for task in list_tasks(address=address, limit=5000):
            for name in task.name.split(", "):
                call, _, often = name.partition(" x")
                counts[call] = counts.get(call, 0) + int(often or 1)
        return counts

    wait_until(lambda: counted().get("px:apply:get_norms", 0) >= 200)
    alive = [a for a in list_actors(address=address, detail=True) if a.state == "ALIVE"]
    known = {actor.name: (actor.class_name, actor.repr_name) for actor in alive}
    assert known["engine-0"] == ("EngineActor", "engine 0")
    assert "registry" in known
