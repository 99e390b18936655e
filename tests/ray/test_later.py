"""The dashboard comes when the engines are there: at the URL that was said, or with a word."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import node, ray_constants

import pxcompat as ipp
from pxcompat.backends.ray.later import Later, postponed

from ..common import PATIENCE, wait_until
from .conftest import answers, shown


def test_it_comes(rc: ipp.Client) -> None:
    assert rc.dashboard_link.startswith("http://127.0.0.1:")
    url = wait_until(shown)
    # usually what it was before
    wait_until(lambda: rc.dashboard_link == url)
    assert answers(url)


def test_a_port_that_the_user_chose_and_that_is_taken(
    rc: ipp.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # through a process of its own: this one is connected to another Ray
        with ipp.Client(backend="ray", n=1, init={"dashboard_port": port}, timeout=PATIENCE) as own:
            assert own[0].apply_sync(abs, -1) == 1
            wait_until(lambda: own.dashboard_link == "")
            assert f"Failed to bind to 127.0.0.1:{port}" in caplog.text


class _Node:
    """Of Ray, whose dashboard has another port than the one that it was to have, or none."""

    node_ip_address = "10.0.0.1"

    def __init__(self, host: str, port: int | None) -> None:
        self._ray_params = SimpleNamespace(
            dashboard_host=host, dashboard_port=port, dashboard_agent_listen_port=0
        )
        self.all_processes: dict[str, list[Any]] = {}
        self.webui_url: str | None = None
        self.started: list[str] = []

    def start_log_monitor(self) -> None:
        self.started.append("log monitor")

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        assert raise_on_failure
        if self._ray_params.dashboard_port is not None:
            raise ValueError("the port is taken")
        self.webui_url = f"10.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT + 1}"
        self.started.append("dashboard")


def started(later: Later) -> None:
    done = threading.Event()
    later.start(done.set)
    assert done.wait(PATIENCE)


def noted(head: Any) -> Later:
    later = Later()
    later.note(_Node.start_log_monitor, head)
    later.note(_Node.start_api_server, head, include_dashboard=None, raise_on_failure=False)
    return later


def test_a_port_that_is_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "DEFAULT_DASHBOARD_PORT", 8265)
    monkeypatch.setattr("pxcompat.backends.ray.later._is_free", lambda host, port: port > 8266)
    head = _Node("0.0.0.0", None)
    later = noted(head)
    assert (later.url, head.started) == ("http://10.0.0.1:8267", [])
    started(later)
    assert (later.url, later.why) == ("http://10.0.0.1:8268", "")
    assert head.started == ["log monitor", "dashboard"]


def test_no_dashboard() -> None:
    later = noted(_Node("localhost", 1))
    assert later.url == "http://127.0.0.1:1"
    started(later)
    assert (later.url, later.why) == ("", "ValueError: the port is taken")


@pytest.mark.parametrize("init", [{}, {"include_dashboard": True}])
def test_a_ray_that_is_not_as_expected_or_a_user_who_insists(
    monkeypatch: pytest.MonkeyPatch, init: dict[str, Any]
) -> None:
    """Ray starts everything itself."""
    if not init:
        monkeypatch.setattr(node.Node, "start_api_server", lambda self, how: None)
    before = node.Node.start_api_server, node.Node.start_monitor
    with postponed(init):
        assert (node.Node.start_api_server, node.Node.start_monitor) == before
    with postponed({"num_cpus": 1}):
        assert (node.Node.start_monitor is before[1]) == (not init)
    assert (node.Node.start_api_server, node.Node.start_monitor) == before
