"""Collects ipyparallel's test modules from its wheel and gives them upstream's fixtures.

The modules are copied, when they are collected, into a temporary package ``ipp_upstream`` whose
``__init__`` is ``adapter.py``, and given more patience (``LIMIT``); nothing of ipyparallel's is
kept here. While they are imported and run, the name ``ipyparallel`` means pxcompat, in this
process and on the engines.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from IPython.core.profiledir import ProfileDir
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from traitlets.config import Config

import pxcompat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
#: ``dask``, ``ray`` ..., or ``ipyparallel`` itself: what the tests say of the original, here
BACKEND = os.environ.get("PXCOMPAT_TEST_BACKEND", "dask")
PACKAGE = "ipp_upstream"
#: seconds, whole ones, after which a test gives up: ten times as many, since machines that are
#: shared take them.  What is shorter is what a test is about.
LIMIT = re.compile(
    r"(\.(?:get|wait|wait_for_output)\("
    r"|\.(?:get|wait|wait_interactive|wait_for_engines)\([^()\n]*\btimeout="
    r"|\bdef \w+\([^()\n]*\btimeout="
    r"|^ *(?:test_|_)?timeout = )"
    r"([1-9]\d*)(?=[,)\n])",
    re.MULTILINE,
)
pytest.register_assert_rewrite(PACKAGE)


def _read(name: str) -> dict[str, dict[str, str]]:
    return tomllib.loads((HERE / name).read_text())


EXCLUDED = _read("exclusions.toml")
PENDING = _read("pending.toml")


# -- the temporary package -----------------------------------------------------------------------


@functools.cache
def _upstream_folder() -> Path:
    """Where the installed ipyparallel keeps its tests; never imports ipyparallel."""
    return Path(str(distribution("ipyparallel").locate_file("ipyparallel/tests")))


@functools.cache
def _package_folder() -> Path:
    """A new folder with the package ``ipp_upstream`` in it; on ``sys.path`` from now on."""
    folder = Path(tempfile.mkdtemp(prefix="pxcompat-upstream-"))
    package = folder / PACKAGE
    package.mkdir()
    for source in _upstream_folder().glob("*.py"):
        if source.name not in ("__init__.py", "conftest.py"):
            text = LIMIT.sub(r"\1\g<2>0", source.read_text())
            (package / source.name).write_text(text)
    shutil.copy(HERE / "adapter.py", package / "__init__.py")
    if BACKEND != "ipyparallel":
        # for the commands that tests start: `python -m ipyparallel.cluster ...`
        (folder / "sitecustomize.py").write_text("import pxcompat\n\npxcompat.enable()\n")
    sys.path.append(str(folder))
    return folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if _package_folder.cache_info().currsize:
        shutil.rmtree(_package_folder(), ignore_errors=True)


# -- collection ----------------------------------------------------------------------------------


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    if module_path == HERE / "test_upstream.py":
        return UpstreamSuite.from_parent(parent, path=module_path)
    return None


class UpstreamSuite(pytest.File):
    """Every upstream test module, less those that are excluded as a whole."""

    def collect(self) -> Iterable[UpstreamModule]:
        present = {path.name for path in _upstream_folder().glob("test_*.py")}
        for listed in (EXCLUDED["modules"], *_by_module()):
            if unknown := set(listed) - present:
                raise self.CollectError(f"no such upstream module: {', '.join(sorted(unknown))}")
        package = _package_folder() / PACKAGE
        for name in sorted(present - set(EXCLUDED["modules"])):
            yield UpstreamModule.from_parent(self, path=package / name)


class UpstreamModule(pytest.Module):
    """One upstream test module, imported while ``ipyparallel`` means pxcompat."""

    def _getobj(self) -> ModuleType:
        with _aliased():
            return importlib.import_module(f"{PACKAGE}.{self.path.stem}")

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        children = super().collect()
        for listed in _by_module():
            for test in listed.get(self.path.name, ()):
                if not _has(self.obj, test.split("[")[0].split("::")):
                    raise self.CollectError(f"listed, but no such test: {self.path.name}::{test}")
        return children


def _has(obj: object, names: list[str]) -> bool:
    try:
        functools.reduce(getattr, names, obj)
    except AttributeError:
        return False
    return True


def _by_module() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The excluded and the pending tests, as module name -> names within the module."""
    tables: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for table, names in zip(tables, (EXCLUDED["tests"], PENDING["tests"]), strict=True):
        for name in names:
            module, _, test = name.partition("::")
            table.setdefault(module, []).append(test)
    return tables


def _upstream_id(item: pytest.Item) -> str | None:
    """``test_view.py::TestView::test_push``; None for a test of another suite."""
    if item.getparent(UpstreamSuite) is None:
        return None
    return item.nodeid.partition("test_upstream.py::")[2] or item.nodeid.rpartition("/")[2]


def _reason(table: dict[str, str], name: str) -> str | None:
    """What a table says of a test, named with its parameters or without."""
    return table.get(name) or table.get(name.split("[")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = _upstream_id(item)
        if name is None:
            continue
        item.add_marker(pytest.mark.slow)
        if reason := _reason(EXCLUDED["tests"], name):
            item.add_marker(pytest.mark.skip(reason=f"excluded: {reason}"))
            item.user_properties.append(("upstream", "excluded"))
            continue
        item.user_properties.append(("upstream", "run"))
        if reason := _reason(PENDING["tests"], name):
            item.add_marker(pytest.mark.xfail(reason=f"pending: {reason}", strict=False))


# -- the summary ---------------------------------------------------------------------------------


def _tests_in(path: Path) -> int:
    """How many test functions a module defines; parameters are not counted."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum(isinstance(node, kinds) and node.name.startswith("test_") for node in nodes)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: Counter[str] = Counter()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            kind = dict(getattr(report, "user_properties", ())).get("upstream")
            if kind == "excluded":
                counts["excluded"] += 1
            elif kind == "run" and outcome in ("passed", "xpassed") and report.when == "call":
                counts["passed"] += 1
            elif kind == "run" and outcome in ("failed", "error", "skipped", "xfailed"):
                counts[outcome] += 1
    if not counts:
        return
    whole = [_upstream_folder() / name for name in EXCLUDED["modules"]]
    counts["excluded"] += sum(map(_tests_in, whole))
    others = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()) if name != "passed")
    total = sum(counts.values())
    terminalreporter.write_line(f"upstream: {counts['passed']} passed of {total} ({others})")


# -- upstream's fixtures -------------------------------------------------------------------------


@contextmanager
def _aliased() -> Iterator[None]:
    """While entered, the name ``ipyparallel`` means pxcompat."""
    if BACKEND == "ipyparallel":
        yield
        return
    pxcompat.enable()
    try:
        # again: disable() takes every ipyparallel.* away, what the adapter put there included
        importlib.import_module(PACKAGE).register()
        yield
    finally:
        pxcompat.disable()


@pytest.fixture(scope="module", autouse=True)
def ipython_dir() -> Iterator[str]:
    """A private IPython folder a module, the alias on, and the package in the engines' path.

    In a folder for temporary files of its own, where some tests have their profile: two runs at
    the same time would take one another's clusters for theirs.
    """
    path = os.pathsep.join(filter(None, (str(_package_folder()), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="px", ignore_cleanup_errors=True) as temporary:
        folder = os.path.join(temporary, ".ipython")
        os.mkdir(folder)
        changes = {"IPYTHONDIR": folder, "PYTHONPATH": path, "TMPDIR": temporary}
        with (
            mock.patch.dict(os.environ, changes),
            mock.patch.object(tempfile, "tempdir", temporary),
            _aliased(),
        ):
            ProfileDir.create_profile_dir_by_name(folder, name="default")
            yield folder


@pytest.fixture(scope="module")
def cluster(ipython_dir: str) -> Iterator[None]:
    adapter = importlib.import_module(PACKAGE)
    try:
        adapter.setup()
        yield
    finally:
        adapter.teardown()


@pytest.fixture(scope="module")
def ipython(ipython_dir: str) -> Iterator[TerminalInteractiveShell]:
    config = Config()
    config.TerminalInteractiveShell.simple_prompt = True
    config.TerminalInteractiveShell.colors = "nocolor"
    config.TerminalInteractiveShell.autocall = 0
    config.HistoryManager.enabled = False
    yield TerminalInteractiveShell.instance(config=config)
    TerminalInteractiveShell.clear_instance()


@pytest.fixture
def ipython_interactive(ipython: TerminalInteractiveShell) -> Iterator[TerminalInteractiveShell]:
    """The shell, with ``get_ipython`` among the builtins."""
    with ipython.builtin_trap:
        yield ipython


@pytest.fixture(autouse=True)
def Context() -> Iterator[Any]:
    """The ZeroMQ context that the tests hand to Client(context=...), which takes no notice."""
    import zmq

    context = zmq.Context.instance()
    yield context
    context.destroy()


@pytest.fixture
def engine_launcher_class() -> str:
    return "local"


@pytest.fixture
def controller_launcher_class() -> str:
    return "local"


@pytest.fixture
def cluster_config() -> Config:
    return Config()


@pytest.fixture
def Cluster(
    request: pytest.FixtureRequest, ipython_dir: str, cluster_config: Config
) -> Callable[..., Any]:
    """Makes clusters that are stopped when the test ends."""

    def make(**kwargs: Any) -> Any:
        log = logging.getLogger(__name__)
        log.setLevel(logging.DEBUG)
        log.handlers = [logging.StreamHandler(sys.stdout)]
        kwargs["log"] = log
        if BACKEND != "ipyparallel":
            kwargs.setdefault("backend", BACKEND)
        kwargs.setdefault("config", cluster_config)
        kwargs.setdefault("load_profile", False)
        made = importlib.import_module("ipyparallel").Cluster(**kwargs)
        request.addfinalizer(made.stop_cluster_sync)
        return made

    return make
