"""Ray: one actor an engine, and a registry actor that knows them all.

=================  ====================================================================
``launch``         starts a cluster, and finds one that is there
``controller``     the process that holds a cluster which pxcompat started
``later``          what of that starts when the engines are there: the dashboard
``session``        this process's connection to Ray: one, shared by its clients
``registry``       the actor that knows the engines, and passes on questions and output
``engine``         the actor that is an engine
``post``           an engine's outgoing mail: output and answers, through the registry
``metrics``        what an engine does, as metrics of Ray's
``collections``    datasets, over engines and of what they have; ``tables``: their blocks
``objects``        object references, and names of engines, as arguments
``wire``           requests and replies as arguments and return values of actor calls
``order``          the backend's options
``backend``        in the client: :class:`pxcompat.protocol.Backend`
``questions``      a client's questions that have no answer yet
``ordering``       output, which comes by two ways, put into order
``announcing``     what waits where engines and registry cannot see it, told to them
``connecting``     how a client comes to the registry, and to engines where there are none
``adoption``       nodes of somebody else's Ray, and what they lack
``following``      engines on those nodes as they come and go
``outbox``         which requests to an engine go alone, and which share a call
``balanced``       calls that may run on any engine
=================  ====================================================================

A request is one call of the engine's actor, or shares one with other short ones.  Ray queues it
and runs it on the actor's main thread; its reply is what the call returns.  While it runs that
thread is busy, so whatever cannot wait for it goes through the registry::

    client ── run(request) ───────────────────────────────> engine   reply: returned
    client ── ask(question) ──> registry <── questions() ── engine   polled by a thread
    client ── listen() ──────> registry <── tell(output) ── engine   posted by a thread
"""

from __future__ import annotations

from .launch import provider

__all__ = ["provider"]
