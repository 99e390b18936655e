"""Engines follow the nodes of a Ray that somebody else runs, and make it grow."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pxcompat.backends.ray import session

from ..common import PATIENCE, wait_until
from .conftest import python

#: a node's processes in which the package is not installed, but may come with Ray
LACKS = """
import importlib.machinery, sys

class Lacks:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "pxcompat":
            return None
        uploaded = [entry for entry in sys.path if "py_modules_files" in entry]
        spec = importlib.machinery.PathFinder.find_spec(name, uploaded)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec

sys.meta_path.insert(0, Lacks)
"""

NODES = """if True:
    import os, sys, tempfile, time
    import ray
    from ray.cluster_utils import Cluster
    import pxcompat as ipp

    def wait_until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def node():
        import ray
        return ray.get_runtime_context().get_node_id()

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, connect=True)
    try:
        rc = ipp.Client(nodes)
        print("first", rc.ids)
        everyone = rc.direct_view("all")
        second = nodes.add_node(num_cpus=2)
        rc.wait_for_engines(3, timeout=60)
        places = everyone.apply_sync(node)
        print("came", rc.ids, [places.count(n) for n in (places[0], second.node_id)])
        nodes.remove_node(second, allow_graceful=False)
        wait_until(lambda: rc.ids == [0])
        print("went", everyone.apply_sync(lambda: 1))
        rc.close()

        # a node that lacks the package
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
                file.write(sys.argv[1])
            os.environ["PYTHONPATH"] = folder
            third = nodes.add_node(num_cpus=1)
            del os.environ["PYTHONPATH"]
            wait_until(lambda: ray.cluster_resources()["CPU"] == 2)
            try:
                ipp.Client(nodes)
            except ipp.error.BackendError as error:
                print("lacks", third.node_id in str(error), str(error).replace(chr(10), " "))
            with ipp.Client(nodes, upload=True) as rc:
                files = rc[:].apply_sync(lambda: __import__("pxcompat").__file__)
                there = dict(zip(rc[:].apply_sync(node), files))[third.node_id]
                print("uploaded", rc.ids, "py_modules_files" in there)
    finally:
        ray.shutdown()
        nodes.shutdown()
"""


@pytest.mark.slow
def test_engines_follow_nodes() -> None:
    done = python(NODES, [LACKS])
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert said.get("first") == "[0]", done.stdout + done.stderr[-3000:]
    assert said.get("came") == "[0, 1, 2] [1, 2]", done.stderr[-3000:]
    assert said.get("went") == "[1]", done.stderr[-3000:]
    lacks = said.get("lacks", "")
    assert lacks.startswith("True"), done.stdout + done.stderr[-3000:]
    assert "cannot import pxcompat on node" in lacks and "upload=True" in lacks
    assert said.get("uploaded") == "[0, 1] True", done.stdout + done.stderr[-3000:]


#: of Ray's own cluster for tests of its autoscaler, in which nodes are processes of this machine
SCALING = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.05,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "more": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
}


@pytest.fixture
def scaling() -> Iterator[str]:
    """The address of a Ray without CPUs, that gets nodes as they are needed."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    provider = {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
    }
    with tempfile.TemporaryDirectory(prefix="px", dir="/tmp", ignore_cleanup_errors=True) as folder:
        config = Path(folder, "scaling.json")
        config.write_text(json.dumps({**SCALING, "provider": provider}))
        environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        session.prepare_head(environment, "127.0.0.1")
        environment["RAY_AUTH_MODE"] = "disabled"  # nodes of this kind know no token
        head = subprocess.Popen(
            [
                os.path.join(os.path.dirname(sys.executable), "ray"),
                "start",
                "--head",
                "--block",
                f"--port={address.rpartition(':')[2]}",
                "--num-cpus=0",
                f"--temp-dir={folder}",
                f"--autoscaling-config={config}",
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield address
        finally:
            # they write into the folder until they have ended
            while processes := _sharing(folder):
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(processes, PATIENCE)
            head.wait()


def _sharing(folder: str) -> list[psutil.Process]:
    """Processes that were told of a folder, be their parents gone or not, and theirs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if folder in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process, *process.children(recursive=True)]
    return found


def raylets(address: str) -> int:
    """How many nodes of a Ray are there."""
    processes = psutil.process_iter(["name", "cmdline"])
    commands = [p.info["cmdline"] or () for p in processes if p.info["name"] == "raylet"]
    return sum(f"--gcs_address={address}" in c or f"--gcs-address={address}" in c for c in commands)


GROW = """if True:
    import sys
    import pxcompat as ipp
    rc = ipp.Client(sys.argv[1], timeout=90)
    print("first", rc.ids)
    def pid(folder):
        # until others run elsewhere, by what they leave in a folder
        import os, time
        open(os.path.join(folder, str(os.getpid())), "w").close()
        end = time.monotonic() + 90
        while len(os.listdir(folder)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        return os.getpid()
    pids = rc.load_balanced_view().map_async(pid, sys.argv[2:] * 60).get(180)
    print("grown", len(set(pids)), len(pids), rc.ids)
    rc.close()
"""


@pytest.mark.slow
def test_a_balanced_map_makes_the_cluster_grow(scaling: str, tmp_path: Path) -> None:
    done = python(GROW, [scaling, str(tmp_path)], RAY_AUTH_MODE="disabled")
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert said.get("first") == "[]", done.stdout + done.stderr[-3000:]
    assert said.get("grown") == "2 60 [0, 1]", done.stdout + done.stderr[-3000:]
    # without engines its nodes may go, too
    wait_until(lambda: raylets(scaling) == 1)
