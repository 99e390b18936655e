"""The dashboard of a cluster that pxcompat starts: loaded when somebody looks.

To load it takes a second of a processor, in which the scheduler has the interpreter only half of
the time, and 20 MB.  Most of those who start a cluster begin to compute in that very second, and
never look.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any

from tornado import web

__all__ = ["Dashboard"]

log = logging.getLogger("pxcompat.dask")

#: what Dask answers itself, with nothing as long as there are no pages; JupyterLab's panel asks
LISTED = "/individual-plots.json"
#: seconds for which a thread that loads may keep the scheduler waiting; Python's own limit is ten
#: times as long
SWITCH = 0.0005


class _Asked(web.RequestHandler):
    """Whatever is asked first waits until the dashboard is there, and is asked again."""

    def initialize(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    async def prepare(self) -> None:
        why = await self._dashboard.load()
        if why:
            self.set_status(404)
            self.finish(f"There is no dashboard: {why}\n")
        else:
            # relative: a proxy, such as JupyterHub's, may have the dashboard under another path
            path, *query = self.request.uri.split("?", 1)
            self.redirect("?".join([f"./{path.rpartition('/')[2]}", *query]))


class Dashboard:
    """The pages of a scheduler's dashboard, which are not there before they are asked for.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Its HTTP server answers from now on.
    on_loaded
        Called when the pages are there; on the scheduler's event loop.
    """

    def __init__(self, scheduler: Any, on_loaded: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._on_loaded = on_loaded
        self._loading: asyncio.Task[str] | None = None
        application = scheduler.http_application
        # after all that Dask answers without them ...
        self._pages = web.Application([(r".*", _Asked, {"dashboard": self})])
        application.add_application(self._pages)
        # ... but for the list of them
        application.add_handlers(".*$", [(LISTED, _Asked, {"dashboard": self})])
        self._list = application.default_router.rules[-2]  # before the one of all that Dask has

    async def load(self) -> str:
        """Have the pages; "" or why there are none."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)

    async def _load(self) -> str:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        try:
            # aside, since the scheduler is to go on meanwhile
            pages = await asyncio.to_thread(
                importlib.import_module, "distributed.dashboard.scheduler"
            )
        except ImportError as error:
            log.warning("no dashboard: %s", error)
            return str(error)
        finally:
            sys.setswitchinterval(usual)
        scheduler, application = self._scheduler, self._scheduler.http_application
        application.applications.remove(self._pages)
        application.default_router.rules.remove(self._list)
        pages.connect(application, scheduler.http_server, scheduler, prefix="/")
        self._on_loaded()
        return ""
