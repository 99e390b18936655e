"""MPI worlds whose ranks are engines, the same way for every backend.

MPI wants its ranks started by mpiexec, and engines are started by their backend.  So mpiexec
starts one small process a rank (``rank``), which hands its place in the world to an engine::

    registry ── mpiexec ─┬─ rank 0 ── unix socket: variables, descriptors ──> engine
                         └─ rank 1 ── unix socket ──────────────────────────> engine

From then on MPI in the engine talks to mpiexec as if it had been started by it.  The engine is
what it was: the backend's process, signalled, watched and ended as any other.  A rank's process
ends with its engine, so mpiexec learns of its end; and with the registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence

from pxcompat.error import BackendError

__all__ = ["INIT", "Worlds", "join", "leave", "unlink_memory"]

#: what ranks run in their namespace before anything else: ipengine's, with --mpi
INIT = """\
from mpi4py import MPI
mpi_rank = MPI.COMM_WORLD.Get_rank()
mpi_size = MPI.COMM_WORLD.Get_size()
__import__("pxcompat.backends.mpi", fromlist=["unlink_memory"]).unlink_memory()
"""
#: how MPICH names the memory that ranks of one host share
MEMORY = "/dev/shm/mpich_shm_"
#: how to get what is missing
INSTALL = 'pip install "pxcompat[mpi]"'
#: seconds for mpiexec to start a rank
PATIENCE = 60
#: seconds for the end of a rank to be known after that of mpiexec, which it caused
LAST_WORDS = 1
#: seconds for the other ranks to leave the world too, when one ends in good order
FAREWELL = 5
#: characters that the path of a folder may have, for sockets in it to have valid ones
LONGEST = 70


class Worlds:
    """The MPI worlds of a cluster, for its registry; used on its event loop.

    A world ends whole: with the first of its ranks that ends, as the others could wait for that
    one for ever.

    Parameters
    ----------
    end : callable
        ``end(key, reason)`` ends an engine at once.
    folder : str
        One that goes with the cluster, however that ends.
    """

    def __init__(self, end: Callable[[str, str], None], folder: str) -> None:
        self._end = end
        self._folder = folder
        #: by engine that has not ended
        self._worlds: dict[str, _World] = {}
        self._watching: set[asyncio.Task[None]] = set()

    def start(self, command: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
        """Start a world for engines, in the order of their ranks; where each gets its rank:
        what :func:`join` takes.

        Raises
        ------
        BackendError
            When something that is needed is not installed; says what to install.
        """
        world = _World(command, keys, self._folder)
        self._worlds.update(dict.fromkeys(keys, world))
        task = asyncio.ensure_future(self._watch(world))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return {key: world.address(rank) for rank, key in enumerate(keys)}

    def dissolve(self, keys: Sequence[str]) -> tuple[list[str], list[_World]]:
        """Note that engines are about to be ended on purpose; these, with all that are in a
        world with one of them, and the worlds."""
        worlds = list(dict.fromkeys(self._worlds[key] for key in keys if key in self._worlds))
        for world in worlds:
            world.meant = True
        ranked = [key for world in worlds for key in world.keys if key in self._worlds]
        return list(dict.fromkeys([*keys, *ranked])), worlds

    def lost(self, key: str, reason: str) -> None:
        """An engine has ended: end those that are in a world with it."""
        world = self._worlds.pop(key, None)
        if world is not None and not world.meant:
            self._end_world(world, f"with rank {world.keys.index(key)}: {reason}")

    def _end_world(self, world: _World, why: str) -> None:
        world.meant = True
        for key in world.keys:
            if key in self._worlds:
                self._end(key, f"its MPI world ended {why}; restart_engines() starts another")

    async def _watch(self, world: _World) -> None:
        why = await world.ended()
        deadline = time.monotonic() + LAST_WORDS
        # most often for a rank's end, which says more
        while not world.meant and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if not world.meant:
            self._end_world(world, f"by itself: {why}")

    async def close(self) -> None:
        """Let go of every world, and wait for what is left of them."""
        for world in set(self._worlds.values()):
            world.meant = True
            world.end()
        if self._watching:
            await asyncio.wait(self._watching, timeout=LAST_WORDS)


class _World:
    """One world.

    Parameters
    ----------
    command : sequence of str
        What starts its ranks, without the program that each is: ``["mpiexec", "-n", "4"]``.
    keys : sequence of str
        The engines, in the order of their ranks.
    folder : str
        Where its own is made, unless sockets there would have names that are too long.

    Raises
    ------
    BackendError
        When something that is needed is not installed; says what to install.
    """

    def __init__(self, command: Sequence[str], keys: Sequence[str], folder: str) -> None:
        self.command = list(command)
        self.keys = list(keys)
        #: whether its end is meant, or has been dealt with
        self.meant = False
        program = _program(command[0])
        if importlib.util.find_spec("mpi4py") is None:
            raise BackendError(f"an MPI world needs mpi4py, which is not installed: {INSTALL}")
        short = len(folder) <= LONGEST
        self.folder = tempfile.mkdtemp(prefix="pxcompat-mpi-", dir=folder if short else "/tmp")
        self._leash = -1
        try:
            # what mpiexec changes is what differs from this
            cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
            with open(os.path.join(self.folder, "base"), "w") as file:
                json.dump({"environ": dict(os.environ), "cpus": cpus}, file)
            leash = os.path.join(self.folder, "leash")
            os.mkfifo(leash, 0o600)
            self._leash = os.open(leash, os.O_RDWR | os.O_CLOEXEC)
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the world
            self._process = subprocess.Popen(
                [program, *command[1:], sys.executable, "-I", _rank_program(), self.folder],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            self.end()
            raise BackendError(
                f"{program} does not start: {error}; c.MPILauncher.mpi_cmd names another"
            ) from error

    def address(self, rank: int) -> str:
        """The socket of a rank."""
        return os.path.join(self.folder, f"rank-{rank}")

    async def ended(self) -> str:
        """Wait for mpiexec to end; what is to be said of that."""
        status = await asyncio.to_thread(self._process.wait)
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").split()
        self._log.close()
        self.end()
        shown = " ".join(said)
        return f"{self.command[0]} exited with status {status}: {shown[:400]}".rstrip(": ")

    def end(self) -> None:
        """Let go of the world; what is left of it ends.  Idempotent."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1
        shutil.rmtree(self.folder, ignore_errors=True)


def _program(name: str) -> str:
    """The path of mpiexec: of this environment's, where it has one."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    if found is None:
        raise BackendError(
            f"an MPI world needs {name}, which is neither in {scripts} nor on the PATH: {INSTALL},"
            " or set c.MPILauncher.mpi_cmd"
        )
    return found


def _rank_program() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "rank.py")


# -- on the engine ----------------------------------------------------------------------

#: the connection to the rank whose place this process has; its end is this process's
_place: socket.socket | None = None


def join(address: str) -> None:
    """Be a rank of a world, to which MPI connects this process when it is initialised.

    To be called before anything imports mpi4py.MPI.

    Raises
    ------
    BackendError
        When the world has ended, or does not start in time.
    """
    global _place
    place = _connect(address)
    _, descriptors, _, _ = socket.recv_fds(place, 1, 8)
    content = json.loads(_exactly(place, int.from_bytes(_exactly(place, 8), "big")))
    os.environ.update(content["environ"])
    for name, fd in zip(content["descriptors"], descriptors, strict=True):
        os.environ[name] = str(fd)
    if "cpus" in content:
        os.sched_setaffinity(0, content["cpus"])
    _place = place


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        place = socket.socket(socket.AF_UNIX)
        try:
            place.connect(address)
        except OSError as error:
            place.close()
            # mpiexec has not come to it yet; or never will, then the registry ends us and says why
            if time.monotonic() > deadline:
                raise BackendError(f"mpiexec started no such rank within {PATIENCE} s") from error
            time.sleep(0.02)
        else:
            return place


def _exactly(sock: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = sock.recv(count - len(content))
        if not part:
            raise BackendError("its MPI world ended before this engine was in it")
        content += part
    return content


def unlink_memory() -> None:
    """Take away the name of the memory that ranks of this host share, once all have mapped it.

    MPICH does so when a world ends in good order; of one whose ranks are killed it would stay.
    """
    sys.modules["mpi4py.MPI"].COMM_WORLD.Barrier()
    try:
        with open("/proc/self/maps") as maps:
            found = {line.split(maxsplit=5)[-1].strip() for line in maps if MEMORY in line}
    except FileNotFoundError:
        return  # no Linux: the name is not to be had
    for name in found:
        with contextlib.suppress(FileNotFoundError):  # another rank was quicker
            os.unlink(name)


def leave() -> None:
    """Leave the world in good order, which takes all its ranks: also that of an engine alone, whose
    user has imported mpi4py.  Else the memory that MPICH has made would stay."""
    if "mpi4py.MPI" not in sys.modules:
        return
    MPI = sys.modules["mpi4py.MPI"]
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return
    # it waits in C for the others, of which one may have died
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(FAREWELL)
    with contextlib.suppress(MPI.Exception):  # the world has ended already
        MPI.Finalize()
    signal.alarm(0)
