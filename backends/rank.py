"""One rank of an MPI world, on behalf of an engine: the program that mpiexec starts (see ``mpi``).

It gives its place in the world to whoever connects to its socket: the environment and the file
descriptors by which MPI finds mpiexec.  Then it waits: it ends with that process, or with
whoever started the world.  Run by its path, it uses nothing of the package.
"""

from __future__ import annotations

import array
import json
import os
import select
import shutil
import socket
import sys

#: variables that name file descriptors which mpiexec has opened
DESCRIPTORS = ("PMI_FD", "PMI_CONTROL_FD")
#: what a process has of its own
PRIVATE = {"_", "PWD", "OLDPWD", "SHLVL"}
#: variables that say which rank this is: hydra's and Slurm's, Open MPI's, any PMIx's
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


def main(folder: str) -> None:
    """Give this rank away, and wait for the end."""
    if not os.path.isdir(folder):
        sys.exit(
            f"There is no {folder} on {socket.gethostname()}: engines of an MPI world are"
            " processes of one machine, where their cluster's controller is."
        )
    ranks = [os.environ[name] for name in RANKS if name in os.environ]
    if not ranks:
        sys.exit(f"The command that started this rank sets none of {', '.join(RANKS)}.")
    with open(os.path.join(folder, "base")) as file:
        base = json.load(file)
    # held open for writing by whoever started the world, whose end it shows
    leash = os.open(os.path.join(folder, "leash"), os.O_RDONLY | os.O_NONBLOCK)
    path = os.path.join(folder, f"rank-{ranks[0]}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(1)
    os.rename(path + ".new", path)  # who sees it can connect

    def wait(other: socket.socket) -> bool:
        """Wait for something on a socket; False when the world is over."""
        while True:
            sources: list[int | socket.socket] = [leash, other]
            ready, _, _ = select.select(sources, [], [])
            if leash in ready and not os.read(leash, 1):
                shutil.rmtree(folder, ignore_errors=True)  # who would have, may have been killed
                return False
            if other in ready:
                return True

    if not wait(listener):
        return
    engine, _ = listener.accept()
    listener.close()
    os.unlink(path)
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in PRIVATE and base["environ"].get(name) != value
    }
    handed = {name: int(variables.pop(name)) for name in DESCRIPTORS if name in variables}
    place: dict[str, object] = {"environ": variables, "descriptors": list(handed)}
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        if cpus != base["cpus"]:  # mpiexec was told to bind its ranks
            place["cpus"] = cpus
    content = json.dumps(place).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handed.values()))]
    engine.sendmsg([b"\n"], rights if handed else [])
    engine.sendall(len(content).to_bytes(8, "big") + content)
    for fd in handed.values():
        os.close(fd)  # so that mpiexec sees the engine's end
    wait(engine)


if __name__ == "__main__":
    main(sys.argv[1])
