"""``ipyparallel`` and ``IPython.parallel`` as names for pxcompat, in this process."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
import zmq

import pxcompat
from pxcompat import alias


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    pxcompat.disable()


@pytest.fixture
def on() -> None:
    pxcompat.enable()


@pytest.fixture
def other_ipyparallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package called ipyparallel, importable, that is not pxcompat."""
    package = tmp_path / "ipyparallel"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.0'\n")
    (package / "error.py").write_text("class RemoteError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if alias._split(name)}
    yield
    pxcompat.disable()
    for name in [name for name in sys.modules if alias._split(name)]:
        del sys.modules[name]
    sys.modules.update(before)


def python(code: str, *args: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, *args, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("on")
class TestOn:
    @pytest.mark.parametrize("root", ["ipyparallel", "IPython.parallel"])
    def test_a_module_is_the_same_object_under_every_name(self, root: str) -> None:
        import pxcompat.error
        import pxcompat.futures

        assert importlib.import_module(f"{root}.error") is pxcompat.error
        assert importlib.import_module(f"{root}.client.futures") is pxcompat.futures

    def test_an_engines_log_handler_publishes_under_its_id(self) -> None:
        from ipyparallel.engine.log import EnginePUBHandler

        engine = SimpleNamespace(id=None)
        with zmq.Context() as context, context.socket(zmq.SUB) as collector:
            collector.subscribe("")
            handler = EnginePUBHandler(engine, "inproc://log", context)
            collector.connect("inproc://log")
            for engine.id in (None, 3):
                handler.handle(
                    logging.makeLogRecord({"msg": "said", "levelname": "INFO", "levelno": 20})
                )
                assert collector.poll(5_000)
                topic = "engine.INFO" if engine.id is None else "engine.3.INFO"
                assert collector.recv_multipart() == [topic.encode(), b"said\n"]
            handler.socket.close()

    def test_every_form_of_import(self) -> None:
        import ipyparallel as ipp
        import ipyparallel.client.futures as futures
        from ipyparallel import RemoteError as same
        from ipyparallel.error import RemoteError as again
        from IPython import parallel
        from IPython.parallel import RemoteError, error

        import pxcompat

        assert ipp.RemoteError is RemoteError is same is again is error.RemoteError
        assert pxcompat.RemoteError is parallel.RemoteError is RemoteError
        assert futures.MessageFuture.__module__ == "pxcompat.futures"

    def test_submodules_are_there_without_an_import_of_their_own(self) -> None:
        import ipyparallel as ipp

        assert ipp.error.RemoteError is pxcompat.RemoteError
        assert ipp.client.futures.MessageFuture.__module__ == "pxcompat.futures"

    def test_modules_keep_their_identity(self) -> None:
        error = importlib.import_module("ipyparallel.error")
        assert error.__name__ == "pxcompat.error"
        assert error.__spec__ is not None
        assert error.__spec__.name == "pxcompat.error"

    def test_packages_here_get_no_attributes_from_the_alias(self) -> None:
        importlib.import_module("ipyparallel.client.futures")
        client = sys.modules.get("pxcompat.client")
        assert not isinstance(vars(pxcompat).get("client"), alias.Facade)
        assert client is None or not hasattr(client, "futures")

    def test_version_is_that_of_the_api(self) -> None:
        import ipyparallel

        assert ipyparallel.__version__ == alias.API_LEVEL == "9.2.0"
        assert ipyparallel.version_info == (9, 2, 0)
        assert pxcompat.__version__ == "0.1.0"
        assert pxcompat.version_info == (0, 1, 0)

    def test_code_can_ask_whether_ipyparallel_is_there(self) -> None:
        assert importlib.util.find_spec("ipyparallel") is not None
        assert importlib.util.find_spec("ipyparallel.client.view") is not None

    def test_unknown_module_says_what_there_is(self) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"ipyparallel\.controller\.hub.*dependency"):
            importlib.import_module("ipyparallel.controller.hub")
        with pytest.raises(ModuleNotFoundError, match=r"pxcompat\.disable\(\)") as caught:
            importlib.import_module("IPython.parallel.logger")
        assert caught.value.name == "IPython.parallel.logger"

    def test_ipython_makes_profiles_for_parallel_computing(self, tmp_path: Path) -> None:
        program = "import pxcompat; pxcompat.enable(); import IPython; IPython.start_ipython()"
        command = [sys.executable, "-c", program, "profile", "create", "--parallel", "x"]
        environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        config = tmp_path / "profile_x" / "pxcompat_config.py"
        assert "c.PxCompat.n = " in config.read_text()

    def test_unknown_name(self) -> None:
        with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
            from ipyparallel import nonsense  # noqa: F401
        import ipyparallel

        with pytest.raises(AttributeError, match="'ipyparallel' has no attribute 'nonsense'"):
            _ = ipyparallel.nonsense

    def test_a_name_that_only_begins_alike_is_left_alone(self) -> None:
        assert importlib.util.find_spec("ipyparallel_something") is None

    def test_threads_get_one_module(self) -> None:
        found = []
        barrier = threading.Barrier(8)

        def load() -> None:
            barrier.wait(90)
            pxcompat.enable()
            found.append(importlib.import_module("ipyparallel.client"))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert len(found) == 8
        assert all(module is found[0] for module in found)

    @pytest.mark.parametrize("key", alias.MODULES)
    def test_every_module_of_the_table_exists(self, key: str) -> None:
        for source in alias.MODULES[key]:
            importlib.import_module(source)

    def test_star_import_gives_all_that_pxcompat_has(self) -> None:
        names: dict[str, object] = {}
        exec("from ipyparallel import *", names)
        assert set(pxcompat.__all__) <= set(names)

    def test_dir_lists_names_and_submodules(self) -> None:
        import ipyparallel

        assert {"RemoteError", "error", "client", "controller"} <= set(dir(ipyparallel))


def test_a_function_that_uses_ipp_travels_to_where_the_alias_is_off() -> None:
    pxcompat.enable()
    namespace: dict[str, object] = {}
    exec("import ipyparallel as ipp\ndef f(): return ipp.error.RemoteError", namespace)
    pickled = cloudpickle.dumps(namespace["f"])
    pxcompat.disable()
    assert pickle.loads(pickled)() is pxcompat.RemoteError


@pytest.mark.usefixtures("other_ipyparallel")
class TestOverAnotherIpyparallel:
    def test_replaces_what_was_imported_and_gives_it_back(self) -> None:
        import ipyparallel
        import ipyparallel.error

        before, error = ipyparallel, ipyparallel.error
        assert before.__version__ == "1.0"
        pxcompat.enable()
        assert importlib.import_module("ipyparallel").RemoteError is pxcompat.RemoteError
        assert importlib.import_module("ipyparallel.error") is not error
        pxcompat.disable()
        assert importlib.import_module("ipyparallel") is before
        assert importlib.import_module("ipyparallel.error") is error
        assert before.error is error

    def test_hides_what_was_not_imported_and_shows_it_again(self) -> None:
        pxcompat.enable()
        assert importlib.import_module("ipyparallel").__version__ == alias.API_LEVEL
        pxcompat.disable()
        assert importlib.import_module("ipyparallel").__version__ == "1.0"


def test_twice_on_is_on_and_once_off_is_off() -> None:
    before = list(sys.meta_path)
    pxcompat.enable()
    pxcompat.enable()
    assert alias.is_enabled()
    assert len(sys.meta_path) == len(before) + 1
    pxcompat.disable()
    assert not alias.is_enabled()
    assert sys.meta_path == before
    pxcompat.disable()


def test_off_takes_the_name_out_of_ipython() -> None:
    import IPython

    pxcompat.enable()
    from IPython import parallel  # noqa: F401

    pxcompat.disable()
    assert not hasattr(IPython, "parallel")
    with pytest.raises(ImportError):
        exec("from IPython import parallel")


def test_turning_it_on_imports_nothing() -> None:
    loaded = python(
        "import sys; before = set(sys.modules)\n"
        "import pxcompat; pxcompat.enable(); import ipyparallel, ipyparallel.client\n"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    allowed = {"__future__", "importlib", "importlib._bootstrap", "importlib._bootstrap_external"}
    allowed |= {"importlib.machinery", "types", "warnings", "_warnings"}
    assert set(loaded) - allowed == {
        "pxcompat",
        "pxcompat.alias",
        "ipyparallel",
        "ipyparallel.client",
    }
