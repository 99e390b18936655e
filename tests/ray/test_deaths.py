"""Ends of actors, nodes and memory, told in Ray's words."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import ray

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .conftest import python


def test_a_killed_actor(cluster: ipp.Cluster, rc: ipp.Client) -> None:
    name = cluster.start_engines_sync(1)
    rc.wait_for_engines(3, timeout=PATIENCE)
    last = rc.ids[-1]
    running, queued = rc[last].apply_async(time.sleep, 60), rc[last].apply_async(os.getpid)
    namespace = cluster.connection.info["namespace"]
    ray.kill(ray.get_actor(f"engine-{last}", namespace=namespace))
    for result in (running, queued):
        with pytest.raises(ipp.RemoteError, match=r"EngineError.*killed by `?ray.kill"):
            result.get(PATIENCE)
    assert last not in rc.ids
    assert rc[:].apply_sync(lambda: 1) == [1, 1]
    cluster.stop_engines_sync(name)


NODES = """if True:
    import os, time
    import ray
    from ray.cluster_utils import Cluster
    import pxcompat as ipp

    # connected while there is one node: later Ray would take either of this host's for ours
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, connect=True)
    far = nodes.add_node(num_cpus=1)
    try:
        rc = ipp.Client(nodes, n=2)
        view = rc[:]
        def node():
            import ray
            return ray.get_runtime_context().get_node_id()
        places = view.apply_sync(node)
        assert len(set(places)) == 2, places
        gone = places.index(far.node_id)
        # an interrupt reaches the other node, too
        view.push({"a": 1}, block=True)
        sleeping = view.apply_async(time.sleep, 60)
        while rc.queue_status()[gone]["queue"] != 1:
            time.sleep(0.01)
        rc.send_signal("SIGINT", block=True)
        try:
            sleeping.get(90)
        except ipp.CompositeError as error:
            print("interrupted", [name for name, *_ in error.elist])
        print("names", view["a"])
        running = rc[gone].apply_async(time.sleep, 60)
        nodes.remove_node(far, allow_graceful=False)
        try:
            running.get(90)
        except ipp.EngineError as error:
            print("gone", "node" in str(error), str(error).replace(chr(10), " "))
        print("left", len(rc.ids), len(view.client[rc.ids].apply_sync(os.getpid)))
        rc.shutdown(hub=True)
    finally:
        ray.shutdown()
        nodes.shutdown()
"""


@pytest.mark.slow
def test_a_killed_node() -> None:
    done = python(NODES)
    said = [line for line in done.stdout.splitlines() if line.split(" ")[0] in _TOLD]
    assert said[:2] == [
        "interrupted ['KeyboardInterrupt', 'KeyboardInterrupt']",
        "names [1, 1]",
    ], done.stderr[-3000:]
    assert said[2].startswith("gone True"), said
    assert said[3] == "left 1 1"


_TOLD = {"interrupted", "names", "gone", "left"}


@pytest.mark.slow
def test_an_engine_that_takes_all_memory() -> None:
    """Ray kills what takes the last memory of a node, here of an allowance far below that."""
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + (3 << 30)) / memory.total
    if threshold > 0.9:
        pytest.skip("the machine has no memory to spare")
    system = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    cluster = ipp.Cluster(n=2, backend="ray", cluster_id="memory")
    cluster.config.RayBackend.init = {"_system_config": system}
    cluster.start_cluster_sync()
    try:
        with cluster.connect_client_sync() as rc:
            rc.wait_for_engines(2, timeout=PATIENCE)

            def eat() -> None:
                import time

                taken = []
                while True:
                    taken.append(bytearray(b"x") * (64 << 20))
                    time.sleep(0.02)

            with pytest.raises(ipp.EngineError, match=r"(?i)memory"):
                rc[0].apply_async(eat).get(90)
            wait_until(lambda: 0 not in rc.ids)
    finally:
        cluster.stop_cluster_sync()


def test_a_ray_that_cannot_be_imported_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('it is broken')\n")
    # a short name: Ray's sockets in it must have valid ones
    with tempfile.TemporaryDirectory(prefix="px", dir="/tmp") as folder:
        done = python(
            "import pxcompat as ipp; ipp.Cluster(n=1, backend='ray').start_cluster_sync()",
            PYTHONPATH=str(tmp_path),
            TMPDIR=folder,
        )
        assert "it is broken" in done.stderr
        assert not os.listdir(folder)
