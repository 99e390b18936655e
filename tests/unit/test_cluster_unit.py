"""Which cluster a client gets, and what a Cluster does, on a backend without processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from traitlets.config import Config

from pxcompat import Client, backends
from pxcompat.cluster import (
    Cluster,
    ClusterManager,
    acquire,
    clean_cluster_files,
    connection,
    embedded,
)
from pxcompat.cluster.app import PxClusterStart
from pxcompat.cluster.connection import (
    AlreadyRunning,
    Connection,
    MissingConnectionFile,
    StaleConnectionFile,
)
from pxcompat.cluster.launcher import EngineSet, find_launcher_class
from pxcompat.cluster.settings import SettingError
from pxcompat.cluster.watch import EngineWatch
from pxcompat.error import (
    BackendError,
    ConnectError,
    ConnectionFileError,
    EngineError,
    InvalidEngineId,
    NoEnginesRegistered,
)
from pxcompat.protocol import Capabilities, EngineInfo, EventSink, Launched, LaunchSpec

from ..common import logged

TIMEOUT = 5


def done(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class FakeLaunched:
    """A cluster that is a dict of engines."""

    def __init__(self, spec: LaunchSpec, address: str) -> None:
        self.spec = spec
        self.info = {"backend": "fake", "address": address, "logs": spec.log_dir}
        self.engines: dict[str, EngineInfo] = {}
        self.sinks: list[EventSink] = []
        self.signals: list[tuple[str, int]] = []
        #: of each set of engines: the command of its MPI world
        self.mpi: list[Sequence[str] | None] = []
        self.reason: str | None = None
        self.ids = itertools.count()
        self.numbers = itertools.count()
        self.ended = threading.Event()
        self.register = True
        #: seconds between the end and its being noticed
        self.linger = 0.0
        self.start(spec.n)

    def start(self, n: int) -> list[str]:
        return [self.start_one(next(self.ids)) for _ in range(n)]

    def start_one(self, id: int, name: str = "") -> str:
        info = EngineInfo(f"key{next(self.numbers)}", id, pid=1, host="h", name=name)
        if self.register:
            self.engines[info.key] = info
            for sink in self.sinks:
                sink.engine_up(info)
        return info.key

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.ended.set()

    def poll(self) -> str | None:
        return self.reason

    def wait(self, timeout: float | None = None) -> str | None:
        self.ended.wait(timeout)
        time.sleep(self.linger)
        return self.reason

    def stop(self, *, timeout: float = 10) -> None:
        self.end("it was stopped")


class FakeBackend:
    name = "fake"

    def __init__(self, cluster: FakeLaunched, info: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self.info = info
        self.capabilities = Capabilities(mpi=True)
        self.closed = False

    def open(self, sink: EventSink, *, timeout: float) -> None:
        self.sink = sink
        self.cluster.sinks.append(sink)
        for info in self.cluster.engines.values():
            sink.engine_up(info)

    def close(self, *, timeout: float = 5) -> None:
        self.closed = True
        if hasattr(self, "sink"):
            self.cluster.sinks.remove(self.sink)
            del self.sink

    def start_engines(
        self, n: int, *, mpi: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> Future[list[str]]:
        self.cluster.mpi.append(mpi)
        return done(self.cluster.start(n))

    def stop_engines(self, keys: Sequence[str], *, force: bool = False) -> Future[None]:
        for key in keys:
            del self.cluster.engines[key]
            for sink in self.cluster.sinks:
                sink.engine_down(key, "stopped")
        return done()

    def restart_engines(self, keys: Sequence[str]) -> Future[list[str]]:
        before = [self.cluster.engines[key] for key in keys]
        self.stop_engines(keys)
        return done([self.cluster.start_one(info.id, info.name) for info in before])

    def signal(self, key: str, signum: int) -> Future[None]:
        self.cluster.signals.append((key, signum))
        return done()

    def stop_cluster(self) -> Future[None]:
        self.cluster.end("a client stopped it")
        return done()


class FakeProvider:
    name = "fake"
    options = ("a", "b", "security")
    starting = ("b",)

    def __init__(self) -> None:
        self.launched: list[FakeLaunched] = []
        self.adopted: list[tuple[Any, dict[str, Any]]] = []
        self.before_launch = lambda: None

    def launch(self, spec: LaunchSpec, *, timeout: float) -> Launched:
        self.before_launch()
        self.launched.append(FakeLaunched(spec, f"fake://{len(self.launched)}"))
        return self.launched[-1]

    def connect(self, info: Mapping[str, Any]) -> Any:
        return FakeBackend(self.launched[int(info["address"].removeprefix("fake://"))], info)

    def adopt(self, target: Any, **options: Any) -> Any:
        if isinstance(target, str) and target.startswith("fake://"):
            self.adopted.append((target, options))
            return self.connect({"address": target})
        if isinstance(target, SimpleNamespace):
            self.adopted.append((target, options))
            return FakeBackend(target.cluster, {})
        return None

    @property
    def running(self) -> list[FakeLaunched]:
        return [launched for launched in self.launched if launched.poll() is None]


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProvider]:
    """The backend ``fake``, which is the default, in an IPython directory of its own."""
    for name in list(os.environ):
        if name.startswith(("PXCOMPAT_", "IPP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PXCOMPAT_NONINTERACTIVE", "1")
    fake = ModuleType("fake_backend")
    provider = fake.provider = FakeProvider()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backend", fake)
    table = {
        "fake": ("fake_backend", ""),
        "missing": ("no_such_module", "pip install what-is-missing"),
        "dask": ("no_such_module", "of the name alone, as the default"),
    }
    monkeypatch.setattr(backends, "_BACKENDS", table)
    for place in ("profile_default", "profile_p"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "pxcompat_config.py").write_text("c.PxCompat.backend = 'fake'")
    yield provider
    for launched in provider.running:
        launched.stop()


def until(condition: Any) -> None:
    """Wait for another thread of this process."""
    for _ in range(TIMEOUT * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("not in time")


@contextmanager
def shown_as_in_a_script() -> Iterator[None]:
    """Warnings go to stderr, as nobody has set up logging."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


def test_the_fake_says_why_a_backend_is_missing() -> None:
    with pytest.raises(BackendError, match="pip install what-is-missing"):
        backends.get("missing")


class TestEmbedded:
    @pytest.fixture(autouse=True)
    def ended(self, provider: FakeProvider) -> Iterator[None]:
        """As at the exit of a process."""
        yield
        embedded._stop_all()
        assert not provider.running

    def test_shared_by_the_clients_of_the_process(self, provider: FakeProvider) -> None:
        first, second = acquire(n=3), acquire()
        assert first.profile == "default"
        assert first.share and first.share.fresh and first.share.count(0) == (0, 3)
        # which are on their way for everybody
        assert second.share and not second.share.fresh and second.share.count(1) == (0, 3)
        assert len(provider.launched) == 1

    def test_a_client_that_asks_for_more_engines_has_them_added(
        self, provider: FakeProvider
    ) -> None:
        def share(n: Any) -> embedded.Share:
            share = acquire(n=n).share
            assert share is not None
            return share

        share(1).came(1)
        # which that client starts, and nobody a second time
        assert share(3).count(1) == (2, 3)
        assert share(3).count(1) == (0, 3)
        assert share("4").count(2) == (1, 4)
        assert len(provider.launched) == 1

    def test_engines_that_ended_are_not_waited_for(self, provider: FakeProvider) -> None:
        with Client(n=3) as rc:
            rc.shutdown(targets=[0], block=True)
            with Client() as other:
                assert other.ids == [1, 2]
            with Client(n=3) as other:
                other.wait_for_engines(3, timeout=TIMEOUT)
                assert other.ids == [1, 2, 3]

    def test_where_no_engine_is_left_the_next_client_has_others(
        self, provider: FakeProvider
    ) -> None:
        with Client(n=2) as rc:
            rc.shutdown(block=True)
            with pytest.raises(NoEnginesRegistered, match=r"without any engines: a new Client"):
                rc[:]
            with Client() as other:
                assert other.ids == rc.ids == [2, 3]
            with Client() as other:
                assert other.ids == [2, 3]
        assert len(provider.launched) == 1

    def test_engines_that_did_not_come_are_not_waited_for_again(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("PXCOMPAT_START_TIMEOUT", "0.01")
            with Client(n=1):
                provider.launched[0].register = False
                with pytest.raises(TimeoutError):
                    Client(n=2)
                assert Client().ids == [0]
            provider.before_launch = lambda: patch.setattr(FakeLaunched, "start", lambda *_: [])
            provider.launched[0].end("crash")
            with pytest.raises(TimeoutError):
                Client(n=2)
        # started for that client alone, it is gone
        assert not provider.running
        provider.before_launch = lambda: None
        assert Client(n=1).ids == [0]

    def test_engines_have_as_long_as_starting_may_take(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Client(n=1):
            provider.launched[0].register = False  # the second does not come
            monkeypatch.setenv("PXCOMPAT_START_TIMEOUT", "0.01")
            with pytest.raises(TimeoutError, match=r"2 engines not ready in 0\.01 seconds"):
                Client(n=2)

    def test_one_for_each_profile(self, provider: FakeProvider) -> None:
        leases = [acquire(n=1), acquire(profile="p", n=1)]
        assert len(provider.running) == 2
        assert leases[1].profile == "p"

    def test_a_dead_one_is_replaced(self, provider: FakeProvider) -> None:
        acquire(n=1)
        provider.launched[0].end("crash")
        acquire(n=1)
        assert len(provider.launched) == 2

    def test_a_failed_start_leaves_nothing(self, provider: FakeProvider) -> None:
        def fail() -> None:
            raise BackendError("no")

        provider.before_launch = fail
        with pytest.raises(BackendError):
            acquire(n=1)
        assert not provider.running
        provider.before_launch = lambda: None
        assert acquire(n=1).share

    def test_many_threads_start_one(self, provider: FakeProvider) -> None:
        gate = threading.Barrier(8)
        provider.before_launch = lambda: time.sleep(0.05)  # a start takes its time

        def take() -> None:
            gate.wait(TIMEOUT)
            acquire(n=1)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert len(provider.launched) == 1

    def test_a_fork_neither_uses_nor_ends_it(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        acquire(n=1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            acquire(n=1)
            assert len(provider.launched) == 2
            provider.launched[1].stop()

    def test_writes_no_file(self, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        acquire(n=1)
        assert sorted(tmp_path.rglob("*")) == before

    def test_as_many_engines_as_cpus(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 4, 5}, raising=False)
        acquire()
        assert provider.launched[0].spec.n == 5

    def test_n_by_variable(self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PXCOMPAT_N", "6")
        acquire()
        assert provider.launched[0].spec.n == 6

    def test_options_go_to_the_backend(self, provider: FakeProvider, tmp_path: Path) -> None:
        config = tmp_path / "profile_p" / "pxcompat_config.py"
        config.write_text("c.PxCompat.backend = 'fake'\nc.FakeBackend.a = 1\nc.FakeBackend.b = 1")
        acquire(profile="p", n=1, b=2)
        assert provider.launched[0].spec.options == {"a": 1, "b": 2}

    def test_options_that_come_too_late_are_warned_of(
        self, provider: FakeProvider, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with shown_as_in_a_script():
            acquire(n=1, a=1, b=2)
            acquire(n=1, a=1, b=2)
            assert capsys.readouterr().err == ""
            acquire(a=1, b=3)
            assert "runs already: b." in capsys.readouterr().err

    def test_an_unknown_option_is_refused(self, provider: FakeProvider) -> None:
        message = r"unexpected keyword argument 'securty'\. Did you mean 'security'\?"
        for target in (None, "fake://0"):
            with pytest.raises(TypeError, match=message):
                acquire(target, securty="S")
        with pytest.raises(TypeError, match="Did you mean 'profile'"):
            acquire(profil="p")
        assert not provider.launched
        assert not provider.adopted

    def test_how_much_a_client_remembers(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease = acquire()
        assert (lease.max_results, lease.max_result_bytes) == (1024, 1 << 30)
        monkeypatch.setenv("PXCOMPAT_MAX_RESULTS", "2")
        monkeypatch.setenv("PXCOMPAT_MAX_RESULT_BYTES", "3")
        lease = acquire()
        assert (lease.max_results, lease.max_result_bytes) == (2, 3)

    def test_engines_can_import_what_the_client_can(self, provider: FakeProvider) -> None:
        acquire(n=1)
        assert provider.launched[0].spec.path == [entry for entry in sys.path if entry]
        assert provider.launched[0].spec.cwd == os.getcwd()

    def test_no_such_profile(self) -> None:
        with pytest.raises(ConnectionFileError, match="pxcluster create nosuch"):
            acquire(profile="nosuch")


class TestFinding:
    @pytest.fixture
    def cluster(self, provider: FakeProvider) -> Iterator[Cluster]:
        cluster = Cluster(n=2, profile="p", cluster_id="")
        cluster.start_cluster_sync()
        yield cluster
        cluster.stop_cluster_sync()

    def test_the_running_cluster_of_a_profile(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        lease = acquire(profile="p")
        assert lease.share is None
        assert lease.backend.info["address"] == "fake://0"
        assert (lease.profile, lease.cluster_id) == ("p", "")
        assert provider.running

    def test_by_file_dict_and_object(self, cluster: Cluster) -> None:
        path = cluster.cluster_file
        content = json.loads(Path(path).read_text())
        for info in (path, Path(path), content):
            lease = acquire(info)
            assert lease.backend.info["address"] == "fake://0"
            assert lease.profile == "p"
        assert acquire(cluster=cluster).backend.info["address"] == "fake://0"

    def test_by_address(self, provider: FakeProvider, cluster: Cluster) -> None:
        lease = acquire("fake://0", n=3, security="S")
        assert provider.adopted == [("fake://0", {"n": 3, "security": "S"})]
        assert lease.share is None
        assert lease.share is None

    def test_another_kind_of_cluster_is_no_cluster(self, provider: FakeProvider) -> None:
        with pytest.raises(TypeError, match=r"not for a SimpleNamespace: .* first argument"):
            acquire(cluster=SimpleNamespace())  # type: ignore[arg-type]

    def test_by_native_object(self, provider: FakeProvider, cluster: Cluster) -> None:
        native = SimpleNamespace(cluster=provider.launched[0])
        acquire(native)
        assert provider.adopted == [(native, {"n": None})]

    def test_by_variable(
        self, provider: FakeProvider, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PXCOMPAT_ADDRESS", "fake://0")
        acquire()
        assert provider.adopted == [("fake://0", {"n": None})]
        monkeypatch.setenv("PXCOMPAT_ADDRESS", cluster.cluster_file)
        assert acquire().profile == "p"
        # what is asked for comes first
        with pytest.raises(MissingConnectionFile, match="No cluster 'other'"):
            acquire(cluster_id="other")

    def test_errors_name_the_variable_that_said_where(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PXCOMPAT_ADDRESS", "what://x")
        with pytest.raises(BackendError, match=r"^variable PXCOMPAT_ADDRESS = 'what://x': No back"):
            acquire()
        monkeypatch.setenv("PXCOMPAT_ADDRESS", "localhost")
        with pytest.raises(MissingConnectionFile, match=r"^variable PXCOMPAT_ADDRESS = 'localho"):
            acquire()
        monkeypatch.setenv("PXCOMPAT_ADDRESS", "fake://0")
        lease = acquire()

        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectError("nobody is there")

        monkeypatch.setattr(lease.backend, "open", refuse)
        monkeypatch.setattr(lease.backend, "close", lambda: None)
        with pytest.raises(ConnectError, match=r"^variable PXCOMPAT_ADDRESS = 'fake://0': nobody"):
            lease.open(EngineWatch())

    def test_an_address_nobody_knows(self) -> None:
        with pytest.raises(BackendError, match=r"'what://x'.*fake does not.*what-is-missing"):
            acquire("what://x")
        with pytest.raises(BackendError, match="a object object"):
            acquire(object())

    def test_a_chosen_backend_is_the_only_one_asked(self) -> None:
        with pytest.raises(BackendError, match=r"^the 'missing' backend needs no_such_module"):
            acquire("fake://0", backend="missing")

    def test_engines_and_options_that_are_not_had_are_warned_of(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.clear()
        for given in ({"profile": "p"}, {"connection_info": cluster.cluster_file}):
            with Client(**given, n=2):
                assert not logged(caplog)
            with Client(**given, n=3, a=1):
                first, second = logged(caplog)
            assert "runs already: a." in first
            assert second.startswith("3 engines were asked for, and the cluster that runs has 2;")
            caplog.clear()

    def test_options_for_starting_are_warned_of_where_somebody_else_started_it(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.clear()
        acquire("fake://0", a=1, security="S")
        assert not logged(caplog)
        acquire("fake://0", a=1, b=2)
        (said,) = logged(caplog)
        assert said.startswith("Not used") and said.endswith("somebody else's, who started it: b.")

    def test_another_backend_than_asked_for(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for given in ({"connection_info": cluster.cluster_file}, {"cluster": cluster}):
            with pytest.raises(BackendError, match="runs on 'fake', not on 'dask'"):
                acquire(**given, backend="dask")
            assert acquire(**given, backend="fake").backend.name == "fake"
            with monkeypatch.context() as patch:
                patch.setenv("PXCOMPAT_BACKEND", "dask")  # of what is started
                assert acquire(**given).backend.name == "fake"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingConnectionFile, match=r"nowhere\.json"):
            acquire(str(tmp_path / "nowhere.json"))

    def test_a_dict_of_ipyparallel_s(self) -> None:
        with pytest.raises(ConnectionFileError, match="ipyparallel's own"):
            acquire({"registration": 1, "task_scheduler": "x"})

    def test_a_name_must_be_running(self, provider: FakeProvider) -> None:
        with pytest.raises(MissingConnectionFile, match="--cluster-id=x"):
            acquire(cluster_id="x")
        assert not provider.launched

    def test_a_stale_file_is_an_error_only_where_it_was_named(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        path = Path(cluster.cluster_file)
        stale = connection.read(path)
        stale.started = 0.0
        connection.write(path, stale)
        with pytest.raises(StaleConnectionFile):
            acquire(path)
        lease = acquire(profile="p", n=1)
        assert lease.share
        assert not path.exists()

    def test_a_file_of_no_use_is_not_passed_over(self, cluster: Cluster) -> None:
        Path(cluster.cluster_file).chmod(0o644)
        with pytest.raises(ConnectionFileError, match="open to other users"):
            acquire(profile="p")
        Path(cluster.cluster_file).chmod(0o600)

    def test_another_backend_than_the_running_one_is_embedded(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = FakeProvider()
        module = ModuleType("other_backend")
        module.provider = provider  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "other_backend", module)
        monkeypatch.setitem(backends._BACKENDS, "other", ("other_backend", ""))
        lease = acquire(profile="p", backend="other", n=1)
        assert lease.share
        assert len(provider.launched) == 1

    def test_timeout_and_progress_come_with_the_lease(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (acquire(profile="p").timeout, acquire(profile="p").progress) == (10, False)
        monkeypatch.delenv("PXCOMPAT_NONINTERACTIVE")
        lease = acquire(profile="p", timeout=1.5)
        assert (lease.timeout, lease.progress) == (1.5, True)


class TestCluster:
    @pytest.fixture
    def cluster(self) -> Iterator[Cluster]:
        cluster = Cluster(n=2, profile="p", cluster_id="c")
        yield cluster
        cluster.stop_cluster_sync()

    def test_its_life(self, provider: FakeProvider, cluster: Cluster, tmp_path: Path) -> None:
        path = tmp_path / "profile_p" / "security" / "pxcompat-c-client.json"
        assert Path(cluster.cluster_file) == path
        assert cluster.start_cluster_sync() is cluster
        assert cluster.controller.running
        assert len(provider.launched[0].engines) == 2
        (engine_set_id,) = cluster.engines
        saved = connection.read(path)
        assert saved.engines == {engine_set_id: ["key0", "key1"]}
        assert (saved.profile, saved.cluster_id, saved.pid) == ("p", "c", os.getpid())
        cluster.stop_cluster_sync()
        assert not provider.running
        assert not path.exists()
        assert cluster.controller is None
        assert cluster.engines == {}
        cluster.stop_cluster_sync()

    def test_nothing_stays_when_it_stopped(self, provider: FakeProvider, cluster: Cluster) -> None:
        before = set(threading.enumerate())
        cluster.start_cluster_sync()
        sink = provider.launched[0].sinks[0]
        assert isinstance(sink, EngineWatch)
        provider.launched[0].linger = 0.05
        cluster.stop_cluster_sync()
        assert provider.launched[0].sinks == []
        assert set(threading.enumerate()) == before

    def test_ids_differ(self) -> None:
        assert len({Cluster().cluster_id for _ in range(3)}) == 3

    def test_engine_sets(self, provider: FakeProvider, cluster: Cluster) -> None:
        cluster.start_controller_sync()
        first = cluster.start_engines_sync(2)
        second = cluster.start_engines_sync(1)
        assert cluster.start_engines_sync(1, "mine") == "mine"
        assert len({first, second}) == 2
        assert [s.n for s in cluster.engines.values()] == [2, 1, 1]
        assert cluster.engine_set is cluster.engines[first]
        assert isinstance(cluster.engine_set, find_launcher_class("local", "engine"))
        cluster.stop_engines_sync(first)
        assert list(cluster.engines) == [second, "mine"]
        assert list(provider.launched[0].engines) == ["key2", "key3"]
        assert list(connection.read(cluster.cluster_file).engines) == [second, "mine"]
        with pytest.raises(KeyError):
            cluster.stop_engines_sync(first)
        cluster.stop_engines_sync()
        assert cluster.engines == {}
        assert cluster.engine_set is None

    def test_restart(self, provider: FakeProvider, cluster: Cluster) -> None:
        cluster.start_cluster_sync()
        (engine_set_id,) = cluster.engines
        cluster.restart_engines_sync()
        assert list(cluster.engines) == [engine_set_id]
        engines = provider.launched[0].engines
        assert {key: info.id for key, info in engines.items()} == {"key2": 0, "key3": 1}
        cluster.restart_engine_sync(1)
        assert {key: info.id for key, info in engines.items()} == {"key2": 0, "key4": 1}
        assert cluster.engines[engine_set_id].names == ["key0", "key1"]
        cluster.signal_engines_sync(signal.SIGUSR1)
        assert provider.launched[0].signals == [("key2", 10), ("key4", 10)]
        # one that is dead gets a successor with another id
        cluster.stop_engine_sync(0)
        cluster.restart_engines_sync()
        assert {info.id for info in engines.values()} == {1, 2}
        assert cluster.engine_ids(engine_set_id) == [1, 2]
        names = cluster.engines[engine_set_id].names
        assert names == ["key1", "key6"]
        assert connection.read(cluster.cluster_file).engines == {engine_set_id: names}
        cluster.stop_engines_sync()
        assert not engines

    def test_a_restart_while_the_news_of_an_end_is_on_its_way(
        self, provider: FakeProvider, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.start_cluster_sync()
        launched = provider.launched[0]
        restart = FakeBackend.restart_engines

        def restart_engines(backend: FakeBackend, keys: Sequence[str]) -> Future[list[str]]:
            if launched.engines.pop("key1", None) is None:
                return restart(backend, keys)
            for sink in launched.sinks:
                sink.engine_down("key1", "it died")
            failed: Future[list[str]] = Future()
            failed.set_exception(BackendError("there is no engine key1"))
            return failed

        monkeypatch.setattr(FakeBackend, "restart_engines", restart_engines)
        cluster.restart_engines_sync()
        # one was restarted, and the other has a successor
        assert {info.id for info in launched.engines.values()} == {0, 2}

    def test_a_restart_waits_for_engines_that_start(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync(n=1)
        launched = provider.launched[0]
        launched.register = False
        cluster.start_engines_sync(1, "late")
        launched.register = True
        (name,) = cluster.engines["late"].names
        restart = threading.Thread(target=cluster.restart_engines_sync, args=["late"])
        restart.start()
        assert list(launched.engines) == ["key0"]
        launched.engines[name] = EngineInfo(name, 1, pid=1, host="h")
        for sink in launched.sinks:
            sink.engine_up(launched.engines[name])
        restart.join(TIMEOUT)
        assert {key: info.id for key, info in launched.engines.items()} == {"key0": 0, "key2": 1}
        assert cluster.engines["late"].names == [name]

    def test_engines_that_cannot_be_restarted(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.start_cluster_sync()
        capabilities = Capabilities(restart_engines=False)
        monkeypatch.setattr(cluster._backend(), "capabilities", capabilities)
        with pytest.raises(BackendError, match="restart them with the tool that did"):
            cluster.restart_engines_sync()
        assert cluster.engine_ids(next(iter(cluster.engines))) == [0, 1]

    def test_what_is_for_ipyparallel_s_launchers_is_warned_of(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster.start_controller_sync(environment={"a": "b"})
        cluster.start_engines_sync(1, engine_args=["--x"])
        warnings = logged(caplog, level=logging.WARNING)
        said = "Not used, as they are for ipyparallel's launchers: "
        assert warnings == [said + "environment", said + "engine_args"]

    @pytest.mark.parametrize(
        "name", ["mpi", "MPI", "ipyparallel.cluster.launcher.MPIEngineSetLauncher"]
    )
    def test_an_mpi_world(self, provider: FakeProvider, name: str) -> None:
        config = Config()
        config.MPILauncher.mpi_cmd = ["srun", "--mpi=pmi2"]
        config.MPIEngineSetLauncher.mpi_args = ["--exclusive"]
        cluster = Cluster(
            profile="p", n=3, engine_launcher_class=name, config=config, backend="fake"
        )
        assert cluster.engine_launcher_class is find_launcher_class("mpi")
        try:
            cluster.start_cluster_sync()
            command = ["srun", "--mpi=pmi2", "-n", "3", "--exclusive"]
            assert provider.launched[0].mpi == [command]
            # whoever looks from outside knows what to replace dead engines by
            other = Cluster.from_file(cluster.cluster_file)
            other._stop_keys(list(provider.launched[0].engines))
            other.restart_engines_sync()
            assert provider.launched[0].mpi == [command, command]
            other.start_engines_sync(1)
            assert provider.launched[0].mpi[2] is None
            other.stop_engines_sync()
            assert connection.read(cluster.cluster_file).mpi == {}
            other.controller.disconnect()
            cluster._backend().capabilities = Capabilities()
            with pytest.raises(BackendError, match="cannot be an MPI world"):
                cluster.start_engines_sync(1)
        finally:
            cluster.stop_cluster_sync()

    def test_the_profile_says_that_engines_are_an_mpi_world(
        self, provider: FakeProvider, tmp_path: Path
    ) -> None:
        path = tmp_path / "profile_p" / "pxcompat_config.py"
        path.write_text("c.Cluster.engine_launcher_class = 'mpi'\nc.MPILauncher.mpi_args = ['-x']")
        cluster = Cluster(profile="p", n=1, backend="fake")
        cluster.start_cluster_sync()
        assert provider.launched[0].mpi == [["mpiexec", "-n", "1", "-x"]]
        cluster.stop_cluster_sync()

    def test_one_engine(self, provider: FakeProvider, cluster: Cluster) -> None:
        cluster.start_cluster_sync()
        cluster.signal_engine_sync(signal.SIGUSR1, 1)
        cluster.stop_engine_sync(0)
        assert provider.launched[0].signals == [("key1", signal.SIGUSR1)]
        assert list(provider.launched[0].engines) == ["key1"]
        with pytest.raises(InvalidEngineId, match="no engine 0; there are: 1"):
            cluster.stop_engine_sync(0)

    def test_a_set_with_a_dead_engine_is_stopped(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync()
        cluster.stop_engine_sync(0)
        cluster.stop_engines_sync()
        assert provider.launched[0].engines == {}

    def test_a_controller_alone(
        self, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PXCOMPAT_N", "7")
        cluster = Cluster(n=0, profile="p")
        cluster.start_cluster_sync()
        assert provider.launched[0].engines == {}
        cluster.stop_cluster_sync()

    def test_signals_reach_the_engines_that_are_left(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync()
        cluster.stop_engine_sync(0)
        cluster.signal_engines_sync(signal.SIGINT)
        assert provider.launched[0].signals == [("key1", signal.SIGINT)]

    def test_a_second_start(self, cluster: Cluster) -> None:
        cluster.start_controller_sync()
        with pytest.raises(RuntimeError, match="stop_controller"):
            cluster.start_controller_sync()
        with pytest.raises(AlreadyRunning, match=r"pxcluster stop"):
            Cluster(profile="p", cluster_id="c").start_controller_sync()
        other = Cluster(profile="p", cluster_id="d")
        other.start_controller_sync()
        other.stop_cluster_sync()

    def test_lost_race(self, provider: FakeProvider, cluster: Cluster) -> None:
        rival = Connection("fake", {"address": "fake://9"}, cluster_id="c")
        provider.before_launch = lambda: connection.write(cluster.cluster_file, rival)
        with pytest.raises(AlreadyRunning):
            cluster.start_controller_sync()
        assert not provider.running
        assert connection.read(cluster.cluster_file) == rival

    def test_it_cannot_be_used_before_it_starts(self, cluster: Cluster) -> None:
        with pytest.raises(RuntimeError, match="not running"):
            cluster.start_engines_sync()

    def test_one_that_dies_by_itself_is_forgotten(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync()
        provider.launched[0].end("crash")
        assert cluster.controller.ended.wait(TIMEOUT)
        assert not Path(cluster.cluster_file).exists()
        assert cluster.controller.state == "after"
        cluster.stop_cluster_sync()
        cluster.start_cluster_sync()
        assert len(provider.running) == 1

    def test_one_that_nobody_holds_is_stopped(self, provider: FakeProvider) -> None:
        cluster = Cluster(n=1, profile="p")
        cluster.start_cluster_sync()
        gone = weakref.ref(cluster)
        del cluster
        gc.collect()
        assert gone() is None
        until(lambda: not provider.running)

    def test_stopped_at_exit(
        self, provider: FakeProvider, cluster: Cluster, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from pxcompat.cluster import launcher

        cluster.start_cluster_sync()
        launcher._stop_owned()
        assert not provider.running
        assert not Path(cluster.cluster_file).exists()
        assert "Stopping cluster 'c'" in capsys.readouterr().err

    def test_a_fork_does_not_stop_it(
        self, provider: FakeProvider, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.start_cluster_sync()
        with monkeypatch.context() as fork:
            fork.setattr(os, "getpid", lambda: 0)
            cluster.controller.stop()
        assert provider.running

    def test_coroutines(self, provider: FakeProvider, cluster: Cluster) -> None:
        async def life() -> None:
            await cluster.start_cluster(n=1)
            engine_set_id = await cluster.start_engines(2)
            await cluster.wait_for_engines()
            await cluster.signal_engines(signal.SIGINT, engine_set_id)
            await cluster.restart_engines(engine_set_id)
            await cluster.stop_engines(engine_set_id)
            assert list(provider.launched[0].engines) == ["key0"]
            await asyncio.gather(cluster.stop_controller(), cluster.stop_engines())

        asyncio.run(life())
        assert len(provider.launched[0].signals) == 2
        assert not provider.running
        assert Cluster.start_engines.__name__ == "start_engines"

    def test_who_overrides_the_one_overrides_both(self) -> None:
        class Mine(Cluster):
            def start_engines_sync(self, *args: Any, **kwargs: Any) -> str:
                return "mine"

        assert asyncio.run(Mine(profile="p").start_engines()) == "mine"

    def test_repr(self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # which is shown as ~
        assert repr(cluster) == "<Cluster(cluster_id='c', profile='p')>"
        cluster.start_controller_sync()
        cluster.start_engines_sync(1, "e")
        assert repr(cluster) == (
            "<Cluster(cluster_id='c', profile='p', controller=<running>, engine_sets=['e'])>"
        )
        elsewhere = Cluster(cluster_id="c", profile_dir=str(tmp_path))
        assert repr(elsewhere) == f"<Cluster(cluster_id='c', profile_dir={str(tmp_path)!r})>"

    def test_from_file(self, provider: FakeProvider, cluster: Cluster) -> None:
        cluster.start_cluster_sync()
        for other in (
            Cluster.from_file(cluster.cluster_file),
            Cluster.from_file(profile="p", cluster_id="c"),
            Cluster.from_dict(cluster.to_dict()),
        ):
            assert not other.shutdown_atexit
            assert other.cluster_file == cluster.cluster_file
            assert other.controller.running
            assert list(other.engines) == list(cluster.engines)
            assert other.engine_set is not None
            assert other.engine_set.n == 2
        other.start_engines_sync(1, "added")
        assert "added" in connection.read(cluster.cluster_file).engines
        other.stop_cluster_sync()
        assert not provider.running
        assert cluster.controller.state == "after"
        with pytest.raises(FileNotFoundError):
            Cluster.from_file(cluster.cluster_file)

    def test_more_engines_as_the_command_line_says(self, cluster: Cluster) -> None:
        cluster.start_cluster_sync()
        direct = Config()
        direct.Cluster.n = 1
        other = Cluster.from_file(cluster.cluster_file, config=direct)
        other.start_engines_sync(engine_set_id="added")
        assert other.engines["added"].n == 1
        other.controller.disconnect()

    def test_a_description_holds_no_credentials(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync()
        cluster.connection.info["tls_key"] = "SECRET"
        assert "SECRET" not in json.dumps(cluster.to_dict())

    def test_a_description_of_one_that_ended(self, cluster: Cluster) -> None:
        cluster.start_cluster_sync()
        description = cluster.to_dict()
        cluster.stop_cluster_sync()
        assert Cluster.from_dict(description).controller is None

    def test_engines_that_die_while_they_start(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_controller_sync()
        provider.launched[0].register = False
        cluster.start_engines_sync(2)
        with pytest.raises(TimeoutError, match=r"0 of 2 engines .* 0\.01 s"):
            cluster.wait_for_engines_sync(timeout=0.01)
        provider.launched[0].sinks[0].engine_down("key1", "exited with status 1")
        with pytest.raises(EngineError, match="key1: exited with status 1"):
            cluster.wait_for_engines_sync()

    def test_output(self, provider: FakeProvider, cluster: Cluster) -> None:
        cluster.start_controller_sync()
        cluster.start_engines_sync(1, "e")
        controller, engines = cluster.controller, cluster.engines["e"]
        logs = Path(provider.launched[0].spec.log_dir or "")
        logs.mkdir(parents=True)
        (logs / "engine-key0.log").write_text("of the engine")
        (logs / "scheduler.log").write_text("of the scheduler")
        assert engines.get_output() == "engine-key0.log:\nof the engine"
        assert controller.get_output() == "scheduler.log:\nof the scheduler"
        assert engines.get_output(remove=True) == engines.get_output()
        assert [path.name for path in logs.iterdir()] == ["scheduler.log"]
        (logs / "engine-key0.log").write_text("x" * 1_000_000 + "its last words")
        cluster.stop_cluster_sync()
        assert not logs.exists()
        assert engines.get_output().endswith("its last words")
        assert len(engines.get_output()) < 300_000

    def test_the_logs_of_one_that_died_are_kept(
        self, provider: FakeProvider, cluster: Cluster
    ) -> None:
        cluster.start_cluster_sync()
        log = Path(provider.launched[0].spec.log_dir or "") / "scheduler.log"
        log.parent.mkdir(parents=True)
        log.write_text("why")
        provider.launched[0].end("crash")
        cluster.stop_cluster_sync()
        assert log.exists()

    def test_no_file(self, provider: FakeProvider, tmp_path: Path) -> None:
        cluster = Cluster(n=1, profile="p", cluster_file="")
        cluster.start_cluster_sync()
        assert not list(tmp_path.rglob("*client.json"))
        cluster.stop_cluster_sync()
        assert not provider.running

    def test_the_interface_to_listen_on(self, provider: FakeProvider) -> None:
        for given, host in (("", "127.0.0.1"), ("*", "0.0.0.0"), ("10.0.0.1", "10.0.0.1")):
            cluster = Cluster(profile="p", controller_ip=given)
            cluster.start_controller_sync()
            assert provider.launched[-1].spec.host == host
            cluster.stop_cluster_sync()


class TestClusterConfiguration:
    def test_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = tmp_path / "profile_p"
        (place / "ipcluster_config.json").write_text(
            json.dumps({"Cluster": {"n": 5, "engine_timeout": 10, "delay": 3}})
        )
        direct = Config()
        direct.Cluster.engine_timeout = 20
        cluster = Cluster(profile="p", config=direct)
        assert (cluster.n, cluster.engine_timeout, cluster.delay) == (5, 20, 3)
        with (place / "pxcompat_config.py").open("a") as file:
            file.write("\nc.Cluster.n = 6")
        assert Cluster(profile="p").n == 6
        monkeypatch.setenv("PXCOMPAT_N", "7")
        assert Cluster(profile="p").n == 7
        direct.Cluster.n = 8
        assert Cluster(profile="p", config=direct).n == 8
        assert Cluster(profile="p", config=direct, n=9).n == 9

    def test_none_of_the_profile(self) -> None:
        direct = Config()
        cluster = Cluster(profile="p", config=direct, load_profile=False)
        assert cluster.config == direct
        assert cluster.backend == "dask"

    def test_bad_value(self, tmp_path: Path) -> None:
        path = tmp_path / "profile_p" / "pxcompat_config.py"
        path.write_text("c.Cluster.n = 'x'")
        with pytest.raises(SettingError, match=r"pxcompat_config\.py: c\.Cluster\.n = 'x'"):
            Cluster(profile="p")

    def test_an_unknown_argument_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"argument 'backnd'\. Did you mean 'backend'\?"):
            Cluster(profile="p", backnd="fake")
        with pytest.raises(TypeError, match=r"'a'\. It is an option .* c\.FakeBackend\.a in"):
            Cluster(profile="p", a=1)

    def test_launchers(self, caplog: pytest.LogCaptureFixture) -> None:
        local = Cluster(engines="local", controller="Local", profile="p")
        assert local.engine_launcher_class is EngineSet
        assert not logged(caplog, level=logging.WARNING)
        assert Cluster(engines="slurm", profile="p").engine_launcher_class is EngineSet
        with pytest.raises(TypeError, match="not both"):
            Cluster(engines="local", engine_launcher_class="mpi")
        with pytest.raises(ValueError, match="no launcher 'slurm'"):
            find_launcher_class("slurm")

    def test_a_new_profile_is_made_when_it_is_needed(self, tmp_path: Path) -> None:
        cluster = Cluster(profile="new", backend="fake")
        assert not (tmp_path / "profile_new").exists()
        cluster.start_controller_sync()
        assert (tmp_path / "profile_new" / "startup").is_dir()
        cluster.stop_cluster_sync()


class TestCommandLine:
    def test_an_interrupt_that_is_seen_to_has_no_say_in_the_exit_code(self) -> None:
        code = """if True:
            import sys
            from pxcompat.cluster.app import _stop_signals
            try:
                with _stop_signals():
                    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
            except KeyboardInterrupt:
                sys.exit(3)
        """
        assert subprocess.run([sys.executable, "-c", code]).returncode == 3

    @pytest.mark.parametrize("n", [["-n", "4"], ["-n=4"], ["--n", "4"], ["--n=4"]])
    def test_engines(self, n: list[str]) -> None:
        app = PxClusterStart()
        app.parse_command_line([*n, "--backend", "fake", "--ip=*"])
        cluster = Cluster(parent=app, profile="p")
        assert (cluster.n, cluster.backend, cluster.controller_ip) == (4, "fake", "*")

    def test_common_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PXCOMPAT_N", "7")
        app = PxClusterStart()
        app.parse_command_line(["--PxCompat.n=3", "--PxCompat.start_timeout=5"])
        cluster = Cluster(parent=app, profile="p")
        assert (cluster.n, cluster._plan(0).timeout) == (3, 5)
        app.parse_command_line(["-n", "4"])
        assert Cluster(parent=app, profile="p").n == 4
        app.parse_command_line(["--PxCompat.start_timout=5"])
        with pytest.raises(SettingError, match=r"PxCompat\.start_timout; did you mean 'start_tim"):
            Cluster(parent=app, profile="p")

    def test_options_of_the_backend_are_what_they_say(self, provider: FakeProvider) -> None:
        app = PxClusterStart()
        app.parse_command_line(
            [
                "--FakeBackend.a=false",
                "--FakeBackend.b=0.5",
                "--FakeBackend.c={'max_records': 3}",
                "--FakeBackend.d=127.0.0.1:8787",
            ]
        )
        cluster = Cluster(parent=app, profile="p")
        cluster.start_controller_sync()
        options = provider.launched[0].spec.options
        cluster.stop_cluster_sync()
        expected = {"a": False, "b": 0.5, "c": {"max_records": 3}, "d": "127.0.0.1:8787"}
        assert options == expected

    @pytest.mark.parametrize("flag", ["--daemonize", "--daemonize=True", "--daemonize=true"])
    def test_daemonize(self, flag: str) -> None:
        app = PxClusterStart()
        app.parse_command_line([flag])
        assert app.daemonize

    @pytest.mark.parametrize(
        "arguments, name",
        [
            (["--profile", "p"], "p"),
            (["--profile=p"], "p"),
            (["--profile-dir", "{}/profile_p"], "p"),
            ([], "default"),
        ],
    )
    def test_profile(self, arguments: list[str], name: str, tmp_path: Path) -> None:
        app = PxClusterStart()
        app.parse_command_line([argument.format(tmp_path) for argument in arguments])
        assert app.place().name == name


class TestManager:
    def test_new_get_remove(self) -> None:
        manager = ClusterManager()
        key, cluster = manager.new_cluster(profile="p", cluster_id="a")
        assert key == "p:a"
        assert manager.get_cluster(key) is cluster
        with pytest.raises(KeyError):
            manager.new_cluster(profile="p", cluster_id="a")
        manager.remove_cluster(key)
        assert manager.clusters == {}
        with pytest.raises(KeyError):
            manager.remove_cluster(key)

    def test_finds_what_runs_and_forgets_what_ended(self) -> None:
        manager = ClusterManager()
        cluster = Cluster(n=1, profile="p", cluster_id="a")
        cluster.start_cluster_sync()
        assert list(manager.load_clusters()) == ["p:a"]
        assert list(manager.load_clusters(profile="default")) == ["p:a"]
        assert list(ClusterManager().load_clusters(profile="default")) == []
        assert list(ClusterManager().load_clusters(profile_dir=cluster.profile_dir)) == ["p:a"]
        found = manager.clusters["p:a"]
        manager.load_clusters()
        assert manager.clusters["p:a"] is found
        cluster.stop_cluster_sync()
        assert manager.load_clusters() == {}

    def test_default_clusters(self) -> None:
        clusters = ClusterManager().load_clusters(init_default_clusters=True)
        assert sorted(clusters) == ["default:", "p:"]
        assert not clusters["p:"]._is_running()

    def test_a_bad_file_is_passed_over(self, tmp_path: Path) -> None:
        security = tmp_path / "profile_p" / "security"
        security.mkdir()
        (security / "pxcompat-client.json").write_text("{")
        assert ClusterManager().load_clusters() == {}


class TestClean:
    def test_what_is_left_goes(self, tmp_path: Path) -> None:
        place = tmp_path / "profile_p"
        left = [
            place / "security" / "pxcompat-x-client.json",
            place / "security" / "cluster-abc.json",
            place / "security" / "ipcontroller-client.json",
            place / "log" / "pxcluster.log",
            place / "log" / "pxcompat" / "engine.log",
        ]
        kept = place / "security" / "other.json"
        for path in (*left, kept):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        clean_cluster_files(str(place))
        assert [path for path in left if path.exists()] == []
        assert kept.exists()

    def test_not_while_a_cluster_runs(self) -> None:
        cluster = Cluster(n=1, profile="p")
        cluster.start_cluster_sync()
        with pytest.raises(ValueError, match="still running"):
            clean_cluster_files()
        assert Path(cluster.cluster_file).exists()
        clean_cluster_files(force=True)
        assert not Path(cluster.cluster_file).exists()
        cluster.stop_cluster_sync()

    def test_not_while_ipyparallel_s_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "profile_p" / "security" / "cluster-.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"controller": {"state": {"pid": os.getpid()}}}))
        with pytest.raises(ValueError, match="still running"):
            clean_cluster_files()


@pytest.mark.parametrize("command", ["pxcluster", "ipcluster"])
def test_the_log_has_the_name_that_the_command_was_called_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # whoever starts ipcluster from a script reads its log, to see when the engines are there
    monkeypatch.setattr(sys, "argv", [f"/bin/{command}"])
    app = PxClusterStart()
    app.initialize(["--log-to-file"])
    app.log.handlers[0].close()
    (log,) = (tmp_path / "profile_default" / "log").glob("*.log")
    assert log.name == f"{command}--{os.getpid()}.log"
