"""How results and engines' output look on the asking side: replies, and finished outputs."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TextIO

from .error import CompositeError, ErrorItem
from .futures import Metadata

__all__ = [
    "GROUPINGS",
    "ExecuteReply",
    "StreamPrinter",
    "displayed",
    "get_shell",
    "in_kernel",
    "ranges",
    "show_folded_errors",
    "show_heading",
    "show_outputs",
    "show_result",
]

RED, NORMAL = "\033[0;31m", "\033[0m"

#: a view of a widget; a browser can show it when its comm is relayed (see ``comms``)
WIDGET = "application/vnd.jupyter.widget-view+json"
#: how many different texts of a stream a folded output shows before it hides the rest
SHOWN = 10
#: how outputs can be grouped
GROUPINGS = ("type", "engine", "order", "folded")

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CELL_NUMBER = re.compile(r"(?<=\bIn\[)\d+(?=\])")


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
    label : str, optional
        What the prompt says in brackets; default the engine's id and its count.
    """

    def __init__(
        self,
        msg_id: str,
        content: Mapping[str, Any],
        metadata: Metadata,
        label: str | None = None,
    ) -> None:
        self.msg_id = msg_id
        self.execution_count = content["execution_count"]
        self.metadata = metadata
        self._content = content
        self._label = label

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
        label = self._label or f"{self.metadata['engine_id']}:{self.execution_count}"
        prompt = f"Out[{label}]: "
        shell = get_shell()
        if shell is not None and shell.colors.lower() != "nocolor":
            prompt = f"{RED}{prompt}{NORMAL}"
        return prompt + text

    def _repr_pretty_(self, p: Any, cycle: bool) -> None:
        p.text(self._plaintext())

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data = _showable(self.data)
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
    """Prints pieces of several streams, each under a heading when the heading changes.

    Attributes
    ----------
    heading : str
        What is printed now would be read as under it; empty: under none.
    """

    def __init__(self) -> None:
        self.heading = ""
        self._at_line_start = True

    def print(self, text: str, heading: str, file: TextIO) -> None:
        """Print ``text``, unless it is empty, under ``heading``, unless that is empty."""
        if not text:
            return
        if heading and heading != self.heading:
            self.heading = heading
            file.write(heading + "\n" if self._at_line_start else f"\n{heading}\n")
        file.write(text)
        self._at_line_start = text.endswith("\n")

    def end_line(self, file: TextIO) -> None:
        """Begin a new line, with a heading of its own, where one was begun."""
        if not self._at_line_start:
            file.write("\n")
            self._at_line_start, self.heading = True, ""

    def interrupted(self, file: TextIO) -> None:
        """Something else is shown now: what follows needs a new line and a heading."""
        self.end_line(file)
        self.heading = ""


def displayed(
    content: Mapping[str, Any], engine: int | str | None
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """An engine's display as it can be shown here: data, metadata and display id."""
    display_id = (content.get("transient") or {}).get("display_id")
    metadata = {**(content.get("metadata") or {}), "engine": engine}
    # engines may choose the same id for displays of their own
    return _showable(content["data"]), metadata, f"{display_id}-{engine}" if display_id else None


def _showable(data: Mapping[str, Any]) -> dict[str, Any]:
    """What can be shown here of data from an engine: of a widget nobody knows here, its text."""
    if WIDGET not in data or len(data) == 1 or _is_known(data[WIDGET].get("model_id")):
        return dict(data)
    return {k: v for k, v in data.items() if k != WIDGET}


def _is_known(comm_id: object) -> bool:
    comm = sys.modules.get("comm")
    return comm is not None and comm_id in comm.get_comm_manager().comms


def _publish(content: Mapping[str, Any], engine: int | str | None) -> None:
    shell = get_shell()
    if shell is not None:
        data, metadata, display_id = displayed(content, engine)
        transient = {"display_id": display_id} if display_id else {}
        shell.display_pub.publish(data=data, metadata=metadata, transient=transient)


def show_heading(engine: int | str | None) -> None:
    """Say whose displays follow."""
    from IPython.display import publish_display_data

    publish_display_data({"text/plain": f"[output:{engine}]"})


def show_result(request: Metadata, label: str | None = None) -> None:
    """Show the result of a request, if it has one."""
    from IPython.display import display

    if request["execute_result"] is not None:
        display(ExecuteReply(request["msg_id"], request["execute_result"], request, label))


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
        first display before everyone's second; ``"folded"``: as ``"type"``, with what is the
        same on several engines shown once.
    result_only
        Leave out streams and displays.
    headings
        Whether to say which engine each piece is from.

    Raises
    ------
    ValueError
        When ``groupby`` is none of these.
    """
    if groupby not in GROUPINGS:
        names = ", ".join(map(repr, GROUPINGS))
        raise ValueError(f"groupby must be one of {names}, not {groupby!r}")
    if groupby == "folded" and headings:
        _show_folded(requests, result_only)
        return
    printer = StreamPrinter()
    rich = get_shell() is not None

    def streams(name: str, group: Sequence[Metadata]) -> None:
        for request in group:
            heading = f"[{name}:{request['engine_id']}] " if headings else ""
            printer.print(request[name], heading, getattr(sys, name))

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
                show_heading(request["engine_id"])
            for output in outputs:
                _publish(output, request["engine_id"])
        for request in group:
            show_result(request)


# -- the same on many engines -------------------------------------------------------------------


def _show_folded(requests: Sequence[Metadata], result_only: bool) -> None:
    """Show what is the same on several engines once, with all their ids."""
    printer = StreamPrinter()
    for name in () if result_only else ("stdout", "stderr"):
        groups = _alike(requests, itemgetter(name))
        hidden = groups[SHOWN:] if in_kernel() else []
        for group in groups[: len(groups) - len(hidden)]:
            heading = f"[{name}:{ranges(_ids(group))}] "
            printer.print(group[0][name], heading, getattr(sys, name))
        if hidden:
            _show_hidden(name, hidden)
    if get_shell() is None:
        return
    for group in () if result_only else _alike(requests, _displays):
        show_heading(ranges(_ids(group)))
        for output in group[0]["outputs"]:
            _publish(output, ranges(_ids(group)))
    for group in _alike(requests, _result):
        counts = {request["execute_result"]["execution_count"] for request in group}
        count = f":{counts.pop()}" if len(counts) == 1 else ""
        show_result(group[0], ranges(_ids(group)) + count)


def show_folded_errors(failure: CompositeError) -> None:
    """Show, on stderr, an error that several engines have in common once, with all their ids."""
    alike: dict[Hashable, list[ErrorItem]] = {}
    for item in failure.elist:
        ename, evalue, traceback, _ = item
        # engines have counted their cells for themselves
        text = _CELL_NUMBER.sub("", ANSI.sub("", traceback or ""))
        alike.setdefault((ename, evalue, text), []).append(item)
    for n, items in enumerate(alike.values()):
        ename, evalue, traceback, info = items[0]
        heading = f"[{ranges(item[3].get('engine_id') for item in items)}:{info.get('method')}]"
        if traceback and n < failure.tb_limit:
            print(f"{heading}\n{traceback.rstrip()}", file=sys.stderr)
        else:
            print(f"{heading} {ename}: {evalue}", file=sys.stderr)


def _alike(
    requests: Iterable[Metadata], kind: Callable[[Metadata], Hashable]
) -> list[list[Metadata]]:
    """Requests of the same kind together, those of no kind left out."""
    groups: dict[Hashable, list[Metadata]] = {}
    for request in requests:
        if what := kind(request):
            groups.setdefault(what, []).append(request)
    return list(groups.values())


def _displays(request: Metadata) -> str:
    # displays of one call have ids of their own on each engine
    return "".join(_key(output["data"]) for output in request["outputs"])


def _result(request: Metadata) -> str:
    result = request["execute_result"]
    return "" if result is None else _key(result["data"])


def _key(data: Mapping[str, Any]) -> str:
    # each engine's widgets have ids of their own
    alike = {k: v for k, v in data.items() if k != WIDGET}
    return json.dumps(alike, sort_keys=True, default=repr)


def _ids(requests: Iterable[Metadata]) -> list[int | None]:
    return [request["engine_id"] for request in requests]


def ranges(ids: Iterable[int | None]) -> str:
    """Engine ids in short: ``0-3,7``."""
    parts: list[list[int]] = []
    known = sorted({i for i in ids if i is not None})
    for i in known:
        if parts and i == parts[-1][-1] + 1:
            parts[-1][1:] = [i]
        else:
            parts.append([i])
    return ",".join("-".join(map(str, part)) for part in parts) or "None"


def _show_hidden(name: str, groups: Sequence[Sequence[Metadata]]) -> None:
    """Show the rest of a stream's texts in a notebook, to be unfolded by a click."""
    from IPython.display import publish_display_data

    parts = [f"[{name}:{ranges(_ids(group))}]\n{group[0][name].rstrip()}" for group in groups]
    text = ANSI.sub("", "\n".join(parts))
    everyone = ranges(i for group in groups for i in _ids(group))
    summary = f"[{name}:{everyone}] {len(groups)} more outputs"
    page = (
        f'<details><summary style="cursor: pointer"><code>{summary}</code></summary>'
        f"<pre>{html.escape(text)}</pre></details>"
    )
    publish_display_data({"text/plain": text, "text/html": page})
