"""Bad input and bad luck: each a clear error of the right class, no hang, nothing left behind."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until

#: seconds within which a connection is made or refused on the slowest machine: sooner than
#: anything here would end by itself
PROMPT = 30


@pytest.fixture
def described(cluster: Any) -> dict[str, Any]:
    """The running cluster's connection file, to be spoilt."""
    return copy.deepcopy(cluster.connection.to_dict())


@pytest.fixture
def own_credentials(rc: ipp.Client) -> None:
    """The test is about credentials that a cluster does not share with the user's others."""
    if not rc._backend.capabilities.credentials:
        pytest.skip("clusters of this backend have no credentials of their own")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], str]:
    """Writes a connection file."""

    def write(content: Any) -> str:
        path = tmp_path / "pxcompat-client.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(0o600)
        return str(path)

    return write


@pytest.fixture
def prompt() -> Iterator[None]:
    """The test takes no longer than a connection may."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMPT


@pytest.fixture
def short_lived(backend: str) -> Iterator[Any]:
    """A cluster of two engines that the test may destroy, and a check that nothing is left."""
    cluster = ipp.Cluster(cluster_id=f"short-{os.getpid()}", n=2, backend=backend)
    before = set(psutil.Process().children(recursive=True))
    cluster.start_cluster_sync()
    cluster.processes = set(psutil.Process().children(recursive=True)) - before
    yield cluster
    cluster.stop_cluster_sync()
    wait_until(lambda: not any(is_alive(process) for process in cluster.processes))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- finding a cluster ------------------------------------------------------------------


def test_no_such_profile() -> None:
    with pytest.raises(error.ConnectionFileError, match="no IPython profile 'nonesuch'"):
        ipp.Client(profile="nonesuch")


def test_no_such_cluster() -> None:
    with pytest.raises(FileNotFoundError, match=r"No cluster 'nonesuch'.*pxcluster start"):
        ipp.Client(cluster_id="nonesuch")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no connection file") as caught:
        ipp.Client(str(tmp_path / "nonesuch.json"))
    assert isinstance(caught.value, error.ConnectionFileError)


def test_a_stale_file(described: dict[str, Any], written: Callable[[Any], str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    described["pid"] = process.pid
    with pytest.raises(error.ConnectionFileError, match=f"stale: process {process.pid}"):
        ipp.Client(written(described))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{no", "not JSON"),
        ("[]", "no JSON object"),
        ({"registration": 1, "task_scheduler": "lru"}, "ipyparallel's own controller"),
        ({"some": "thing"}, "not a connection file of pxcompat"),
    ],
    ids=["no json", "no object", "ipyparallel", "something else"],
)
def test_a_file_that_is_not_ours(written: Callable[[Any], str], content: Any, said: str) -> None:
    with pytest.raises(error.ConnectionFileError, match=said):
        ipp.Client(written(content))


def test_a_file_of_another_version(
    described: dict[str, Any], written: Callable[[Any], str]
) -> None:
    described["version"] += 1
    with pytest.raises(error.ConnectionFileError, match=r"version 2.*reads version 1"):
        ipp.Client(written(described))


def test_a_file_without_an_address(described: dict[str, Any]) -> None:
    described["info"] = {}
    with pytest.raises(error.ConnectionFileError, match="address"):
        ipp.Client(described)


def test_an_object_that_is_no_cluster() -> None:
    with pytest.raises(error.BackendError, match="No backend can connect to"):
        ipp.Client(object())


# -- connecting -------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["cut", "text", "missing", "none"])
def test_wrong_credentials(
    described: dict[str, Any], own_credentials: None, prompt: None, spoil: str, rc: ipp.Client
) -> None:
    """Whatever part of a credential is damaged, and however."""
    secrets = described["info"]["security"]
    for name in secrets if spoil != "none" else ["all"]:
        damaged = dict(secrets)
        if spoil == "cut":
            damaged[name] = damaged[name][: len(damaged[name]) // 2]
        elif spoil == "text":
            damaged[name] = "not a credential"
        elif spoil == "missing":
            del damaged[name]
        else:
            damaged = {}
        described["info"]["security"] = damaged
        with pytest.raises(error.ConnectError, match=r"\(stage: .*credentials"):
            ipp.Client(described)
    assert rc[:].apply_sync(lambda: 1) == [1] * len(rc)


def test_another_clusters_credentials(
    described: dict[str, Any], own_credentials: None, short_lived: Any, prompt: None
) -> None:
    described["info"]["security"] = short_lived.connection.info["security"]
    with pytest.raises(error.ConnectError, match=r"\(stage: connecting.*are these its credentials"):
        ipp.Client(described)


def test_an_address_without_credentials(cluster: Any, own_credentials: None, prompt: None) -> None:
    address = cluster.connection.address
    for given in (address, address.replace("tls:", "tcp:")):
        with pytest.raises(error.ConnectError, match=r"\(stage: connecting.*credentials"):
            ipp.Client(given)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
@pytest.mark.parametrize("own", [True, False], ids=["file", "address"])
def test_no_answer(described: dict[str, Any], silent: bool, own: bool) -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        target: Any = f"tcp://127.0.0.1:{port}"
        if own:
            address = described["info"]["address"]
            described["info"]["address"] = f"{address.rpartition(':')[0]}:{port}"
            target = described
        started = time.monotonic()
        with pytest.raises(error.ConnectError, match=r"stage: connecting.*1 s"):
            ipp.Client(target, timeout=1)
        assert time.monotonic() - started < PROMPT
    wait_until(lambda: threading.active_count() <= before)


def test_failures_to_connect_leave_nothing(cluster: Any) -> None:
    """Also when the garbage collector comes by while the next connection is made."""
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(error.ConnectError):
            ipp.Client("tcp://127.0.0.1:1", timeout=0.05)
    wait_until(lambda: threading.active_count() <= before)
    with cluster.connect_client_sync() as client:
        assert client.ids


def test_an_engine_that_hangs_does_not_keep_clients_out(rc: ipp.Client, cluster: Any) -> None:
    stopped = psutil.Process(rc[rc.ids[-1]].apply_sync(os.getpid))
    stopped.suspend()
    try:
        with cluster.connect_client_sync() as client:
            others = client[rc.ids[:-1]]
            assert others.apply_sync(lambda: 1) == [1] * len(others)
            stopped.resume()
            wait_until(lambda: client.ids == rc.ids)
            assert client[:].apply_sync(lambda: 1) == [1] * len(rc)
    finally:
        stopped.resume()


# -- engines that are not there ------------------------------------------------------------


def test_no_engines_yet(backend: str, ip: InteractiveShell) -> None:
    cluster = ipp.Cluster(cluster_id="empty", n=0, backend=backend)
    cluster.start_controller_sync()
    try:
        with cluster.connect_client_sync() as client:
            lazy, balanced = client.direct_view("all"), client.load_balanced_view()
            for attempt in (
                lambda: client[:],
                lambda: client[0],
                lambda: lazy.apply_sync(abs, 1),
                lambda: lazy.map_sync(abs, [1]),
                lambda: lazy.execute("1"),
                lambda: lazy.push({"a": 1}),
                lambda: lazy.scatter("a", [1]),
                lambda: balanced.apply_sync(abs, 1),
                lambda: balanced.map_sync(abs, [1]),
            ):
                with pytest.raises(error.NoEnginesRegistered):
                    attempt()
            client.activate()
            outcome = ip.run_cell("%px 1")
            assert isinstance(outcome.error_in_exec, error.NoEnginesRegistered)
            cluster.start_engines_sync(1)
            client.wait_for_engines(1, timeout=PATIENCE)
            assert lazy.apply_sync(abs, -1) == [1]
            assert balanced.apply_sync(abs, -1) == 1
    finally:
        cluster.stop_cluster_sync()


def test_engine_ids_that_do_not_exist(rc: ipp.Client) -> None:
    for attempt in (
        lambda: rc[99],
        lambda: rc[[rc.ids[0], 99]],
        lambda: rc.direct_view(99),
        lambda: rc.load_balanced_view([99]),
        lambda: rc.queue_status(99),
        lambda: rc.send_signal("SIGINT", targets=99),
        lambda: rc.shutdown(99),
    ):
        with pytest.raises(error.InvalidEngineId, match=r"99.*there are"):
            attempt()
    for key in (None, "a", 1.5):
        with pytest.raises(TypeError):
            rc[key]  # type: ignore[index]


# -- what cannot be sent or run ------------------------------------------------------------


def test_what_cannot_be_pickled_is_named_in_every_call(rc: ipp.Client) -> None:
    lock, view = threading.Lock(), rc[:]
    balanced = rc.load_balanced_view()
    for attempt, path in (
        (lambda: view.apply_sync(len, lock), "lock"),
        (lambda: view.apply_sync(lambda key: key, key={"a": [lock]}), r"key.*'a'\]\[0\]"),
        (lambda: view.push({"name": [0, lock]}), r"name.*\[1\]"),
        (lambda: view.scatter("part", [lock] * 6), "lock"),
        (lambda: view.map_sync(str, [lock]), "lock"),
        (lambda: balanced.apply_sync(len, lock), "lock"),
        (lambda: balanced.map_sync(str, [1, lock]), "lock"),
    ):
        with pytest.raises(error.SerializationError, match=path):
            attempt()
    wait_until(lambda: not rc.outstanding)


def test_results_that_cannot_be_pickled_are_named(rc: ipp.Client) -> None:
    rc[:].execute("import threading; held = {'k': [0, threading.Lock()]}", block=True)
    for attempt in (
        lambda: rc[rc.ids[0]].pull("held", block=True),
        lambda: rc[rc.ids[0]].apply_sync(ipp.Reference("lambda: held")),
        lambda: rc.load_balanced_view().apply_sync(ipp.Reference("lambda: held")),
    ):
        with pytest.raises(ipp.RemoteError, match=r"SerializationError.*'k'\]\[1\].*lock"):
            attempt()


def test_a_syntax_error_in_a_cell(rc: ipp.Client, ip: InteractiveShell) -> None:
    rc.activate()
    for cell in ("%%px\nif", "%px 1 +", "%%px --noblock\nif"):
        outcome = ip.run_cell(cell)
        if "noblock" in cell:
            outcome = ip.run_cell("%pxresult")
        assert isinstance(outcome.error_in_exec, ipp.RemoteError)
    with pytest.raises(ipp.RemoteError, match="SyntaxError"):
        rc[rc.ids[0]].execute("if", block=True)
    assert rc[:].apply_sync(lambda: 1) == [1] * len(rc)


# -- engines that die ------------------------------------------------------------------------


@ipp.interactive
def die(*args: Any) -> None:
    import os

    os._exit(7)


@pytest.mark.parametrize(
    "call",
    [
        lambda rc: rc[rc.ids[-1]].apply_async(die),
        lambda rc: rc[rc.ids[-1]].execute("import os; os._exit(7)", block=False),
        lambda rc: rc[rc.ids[-1]].execute(
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", silent=False, block=False
        ),
        lambda rc: rc[rc.ids[-1]].execute(
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", silent=False, block=False
        ),
        lambda rc: rc[rc.ids[-2:]].apply_async(die),
        lambda rc: rc[rc.ids[-2:]].map_async(die, range(4)),
        lambda rc: rc[rc.ids[-2:]].scatter("part", [_Deadly(), _Deadly()], block=False),
        lambda rc: rc.load_balanced_view().apply_async(die),
        lambda rc: rc.load_balanced_view().map_async(die, range(2)),
    ],
    ids=[
        "apply",
        "execute",
        "killed",
        "terminated",
        "two",
        "map",
        "scatter",
        "balanced",
        "balanced map",
    ],
)
def test_an_engine_that_dies_in_a_request(rc: ipp.Client, call: Callable[[Any], Any]) -> None:
    started = time.monotonic()
    result = call(rc)
    with pytest.raises((error.EngineError, error.CompositeError), match=r"EngineError|died"):
        result.get(PATIENCE)
    assert time.monotonic() - started < PROMPT
    assert not rc.outstanding
    wait_until(lambda: len(rc) < 3)
    assert rc[:].apply_sync(lambda: 1) == [1] * len(rc)
    assert rc.load_balanced_view().map_sync(lambda x: x, range(3)) == [0, 1, 2]


class _Deadly:
    """Kills whoever unpickles it."""

    def __reduce__(self) -> Any:
        return (os._exit, (7,))


def test_waiting_balanced_calls_survive_an_engine_and_end_with_the_last(short_lived: Any) -> None:
    with short_lived.connect_client_sync() as client:
        client.wait_for_engines(2, timeout=PATIENCE)
        balanced = client.load_balanced_view()
        busy = client[:].execute("print('begun')\nimport time; time.sleep(60)", block=False)
        # an engine that has not begun has nothing for the interrupt below to end
        wait_until(lambda: busy.stdout == ["begun\n"] * 2)
        waiting = balanced.map_async(lambda x: x, range(8))
        first, last = client.ids
        client.send_signal(signal.SIGKILL, targets=first)
        wait_until(lambda: client.ids == [last])
        client.send_signal(signal.SIGINT, targets=last, block=True)
        assert waiting.get(PATIENCE) == list(range(8))
        with pytest.raises(error.CompositeError):
            busy.get(PATIENCE)

        busy = client[:].apply_async(time.sleep, 60)
        waiting = balanced.map_async(lambda x: x, range(8))
        client.send_signal(signal.SIGKILL, targets=last)
        for result in (busy, waiting):
            with pytest.raises(ipp.RemoteError, match="EngineError"):
                result.get(PATIENCE)
        assert not client.outstanding


# -- clusters that end -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "killed", "shut down"])
def test_a_cluster_that_ends_under_its_client(
    short_lived: Any, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = short_lived.connect_client_sync()
    client.wait_for_engines(2, timeout=PATIENCE)
    view, balanced = client[:], client.load_balanced_view()
    outstanding = [
        view.apply_async(time.sleep, 60),
        view.apply_async(os.getpid),
        view.map_async(abs, range(4)),
        view.scatter("part", range(4), block=False),
        view.execute("1", block=False),
        balanced.apply_async(time.sleep, 60),
        balanced.map_async(abs, range(8)),
    ]
    started = time.monotonic()
    if how == "stopped":
        short_lived.stop_cluster_sync()
    elif how == "killed":
        for process in short_lived.processes:
            if is_alive(process):
                process.kill()
    else:
        client.shutdown(hub=True)
    for result in outstanding:
        with pytest.raises(ipp.RemoteError, match=r"EngineError|ImpossibleDependency"):
            result.get(PATIENCE)
    assert time.monotonic() - started < PROMPT
    assert not client.outstanding
    assert client.ids == []
    ended = time.monotonic()
    for later in (
        lambda: client[:],
        lambda: view.apply_sync(os.getpid),
        lambda: balanced.apply_sync(os.getpid),
        lambda: client.queue_status(),
        lambda: client.wait_for_engines(1, timeout=PATIENCE),
    ):
        with pytest.raises((error.EngineError, error.NoEnginesRegistered)):
            later()
    assert time.monotonic() - ended < PROMPT
    client.close()
    wait_until(lambda: not any(is_alive(process) for process in short_lived.processes))
    time.sleep(0.2)  # for whoever wants to log something
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("busy", ["idle", "asleep", "in a loop"])
def test_engines_end_with_a_client_that_is_killed(backend: str, busy: str, tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import os, sys, time
        import pxcompat as ipp

        backend, busy = sys.argv[1:]
        rc = ipp.Client(n=2, backend=backend)
        pids = rc[:].apply_sync(os.getpid)
        if busy == "asleep":
            rc[:].apply_async(time.sleep, 600)
        elif busy == "in a loop":
            rc[:].execute("while True: pass", block=False)
        time.sleep(0.5)
        print(*pids, flush=True)
        time.sleep(600)
        """
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    owner = subprocess.Popen(
        [sys.executable, str(script), backend, busy], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        engines = [int(pid) for pid in owner.stdout.readline().split()]
    processes = psutil.Process(owner.pid).children(recursive=True)
    assert {p.pid for p in processes} >= set(engines)
    assert len(engines) == 2
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(is_alive(process) for process in processes))
