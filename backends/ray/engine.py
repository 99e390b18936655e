"""The actor that is an engine."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from typing import Any

import ray

from pxcompat.protocol import OutputEvent, Reply, Request

from ..controlled import settle
from ..shared import kept
from .lending import Lender
from .metrics import Meter
from .objects import unpack_natives
from .outbox import AHEAD
from .post import PATIENCE, Letter, Post
from .tables import as_block
from .wire import pack_output, pack_reply, unpack_request

__all__ = ["EngineActor"]

#: seconds for what is to be called when a program ends
PARTING = 3


class _Mailed:
    """The Origin of requests whose replies go by mail: announced ones, and other clients'."""

    #: seconds that a reply may wait
    patience = PATIENCE

    def __init__(self, post: Post, session: str) -> None:
        self._post = post
        self.session = session

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.session == self.session

    __hash__ = None  # type: ignore[assignment]

    def started(self, msg_id: str) -> None:
        """Its client knows: it is the oldest of those it sent here."""

    def output(self, msg_id: str, event: OutputEvent) -> None:
        message = ("output", msg_id, *pack_output(event))
        self._post.send(Letter(self.session, message, _weight(event)))

    def reply(self, reply: Reply) -> None:
        packed = pack_reply(reply, in_band=True)  # the client may be one of Ray Client's
        nbytes = packed[0][5] if isinstance(packed[0][5], int) else 0
        letter = Letter(self.session, ("reply", *packed), nbytes + 200)
        self._post.send(letter, self.patience)


class _Running(_Mailed):
    """The Origin of a request that shares its call: its reply is returned with the others, or
    goes by mail when they take longer than was expected."""

    patience = 2 * AHEAD

    def output(self, msg_id: str, event: OutputEvent) -> None:
        super().output(msg_id, event)
        if threading.current_thread() is threading.main_thread():
            self._post.wait_for_room()  # who prints faster than the network has to wait


class _Called(_Running):
    """The Origin of a request whose reply is what its call returns."""

    answer: Reply

    def reply(self, reply: Reply) -> None:
        self.answer = reply


def _end_stdin() -> None:
    """Have stdin be at its end.  Ray's own is its starter's, a terminal or a pipe, on which
    whoever reads, a child process for the most part, would wait for ever."""
    if sys.stdin is not None:  # else 0 is something else
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)


def _break_into_pdb() -> None:
    """Have ``breakpoint()`` be Python's own, or what the cluster's environment says.  Ray's waits
    for its debugger to connect, for which nobody is told, deaf to interrupts."""
    os.environ.pop("PYTHONBREAKPOINT", None)


def _defer_no_interrupts() -> None:
    """Ray puts interrupts off while it unpacks a call's arguments, which takes a tenth of what a
    small call costs its actor; an engine lets none in then."""
    from ray._private import utils

    if hasattr(utils, "DeferSigint"):
        utils.DeferSigint.create_if_main_thread = staticmethod(contextlib.nullcontext)


def _call_exit_functions() -> None:
    """What Python does when a program ends: pools of processes are ended before others wait for
    their children."""
    for function in reversed(getattr(threading, "_threading_atexits", ())):
        function()
    atexit._run_exitfuncs()


def _weight(event: OutputEvent) -> int:
    """About how many bytes an event has."""
    nbytes = 200
    for value in event.content.values():
        parts = value.values() if isinstance(value, dict) else [value]
        nbytes += sum(len(part) for part in parts if isinstance(part, (str, bytes, list)))
    return nbytes


class EngineActor:
    """An engine: a Ray actor whose calls run on its process's main thread, one at a time.

    Parameters
    ----------
    registry : ActorHandle
        Owns this actor.
    key : str
        The engine's uuid.
    id : int
        The engine's id.
    setup : dict
        ``cwd``, ``path``, ``env``: as in :class:`pxcompat.protocol.LaunchSpec`;
        ``namespace``: the cluster's;
        ``folder``: one that goes with the cluster, or "";
        ``logs``: folder for the log file, or None; ``log``: which of the files in it;
        ``rank``: where it gets its rank of an MPI world, if it has one;
        ``engine``: options of :class:`pxcompat.engine.runtime.Engine`.
    """

    def __init__(self, registry: Any, key: str, id: int, setup: dict[str, Any]) -> None:
        from pxcompat import alias

        # loads IPython, which those who only know of this class do without
        from pxcompat.engine.runtime import Engine

        from .. import mpi

        # Ray blocks it in its processes; unblocked, it interrupts the main thread
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is an engine to interrupt
        # Ray's own handler raises SystemExit, with which a cell ends and its engine goes on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _break_into_pdb()
        del sys.argv[1:]  # Ray's; code that parses its arguments is given none
        settle(setup)
        _defer_no_interrupts()
        _end_stdin()
        tempfile.tempdir = None  # it may be another one now
        _log_to(setup.get("logs"), f"engine-{setup['log']}")
        # notebooks written for ipyparallel import it on engines too
        alias.enable()
        atexit.register(mpi.leave)
        if setup.get("rank"):
            mpi.join(setup["rank"])
        self._engine = Engine(key, own_process=True, **setup["engine"])
        self._engine.id = id
        self._engine.keep = kept
        self._engine.prelude = mpi.INIT if setup.get("rank") else ""
        self._engine.folder = setup.get("folder")
        self._engine.native = self._me = ray.get_runtime_context().current_actor
        # behind what Ray has queued for it, unless a request that waits runs it before
        nudge = self._me.run_queued.options(name="px:nested")
        self._engine.nudge = lambda: nudge.remote()
        self._registry = registry
        self._post = Post(registry)
        self._lender = Lender()
        self._active = contextlib.ExitStack()
        # the user's start-up files run here: what cannot start up is never offered to anybody
        self._active.enter_context(self._engine.active())
        context = ray.get_runtime_context()
        self._engine.home = {
            "backend": "ray",
            "address": context.gcs_address,
            "namespace": setup["namespace"],
        }
        description = self._engine.describe()
        node = context.get_node_id()
        ray.get(registry.register.remote(**description, node=node))
        threading.Thread(target=self._answer_questions, name="pxcompat-ask", daemon=True).start()
        Meter(self._engine, setup["namespace"])

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call it."""
        return f"engine {self._engine.id}"

    def run(self, packed: bytes) -> Any:
        """Run a small request; its reply with the last of its output, pickled, and a large result
        apart."""
        return self._run(unpack_request(*pickle.loads(packed)))

    def run_large(self, head: Any, function: Any, arguments: Any, natives: Any) -> Any:
        """:meth:`run` for a request with something that Ray is to see."""
        request = unpack_request(head, function, arguments)
        request.natives = unpack_natives(natives)
        # in the object store, if they are large; the engine has its own
        del function, arguments, natives
        return self._run(request)

    def _run(self, request: Request) -> Any:
        origin = _Called(self._post, request.header["client"])
        self._engine.run_now(request, origin)
        answer, lent = origin.answer, None
        if "keep" not in request.header:  # that is for whoever has the reference
            lent = self._lender.lend(origin.session, request.msg_id, answer.result)
        in_band = request.header.get("in_band", False)
        reply, apart = pack_reply(answer, in_band=in_band, lent=lent)
        late = self._post.take_back(origin.session, {request.msg_id})
        # a reply among it says the same: that it was cancelled when it had only been announced
        outputs = [message[2:] for message in late if message[0] == "output"]
        # nothing is bytes, too: Ray has a quicker way for them than for None
        return pickle.dumps((reply, outputs), protocol=5), b"" if apart is None else apart

    def run_all(self, packed: bytes) -> bytes:
        """Run requests that share a call, one after the other; what there is to say of them that
        has not been said by mail."""
        client, msg_ids = "", set()
        for fields in pickle.loads(packed):
            request = unpack_request(*fields)
            client = request.header["client"]
            msg_ids.add(request.msg_id)
            self._engine.run_now(request, _Running(self._post, client))
        return pickle.dumps(self._post.take_back(client, msg_ids), protocol=5)

    def run_queued(self) -> None:
        """Run nested requests (see ``pxcompat.engine.nested``) that came while this thread was
        busy."""
        self._engine.run_queued()

    def give_aside(self, token: str) -> tuple[bool, Any]:
        """What was set aside (``pxcompat.engine.parts``), for Ray's store; and that it is there."""
        return True, as_block(self._engine.aside.pop(token)[1])

    def stop(self) -> None:
        """End the process, as a Python program ends."""
        self._lender.wait()
        # not ray.actor.exit_actor(), which waits until nobody refers to anything made here
        limit = threading.Timer(PARTING, self._registry.bury.remote, [self._engine.key])
        limit.daemon = True
        limit.start()  # what is called now may wait for ever
        self._active.close()
        atexit.unregister(ray.shutdown)
        _call_exit_functions()
        limit.cancel()
        self._registry.bury.remote(self._engine.key)

    def bye(self, never: Any) -> None:
        """Called by the registry with what never comes, to be told of this actor's end."""

    # -- while the main thread is busy ---------------------------------------------

    def _answer_questions(self) -> None:
        while True:
            try:
                questions = ray.get(self._registry.questions.remote(self._engine.key))
            except ray.exceptions.RayError:
                return  # Ray ends the engine, whose owner the registry is
            for session, call_id, question, args in questions:
                try:
                    value, ok = self._answer(session, question, args), True
                except Exception as error:
                    value, ok = f"{type(error).__name__}: {error}", False
                self._post.send(Letter(session, ("answer", call_id, ok, value), 200))

    def _answer(self, session: str, question: str, args: dict[str, Any]) -> Any:
        engine, tasks = self._engine, self._engine.tasks
        origin = _Mailed(self._post, session)
        tasks.announce([unpack_request(head) for head in args.pop("announced", ())], origin)
        if question == "cancel":
            return tasks.cancel(args["msg_ids"])
        if question == "give_back":
            return tasks.give_back(args["msg_ids"], coming=True)
        if question == "status":
            return tasks.status()
        if question == "query":
            return tasks.query(args["query"], args["keys"])
        if question == "purge":
            return tasks.purge(args["msg_ids"])
        if question == "attach":
            return tasks.attach(args["msg_id"], origin)
        if question == "recall":
            return tasks.recall(args["msg_id"])
        if question == "resubmitted":
            return tasks.resubmitted(args["msg_id"], args["again"])
        if question == "announce":
            return None
        if question == "nested":
            fields = [
                ray.get(field) if isinstance(field, ray.ObjectRef) else field
                for field in args["request"]
            ]
            request = unpack_request(*fields)
            request.natives = unpack_natives(args["natives"])
            engine.submit(request, origin)
            engine.nudge()
            return None
        if question == "stop":
            self._me.stop.remote()  # after what Ray has queued for it
            return None
        if question == "near":
            return self._lender.prove(session, args["field"])
        if question == "met":
            return self._lender.met(session, near=args["near"])
        if question == "done":
            return self._lender.take_back(args["name"])
        if question == "forget":
            self._lender.forget(args["client"])
            return engine.forget_client(args["client"])
        raise ValueError(f"an engine does not know the question {question!r}")


def _log_to(folder: str | None, name: str) -> None:
    """Have this process write into a log file of its own, where the folder is."""
    if not folder or not os.path.isdir(folder):
        return  # another host: Ray keeps its log
    out = os.open(
        os.path.join(folder, f"{name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    print(f"{name} on {socket.gethostname()}, process {os.getpid()}", flush=True)
