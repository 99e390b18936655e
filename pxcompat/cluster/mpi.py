"""How engines become the ranks of an MPI world: ipyparallel's MPIEngineSetLauncher."""

from __future__ import annotations

from collections.abc import Sequence

from traitlets import List, Unicode
from traitlets.config import Configurable

__all__ = ["MPIEngineSetLauncher", "MPILauncher", "world_command"]


class MPILauncher(Configurable):
    """The command that starts the ranks of an MPI world."""

    mpi_cmd = List(
        Unicode(),
        ["mpiexec"],
        help="The command, looked for beside Python first: ['mpiexec'], ['srun', '--mpi=pmi2'].",
    ).tag(config=True)
    mpi_args = List(Unicode(), [], help="Arguments after the number of ranks.").tag(config=True)


class MPIEngineSetLauncher(MPILauncher):
    """Engines that are the ranks of one MPI world.

    What ``Cluster(engines="mpi")`` names; configured as ``c.MPIEngineSetLauncher``, or, for all
    of its kind, as ``c.MPILauncher``.
    """

    def parts(self) -> list[list[str]]:
        """What stands before and after the number of ranks."""
        return [list(self.mpi_cmd), list(self.mpi_args)]


def world_command(parts: Sequence[Sequence[str]], n: int) -> list[str]:
    """The command for a world of ``n`` ranks, without the program that each of them is."""
    before, after = parts
    return [*before, "-n", str(n), *after]
