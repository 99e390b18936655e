"""What of Ray's head node can wait until the engines are there.

``ray.init`` starts the autoscaler's monitor, the dashboard and the log monitor before it starts
the node, and waits for the dashboard.  That is a third of what a start costs, and no engine needs
any of it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil

__all__ = ["Later", "heard", "postponed"]

log = logging.getLogger("pxcompat.ray")

#: methods of Ray's Node that start one process each, and what they take
_STARTS: dict[str, list[str]] = {
    "start_monitor": [],
    "start_log_monitor": [],
    "start_api_server": ["include_dashboard", "raise_on_failure"],
}
#: arguments of ``ray.init`` that want all at once: who insists on a dashboard hears at the start
#: that there is none, and what is isolated is isolated when the node starts
_AT_ONCE = ("include_dashboard", "enable_resource_isolation")
#: how many ports Ray tries for its dashboard
_PORTS = 50
#: seconds for a start under way to end
GRACE = 2


class Later:
    """What a head node was started without.

    Attributes
    ----------
    url
        Of the dashboard, known before it is there; "" where there is none.
    why
        Why there is none that there should be, or "".
    """

    def __init__(self) -> None:
        self.url = ""
        self.why = ""
        self._node: Any = None
        self._starts: list[Callable[[], object]] = []
        self._serve: Callable[[], object] = lambda: None
        #: the port from which on Ray looks for one for its dashboard
        self._port: int | None = None
        #: processes of Ray's that were there before; None until it is started
        self._before: set[int] | None = None
        self._done = threading.Event()

    def note(self, method: Callable[..., object], node: Any, **kwargs: Any) -> None:
        """A process is to be started that can wait."""
        self._node = node
        if not kwargs:
            self._starts.append(functools.partial(method, node))
            return
        params = node._ray_params
        if not _is_free("127.0.0.1", params.dashboard_agent_listen_port):
            # another Ray has it: the agent would try again for seconds, and then do without
            params.dashboard_agent_listen_port = 0
        port = params.dashboard_port
        if port is None:
            # known now, for connection files; when it comes, it may have to take another one
            port = self._port = _free_port(params.dashboard_host)
        if port is not None:
            local = params.dashboard_host in ("127.0.0.1", "localhost")
            host = "127.0.0.1" if local else node.node_ip_address
            node._webui_url = f"{host}:{port}"
            self.url = f"http://{node._webui_url}"
        serve = functools.partial(method, node, **{**kwargs, "raise_on_failure": True})
        self._serve = functools.partial(self._start_dashboard, serve)

    def start(self, done: Callable[[], None]) -> None:
        """Start it, and call ``done()`` when the dashboard answers, or when there will be none."""

        def run() -> None:
            try:
                for start in (*self._starts, self._serve):
                    start()
            except Exception as error:
                self.url, self.why = "", f"{type(error).__name__}: {error}"
            self._done.set()
            done()
            # processes of Ray's end with the thread that started them
            threading.Event().wait()

        self._before = {child.pid for child in psutil.Process().children()}
        threading.Thread(target=run, name="pxcompat-later", daemon=True).start()

    def _start_dashboard(self, serve: Callable[[], object]) -> None:
        from ray._private import ray_constants

        if self._port is not None:
            ray_constants.DEFAULT_DASHBOARD_PORT = self._port
        serve()
        self.url = f"http://{self._node.webui_url}"

    def end(self) -> None:
        """Before Ray ends: end what was started here, and what is being started, at once.

        Of a start under way Ray does not know yet; the others take a second or two to end when
        they are asked to, and have nothing to save.
        """
        if self._before is None:
            return
        for child in psutil.Process().children():
            if child.pid not in self._before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for process in (child, *child.children(recursive=True)):
                        process.kill()
        self._done.wait(GRACE)


def heard(url: str, why: str) -> str:
    """What a client hears of the dashboard that was to come; its URL."""
    if why:
        log.warning("the Ray cluster has no dashboard: %s", why)
    return url


def _free_port(host: str) -> int | None:
    """The port that Ray would take for its dashboard; None when it is to look itself."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT

    ports = range(DEFAULT_DASHBOARD_PORT, DEFAULT_DASHBOARD_PORT + _PORTS)
    return next((port for port in ports if _is_free(host, port)), None)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def postponed(init: Mapping[str, Any]) -> Iterator[Later]:
    """Have ``ray.init``, with these arguments, leave for later what can wait.

    By methods of Ray's that are not public: where they are not as expected, everything is started
    as Ray does.
    """
    from ray._private.node import Node

    later = Later()
    methods = {name: getattr(Node, name, None) for name in _STARTS}
    known = all(
        method is not None and list(inspect.signature(method).parameters)[1:] == _STARTS[name]
        for name, method in methods.items()
    )
    if not known or any(name in init for name in _AT_ONCE):
        yield later
        return

    def noting(method: Any) -> Any:
        @functools.wraps(method)
        def note(node: Any, **kwargs: Any) -> None:
            later.note(method, node, **kwargs)

        return note

    for name, method in methods.items():
        setattr(Node, name, noting(method))
    try:
        yield later
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)
