"""What clients, views, results and clusters look like in a notebook.

Nothing here asks an engine or a controller anything: to look at a thing never waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .children import reply_error_of
from .display import ranges

if TYPE_CHECKING:
    from .asyncresult import AsyncResult
    from .baseview import View
    from .client import Client
    from .cluster import Cluster
    from .futures import MessageFuture

__all__ = ["client_card", "cluster_card", "result_card", "view_card"]

#: rows of a table; of more engines, there is one row for each host
ROWS = 16

Row = Sequence[str]


def client_card(client: Client) -> str:
    """A Client: its engines, where they are, and how many of its requests each has."""
    facts = [
        ("Backend", escape(client._backend.name)),
        ("Profile", escape(str(client.profile))),
        ("Engines", _engine_count(client.ids)),
        ("Outstanding", f"{len(client.outstanding)} requests"),
    ]
    if client._closed:
        return _card("Client", "closed", facts[:2])
    if link := client.dashboard_link:
        facts.append(("Dashboard", _link(link)))
    state = f"lost: {client._dispatcher.lost}" if client._dispatcher.lost else "connected"
    return _card("Client", state, facts, *_engines(client, client.ids))


def view_card(view: View) -> str:
    """A view: its engines, and its flags."""
    client = view.client
    there = client.ids
    if isinstance(view.targets, int):
        ids = [view.targets]
    else:
        ids = list(view.targets) if isinstance(view.targets, (list, tuple, range)) else there
    flags = [name for name in ("block", "track") if getattr(view, name, False)]
    facts = [("Engines", _engine_count(ids)), ("Flags", ", ".join(flags) or "none set")]
    if missing := [i for i in ids if i not in there]:
        facts.append(("Gone", ranges(missing)))
    state = "client closed" if client._closed else ""
    return _card(type(view).__name__, state, facts, *_engines(client, ids))


def result_card(result: AsyncResult) -> str:
    """An AsyncResult: how far it is, on which engines, and what went wrong."""
    facts = [("Done", f"{result.progress} of {len(result)}")]
    if not result.done():
        facts.append(("Time", f"{result.elapsed:.1f} s"))
    elif result._children and all(metadata["received"] for metadata in result._metadata):
        # a request whose engine died, or that was given up, was never answered
        seconds = f"{result.wall_time:.1f} s, {result.serial_time:.1f} s on engines"
        facts.append(("Time", seconds))
    rows = []
    for child, target in result._targeted():
        engine = child.metadata["engine_id"]
        engine = target if engine is None else engine
        rows.append(("not placed" if engine is None else str(engine), *_outcome(child)))
    if failed := [row for row in rows if row[1] == "failed"]:
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        facts.append(("Failed", escape(failed[0][2] + others)))
    header = ("Engine", "State", "")
    if len(rows) > ROWS:
        counts = Counter(state for _, state, _ in rows)
        rows = [
            (
                ranges(int(e) for e, s, _ in rows if s == state and e.isdigit()),
                state,
                f"{n} of them",
            )
            for state, n in counts.items()
        ]
    return _card(f"{type(result).__name__} {result._fname}", _state(result), facts, header, rows)


def cluster_card(cluster: Cluster) -> str:
    """A Cluster: its state, and its sets of engines."""
    running = cluster.controller is not None and cluster.controller.running
    state = "running" if running else "not running"
    facts = [
        ("Backend", escape(str(cluster.backend))),
        ("Cluster id", escape(repr(cluster.cluster_id))),
        ("Profile", escape(cluster._place.name)),
    ]
    if cluster.controller is not None:
        facts.append(("Host", escape(cluster.controller.connection.host)))
        backend = cluster.controller._backend
        if backend is not None and (link := backend.dashboard_link):
            facts.append(("Dashboard", _link(link)))
    rows = [(name, str(engines.n), engines.state) for name, engines in cluster.engines.items()]
    return _card("Cluster", state, facts, ("Engine set", "Engines", "State"), rows)


# -- parts ---------------------------------------------------------------------------


def _engines(client: Client, ids: Iterable[int]) -> tuple[Row, list[Row]]:
    """A table of engines: header and rows."""
    dispatcher = client._dispatcher
    wanted = set(ids)
    with dispatcher.lock:
        found = sorted(
            (
                (info, len(dispatcher.by_engine.get(key, ())))
                for key, info in dispatcher.engines.items()
                if info.id in wanted
            ),
            key=lambda pair: pair[0].id,
        )
    if len(found) <= ROWS:
        header: Row = ("Engine", "Host", "Process", "Requests")
        return header, [(str(i.id), i.host, str(i.pid), str(n)) for i, n in found]
    hosts: dict[str, list[tuple[int, int]]] = {}
    for info, load in found:
        hosts.setdefault(info.host, []).append((info.id, load))
    rows: list[Row] = [
        (host, ranges(i for i, _ in engines), str(len(engines)), str(sum(n for _, n in engines)))
        for host, engines in hosts.items()
    ]
    return ("Host", "Engines", "Number", "Requests"), rows


def _engine_count(ids: Sequence[int]) -> str:
    return f"{len(ids)} ({ranges(ids)})" if ids else "none"


def _state(result: AsyncResult) -> str:
    # as the text says it: <AsyncResult(name): state>
    return repr(result).rpartition(": ")[2].rstrip(">")


def _outcome(child: MessageFuture) -> tuple[str, str]:
    """A request's state, and what there is to say of it."""
    if not child.done():
        done = f"{child.items_done} items" if child.items_done else ""
        return "pending", done
    error = reply_error_of(child)
    if error is not None:
        what = str(error).splitlines()
        return "failed", what[0][:200] if what else type(error).__name__
    times = child.metadata["started"], child.metadata["completed"]
    took = f"{(times[1] - times[0]).total_seconds():.2f} s" if all(times) else ""
    return "finished", took


def _link(url: str) -> str:
    return f'<a href="{escape(url)}" target="_blank">{escape(url)}</a>'


def _card(
    title: str,
    state: str,
    facts: Iterable[tuple[str, str]],
    header: Row = (),
    rows: Sequence[Row] = (),
) -> str:
    """HTML of title, state, facts (label, and HTML) and a table that can be folded away."""
    left = ' style="text-align: left"'
    shown = f" <small>{escape(state)}</small>" if state else ""
    lines = "".join(
        f"<tr><td{left}><b>{escape(label)}</b></td><td{left}>{value}</td></tr>"
        for label, value in facts
    )
    page = f"<div><b>{escape(title)}</b>{shown}<table>{lines}</table>"
    if rows:
        head = "".join(f"<th{left}>{escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td{left}>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        page += (
            '<details><summary style="cursor: pointer">'
            f"{escape(header[0])}s</summary><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></details>"
        )
    return page + "</div>"
