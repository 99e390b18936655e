"""Engines follow the nodes of a Ray that somebody else runs, and make it grow."""

from __future__ import annotations

import pytest

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
                print("uploaded", rc.ids, ["py_modules_files" in file for file in files])
    finally:
        ray.shutdown()
        nodes.shutdown()
"""


@pytest.mark.slow
def test_engines_follow_nodes() -> None:
    done = python(NODES, arguments=[LACKS])
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert said.get("first") == "[0]", done.stdout + done.stderr[-3000:]
    assert said.get("came") == "[0, 1, 2] [1, 2]", done.stderr[-3000:]
    assert said.get("went") == "[1]", done.stderr[-3000:]
    lacks = said.get("lacks", "")
    assert lacks.startswith("True"), done.stdout + done.stderr[-3000:]
    assert "cannot import pxcompat on node" in lacks and "upload=True" in lacks
    assert said.get("uploaded") == "[0, 1] [True, True]", done.stdout + done.stderr[-3000:]
