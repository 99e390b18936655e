"""How results and engines' output look on the asking side: replies, outputs, live streams."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TextIO

from .error import CompositeError, RemoteError, unwrap_exception
from .futures import MessageFuture, Metadata
from .protocol import OutputEvent

__all__ = ["ExecuteReply", "OutputStreamer", "get_shell", "in_kernel", "show_outputs"]

log = logging.getLogger(__name__)

RED, NORMAL = "\033[0;31m", "\033[0m"


def get_shell() -> Any:
    """The IPython shell of this process, or None; does not import IPython to find out."""
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    return None if get_ipython is None else get_ipython()


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel, as a notebook's is."""
    return getattr(get_shell(), "kernel", None) is not None


class ExecuteReply:
    """A finished ``execute``, shown as its result (ipyparallel.client.client.ExecuteReply).

    Parameters
    ----------
    msg_id : str
    content : dict
        The reply; ``execution_count`` at least.
    metadata : Metadata
        The request's, whose keys are also this object's items and attributes.
    """

    def __init__(self, msg_id: str, content: Mapping[str, Any], metadata: Metadata) -> None:
        self.msg_id = msg_id
        self.execution_count = content["execution_count"]
        self.metadata = metadata
        self._content = content

    @property
    def _result(self) -> Mapping[str, Any]:
        # read when asked for: it may arrive after the reply
        return self.metadata["execute_result"] or {}

    @property
    def source(self) -> str:
        """Who published the result; usually empty."""
        return str(self._result.get("source", ""))

    @property
    def data(self) -> dict[str, Any]:
        """The result's representations, by MIME type; empty when there is no result."""
        return dict(self._result.get("data", {}))

    @property
    def _metadata(self) -> dict[str, Any]:
        return dict(self._result.get("metadata", {}))

    def display(self) -> None:
        """Show the result as the engine would."""
        from IPython.display import publish_display_data

        publish_display_data(self.data, self._metadata)

    def __getitem__(self, key: str) -> Any:
        return self.metadata[key]

    def __getattr__(self, key: str) -> Any:
        # through __dict__, as copy and pickle ask before there is any metadata
        try:
            return self.__dict__["metadata"][key]
        except KeyError:
            raise AttributeError(key) from None

    def __repr__(self) -> str:
        text = self.data.get("text/plain", "")
        if len(text) > 32:
            text = text[:29] + "..."
        return f"<ExecuteReply[{self.execution_count}]: {text}>"

    # -- IPython's rich display ------------------------------------------------

    def _plaintext(self) -> str:
        text: str = self.data.get("text/plain", "")
        if not text:
            return ""
        if "\n" in text and not text.startswith("\n"):
            text = "\n" + text
        prompt = f"Out[{self.metadata['engine_id']}:{self.execution_count}]: "
        shell = get_shell()
        if shell is not None and shell.colors.lower() != "nocolor":
            prompt = f"{RED}{prompt}{NORMAL}"
        return prompt + text

    def _repr_pretty_(self, p: Any, cycle: bool) -> None:
        p.text(self._plaintext())

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data = self.data
        if "text/plain" in data:
            data["text/plain"] = self._plaintext()
        return data, self._metadata

    def _repr_mime_(self, mime: str) -> Any:
        data, metadata = self.data, self._metadata
        return (data[mime], metadata[mime]) if mime in data and mime in metadata else data.get(mime)

    def _repr_html_(self) -> Any:
        return self._repr_mime_("text/html")

    def _repr_latex_(self) -> Any:
        return self._repr_mime_("text/latex")

    def _repr_json_(self) -> Any:
        return self._repr_mime_("application/json")

    def _repr_javascript_(self) -> Any:
        return self._repr_mime_("application/javascript")

    def _repr_png_(self) -> Any:
        return self._repr_mime_("image/png")

    def _repr_jpeg_(self) -> Any:
        return self._repr_mime_("image/jpeg")

    def _repr_svg_(self) -> Any:
        return self._repr_mime_("image/svg+xml")


class StreamPrinter:
    """Prints pieces of several streams, each under a heading when the heading changes."""

    def __init__(self) -> None:
        self._heading = ""
        self._at_line_start = True

    def print(self, text: str, heading: str, file: TextIO) -> None:
        """Print ``text``, unless it is empty, under ``heading``, unless that is empty."""
        if not text:
            return
        if heading and heading != self._heading:
            self._heading = heading
            file.write(heading + "\n" if self._at_line_start else f"\n{heading}\n")
        file.write(text)
        self._at_line_start = text.endswith("\n")


def _publish(content: Mapping[str, Any], engine_id: int | None, *, update: bool = False) -> None:
    """Republish an engine's display in this process's shell, if there is one."""
    shell = get_shell()
    if shell is None:
        return
    display_id = (content.get("transient") or {}).get("display_id")
    shell.display_pub.publish(
        data=content["data"],
        metadata={**(content.get("metadata") or {}), "engine": engine_id},
        # engines may choose the same id for displays of their own
        transient={"display_id": f"{display_id}-{engine_id}"} if display_id else {},
        update=update and display_id is not None,
    )


def _show_heading(engine_id: int | None) -> None:
    from IPython.display import publish_display_data

    publish_display_data({"text/plain": f"[output:{engine_id}]"})


def _show_result(request: Metadata, content: Mapping[str, Any]) -> None:
    from IPython.display import display

    display(ExecuteReply(request["msg_id"], content, request))


def show_outputs(
    requests: Sequence[Metadata],
    *,
    groupby: str = "type",
    result_only: bool = False,
    headings: bool = True,
) -> None:
    """Show the output of finished requests again.

    Streams go to stdout and stderr.  Displays and results need an IPython shell and are left
    out where there is none.

    Parameters
    ----------
    requests
        The requests' metadata, outputs complete.
    groupby
        ``"engine"``: everything of a request, then of the next; ``"type"``: everyone's
        stdout, then stderr, displays and results; ``"order"``: as ``"type"``, with everyone's
        first display before everyone's second.
    result_only
        Leave out streams and displays.
    headings
        Whether to say which engine each piece is from.

    Raises
    ------
    ValueError
        When ``groupby`` is none of these.
    """
    if groupby not in {"engine", "type", "order"}:
        raise ValueError(f"groupby must be one of 'type', 'engine', 'order', not {groupby!r}")
    printer = StreamPrinter()
    rich = get_shell() is not None

    def streams(name: str, group: Sequence[Metadata]) -> None:
        for request in group:
            heading = f"[{name}:{request['engine_id']}] " if headings else ""
            printer.print(request[name], heading, getattr(sys, name))

    def results(group: Sequence[Metadata]) -> None:
        for request in group:
            if request["execute_result"] is not None:
                _show_result(request, request["execute_result"])

    groups = [[request] for request in requests] if groupby == "engine" else [requests]
    for group in groups:
        if not result_only:
            streams("stdout", group)
            streams("stderr", group)
        if not rich:
            continue
        shown: list[tuple[Metadata, Sequence[Mapping[str, Any]]]] = [
            (request, () if result_only else request["outputs"]) for request in group
        ]
        if groupby == "order":
            rounds = range(max((len(outputs) for _, outputs in shown), default=0))
            shown = [(request, outputs[i : i + 1]) for i in rounds for request, outputs in shown]
        for request, outputs in shown:
            has_result = groupby == "engine" and request["execute_result"] is not None
            if headings and (outputs or has_result):
                _show_heading(request["engine_id"])
            for output in outputs:
                _publish(output, request["engine_id"])
        results(group)


class OutputStreamer:
    """Context manager: shows the output of requests as it arrives, and all of it at the end.

    What has arrived before is shown first; nothing is lost or shown twice.  Showing happens
    in a thread of this object's own: the thread that receives output must not wait for a
    screen, and this one runs in the context it was started in, so that a kernel puts
    the output beneath the cell that asked for it.

    Parameters
    ----------
    requests
        The requests, with the id of the engine each was sent to, None where a scheduler chooses.
    """

    def __init__(self, requests: Sequence[tuple[MessageFuture, int | None]]) -> None:
        self._requests = requests
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._printer = StreamPrinter()
        self._published: dict[str, str] = {}
        self._errors = 0

    def __enter__(self) -> None:
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="pxcompat-stream-output", daemon=True)
        self._thread.start()
        self._stops = [
            child.listen(
                partial(self._hear, child, target),
                partial(self._replay, child, target),
            )
            for child, target in self._requests
        ]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for stop in self._stops:
            stop()
        self._queue.put(None)
        self._thread.join()

    # -- in the thread that receives, or that enters ----------------------------

    def _hear(self, child: MessageFuture, target: int | None, event: OutputEvent) -> None:
        self._queue.put(partial(self._show, child, target, event.type, event.content))

    def _replay(self, child: MessageFuture, target: int | None, past: Metadata) -> None:
        pieces = chain(
            (("stream", {"name": name, "text": past[name]}) for name in ("stdout", "stderr")),
            (("display_data", output) for output in past["outputs"]),
            ((name, past[name]) for name in ("execute_result", "error")),
        )
        for kind, content in pieces:
            if content is not None:
                self._queue.put(partial(self._show, child, target, kind, content))

    # -- in our own thread ------------------------------------------------------

    def _run(self) -> None:
        while (show := self._queue.get()) is not None:
            try:
                show()
            except Exception:
                # what cannot be shown must not hide what comes after it
                log.exception("A piece of an engine's output could not be shown")

    def _show(self, child: MessageFuture, target: int | None, kind: str, content: Any) -> None:
        engine_id = child.metadata["engine_id"]
        if engine_id is None:
            engine_id = target
        if kind == "stream":
            self._show_stream(child, engine_id, content["name"], content["text"])
        elif kind == "error":
            self._show_error(child, engine_id, content)
        elif kind == "execute_result":
            _show_result(child.metadata, content)
        elif kind == "update_display_data":
            _publish(content, engine_id, update=True)
        elif kind == "display_data" and get_shell() is not None:
            _show_heading(engine_id)
            _publish(content, engine_id)

    def _show_stream(
        self, child: MessageFuture, engine_id: int | None, name: str, text: str
    ) -> None:
        heading = f"[{name}:{engine_id}] "
        if not in_kernel():
            self._printer.print(text, heading, getattr(sys, name, sys.stdout))
            return
        # In a notebook each stream is one display that grows in place.  It is shown as it is
        # now, so that pieces that queued up behind a slow frontend are one update.
        from IPython.display import publish_display_data

        display_id = f"{child.msg_id}-{name}"
        whole = child.metadata[name]
        shown = self._published.get(display_id, "")
        if whole != shown:
            self._published[display_id] = whole
            publish_display_data(
                {"text/plain": heading + whole},
                transient={"display_id": display_id},
                update=bool(shown),
            )

    def _show_error(
        self, child: MessageFuture, engine_id: int | None, content: RemoteError | Mapping[str, Any]
    ) -> None:
        error = content if isinstance(content, RemoteError) else unwrap_exception(content)
        if error.engine_info.get("engine_id") is None:
            # an engine need not know its own number
            error.engine_info = {
                "engine_uuid": child.metadata["engine_uuid"],
                "method": child.method,
                **error.engine_info,
                "engine_id": engine_id,
            }
        self._errors += 1
        full = self._errors <= CompositeError.tb_limit
        print("\n".join(error.render_traceback()) if full else error, file=sys.stderr)
