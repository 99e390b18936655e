"""Engines' output, shown as it arrives: in a notebook's cell, or line by line in a terminal."""

from __future__ import annotations

import contextvars
import logging
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Protocol

from .display import ExecuteReply, StreamPrinter, displayed, get_shell, in_kernel
from .error import CompositeError, RemoteError, unwrap_exception
from .futures import MessageFuture, Metadata, overwritten
from .protocol import OutputEvent
from .waiting import Countdown

__all__ = ["OutputStreamer"]

log = logging.getLogger(__name__)

#: how many unfinished lines, progress bars for the most part, a terminal shows at once
LIVE_LINES = 10
#: seconds between two drawings of them, at least
REDRAW = 0.05
#: characters a second that are sent to a notebook, at most, to show a stream that grows
RATE = 1_000_000


class OutputStreamer:
    """Context manager: shows the output of requests as it arrives, and all of it at the end.

    What has arrived before is shown first; nothing is lost or shown twice.  Showing happens
    in a thread of this object's own: the thread that receives output must not wait for a
    screen, and this one runs in the context it was started in, so that a kernel puts
    the output beneath the cell that asked for it, also while another cell runs.

    Parameters
    ----------
    requests
        The requests, with the id of the engine each was sent to, None where a scheduler chooses.
    errors
        Whether to show errors too, for those who do not raise them afterwards.
    """

    def __init__(
        self, requests: Sequence[tuple[MessageFuture, int | None]], *, errors: bool = True
    ) -> None:
        self._requests = requests
        self._show_errors = errors
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._errors = 0
        self._screen: _Screen

    def __enter__(self) -> None:
        self._screen = _Cell() if in_kernel() else _Terminal()
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
        self._stop()
        self._thread.join()

    def show_until_done(self) -> None:
        """Begin, and end by itself when all output has been shown; does not wait for it."""
        self.__enter__()
        Countdown([child.output_latch for child, _ in self._requests], type(self)._stop, self)

    def _stop(self) -> None:
        for stop in self._stops:
            stop()
        self._queue.put(None)

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
        while True:
            pause = self._screen.pause()
            try:
                show = self._queue.get(timeout=pause)
            except Empty:
                show = self._screen.refresh
            if show is None:
                break
            self._attempt(show)
        self._attempt(self._screen.finish)

    @staticmethod
    def _attempt(show: Callable[[], None]) -> None:
        try:
            show()
        except Exception:
            # what cannot be shown must not hide what comes after it
            log.exception("A piece of an engine's output could not be shown")

    def _show(self, child: MessageFuture, target: int | None, kind: str, content: Any) -> None:
        engine = child.metadata["engine_id"]
        if engine is None:
            engine = target
        screen = self._screen
        if kind == "stream":
            screen.stream(child, engine, content["name"], content["text"])
        elif kind == "error" and self._show_errors:
            with screen.aside() as stderr:
                print(self._error_text(child, engine, content), file=stderr)
        elif kind == "execute_result":
            # the request's own may be a later one by now
            md = Metadata(child.metadata, execute_result=content)
            with screen.aside():
                screen.result(ExecuteReply(child.msg_id, content, md))
        elif kind == "clear_output":
            screen.clear(child, engine, wait=bool(content.get("wait")))
        elif kind in ("display_data", "update_display_data"):
            with screen.aside():
                screen.display(child, engine, content, update=kind != "display_data")

    def _error_text(
        self, child: MessageFuture, engine_id: int | None, content: RemoteError | Mapping[str, Any]
    ) -> str:
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
        return "\n".join(error.render_traceback()) if full else str(error)


class _Screen(Protocol):
    """Where output is shown.  Methods are called by one thread, one after another."""

    def stream(self, child: MessageFuture, engine: int | None, name: str, text: str) -> None:
        """Show a piece of printed text."""

    def display(
        self, child: MessageFuture, engine: int | None, content: Mapping[str, Any], *, update: bool
    ) -> None:
        """Show something displayed, or change what was shown under its display id."""

    def result(self, reply: ExecuteReply) -> None:
        """Show a result."""

    def clear(self, child: MessageFuture, engine: int | None, *, wait: bool) -> None:
        """Take away what a request has shown, at once or when it shows something new."""

    def aside(self) -> AbstractContextManager[Any]:
        """Clear the way for whole lines on stderr, which is yielded, or stdout."""

    def pause(self) -> float | None:
        """Seconds until something held back is to be shown; None when there is nothing."""

    def refresh(self) -> None:
        """Show what was held back until now."""

    def finish(self) -> None:
        """Show what was held back, and what was not to be shown yet."""


class _Cell:
    """The cell of a notebook.

    Each stream is one display that grows in place.  It is shown as it is now, so that pieces
    that queued up behind a slow frontend are one update; and the longer it is, the less often.
    """

    def __init__(self) -> None:
        self._publisher = _publisher_of_cell(get_shell())
        self._stderr = sys.stderr
        #: what is shown of each stream, by display id, and when it may be shown anew
        self._published: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._streams: dict[str, tuple[MessageFuture, int | None, str]] = {}
        #: display ids of streams that have more to show when they are due
        self._held: set[str] = set()
        #: displays of each request by their ids here, and how many of them are not outdated
        self._displays: dict[str, list[str]] = {}
        self._fresh: dict[str, int] = {}

    def stream(self, child: MessageFuture, engine: int | None, name: str, text: str) -> None:
        display_id = f"{child.msg_id}-{name}"
        self._streams[display_id] = child, engine, name
        if time.monotonic() < self._due.get(display_id, 0):
            self._held.add(display_id)
            return
        self._held.discard(display_id)
        whole = child.metadata[name]
        if whole != self._published.get(display_id, ""):
            update = display_id in self._published
            self._published[display_id] = whole
            self._publish({"text/plain": f"[{name}:{engine}] {whole}"}, {}, display_id, update)
            self._due[display_id] = time.monotonic() + len(whole) / RATE

    def display(
        self, child: MessageFuture, engine: int | None, content: Mapping[str, Any], *, update: bool
    ) -> None:
        data, metadata, display_id = displayed(content, engine)
        if update:
            if display_id is not None:
                self._publish(data, metadata, display_id, True)
            return
        ids = self._displays.setdefault(child.msg_id, [])
        place = self._fresh.get(child.msg_id, 0)
        self._fresh[child.msg_id] = place + 1
        if place < len(ids):  # the next frame of something animated
            self._publish(data, metadata, ids[place], True)
            return
        self._publish({"text/plain": f"[output:{engine}]"}, {}, None, False)
        ids.append(display_id or f"{child.msg_id}-{place}")
        self._publish(data, metadata, ids[-1], False)

    def result(self, reply: ExecuteReply) -> None:
        self._publish(*reply._repr_mimebundle_(), None, False)

    def clear(self, child: MessageFuture, engine: int | None, *, wait: bool) -> None:
        self._fresh[child.msg_id] = 0
        if not wait:
            for display_id in self._displays.get(child.msg_id, ()):
                self._publish({"text/plain": ""}, {}, display_id, True)
            self.finish()

    def aside(self) -> AbstractContextManager[Any]:
        return nullcontext(self._stderr)

    def pause(self) -> float | None:
        if not self._held:
            return None
        return max(0, min(self._due[display_id] for display_id in self._held) - time.monotonic())

    def refresh(self) -> None:
        for display_id in list(self._held):
            self.stream(*self._streams[display_id], "")

    def finish(self) -> None:
        self._due.clear()
        for stream in self._streams.values():
            self.stream(*stream, "")

    def _publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        display_id: str | None,
        update: bool,
    ) -> None:
        transient = {"display_id": display_id} if display_id else {}
        self._publisher.publish(data, metadata, transient=transient, update=update)


def _publisher_of_cell(shell: Any) -> Any:
    """A display publisher that goes on publishing to the cell that runs now."""
    publisher = shell.display_pub
    kernel = sys.modules.get("ipykernel.zmqshell")
    # ipykernel's streams, and from version 7 its publisher, know the cell by the context
    by_trait = getattr(publisher, "has_trait", lambda name: False)("parent_header")
    if kernel is None or type(publisher) is not kernel.ZMQDisplayPublisher or not by_trait:
        return publisher
    own = type(publisher)(session=publisher.session, pub_socket=publisher.pub_socket)
    own.topic, own.parent_header = publisher.topic, publisher.parent_header
    return own


class _Terminal:
    """A terminal, or a file.

    Lines that a carriage return may still overwrite, progress bars for the most part, are
    redrawn in place beneath everything else, several engines' at once.  A file gets
    them when they are finished.
    """

    def __init__(self) -> None:
        self._printer = StreamPrinter()
        #: unfinished lines by stream, and how many of them are on the screen
        self._live: dict[tuple[str, int | None], str] = {}
        self._drawn = 0
        #: progress bars of this process that were beneath them then
        self._beneath: list[weakref.ref[Any]] = []
        #: whether they have changed since, and when they may be drawn anew
        self._stale = False
        self._due = 0.0

    def stream(self, child: MessageFuture, engine: int | None, name: str, text: str) -> None:
        stream = name, engine
        live = self._live.pop(stream, None)
        if live is not None or "\r" in text:
            done, newline, line = ((live or "") + text).rpartition("\n")
            text = overwritten(done + newline)
            if line:
                self._live[stream] = overwritten(line)
                if not text and time.monotonic() < self._due:
                    self._stale = True
                    return
        with self._out_of_the_way():
            self._printer.print(text, f"[{name}:{engine}] ", getattr(sys, name))

    def display(
        self, child: MessageFuture, engine: int | None, content: Mapping[str, Any], *, update: bool
    ) -> None:
        shell = get_shell()
        if shell is None:
            return
        data, metadata, display_id = displayed(content, engine)
        if update and display_id is None:
            return
        if not update:
            shell.display_pub.publish({"text/plain": f"[output:{engine}]"})
        transient = {"display_id": display_id} if display_id else {}
        shell.display_pub.publish(data, metadata, transient=transient, update=update)

    def result(self, reply: ExecuteReply) -> None:
        from IPython.display import display

        display(reply)

    def clear(self, child: MessageFuture, engine: int | None, *, wait: bool) -> None:
        with self._out_of_the_way():
            for name in ("stdout", "stderr"):
                self._live.pop((name, engine), None)

    def pause(self) -> float | None:
        if self._stale:
            return max(0, self._due - time.monotonic())
        return REDRAW if self._drawn else None  # to see bars that begin

    def refresh(self) -> None:
        # not by ==, which for tqdm is to be at the same place
        begun = {id(bar) for bar in _bars()} - {id(known()) for known in self._beneath}
        if self._stale or begun:
            self._stale = False
            with self._out_of_the_way():
                pass  # they are drawn anew

    @contextmanager
    def aside(self) -> Iterator[Any]:
        with self._out_of_the_way():
            self._printer.interrupted(sys.stdout)
            yield sys.stderr

    def finish(self) -> None:
        live, self._live = self._live, {}
        with self._out_of_the_way():
            for (name, engine), line in sorted(live.items(), key=_by_engine):
                self._printer.print(f"{line}\n", f"[{name}:{engine}] ", getattr(sys, name))

    @contextmanager
    def _out_of_the_way(self) -> Iterator[None]:
        """Take unfinished lines, and progress bars of this process, off the screen meanwhile."""
        tqdm = sys.modules.get("tqdm")
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode():
            if self._drawn:
                self._erase()
            yield
            if self._live and _is_terminal(sys.stdout):
                self._draw()

    def _erase(self) -> None:
        # a bar that has ended meanwhile has left its line beneath ours
        beneath = [known() for known in self._beneath]
        left = sum(bar is None or bar.disable for bar in beneath)
        remove = f"\x1b[{self._drawn}M\x1b[{left}B" if left else "\x1b[J"
        sys.stdout.write(f"\x1b[{self._drawn + left}A{remove}")
        self._drawn = 0

    def _draw(self) -> None:
        self._printer.end_line(sys.stdout)
        width = shutil.get_terminal_size().columns
        lines = [
            f"[{name}:{engine}] {line}"
            for (name, engine), line in sorted(self._live.items(), key=_by_engine)
        ]
        if len(lines) > LIVE_LINES:
            lines[LIVE_LINES - 1 :] = [f"... and {len(lines) - LIVE_LINES + 1} more"]
        sys.stdout.write("".join(line[: width - 1] + "\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)
        self._beneath = [weakref.ref(bar) for bar in _bars()]
        self._stale, self._due = False, time.monotonic() + REDRAW


def _bars() -> list[Any]:
    """This process's progress bars, as far as their lines stay."""
    tqdm = sys.modules.get("tqdm")
    bars = () if tqdm is None else list(getattr(tqdm.tqdm, "_instances", ()))
    return [bar for bar in bars if bar.leave]


def _is_terminal(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", bool)())


def _by_engine(live: tuple[tuple[str, int | None], str]) -> tuple[int, str]:
    (name, engine), _ = live
    return -1 if engine is None else engine, name
