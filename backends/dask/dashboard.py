"""The dashboard's page "Engines", and a plot of that name for JupyterLab's Dask panel."""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Sequence
from typing import Any

from bokeh.core.properties import without_property_validation
from bokeh.layouts import column
from bokeh.models.widgets import Div
from bokeh.server.tornado import BokehTornado
from dask.utils import format_bytes
from distributed import Scheduler
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from distributed.utils import log_errors
from tornado.ioloop import IOLoop

__all__ = ["install", "uninstall"]

PAGE = "/engines"
#: what JupyterLab's panel lists: it reads individual-plots.json
PLOT = "/individual-engines"
#: milliseconds between two updates of an open page
INTERVAL = 500

ENGINES = (
    "id",
    "host",
    "pid",
    "state",
    "current call",
    "for",
    "waiting",
    "next calls",
    "done",
    "failed",
    "names",
    "bytes",
)
NAMES = ("engine", "name", "type", "shape", "bytes")


class EnginesTable(DashboardComponent):
    """What each engine does, and what its namespace holds."""

    def __init__(self, scheduler: Scheduler, **kwargs: Any) -> None:
        self.scheduler = scheduler
        # plain tables: Bokeh's own shows new rows, but not what changes in those that are there
        self.engines = Div(sizing_mode="stretch_width")
        self.names = Div(sizing_mode="stretch_width")
        self.root = column(self.engines, self.names, **kwargs)

    @without_property_validation  # type: ignore[untyped-decorator]
    @log_errors
    def update(self) -> None:
        registry: Any = self.scheduler.plugins.get("pxcompat")
        infos = sorted(registry.engines.values(), key=lambda info: info.id) if registry else []
        seen = registry.monitor.seen if registry else {}
        engines, names = [], []
        for info in infos:
            told = seen.get(info.key, {})
            engines.append(_row(info, told))
            names += [
                (info.id, name, kind, shape, format_bytes(nbytes))
                for name, (kind, shape, nbytes) in told.get("names", {}).items()
            ]
        for div, title, titles, rows in (
            (self.engines, "Engines", ENGINES, engines),
            (self.names, "Names", NAMES, names),
        ):
            text = _table(title, titles, rows)
            if div.text != text:
                div.text = text


def _row(info: Any, told: dict[str, Any]) -> tuple[Any, ...]:
    running = told.get("running")
    state = "busy" if running else "idle"
    if "trouble" in told:
        state = f"does not answer: {told['trouble']}"
    elif "totals" not in told:
        state = "asked"
    totals = told.get("totals", {})
    count, nbytes = told.get("size", (0, 0))
    return (
        info.id,
        info.host,
        info.pid,
        state,
        running[0] if running else "",
        f"{max(0.0, time.time() - running[1]):.1f} s" if running else "",
        told.get("waiting", 0),
        ", ".join(told.get("queue", ())),
        totals.get("ok", 0),
        totals.get("error", 0),
        count,
        format_bytes(nbytes),
    )


def _table(title: str, titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in HTML; names and calls are users' text."""
    cell = '<{0} style="text-align: left; padding: 3px 14px 3px 0; {1}">{2}</{0}>'
    head = "".join(cell.format("th", "border-bottom: 1px solid #888", t) for t in titles)
    body = "".join(
        "<tr>" + "".join(cell.format("td", "", html.escape(str(v))) for v in row) + "</tr>"
        for row in rows
    )
    return (
        f"<h3>{title}</h3><table style='border-collapse: collapse; width: 100%'>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _page(scheduler: Any, extra: dict[str, Any], doc: Any, *, alone: bool) -> None:
    table = EnginesTable(scheduler, sizing_mode="stretch_both" if alone else "stretch_width")
    table.update()
    add_periodic_callback(doc, table, INTERVAL)
    doc.add_root(table.root)
    doc.title = "Dask: Engines"
    doc.theme = BOKEH_THEME
    if not alone:
        doc.template = env.get_template("simple.html")
        doc.template_variables.update(extra)


def _stock(scheduler: Any) -> Any:
    """Dask's own pages, where they are served."""
    applications = getattr(getattr(scheduler, "http_application", None), "applications", ())
    return next((app for app in applications if isinstance(app, BokehTornado)), None)


def install(scheduler: Any) -> Any:
    """Serve the page beside those of a scheduler's dashboard; None where there is none."""
    stock = _stock(scheduler)
    if stock is None or PAGE in stock.app_paths:
        return None
    variables = template_variables(scheduler)
    pages = {
        PAGE: functools.partial(_page, alone=False),
        PLOT: functools.partial(_page, alone=True),
    }
    ours = BokehApplication(pages, scheduler, prefix=stock.prefix, template_variables=variables)
    scheduler.http_application.add_application(ours)
    ours.initialize(IOLoop.current())
    ours.start()
    # so that the stock pages link to it, and individual-plots.json lists it
    stock._applications.update(ours._applications)
    variables["pages"].insert(1, PAGE.strip("/"))
    variables["plots"].append({"url": PLOT.strip("/"), "name": "Engines"})
    return ours


def uninstall(scheduler: Any, ours: Any) -> None:
    """Serve it no more."""
    stock = _stock(scheduler)
    if stock is not None:
        for path in (PAGE, PLOT):
            stock._applications.pop(path, None)
    variables = template_variables(scheduler)
    variables["pages"].remove(PAGE.strip("/"))
    variables["plots"][:] = [p for p in variables["plots"] if p["url"] != PLOT.strip("/")]
    scheduler.http_application.applications.remove(ours)
    ours.stop(wait=False)
