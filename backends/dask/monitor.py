"""What engines do, in Dask's own diagnostics: Task Stream, Progress, reports, metrics.

Requests go past the scheduler, so it has to ask.  It asks while a page of the dashboard is
open, and when somebody wants a task stream or a report; else nothing travels.  Engines keep
their latest calls (``pxcompat.engine.journal``), so a page that is opened shows what was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.task_stream import TaskStreamPlugin
from distributed.scheduler import TaskGroup, TaskPrefix

from pxcompat.protocol import EngineInfo

from . import metrics

__all__ = ["Monitor"]

log = logging.getLogger("pxcompat.dask")

#: seconds between two looks at the engines while somebody looks at the dashboard
INTERVAL = 0.25
#: seconds between two looks at whether somebody does
IDLE = 1.0
#: seconds that an engine may take to answer
PATIENCE = 3
#: seconds for which to go on after a task stream was begun
RECORDING = 600
#: seconds that what is done stays on the Progress page, as Dask's own goes when it is released
LINGER = 10
#: what a person can tell apart in a list of names
NAME_LIMIT = 80

#: what asks the scheduler for the past: the engines are asked first
QUESTIONS = ("get_task_stream", "get_task_stream_index", "performance_report")


class _Progress:
    """Calls that went past the scheduler, as a group of tasks of the Progress page.

    Their numbers are added to those of the tasks with the same prefix, as Dask would count a
    group: what runs is ``processing``, what waits on an engine ``queued``, what is done
    ``released``, since the scheduler holds no result.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._groups: dict[str, tuple[TaskGroup, float]] = {}
        self._own: set[str] = set()

    def update(self, ended: dict[str, Counter[str]], here: dict[str, Counter[str]]) -> None:
        """Add calls that ended since the last time, and say how many run and wait now."""
        now = time.monotonic()
        for name in {*ended, *here, *self._groups}:
            group, changed = self._groups.get(name, (None, now))
            if group is None:
                group = self._add(name)
            done, present = ended.get(name), here.get(name)
            if done or present:
                changed = now
            elif now - changed > LINGER:
                self._drop(name)
                continue
            self._groups[name] = (group, changed)
            for state, n in (done or {}).items():
                self._count(group, state, n)
            states: Any = group.states
            for state in ("processing", "queued"):
                count = present[state] if present else 0
                self._count(group, state, count - states[state])

    def _add(self, name: str) -> TaskGroup:
        prefixes = self._scheduler.task_prefixes
        if name not in prefixes:
            prefixes[name] = TaskPrefix(name)
            self._own.add(name)
        group = TaskGroup(f"{name} (direct)", prefixes[name])
        self._scheduler.task_groups[group.name] = group
        return group

    @staticmethod
    def _count(group: TaskGroup, state: Any, n: int) -> None:
        for collection in (group, group.prefix):
            collection.states[state] += n
            collection._size += n

    def _drop(self, name: str) -> None:
        group, _ = self._groups.pop(name)
        group.prefix.remove_group(group)
        self._scheduler.task_groups.pop(group.name, None)
        if name in self._own and not group.prefix.groups:
            self._own.discard(name)
            self._scheduler.task_prefixes.pop(name, None)

    def clear(self) -> None:
        for name in list(self._groups):
            self._drop(name)


class Monitor:
    """Asks the engines while somebody looks, and tells Dask's diagnostics.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    engines : callable
        The engines there are.
    """

    def __init__(self, scheduler: Scheduler, engines: Callable[[], Iterable[EngineInfo]]) -> None:
        self._scheduler = scheduler
        self._engines = engines
        #: by engine: what it said at the last look
        self.seen: dict[str, dict[str, Any]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._index: dict[str, int] = {}
        self._calls: list[dict[str, Any]] = []
        self._ended: dict[str, Counter[str]] = {}
        self._recording = 0.0
        self._handlers: dict[str, Any] = {}
        self._stream: Any = None
        self._progress = _Progress(scheduler)
        self._pages: Any = None

    # -- coming and going ----------------------------------------------------------

    def start(self) -> None:
        scheduler = self._scheduler
        for question in QUESTIONS:
            if question in scheduler.handlers:
                self._handlers[question] = scheduler.handlers[question]
                scheduler.handlers[question] = self._after_a_look(self._handlers[question])
        self._added_stream = TaskStreamPlugin.name not in scheduler.plugins
        if self._added_stream:
            scheduler.add_plugin(TaskStreamPlugin(scheduler), name=TaskStreamPlugin.name)
        stream: Any = scheduler.plugins[TaskStreamPlugin.name]
        self._stream = stream
        original = stream.transition

        def transition(key: Any, *args: Any, **kwargs: Any) -> None:
            # the engines tell of calls one by one, and of failures; a task that carries them
            # would be drawn over them
            if not (isinstance(key, str) and key.startswith("px:")):
                original(key, *args, **kwargs)

        stream.transition = transition
        metrics.add(self._measured)
        self.add_pages()
        self._task = asyncio.create_task(self._watch())

    def add_pages(self) -> None:
        """Serve our page, where Dask's are served by now."""
        if self._pages is None and any(_page_servers(self._scheduler)):
            from . import dashboard

            self._pages = dashboard.install(self._scheduler)

    async def stop(self) -> None:
        """Leave the scheduler as it was."""
        self._task.cancel()
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(self._task, *self._asking.values(), return_exceptions=True)
        self._scheduler.handlers.update(self._handlers)
        self._stream.__dict__.pop("transition", None)
        if self._added_stream:
            self._scheduler.plugins.pop(TaskStreamPlugin.name, None)
        metrics.remove(self._measured)
        self._progress.clear()
        if self._pages is not None:
            from . import dashboard

            dashboard.uninstall(self._scheduler, self._pages)

    # -- looking -------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            pages = _open_pages(self._scheduler)
            watched = bool(pages) or time.monotonic() < self._recording
            try:
                if watched:
                    await self.look(names=any("engines" in page for page in pages))
                else:
                    self.seen.clear()
                    self._progress.clear()
            except Exception:
                log.exception("could not look at what the engines do")
            await asyncio.sleep(INTERVAL if watched else IDLE)

    async def look(self, *, names: bool = False) -> None:
        """Ask every engine, and tell Dask's diagnostics what they say."""
        infos = {info.key: info for info in self._engines()}
        for key in set(self.seen) - set(infos):
            del self.seen[key]
        for key in set(self._index) - set(infos):
            del self._index[key]
        for key, info in infos.items():
            # one that did not answer the last time is not asked twice
            if key not in self._asking:
                task = self._asking[key] = asyncio.create_task(self._ask(info, names))
                task.add_done_callback(functools.partial(self._answered, key))
        if self._asking:
            await asyncio.wait(list(self._asking.values()), timeout=PATIENCE)
        self._tell()

    def _answered(self, key: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(key, None)

    async def _ask(self, info: EngineInfo, names: bool) -> None:
        since = self._index.get(info.key, 0)
        worker = self._scheduler.rpc(info.address)
        try:
            answer = await worker.pxcompat_observe(since=since, with_names=names)
        except Exception as error:
            # it ends, or its names do not say how large they are; the page says so
            self.seen[info.key] = {**self.seen.get(info.key, {}), "trouble": str(error)}
            return
        self.seen[info.key] = answer
        self._index[info.key] = answer["index"]
        ws = self._scheduler.workers.get(info.address)
        for call in answer["calls"]:
            msg_id, name, status, started, completed, nbytes, balanced = call
            name = _clean(name)
            self._calls.append(
                {
                    "key": f"{name}-0-{msg_id}",
                    "startstops": [{"action": "compute", "start": started, "stop": completed}],
                    "worker": info.address,
                    "name": ws.name if ws is not None else info.address,
                    "thread": answer["thread"],
                    "status": "OK" if status == "ok" else "error",
                    "nbytes": nbytes,
                    "type": b"",
                    "typename": "",
                    "metadata": {"engine": info.id, "msg_id": msg_id},
                }
            )
            if not balanced:  # those are tasks, which the scheduler counts
                state = "released" if status == "ok" else "erred"
                self._ended.setdefault(name, Counter())[state] += 1

    def _tell(self) -> None:
        # the stream is searched by time
        self._calls.sort(key=lambda call: call["startstops"][0]["stop"])
        self._stream.buffer.extend(self._calls)
        self._stream.index += len(self._calls)
        self._calls = []
        states: dict[str, Counter[str]] = {}
        for seen in self.seen.values():
            for state, found in zip(("queued", "processing"), seen.get("direct", ()), strict=False):
                for name in found:
                    states.setdefault(_clean(name), Counter())[state] += 1
        ended, self._ended = self._ended, {}
        self._progress.update(ended, states)

    def _after_a_look(self, handler: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def answer(**kwargs: Any) -> Any:
            self._recording = time.monotonic() + RECORDING
            # what is being asked now may have left before the last calls ended
            for task in list(self._asking.values()):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(task), PATIENCE)
            await self.look()
            result = handler(**kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return answer

    def _measured(self) -> list[metrics.Measured]:
        """What the workers' heartbeats say of their engines."""
        rows = []
        for info in self._engines():
            ws = self._scheduler.workers.get(info.address)
            if ws is None or "px engine" not in ws.metrics:
                continue
            told = ws.metrics
            totals = {
                "ok": told["px ok"],
                "error": told["px failed"],
                "aborted": told["px aborted"],
                "seconds": told["px seconds"],
            }
            rows.append(
                metrics.Measured(
                    str(info.id),
                    info.address,
                    totals,
                    told["px waiting"],
                    told.get("px names", 0),
                    told.get("px names bytes", 0),
                )
            )
        return rows


def _clean(name: str) -> str:
    """A request's name as a prefix of a Dask key, where ``-`` ends the name."""
    return name.replace("-", "_")[:NAME_LIMIT]


def _page_servers(scheduler: Any) -> list[Any]:
    """What serves the dashboard's pages: none where Bokeh is missing, or nobody wants one."""
    applications = getattr(getattr(scheduler, "http_application", None), "applications", ())
    return [app for app in applications if hasattr(app, "get_sessions")]


def _open_pages(scheduler: Any) -> set[str]:
    """Paths of the dashboard's pages that somebody has open."""
    return {
        path for app in _page_servers(scheduler) for path in app.app_paths if app.get_sessions(path)
    }
