"""The command ``pxcompat``, as a shell runs it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat import v3, v4

from pxcompat.environment import PTH_LINE, PTH_NAME, Environment

PXCOMPAT = [sys.executable, "-m", "pxcompat.app"]


def pxcompat(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PXCOMPAT, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def notebook(path: Path, *cells: str) -> Path:
    content = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    nbformat.write(content, path)
    return path


def outputs(path: Path) -> list[str]:
    """Each code cell's text output, or its error's name."""
    content = nbformat.read(path, as_version=4)
    return [
        "".join(
            out.get("text") or out.get("ename") or out["data"].get("text/plain", "")
            for out in cell.outputs
        )
        for cell in content.cells
        if cell.cell_type == "code"
    ]


class TestScript:
    def test_sees_the_alias_its_arguments_and_the_options(self, tmp_path: Path) -> None:
        file = script(
            tmp_path / "job.py",
            "import os, sys, ipyparallel, IPython.parallel, helper\n"
            "env = os.environ\n"
            "print(__name__, sys.argv[1:], ipyparallel.error.__name__)\n"
            "print(env['PXCOMPAT_BACKEND'], env['PXCOMPAT_N'])\n",
        )
        script(tmp_path / "helper.py", "")
        done = pxcompat("run", file, "--backend", "dask", "-n", 3, "--", "--fast", "x")
        assert done.stdout == "__main__ ['--fast', 'x'] pxcompat.error\ndask 3\n"
        assert done.returncode == 0

    @pytest.mark.parametrize("suffix", [".py", ".ipy"])
    def test_exit_code_is_the_scripts(self, tmp_path: Path, suffix: str) -> None:
        file = script(tmp_path / f"job{suffix}", "import sys\nsys.exit(7)\n")
        done = pxcompat("run", file)
        assert (done.returncode, done.stdout, done.stderr) == (7, "", "")

    def test_an_exception_is_shown_from_the_script_on(self, tmp_path: Path) -> None:
        file = script(tmp_path / "job.py", "def f():\n    raise ValueError('boom')\nf()\n")
        done = pxcompat("run", file)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[1].strip().startswith(f'File "{file}", line 3')
        assert lines[-1] == "ValueError: boom"

    def test_ipython_syntax(self, tmp_path: Path) -> None:
        file = script(
            tmp_path / "job.ipy",
            "import asyncio, sys, ipyparallel\nx = !echo shell\nawait asyncio.sleep(0)\n"
            "print(x, sys.argv[1:])\n1/0\n",
        )
        done = pxcompat("run", file, "--", "--a")
        assert done.stdout.startswith("['shell'] ['--a']\n")
        assert "ZeroDivisionError: division by zero" in done.stdout
        assert done.returncode == 1

    def test_ctrl_c(self, tmp_path: Path) -> None:
        file = script(
            tmp_path / "job.py", "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
        )
        process = subprocess.Popen(
            [*PXCOMPAT, "run", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a suite that runs in the background of a script ignores it, and its children do
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(90) == 130


class TestNotebook:
    def test_output_that_grows_is_shown_to_its_end(self, tmp_path: Path) -> None:
        file = notebook(
            tmp_path / "job.ipynb",
            "from IPython.display import display\n"
            "shown = display({'text/plain': '[stdout:0] one\\n'}, raw=True, display_id=True)\n"
            "shown.update({'text/plain': '[stdout:0] one\\ntwo\\n'}, raw=True)",
            "shown.update({'text/plain': '[stdout:0] one\\ntwo\\nthree\\n'}, raw=True)",
        )
        done = pxcompat("run", file)
        assert done.stdout == "[stdout:0] \none\ntwo\n[stdout:0] \nthree\n"

    def test_outputs_and_plots_are_shown_and_saved(self, tmp_path: Path) -> None:
        file = notebook(
            tmp_path / "job.ipynb",
            "import os, ipyparallel as ipp\nprint(ipp.error.__name__, os.environ['PXCOMPAT_N'])",
            "os.getcwd()",
            "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        )
        before = file.read_bytes()
        done = pxcompat("run", file, "-n", 2)
        assert done.returncode == 0, done.stderr
        plot = tmp_path / "job.out_files" / "cell-03.png"
        assert done.stdout.splitlines() == [
            "pxcompat.error 2",
            repr(str(tmp_path)),
            f"[plot: {plot}]",
        ]
        assert plot.read_bytes().startswith(b"\x89PNG")
        executed = tmp_path / "job.out.ipynb"
        assert outputs(executed)[:2] == ["pxcompat.error 2\n", repr(str(tmp_path))]
        assert "image/png" in executed.read_text()
        assert str(executed) in done.stderr
        assert file.read_bytes() == before

    def test_a_failing_cell_ends_it(self, tmp_path: Path) -> None:
        file = notebook(tmp_path / "job.ipynb", "print('before')", "1/0", "print('after')")
        out = tmp_path / "result.ipynb"
        done = pxcompat("run", file, "--output", out)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "----> 1 1/0" in done.stderr
        assert "Cell 2 of 3 failed: ZeroDivisionError: division by zero" in done.stderr
        assert outputs(out) == ["before\n", "ZeroDivisionError", ""]
        assert not (tmp_path / "job.out.ipynb").exists()

    def test_allow_errors_goes_on(self, tmp_path: Path) -> None:
        file = notebook(tmp_path / "job.ipynb", "1/0", "print('after')")
        done = pxcompat("run", file, "--allow-errors")
        assert done.returncode == 0
        assert done.stdout == "after\n"
        assert "Cell 1 of 2 failed" in done.stderr
        assert outputs(tmp_path / "job.out.ipynb") == ["ZeroDivisionError", "after\n"]

    def test_nbformat_3(self, tmp_path: Path) -> None:
        old = v3.new_notebook(
            worksheets=[
                v3.new_worksheet(
                    cells=[
                        v3.new_heading_cell("Old"),
                        v3.new_code_cell("from IPython import parallel\nparallel.error"),
                    ]
                )
            ]
        )
        file = script(tmp_path / "old.ipynb", nbformat.v3.writes_json(old))
        done = pxcompat("run", file)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("<module 'pxcompat.error'")
        assert (
            nbformat.read(tmp_path / "old.out.ipynb", as_version=nbformat.NO_CONVERT).nbformat == 4
        )

    def test_a_kernel_that_dies(self, tmp_path: Path) -> None:
        file = notebook(tmp_path / "job.ipynb", "print(1)", "import os; os._exit(3)", "print(2)")
        done = pxcompat("run", file)
        assert done.returncode == 1
        assert "The kernel died" in done.stderr
        assert outputs(tmp_path / "job.out.ipynb") == ["1\n", "", ""]

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_kernel_and_what_it_started(
        self, tmp_path: Path, signum: signal.Signals
    ) -> None:
        file = notebook(
            tmp_path / "job.ipynb",
            "import subprocess, time\n"
            "p = subprocess.Popen(['sleep', '60'], start_new_session=True,"
            " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
            "print('ready', flush=True)\ntime.sleep(60)",
            "print('not this')",
        )
        process = subprocess.Popen(
            [*PXCOMPAT, "run", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            family = psutil.Process(process.pid).children(recursive=True)
            assert "sleep" in {member.name() for member in family}
            process.send_signal(signum)
            assert process.wait(90) == 128 + signum
            assert "KeyboardInterrupt" in process.stderr.read()
        assert psutil.wait_procs(family, timeout=90)[1] == []
        assert outputs(tmp_path / "job.out.ipynb") == ["ready\nKeyboardInterrupt", ""]


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("none.py", None, "cannot read none.py: No such file or directory"),
            ("none.ipynb", None, "cannot read none.ipynb: No such file or directory"),
            ("text.txt", "", "text.txt is no .ipynb, .py or .ipy file"),
            ("a.ipynb", "x", "a.ipynb is not a notebook: it is not JSON"),
            ("a.ipynb", "{}", "a.ipynb is not a notebook: it has no nbformat"),
            ("a.ipynb", '{"nbformat": 99}', "a.ipynb is not a valid notebook: "),
            (
                "a.ipynb",
                '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"x": 1}]}',
                "a.ipynb is not a valid notebook: ",
            ),
            (
                "a.ipynb",
                '{"nbformat": 4, "nbformat_minor": 4, "cells": [], "metadata":'
                ' {"kernelspec": {"language": "R", "name": "ir", "display_name": "R"}}}',
                "a.ipynb is a notebook in R, not in Python",
            ),
        ],
    )
    def test_file(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        content: str | None,
        says: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if content is not None:
            (tmp_path / name).write_text(content)
        self._refused(says, name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if content else []) or (
            content == ""
        )

    def test_options(self, tmp_path: Path) -> None:
        book = notebook(tmp_path / "job.ipynb", "print(1)")
        file = script(tmp_path / "job.py", "print(1)")
        self._refused("no backend is called 'bogus'", book, "--backend", "bogus")
        self._refused("a notebook takes no arguments", book, "--", "x")
        self._refused("--output and --allow-errors are for notebooks", file, "--allow-errors")
        self._refused(f"cannot write {tmp_path}: it is a folder", book, "--output", tmp_path)
        missing = tmp_path / "none" / "out.ipynb"
        self._refused(f"cannot write {missing}: No such file", book, "--output", missing)

    def _refused(self, says: str, *args: object) -> None:
        done = pxcompat("run", *args)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"Error: {says}")
        assert len(done.stderr.splitlines()) == 1


class TestEnvironment:
    @pytest.fixture
    def environment(self, tmp_path: Path) -> Environment:
        found = Environment(tmp_path / "packages", tmp_path / "bin")
        found.packages.mkdir()
        found.scripts.mkdir()
        return found

    def import_in_new_interpreter(self, environment: Environment, name: str) -> str:
        """The file that ``name`` comes from where site.py reads the environment's .pth."""
        code = (
            f"import site; site.addsitedir({str(environment.packages)!r})\n"
            f"import {name}; print({name}.__file__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == ""
        return done.stdout.strip()

    def test_on_and_off(self, environment: Environment) -> None:
        environment.enable()
        environment.enable()
        assert (environment.packages / PTH_NAME).read_text() == PTH_LINE
        assert PTH_LINE.count("\n") == 1
        assert self.import_in_new_interpreter(environment, "ipyparallel").endswith(
            os.path.join("pxcompat", "__init__.py")
        )
        environment.disable()
        assert list(environment.packages.iterdir()) == list(environment.scripts.iterdir()) == []
        assert environment.disable() == ["alias off: it was not on"]

    def test_interpreters_start_where_pxcompat_was_uninstalled(
        self, environment: Environment
    ) -> None:
        environment.enable()
        blocked = PTH_LINE.replace("import pxcompat.alias", "import pxcompat_gone.alias")
        (environment.packages / PTH_NAME).write_text(blocked)
        assert self.import_in_new_interpreter(environment, "json").endswith("__init__.py")

    def test_offers_ipcluster(self, environment: Environment) -> None:
        said = environment.enable()
        assert any(str(environment.ipcluster) in line for line in said)
        assert f"{environment.ipcluster} starts pxcluster" in "\n".join(environment.status())
        done = subprocess.run(
            [environment.ipcluster, "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "start" in done.stdout

    @pytest.mark.parametrize("kind", ["file", "dangling link"])
    def test_leaves_another_ipcluster_alone(self, environment: Environment, kind: str) -> None:
        if kind == "file":
            environment.ipcluster.write_text("somebody else's")
        else:
            environment.ipcluster.symlink_to("nowhere")
        said = environment.enable()
        assert any("use pxcluster" in line for line in said)
        assert "is not pxcompat's" in "\n".join(environment.status())
        environment.disable()
        if kind == "file":
            assert environment.ipcluster.read_text() == "somebody else's"
        else:
            assert environment.ipcluster.is_symlink()

    def test_status(self, environment: Environment) -> None:
        status = dict(line.split(maxsplit=1) for line in environment.status())
        assert status["alias"] == "off"
        assert status["ipyparallel"].startswith("9.2.0 installed at ")
        assert status["import"] == "`import ipyparallel` gives the installed ipyparallel"
        assert status["ipcluster"].startswith("none in this environment")
        environment.enable()
        status = dict(line.split(maxsplit=1) for line in environment.status())
        assert status["alias"].startswith(f"on: {environment.pth}")
        # this interpreter had started before
        assert "this interpreter did not read it" in status["alias"]
        environment.pth.write_text("import this\n")
        status = dict(line.split(maxsplit=1) for line in environment.status())
        assert "not as this version writes it" in status["alias"]

    def test_a_start_takes_milliseconds_longer_at_most(self, environment: Environment) -> None:
        code = (
            "import sys, time; t = time.process_time(); exec(sys.argv[1]);"
            " print(time.process_time() - t)"
        )
        took = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code, PTH_LINE],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=True,
                ).stdout
            )
            for _ in range(5)
        ]
        assert min(took) < 0.02


class TestKernelInstall:
    def test_into_a_folder_with_settings(self, tmp_path: Path) -> None:
        options = ["--backend", "dask", "-n", "3", "--name", "mine", "--display-name", "Mine"]
        done = pxcompat("kernel", "install", "--prefix", tmp_path, *options)
        folder = tmp_path / "share" / "jupyter" / "kernels" / "mine"
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Kernel 'mine' is in {folder}" in done.stdout
        spec = json.loads((folder / "kernel.json").read_text())
        assert spec["env"] == {"PXCOMPAT_BACKEND": "dask", "PXCOMPAT_N": "3"}
        assert (spec["display_name"], spec["language"]) == ("Mine", "python")
        assert spec["argv"][1:] == ["-m", "pxcompat.kernel", "-f", "{connection_file}"]

    def test_for_the_user(self, tmp_path: Path) -> None:
        done = pxcompat("kernel", "install", "--user", JUPYTER_DATA_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "kernels" / "pxcompat" / "kernel.json").exists()

    @pytest.mark.parametrize(
        "options, why",
        [
            (["--name", "a b"], "Invalid kernel name"),
            (["--backend", "abacus"], "abacus"),
            (["--user", "--prefix", "x"], "two places"),
            (["--prefix", "/dev/null/x"], "cannot write"),
        ],
    )
    def test_what_cannot_be_done(self, tmp_path: Path, options: list[str], why: str) -> None:
        done = pxcompat("kernel", "install", *options, JUPYTER_DATA_DIR=str(tmp_path))
        assert done.returncode == 2
        assert why in done.stderr and len(done.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir())
