"""Dask: one pinned worker an engine, and a direct channel from each client to each engine.

=================  =============================================================
``launch``         starts a cluster: the controller process and its engines
``controller``     the supervisor that forks and reaps, and the scheduler beside it
``registry``       in the scheduler: engine ids, who is there, who died and why
``service``        in the worker: the engine behind its channels
``channel``        an ordered two-way stream over a Dask comm
``wire``           requests and replies as messages of such a channel
``backend``        in the client: :class:`pxcompat.protocol.Backend`
``balanced``       calls that Dask's own scheduler places
``adoption``       in the client: engines of a cluster that somebody else runs
``monitor``        in the scheduler: what engines do, for Dask's diagnostics
``observed``       in the worker: its answers to that
``occupied``       in the worker: keeps an adaptive cluster from closing it
``dashboard``      in the scheduler: the page "Engines"
``on_demand``      in a scheduler of ours: Dask's pages, when somebody looks
``metrics``        in both: numbers for Prometheus
=================  =============================================================
"""

from __future__ import annotations

from .launch import provider

__all__ = ["provider"]
