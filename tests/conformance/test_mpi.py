"""Engines that are the ranks of an MPI world."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until
from .test_magics import px
from .test_restart import uuids

RANKS = 2

#: the tutorial's cell: a message from one engine to another
MESSAGE = """\
from mpi4py import MPI
import numpy

comm = MPI.COMM_WORLD
rank = comm.Get_rank()

if rank == 0:
    data = numpy.arange(100, dtype='i')
    comm.Send([data, MPI.INT], dest=1, tag=77)
    print("{0}: sent data to 1: {1}".format(rank, data.sum()))
elif rank == 1:
    data = numpy.empty(100, dtype='i')
    comm.Recv([data, MPI.INT], source=0, tag=77)
    print("{0}: received data from 0: {1}".format(rank, data.sum()))
"""


def rank_processes() -> list[str]:
    """What was started for ranks of a world, by the folder of this run in its command line."""
    lines = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if "rank.py" in line and tempfile.gettempdir() in line]


def folders() -> list[Path]:
    """Those of worlds."""
    return list(Path(tempfile.gettempdir()).glob("**/pxcompat-mpi-*"))


@pytest.fixture(scope="module")
def world(backend: str, ipython_dir: None) -> Iterator[Any]:
    """A cluster whose engines are one world."""
    cluster = ipp.Cluster(
        profile="default", cluster_id="mpi", n=RANKS, backend=backend, engines="mpi"
    )
    cluster.start_cluster_sync()
    cluster.wait_for_engines_sync(timeout=PATIENCE)
    yield cluster
    cluster.stop_cluster_sync()
    wait_until(lambda: not rank_processes() and not folders())


@pytest.fixture
def rc(world: Any) -> Iterator[ipp.Client]:
    """A client, with a world."""
    client = world.connect_client_sync()
    if len(client.ids) < RANKS:
        world.restart_engines_sync()
    client.wait_for_engines(RANKS, timeout=PATIENCE)
    yield client
    client.close()


def total(rc: ipp.Client) -> list[int]:
    """What every rank has when all ranks have added up their numbers, from 1."""
    rc[:].execute("total = MPI.COMM_WORLD.allreduce(mpi_rank + 1)", block=True)
    return rc[:]["total"]


def test_ranks_are_engines_in_order(rc: ipp.Client) -> None:
    assert rc[:]["mpi_rank"] == list(range(RANKS))
    assert rc.ids == list(range(RANKS))
    assert rc[:]["mpi_size"] == [RANKS] * RANKS
    assert total(rc) == [3, 3]
    # its threads may use it too, as ipyparallel's can
    assert rc[:]["MPI.Query_thread() == MPI.THREAD_MULTIPLE"] == [True] * RANKS


def test_a_cell_with_a_message(rc: ipp.Client, ip: InteractiveShell) -> None:
    rc.activate()
    shown = px(ip, "", MESSAGE)
    assert shown.stdout.split("\n")[:-1] == [
        "[stdout:0] ",
        "0: sent data to 1: 4950",
        "[stdout:1] ",
        "1: received data from 0: 4950",
    ]


def test_an_interrupt_leaves_the_world_whole(rc: ipp.Client, tmp_path: Path) -> None:
    def sleep(folder: str) -> None:
        open(os.path.join(folder, str(os.getpid())), "w").close()
        time.sleep(600)

    running = rc[:].apply_async(sleep, str(tmp_path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == RANKS)
    rc.send_signal(signal.SIGINT, block=True)
    with pytest.raises(error.CompositeError, match="KeyboardInterrupt"):
        running.get(PATIENCE)
    assert total(rc) == [3, 3]


def test_a_restarted_rank_is_of_a_new_world(rc: ipp.Client, world: Any) -> None:
    pids = rc[:].apply_sync(os.getpid)
    ids = rc.ids
    rc.shutdown(ids[1], restart=True, block=True)
    assert rc.ids == ids
    assert not set(rc[:].apply_sync(os.getpid)) & set(pids)
    assert rc[:]["mpi_rank"] == list(range(RANKS))
    assert total(rc) == [3, 3]
    # the set of engines is still this one
    before = uuids(rc)
    world.restart_engines_sync()
    wait_until(lambda: len(rc.ids) == RANKS and not set(uuids(rc).values()) & set(before.values()))
    assert total(rc) == [3, 3]


def test_a_world_ends_with_a_rank(rc: ipp.Client, world: Any, tmp_path: Path) -> None:
    def wait_for_a_message(path: str) -> None:
        from mpi4py import MPI

        open(path, "w").close()
        MPI.COMM_WORLD.recv(source=1)

    begun = tmp_path / "begun"
    other, dying = rc.ids
    waiting = rc[other].apply_async(wait_for_a_message, str(begun))
    wait_until(begun.exists)
    last = rc[dying].apply_async(os._exit, 7)
    with pytest.raises(error.EngineError, match=f"Engine {dying} died"):
        last.get(PATIENCE)
    ended = f"Engine {other} died .*: its MPI world ended with rank 1: .*restart_engines"
    with pytest.raises(error.EngineError, match=ended):
        waiting.get(PATIENCE)
    wait_until(lambda: rc.ids == [])
    wait_until(lambda: not rank_processes())
    world.restart_engines_sync()
    assert len(rc.ids) == RANKS
    assert min(rc.ids) > dying
    assert rc[:]["mpi_rank"] == list(range(RANKS))
    assert total(rc) == [3, 3]


def test_a_world_is_stopped_whole(rc: ipp.Client) -> None:
    rc.shutdown(rc.ids[0], block=True)
    wait_until(lambda: rc.ids == [])
    wait_until(lambda: not rank_processes() and not folders())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "mpiexec-nowhere",
            r"mpiexec-nowhere, which is neither in .*: pip install .*pxcompat\[mpi",
        ),
        ("false", "its MPI world ended by itself: false exited with status 1"),
    ],
)
def test_a_command_that_does_not_work_is_named(world: Any, command: str, message: str) -> None:
    config = Config()
    config.MPILauncher.mpi_cmd = [command]
    cluster = ipp.Cluster.from_file(world.cluster_file, engines="mpi", config=config)
    try:
        with pytest.raises(error.EngineError if command == "false" else error.BackendError) as bad:
            cluster.wait_for_engines_sync(cluster.start_engines_sync(1), timeout=PATIENCE)
        bad.match(message)
    finally:
        cluster.controller.disconnect()


def test_a_library_that_cannot_be_loaded_is_named(world: Any, tmp_path: Path) -> None:
    cluster = ipp.Cluster.from_file(world.cluster_file, engines="mpi")
    nowhere = str(tmp_path / "libmpi.so")
    try:
        with pytest.raises(error.EngineError, match=f"cannot load MPI library.*{nowhere}"):
            names = cluster.start_engines_sync(1, environment={"MPI4PY_LIBMPI": nowhere})
            cluster.wait_for_engines_sync(names, timeout=PATIENCE)
    finally:
        cluster.controller.disconnect()


def test_other_engines_know_nothing_of_mpi(cluster: Any) -> None:
    with cluster.connect_client_sync() as client:
        client[:].execute("import sys", block=True)
        assert client[:]["any(name.startswith('mpi4py') for name in sys.modules)"] == [
            False for _ in client.ids
        ]


@ipp.interactive
def mpi_memory() -> list[str]:
    """What MPI shares between the processes of a host, once it is imported."""
    import mpi4py.MPI  # noqa: F401

    with open("/proc/self/maps") as maps:
        return sorted({line.split(maxsplit=5)[-1].strip() for line in maps if "mpich_shm" in line})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="its files are not to be seen")
def test_other_engines_may_import_it_and_leave_nothing(cluster: Any) -> None:
    name = cluster.start_engines_sync(2)
    cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    with cluster.connect_client_sync() as client:
        view = client[cluster.engine_ids(name)]
        files = [Path(file) for found in view.apply_sync(mpi_memory) for file in found]
        assert files and all(file.exists() for file in files)
        client.shutdown(view.targets, block=True)
        wait_until(lambda: not any(file.exists() for file in files))
    cluster.stop_engines_sync(name)
