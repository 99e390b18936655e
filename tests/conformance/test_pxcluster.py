"""The command ``pxcluster``: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from ..common import wait_until
from .conftest import BACKENDS

pytestmark = pytest.mark.slow

STARTED = "Engines appear to have started successfully"
HEADER = ["PROFILE", "CLUSTER", "ID", "BACKEND", "ENGINES", "PID", "ADDRESS"]
TIMEOUT = 150


class Command:
    """``pxcluster`` in an IPython directory of its own."""

    def __init__(self, ipython_dir: Path, temporary: Path, backend: str) -> None:
        self.ipython_dir = ipython_dir
        #: where temporary files go
        self.temporary = temporary
        self.backend = backend
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PXCOMPAT_", "IPP_"))
        }
        self.environment["IPYTHONDIR"] = str(ipython_dir)
        self.environment["PXCOMPAT_BACKEND"] = backend
        self.environment["TMPDIR"] = str(temporary)

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pxcompat.cluster", *arguments]

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run it to its end; its stdout and stderr."""
        done = subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def foreground(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments), env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def rows(self) -> list[list[str]]:
        """What ``list`` shows: profile, cluster id, backend, engines, pid, address."""
        header, *rows = self("list")[0].splitlines()
        assert header.split() == HEADER
        return [row.split() for row in rows]

    def security(self, profile: str = "default") -> Path:
        return self.ipython_dir / f"profile_{profile}" / "security"

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def processes_of(ipython_dir: Path) -> list[psutil.Process]:
    """Every process that was started with this IPython directory, zombies aside."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("IPYTHONDIR") == str(ipython_dir):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(params=BACKENDS)
def pxcluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    with tempfile.TemporaryDirectory(prefix="px-") as temporary:
        yield Command(tmp_path, Path(temporary), request.param)
        # a process that was killed needs a moment to go
        try:
            wait_until(lambda: not processes_of(tmp_path))
        finally:
            left = [(process, process.cmdline()) for process in processes_of(tmp_path)]
            for process, _ in left:
                process.kill()
            assert left == [], "processes outlived their cluster"


def assert_nothing_left(pxcluster: Command) -> None:
    """A cluster that was stopped left no process, connection file or temporary file."""
    wait_until(lambda: not processes_of(pxcluster.ipython_dir))
    assert list(pxcluster.security().glob("*.json")) == []
    assert list(pxcluster.temporary.glob("pxcompat-*")) == []


def wait_for_line(stream: IO[str] | None, text: str) -> str:
    """Read until a line has ``text``; what was read."""
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended without {text!r}:\n{seen}")


@pytest.fixture
def daemon(pxcluster: Command) -> Iterator[Command]:
    """A cluster of two engines in the background."""
    pxcluster("start", "-n", "2", "--daemonize")
    yield pxcluster
    pxcluster("stop", "--all")


def test_a_daemon_s_life(pxcluster: Command) -> None:
    out, err = pxcluster("start", "-n", "2", "--daemonize")
    assert out == ""
    assert STARTED in err
    path = pxcluster.security() / "pxcompat-client.json"
    assert f"Leaving cluster running: {path}" in err
    assert path.stat().st_mode & 0o777 == 0o600

    ((profile, cluster_id, backend, engines, pid, address),) = pxcluster.rows()
    assert (profile, cluster_id, backend, engines) == ("default", "''", pxcluster.backend, "2")
    assert psutil.pid_exists(int(pid))
    assert address == json.loads(path.read_text())["info"]["address"]

    assert "Stopping cluster '' of profile 'default'" in pxcluster("stop")[1]
    assert [p.cmdline() for p in processes_of(pxcluster.ipython_dir)] == []
    assert_nothing_left(pxcluster)


def test_flags_as_ipcluster_takes_them(pxcluster: Command) -> None:
    pxcluster("start", "--n", "1", "--daemonize=True", "--profile", "x", "--cluster-id=y")
    assert [row[:2] + row[3:4] for row in pxcluster.rows()] == [["x", "y", "1"]]
    assert (pxcluster.security("x") / "pxcompat-y-client.json").exists()
    pxcluster("stop", "--profile=x", code=11)
    pxcluster("stop", "--profile=x", "--cluster-id", "y")


def test_flags_without_a_meaning_are_warned_of(pxcluster: Command) -> None:
    _, err = pxcluster(
        "start",
        "-n",
        "1",
        "--daemonize",
        "--engines=Slurm",
        "--delay=3",
        "--nonsense",
        "3",
        "--IPController.hwm=1",
        "--",
        "--sqlitedb",
    )
    assert STARTED in err
    for warned in ("'Slurm'", "nonsense", "IPController", "--sqlitedb"):
        assert re.search(f"WARNING.*{warned}", err), warned
    pxcluster("stop")


def test_two_clients_see_one_cluster(daemon: Command) -> None:
    client = "import pxcompat as ipp; rc = ipp.Client(); "
    assert daemon.python(client + "rc[:].push({'a': 7}); print(rc.ids)") == "[0, 1]"
    assert daemon.python(client + "print(rc[:]['a'])") == "[7, 7]"
    assert daemon.rows()[0][3] == "2"


def test_a_second_start_is_refused(daemon: Command) -> None:
    for more in ((), ("--daemonize",)):
        _, err = daemon("start", "-n", "1", *more, code=10)
        assert "running already" in err
        assert "pxcluster stop" in err
    assert daemon.rows()[0][3] == "2"
    daemon("start", "-n", "1", "--cluster-id=other", "--daemonize")
    assert [row[1] for row in daemon.rows()] == ["''", "other"]


def test_more_engines(daemon: Command) -> None:
    assert STARTED in daemon("engines", "-n", "1", "--daemonize")[1]
    assert daemon.rows()[0][3] == "3"


def test_more_engines_until_ctrl_c(daemon: Command) -> None:
    with daemon.foreground("engines", "-n", "1") as engines:
        wait_for_line(engines.stderr, STARTED)
        assert daemon.rows()[0][3] == "3"
        engines.send_signal(signal.SIGINT)
        engines.communicate(timeout=TIMEOUT)
    assert engines.returncode == 0
    assert daemon.rows()[0][3] == "2"


def test_no_cluster_for_engines(pxcluster: Command) -> None:
    assert "no cluster is running" in pxcluster("engines", "-n", "1", code=12)[1]


def test_list_as_json(daemon: Command) -> None:
    out, _ = daemon("list", "-o", "json")
    (described,) = json.loads(out)
    assert described["cluster"]["backend"] == daemon.backend
    assert described["engines_up"] == 2
    assert [s["n"] for s in described["engines"]["sets"].values()] == [2]
    assert "PRIVATE KEY" not in out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "stop"])
def test_the_foreground(pxcluster: Command, how: signal.Signals | str) -> None:
    with pxcluster.foreground("start", "-n", "1") as start:
        wait_for_line(start.stderr, STARTED)
        assert pxcluster.rows()[0][4] == str(start.pid)
        if isinstance(how, signal.Signals):
            start.send_signal(how)
        else:
            assert "does not end" not in pxcluster("stop")[1]
        _, err = start.communicate(timeout=TIMEOUT)
    assert start.returncode == 0
    assert "Stopping the cluster" in err
    assert "Traceback" not in err
    assert_nothing_left(pxcluster)


@pytest.mark.parametrize("daemonize", [False, True])
def test_ctrl_c_while_it_starts(pxcluster: Command, daemonize: bool) -> None:
    with pxcluster.foreground("start", "-n", "2", *(["--daemonize"] * daemonize)) as start:
        wait_for_line(start.stderr, f"Starting a {pxcluster.backend} cluster")
        wait_until(lambda: psutil.Process(start.pid).children())
        start.send_signal(signal.SIGINT)
        _, err = start.communicate(timeout=TIMEOUT)
    assert start.returncode == (1 if daemonize else 0), err
    assert "Traceback" not in err
    assert_nothing_left(pxcluster)


@pytest.mark.parametrize("daemonize", [False, True])
def test_a_cluster_that_dies_takes_its_holder_along(pxcluster: Command, daemonize: bool) -> None:
    start = pxcluster.foreground("start", "-n", "1", *(["--daemonize"] * daemonize))
    with start:
        wait_for_line(start.stderr, STARTED)
        path = pxcluster.security() / "pxcompat-client.json"
        content = json.loads(path.read_text())
        holder = psutil.Process(content["pid"])
        os.kill(content["info"]["pid"], signal.SIGKILL)
        # psutil and Popen both want the end of the foreground's process
        if daemonize:
            holder.wait(TIMEOUT)
        _, err = start.communicate(timeout=TIMEOUT)
    assert not path.exists()
    if not daemonize:
        assert start.returncode == 1
        assert "ended by itself" in err
    for process in processes_of(pxcluster.ipython_dir):
        process.wait(TIMEOUT)


def test_a_daemon_that_was_killed_is_cleaned_up_after(pxcluster: Command) -> None:
    pxcluster("start", "-n", "1", "--daemonize")
    for code, arguments in ((11, ["stop"]), (0, ["list"])):
        path = pxcluster.security() / "pxcompat-client.json"
        holder = psutil.Process(json.loads(path.read_text())["pid"])
        members = [holder, *holder.children(recursive=True)]
        holder.kill()
        psutil.wait_procs(members, TIMEOUT)
        assert path.exists()
        _, err = pxcluster(*arguments, code=code)
        assert "gone" in err
        assert not path.exists()
        pxcluster("start", "-n", "1", "--daemonize")
    pxcluster("stop")


def test_nothing_to_stop(pxcluster: Command) -> None:
    assert "no cluster is running" in pxcluster("stop", code=11)[1]
    assert "No clusters to stop" in pxcluster("stop", "--all")[1]
    assert "no IPython profile 'nope'" in pxcluster("stop", "--profile=nope", code=1)[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["start", "-n", "abc"], "'abc'"),
        (["start", "--backend=dsak"], "'dsak': no such backend; there are dask"),
        (["list", "--profile=nope"], "no IPython profile 'nope'"),
        (["stop", "--profile-dir=/nowhere"], "no profile directory /nowhere"),
        (["start", "--log-level=LOUD"], "'LOUD'"),
        (["start", "--config=/nowhere.py"], "/nowhere.py: ConfigFileNotFound"),
        (["start", "--work-dir=/nowhere"], "No such file or directory: '/nowhere'"),
        (["start", "-s", "/nowhere.py"], "No such file or directory: '/nowhere.py'"),
        (["start", "--ip=203.0.113.9"], "this machine cannot listen at '203.0.113.9'"),
        (["start", "--ip=203.0.113.9", "--daemonize"], "cannot listen at '203.0.113.9'"),
        (["clean", "--profile=nope"], "no IPython profile 'nope'"),
        (["bogus"], ""),
        ([], ""),
    ],
)
def test_bad_arguments(pxcluster: Command, arguments: list[str], said: str) -> None:
    out, err = pxcluster(*arguments, code=1)
    assert said in err
    assert "Traceback" not in err
    if not said:
        assert "There are: start, stop, engines, list, clean, create" in out


def test_options_that_are_not_used_are_warned_of(daemon: Command) -> None:
    of_other = ["--RayBackend.patience=3", "--DaskBackend.port=0", "--OtherBackend.x=1"]
    err = daemon("engines", "-n", "1", "--daemonize", *of_other, "more")[1]
    for section in ("RayBackend", "DaskBackend"):
        assert f"Options of {section} are not used: the cluster runs already" in err
    assert "Options of OtherBackend are not used: pxcompat has no such part" in err
    assert "Not used, as they are no flags: more" in err
    assert ", not on 'other'" in daemon("engines", "--backend=other", code=1)[1]
    err = daemon("start", *of_other, code=10)[1]
    (said,) = (line for line in err.splitlines() if "the cluster is to be on" in line)
    assert "RayBackend" in said or "DaskBackend" in said


@pytest.mark.parametrize("command", ["list", "clean"])
def test_a_profile_is_named_by_its_flag(pxcluster: Command, command: str) -> None:
    assert "--profile=NAME; not 'mine'" in pxcluster(command, "mine", code=2)[1]


def test_a_start_that_fails_leaves_nothing(pxcluster: Command) -> None:
    pxcluster.environment["PXCOMPAT_START_TIMEOUT"] = "0.001"
    for more in ((), ("--daemonize",)):
        _, err = pxcluster("start", "-n", "1", *more, code=1)
        assert "CRITICAL" in err
        assert list(pxcluster.security().glob("*.json")) == []


def test_create(pxcluster: Command) -> None:
    out, _ = pxcluster("create", "mine")
    path = Path(out.strip())
    assert path == pxcluster.ipython_dir / "profile_mine" / "pxcompat_config.py"
    assert "# c.PxCompat.n = None" in path.read_text()
    path.write_text("c.PxCompat.n = 1")
    assert "--force" in pxcluster("create", "--profile=mine", code=1)[1]
    assert path.read_text() == "c.PxCompat.n = 1"
    pxcluster("start", "--profile=mine", "--daemonize")
    assert pxcluster.rows()[0][3] == "1"
    pxcluster("stop", "--profile=mine")
    pxcluster("create", "mine", "--force")
    assert "# c.PxCompat.n" in path.read_text()


def test_clean(daemon: Command) -> None:
    log = daemon.ipython_dir / "profile_default" / "log" / "old.log"
    log.write_text("old")
    assert "still running" in daemon("clean", code=1)[1]
    assert log.exists()
    daemon("stop")
    daemon("clean")
    assert not log.exists()


def test_a_cluster_of_a_program_is_stopped_without_it(pxcluster: Command) -> None:
    """Its process has other things to do than to hold the cluster."""
    program = """if True:
        import sys
        import pxcompat as ipp
        cluster = ipp.Cluster(n=1, cluster_id="")
        cluster.start_cluster_sync()
        print("up", flush=True)
        sys.stdin.readline()
        print(cluster.controller.state)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=pxcluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_line(process.stdout, "up")
        pxcluster("stop")
        assert pxcluster.rows() == []
        out, _ = process.communicate("go on\n", timeout=TIMEOUT)
    assert process.returncode == 0
    assert out == "after\n"


def test_a_cluster_may_outlive_the_program_that_started_it(pxcluster: Command) -> None:
    pid = pxcluster.python("""if True:
        import os
        import pxcompat as ipp
        cluster = ipp.Cluster(n=1, cluster_id="", shutdown_atexit=False)
        with cluster.start_and_connect_sync() as rc:
            print(rc[0].apply_sync(os.getpid))
    """)
    assert (
        pxcluster.python("""if True:
        import os
        import pxcompat as ipp
        print(ipp.Client()[0].apply_sync(os.getpid))
    """)
        == pid
    )
    pxcluster("stop")


def test_a_cluster_ends_with_the_program_that_started_it(pxcluster: Command) -> None:
    pxcluster.python("""if True:
        import pxcompat as ipp
        ipp.Cluster(n=1, cluster_id="").start_cluster_sync()
    """)
    assert_nothing_left(pxcluster)
