"""An engine as a kernel, to which Jupyter's frontends attach (``bind_kernel``).

A frontend's cells are requests of the engine like any other: they run in turn, in the engine's
shell, and what they print comes back as their output.  So there is no second shell, and no
second owner of stdout, as an ``ipykernel`` kernel in this process would be; what is here is
Jupyter's wire protocol, by jupyter_client's own ``Session``.

::

    jupyter console ── zmq ── Console's thread ── Engine.submit ──> the engine's thread
                       <───── what it has to send <── Origin: output, reply ──┘
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
from IPython.core.completer import provisionalcompleter, rectify_completions
from IPython.utils.tokenutil import token_at_cursor
from jupyter_client.session import Session
from jupyter_core.paths import jupyter_runtime_dir

from ..protocol import OutputEvent, Reply, Request
from .output import plain

if TYPE_CHECKING:
    from .runtime import Engine

__all__ = ["Console", "bind"]

log = logging.getLogger("pxcompat.engine")

#: output events that Jupyter has messages for, under the same names and with the same contents
MESSAGES = (
    "stream",
    "display_data",
    "update_display_data",
    "execute_result",
    "clear_output",
    "error",
)
#: the sockets of a kernel, and their kinds
SOCKETS = {
    "shell": zmq.ROUTER,
    "control": zmq.ROUTER,
    "stdin": zmq.ROUTER,
    "iopub": zmq.PUB,
    "hb": zmq.REP,
}
#: milliseconds that what is unsent may take when the kernel ends
LINGER = 200


class _Cell:
    """The Origin of one execute request of a frontend."""

    def __init__(self, console: Console, message: dict[str, Any], identities: list[bytes]) -> None:
        self._console = console
        self._message = message
        self._identities = identities
        self.count = 0

    def begin(self) -> None:
        """On the engine's thread, right before the cell is run."""
        content = self._message["content"]
        self.count = self._console.engine.shell.execution_count
        if not content.get("silent"):
            given = {"code": content["code"], "execution_count": self.count}
            self._publish("execute_input", given)

    def started(self, msg_id: str) -> None:
        """The frontend has ``execute_input`` for it."""

    def output(self, msg_id: str, event: OutputEvent) -> None:
        if event.type not in MESSAGES:
            return
        content = event.content
        if event.type == "error":
            content = {name: content[name] for name in ("ename", "evalue", "traceback")}
        self._publish(event.type, content)

    def reply(self, reply: Reply) -> None:
        content: dict[str, Any] = {"status": reply.status, "execution_count": self.count}
        self._console.heard = reply.content.get("failures", self._console.heard)
        if reply.status == "ok":
            asked = self._message["content"].get("user_expressions") or {}
            values = self._console.engine.shell.user_expressions(asked)
            content |= {"payload": [], "user_expressions": values}
        elif reply.status == "error":
            failure = reply.content
            content |= {name: failure[name] for name in ("ename", "evalue", "traceback")}
        else:  # an error to frontends, since version 5.1 of their protocol
            content |= {"status": "error", "ename": "TaskAborted", "traceback": []}
            content["evalue"] = "an earlier cell failed, or a client aborted it"
        self._console.answer("shell", "execute_reply", content, self._message, self._identities)

    def _publish(self, msg_type: str, content: dict[str, Any]) -> None:
        self._console.publish(msg_type, content, self._message)


class Console:
    """An engine's kernel: five ZeroMQ sockets on the loopback interface, and a thread.

    Parameters
    ----------
    engine : Engine
        Whose shell it is.
    folder : str or Path
        Where the connection file goes, readable by its owner alone.

    Attributes
    ----------
    path : Path
        The connection file, for ``jupyter console --existing``.
    """

    def __init__(self, engine: Engine, folder: str | Path) -> None:
        self.engine = engine
        self._key = secrets.token_hex(32)
        self._session = Session(key=self._key.encode(), username="pxcompat")
        self._client = f"kernel-{uuid.uuid4().hex}"
        self._context = zmq.Context()
        self._sockets = {name: self._context.socket(kind) for name, kind in SOCKETS.items()}
        ports = {}
        for name, sock in self._sockets.items():
            sock.linger = LINGER
            ports[f"{name}_port"] = sock.bind_to_random_port("tcp://127.0.0.1")
        info = {
            "ip": "127.0.0.1",
            "transport": "tcp",
            "key": self._key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "python3",
            **ports,
        }
        self.path = Path(folder) / f"kernel-engine-{engine.key[:8]}.json"
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(info, file)
        #: what the thread is to do with its sockets, which are no other thread's
        self._todo: deque[Callable[[], None]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        #: failures of cells that frontends have been told of (see ``Engine._run``)
        self.heard = 0
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="pxcompat-kernel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the kernel; the engine goes on.  Idempotent."""
        if self._open:
            self._do(self._end)
            self._thread.join(5)

    def _end(self) -> None:
        self._open = False

    def _do(self, something: Callable[[], None]) -> None:
        """Have the thread do something.  Thread-safe."""
        self._todo.append(something)
        with contextlib.suppress(BlockingIOError, OSError):  # it is awake already, or gone
            self._wake.send(b"x")

    def publish(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        """Tell every frontend.  Thread-safe."""

        def send() -> None:
            topic = f"kernel.{self._client}.{msg_type}".encode()
            iopub = self._sockets["iopub"]
            self._session.send(iopub, msg_type, plain(content), parent=parent, ident=topic)

        self._do(send)

    def answer(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any],
        request: dict[str, Any],
        identities: list[bytes],
    ) -> None:
        """Answer a frontend's request, which is done with then.  Thread-safe."""

        def send() -> None:
            self._session.send(
                self._sockets[channel], msg_type, plain(content), parent=request, ident=identities
            )

        self._do(send)
        self.publish("status", {"execution_state": "idle"}, request)

    # -- the thread --------------------------------------------------------------------

    def _serve(self) -> None:
        poller = zmq.Poller()
        for name in ("shell", "control", "hb"):
            poller.register(self._sockets[name], zmq.POLLIN)
        poller.register(self._woken.fileno(), zmq.POLLIN)
        try:
            while self._open:
                ready = dict(poller.poll())
                if self._woken.fileno() in ready:
                    self._woken.recv(4096)
                while self._todo:
                    self._todo.popleft()()
                if self._sockets["hb"] in ready:
                    self._sockets["hb"].send(self._sockets["hb"].recv())
                for channel in ("control", "shell"):
                    if self._sockets[channel] in ready:
                        self._receive(channel)
        finally:
            self.path.unlink(missing_ok=True)
            for sock in self._sockets.values():
                sock.close()
            self._context.term()
            self._wake.close()
            self._woken.close()

    def _receive(self, channel: str) -> None:
        identities, parts = self._session.feed_identities(self._sockets[channel].recv_multipart())
        try:
            message: dict[str, Any] = self._session.deserialize(parts)
        except Exception as error:
            log.warning("a message that no frontend of ours can have sent: %s", error)
            return
        msg_type = message["header"]["msg_type"]
        if msg_type == "execute_request":
            self.publish("status", {"execution_state": "busy"}, message)
            self._execute(message, identities)
            return
        questions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "kernel_info_request": self._kernel_info,
            "comm_info_request": lambda content: {"comms": {}},
            "history_request": lambda content: {"history": []},
            "interrupt_request": self._interrupt,
            "shutdown_request": self._refuse_shutdown,
        }
        in_turn: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "complete_request": self._complete,
            "inspect_request": self._inspect,
            "is_complete_request": self._is_complete,
        }
        reply_type = msg_type.replace("_request", "_reply")

        def reply(question: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
            try:
                content = {"status": "ok", **question(message["content"])}
            except (Exception, KeyboardInterrupt) as error:
                failure = {"ename": type(error).__name__, "evalue": str(error), "traceback": []}
                content = {"status": "error", **failure}
            self.answer(channel, reply_type, content, message, identities)

        if msg_type in questions:
            self.publish("status", {"execution_state": "busy"}, message)
            reply(questions[msg_type])
        elif msg_type in in_turn:
            # they look at the user's objects, whose code runs on the engine's thread alone
            self.publish("status", {"execution_state": "busy"}, message)
            look = partial(self.engine.interruptibly, in_turn[msg_type])
            self.engine.call(lambda: reply(look))
            self.engine.nudge()
        else:
            log.debug("a frontend sends %s, of which an engine knows nothing", msg_type)

    # -- what frontends ask ------------------------------------------------------------

    def _execute(self, message: dict[str, Any], identities: list[bytes]) -> None:
        content = message["content"]
        silent = bool(content.get("silent"))
        cell = _Cell(self, message, identities)
        request = Request(
            f"{self._client}_{message['header']['msg_id']}",
            "execute",
            content["code"].partition("\n")[0],
            {
                "code": content["code"],
                "silent": silent,
                "store_history": bool(content.get("store_history", not silent)) and not silent,
            },
            header={"client": self._client, "submitted": time.time(), "heard": self.heard},
        )
        if not content.get("stop_on_error", True):
            request.header["heard"] = sys.maxsize
        self.engine.call(cell.begin)
        self.engine.submit(request, cell)
        self.engine.nudge()

    def _kernel_info(self, content: dict[str, Any]) -> dict[str, Any]:
        from IPython import __version__ as ipython

        return {
            "protocol_version": "5.3",
            "implementation": "pxcompat",
            "implementation_version": ipython,
            "banner": f"Engine {self.engine.id} of pxcompat, process {os.getpid()}\n",
            "language_info": {
                "name": "python",
                "version": sys.version.split()[0],
                "mimetype": "text/x-python",
                "codemirror_mode": {"name": "ipython", "version": 3},
                "pygments_lexer": "ipython3",
                "nbconvert_exporter": "python",
                "file_extension": ".py",
            },
            "help_links": [],
        }

    def _interrupt(self, content: dict[str, Any]) -> dict[str, Any]:
        """Interrupt a cell of this kernel's, and nobody else's request."""
        running = self.engine.tasks.status()["running"]
        if running is not None and running.startswith(self._client):
            if self.engine.own_process:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                self.engine.interrupt()
        return {}

    def _refuse_shutdown(self, content: dict[str, Any]) -> dict[str, Any]:
        """A frontend that leaves takes no engine along."""
        log.info("a frontend asked for this engine's end: client.shutdown(targets=...) ends it")
        return {"restart": bool(content.get("restart"))}

    def _complete(self, content: dict[str, Any]) -> dict[str, Any]:
        code, position = content["code"], content["cursor_pos"]
        with provisionalcompleter():
            found = self.engine.shell.Completer.completions(code, position)
            completions = list(rectify_completions(code, found))
        where = completions[0] if completions else None
        return {
            "matches": [completion.text for completion in completions],
            "cursor_start": where.start if where else position,
            "cursor_end": where.end if where else position,
            "metadata": {},
        }

    def _inspect(self, content: dict[str, Any]) -> dict[str, Any]:
        name = token_at_cursor(content["code"], content["cursor_pos"])
        try:
            data = self.engine.shell.object_inspect_mime(
                name, detail_level=content.get("detail_level", 0)
            )
        except KeyError:
            return {"found": False, "data": {}, "metadata": {}}
        return {"found": True, "data": data, "metadata": {}}

    def _is_complete(self, content: dict[str, Any]) -> dict[str, Any]:
        shell: Any = self.engine.shell
        status, indent = shell.input_transformer_manager.check_complete(content["code"])
        return {"status": status, "indent": " " * indent if indent is not None else ""}


def bind(engine: Engine) -> Path:
    """Make an engine a kernel, if it is none yet; its connection file.

    The file lies in the folder that goes with the cluster, or in Jupyter's for running kernels.
    """
    if engine.console is None:
        folder = engine.folder
        if not folder or not os.path.isdir(folder):
            folder = jupyter_runtime_dir()
            os.makedirs(folder, mode=0o700, exist_ok=True)
        engine.console = console = Console(engine, folder)

        def connect_info(line: str) -> None:
            print(f"{console.path.read_text()}\n\n    jupyter console --existing {console.path}")

        def qtconsole(line: str) -> None:
            from ipykernel.connect import connect_qtconsole

            connect_qtconsole(str(console.path), argv=shlex.split(line))

        connect_info.__doc__ = "How to attach a Jupyter console to this engine."
        qtconsole.__doc__ = "Open a qtconsole that is attached to this engine."
        register: Any = engine.shell.register_magic_function
        for magic in (connect_info, qtconsole):
            register(magic, "line")
    return engine.console.path
