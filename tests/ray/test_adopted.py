"""Engines on a Ray that somebody else runs, and what Ray itself shows of them."""

from __future__ import annotations

import functools
import os
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pxcompat as ipp
from pxcompat.backends.ray import session

from .conftest import python

ADOPT = """if True:
    import os, time
    import ray
    ray.init("local", num_cpus=3, include_dashboard=True, logging_level="ERROR", namespace="mine")
    import pxcompat as ipp

    # the Ray that this process is connected to
    rc = ipp.Client(backend="ray", n=2)
    pids = rc[:].apply_sync(os.getpid)
    def get_norms(x):
        print("printed once")
        return x
    result = rc[:].apply_async(get_norms, 1)
    result.wait_for_output(90)
    print("output", result.stdout)

    # the same engines for further clients, however they say it
    for target in (ray, "auto"):
        with ipp.Client(target) as other:
            print("same", other[:].apply_sync(os.getpid) == pids)
    with ipp.Client(backend="ray") as other:
        rc.close()
        print("same", other[:].apply_sync(os.getpid) == pids, ray.is_initialized())
        more = ipp.Client(ray, n=3, num_cpus=0.5)
        print("more", more.ids)
        version, ipp.__version__ = ipp.__version__, "9.9"
        try:
            ipp.Client(ray)
        except ipp.error.BackendError as error:
            print("version", error)
        finally:
            ipp.__version__ = version

    # what Ray shows
    from ray.util.state import list_actors, list_tasks
    address = ray.get_runtime_context().gcs_address
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        calls = {task.name for task in list_tasks(address=address)}
        if "px:apply:get_norms" in calls:
            break
    print("calls", sorted(name for name in calls if name.startswith("px:")))
    actors = [a for a in list_actors(address=address, detail=True) if a.state == "ALIVE"]
    print("actors", sorted(a.name for a in actors))
    print("ask", *(a.required_resources for a in sorted(actors, key=lambda a: a.name)[:3]))

    # what there is no place for
    try:
        ipp.Client(ray, n=5, patience=3)
    except ipp.error.BackendError as error:
        print("refused", error)
    print("left", more.ids)
    # the last one takes all along
    more.close()
    from ray.util.placement_group import placement_group_table
    from ray.util import list_named_actors
    def there():
        alive = list_actors(address=address, filters=[("state", "!=", "DEAD")])
        return [a.class_name for a in alive], list_named_actors(all_namespaces=True)
    deadline = time.monotonic() + 90
    while any(there()) and time.monotonic() < deadline:
        time.sleep(0.1)
    print("after", there(), placement_group_table())
    for _ in range(3):
        with ipp.Client(ray, n=1) as again:
            print("after", again[0].apply_sync(os.getpid) not in pids, again.ids)
    try:
        ipp.Client(ray, n=1, patience=3, resources={"special": 2})
    except ipp.error.BackendError as error:
        print("refused", error)
    try:
        ipp.Client(ray, n=1, num_cpu=2)
    except TypeError as error:
        print("unknown", error)

    with ipp.Client(ray, num_cpus=5) as nobody:
        print("nobody", nobody.ids)

    # a last client that is killed
    import subprocess, sys
    code = "import pxcompat, time; rc = pxcompat.Client('auto', n=1); print(rc.ids, flush=True); "
    killed = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(600)"],
        env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE, text=True,
    )
    print("killed", killed.stdout.readline().strip())
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 90
    while any(there()) and time.monotonic() < deadline:
        time.sleep(0.1)
    print("killed", there())

    # a cluster whose controller has asked for its end, and never asks again
    from pxcompat.backends.ray import order as orders, registry
    setup = {"cwd": None, "path": [], "env": {}}
    order = orders.registry_order({}, setup, "orphan", logs="", own=True)
    orphan = registry.create(order | {"silence": 5}, detached=True)
    keys = ray.get(orphan.start_engines.remote(1))
    started = ray.get(orphan.await_engines.remote(keys))
    print("orphan", started, ray.get(orphan.ended.remote()))
    def orphans():
        return [a.name for a in list_actors(address=address, filters=[("state", "=", "ALIVE")])]
    deadline = time.monotonic() + 90
    while orphans() and time.monotonic() < deadline:
        time.sleep(0.1)
    print("orphan", orphans())
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """What the program above says, by its lines' first words."""
    done = python(ADOPT)
    assert done.returncode == 0, done.stderr[-3000:]
    lines: dict[str, list[str]] = {"": [done.stdout + done.stderr]}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        lines.setdefault(word, []).append(rest)
    return lines


def test_every_client_finds_the_engines(said: dict[str, list[str]]) -> None:
    assert said["same"] == ["True", "True", "True True"]
    assert said["more"] == ["[0, 1, 2]"]


def test_the_last_client_leaves_the_cluster_as_it_was(said: dict[str, list[str]]) -> None:
    assert said["after"] == ["([], []) {}", *["True [0]"] * 3]


def test_a_last_client_that_is_killed_takes_all_along(said: dict[str, list[str]]) -> None:
    assert said["killed"] == ["[0]", "([], [])"]


def test_another_version_is_an_error(said: dict[str, list[str]]) -> None:
    assert f"{ipp.__version__} there, 9.9 here" in said["version"][0]


def test_output_shows_up_once(said: dict[str, list[str]]) -> None:
    assert said["output"] == ["['printed once\\n', 'printed once\\n']"]
    assert said[""][0].count("printed once") == 2


def test_ray_shows_engines_and_calls_by_name(said: dict[str, list[str]]) -> None:
    assert said["actors"] == ["['engine-0', 'engine-1', 'engine-2', 'registry']"]
    assert "px:apply:get_norms" in said["calls"][0] and "px:apply:getpid" in said["calls"][0]


def test_engines_without_a_place_are_an_error(said: dict[str, list[str]]) -> None:
    cpus, special = said["refused"]
    assert "2 of 2 engines did not start" in cpus
    assert "It asks for 1 CPU" in cpus and "CPU (0.5 free of 3 in the cluster)" in cpus
    assert "special (0 free of 0 in the cluster)" in special
    assert said["left"] == ["[0, 1, 2]"]


def test_a_cluster_without_room_for_any_engine_is_said_to_have_none(
    said: dict[str, list[str]],
) -> None:
    assert said["nobody"] == ["[]"]
    assert "has what an engine asks for (5 CPU): there are no engines until" in said[""][0]


def test_a_lasting_cluster_ends_when_its_controller_is_gone(said: dict[str, list[str]]) -> None:
    assert said["orphan"] == ["[] False", "[]"]


def test_a_client_says_what_the_engines_ask_for_that_it_starts(said: dict[str, list[str]]) -> None:
    assert said["ask"] == ["{'CPU': 1.0} {'CPU': 1.0} {'CPU': 0.5}"]
    assert "did not start it within 3 s" in said["refused"][0]


def test_an_unknown_option_is_an_error(said: dict[str, list[str]]) -> None:
    assert "argument 'num_cpu'. Did you mean 'num_cpus'?" in said["unknown"][0]


def test_starting_is_quiet_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    done = python(
        "import os, signal, threading\n"
        "import pxcompat as ipp\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGTERM)\n"
        "rc = ipp.Client(backend='ray', n=1)\n"
        "print(rc[0].apply_sync(abs, -1), rc.dashboard_link.startswith('http://127.0.0.1:'))\n"
        "now = dict(os.environ)\n"
        "changed = {k for k in {**now, **before[0]} if now.get(k) != before[0].get(k)}\n"
        "print(changed - {'RAY_CLIENT_MODE'}, signal.getsignal(signal.SIGTERM) == before[1])\n",
        HOME=str(tmp_path),
    )
    assert done.stdout == "1 True\nset() True\n", done.stdout + done.stderr
    assert done.stderr == ""
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(os.stat(token).st_mode) == 0o600


def test_starting_is_quiet_in_other_threads_too() -> None:
    done = python(
        "import asyncio\n"
        "import pxcompat as ipp\n"
        "async def main():\n"
        "    async with ipp.Cluster(backend='ray', n=1, log_level=40) as rc:\n"
        "        print(rc[0].apply_sync(abs, -1))\n"
        "asyncio.run(main())\n"
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_nobody_without_the_token_gets_in(cluster: object, tmp_path: Path) -> None:
    address = cluster.connection.address  # type: ignore[attr-defined]
    assert address.startswith("127.0.0.1:")
    code = f"import pxcompat as ipp; ipp.Client({address!r}, n=1)"
    done = python(code, HOME=str(tmp_path), RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0
    assert "ConnectError" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr


def test_a_ray_that_is_coming_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers before it knows its own node."""
    errors = [ConnectionError("no"), ConnectionError("no"), PermissionError("refused")]
    for error in errors[:2]:
        error.__cause__ = RuntimeError("No node info found matching attributes")

    def init(*_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(session, "_init", init)
    monkeypatch.setattr(session, "_reachable", lambda address, _: address)
    with pytest.raises(ipp.error.ConnectError, match="PermissionError: refused"):
        session._connect(None, "127.0.0.1:1", {"token": "t"}, timeout=60)
    assert not errors


def test_a_ray_that_is_gone_is_found_out_in_time() -> None:
    code = "import pxcompat; pxcompat.Client('auto', timeout=1)"
    done = python(code, RAY_ADDRESS="127.0.0.1:1")
    assert "ConnectError" in done.stderr
    assert "127.0.0.1:1 (stage: connecting; waited 1 s" in done.stderr


def test_no_ray_is_started_while_a_client_disconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = [True]

    class Lock:
        """Another thread has it, and disconnects meanwhile."""

        def __enter__(self) -> None:
            connected.clear()

        def __exit__(self, *_: object) -> None: ...

    def connected_to(_: object) -> str:
        assert connected, "asked now, Ray would start a cluster"
        return "h:2"

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: bool(connected)))
    monkeypatch.setattr(session, "_connected_to", connected_to)
    assert session.taken("h:1")
    monkeypatch.setattr(session, "_lock", Lock())
    assert not session.taken("h:1")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Addresses of the Rays whose processes run on this machine."""
    services = pytest.importorskip("ray._private.services")

    addresses: set[str] = set()
    monkeypatch.setenv("RAY_ADDRESS", "")  # Ray takes an empty one for none
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "find_gcs_addresses", functools.cache(lambda: set(addresses)))
    return addresses


def test_auto_where_no_ray_runs_is_said_to_be_that(machine: set[str]) -> None:
    ray = pytest.importorskip("ray")
    with pytest.raises(ipp.error.ConnectError, match="`ray start --head` starts one"):
        session._connect(ray, "auto", {}, timeout=3)


def test_auto_finds_out_in_time_that_a_ray_is_ending(machine: set[str]) -> None:
    ray = pytest.importorskip("ray")
    machine.add("127.0.0.1:1")  # where nobody listens
    begun = time.monotonic()
    with pytest.raises(ipp.error.ConnectError, match=r"127.0.0.1:1 .*it may just be ending"):
        session._connect(ray, "auto", {}, timeout=1)
    assert time.monotonic() - begun < 20  # Ray itself takes 82 s


def test_auto_goes_by_a_ray_that_is_ending(
    machine: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add("h:1")
    assert session._running() == ["h:1"]
    machine.add("h:2")  # since then
    asked = []

    def answers(address: str, timeout: float) -> bool:
        asked.append((address, timeout))
        return address == "h:2"

    monkeypatch.setattr(session, "_answers", answers)
    assert session._reachable("auto", 3) == "h:2"
    assert ("h:2", 1.5) in asked
