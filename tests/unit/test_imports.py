"""What may import what, what an import costs, and what is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pxcompat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = {"pxcompat": "pxcompat", "pxcompat.backends": "backends", "pxcompat.magics": "magics"}
ENGINES = {"dask", "distributed", "ray"}


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and file of everything that is installed."""
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            below = file.relative_to(ROOT / folder).with_suffix("").parts
            parts = below[:-1] if below[-1] == "__init__" else below
            yield ".".join([package, *parts]), file


def imports(module: str, file: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, with full names."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield whole
            yield from (f"{whole}.{name.name}" for name in node.names)


MODULES = dict(sources())


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("pxcompat.backends")])
def test_only_backends_know_the_engines(module: str) -> None:
    found = {name.split(".")[0] for name in imports(module, MODULES[module])}
    assert not found & ENGINES


@pytest.mark.parametrize("module", ["pxcompat.protocol", "pxcompat.error", "pxcompat.alias"])
def test_the_lowest_modules_import_no_sibling(module: str) -> None:
    assert [name for name in imports(module, MODULES[module]) if name.startswith("pxcompat")] == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pxcompat.backends")])
def test_backends_do_not_know_the_facade(module: str) -> None:
    facade = {"client", "view", "lbview", "asyncresult", "dispatch", "magics", "cluster"}
    known = {name.split(".")[1] for name in imports(module, MODULES[module]) if "pxcompat." in name}
    assert not known & facade


def test_import_is_light() -> None:
    code = "import sys, pxcompat; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"IPython", "numpy", "traitlets", "asyncio", "zmq", "typing", "threading", "click"}
    loaded = set(done.stdout.split()) - _loaded_by_site()
    assert not loaded & (heavy | ENGINES)


def _loaded_by_site() -> set[str]:
    """What .pth files of this environment (an editable install, say) load anyway."""
    code = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_ray_stays_out_of_the_dask_path() -> None:
    code = "import sys, pxcompat.backends as b; b.get('dask'); print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False"]


def test_only_engines_load_ipython_on_ray() -> None:
    # a cluster's start waits for its controller and its registry to be loaded, one after the other
    code = "import sys, pxcompat.backends.ray.registry; print('IPython' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("name", pxcompat.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(pxcompat, name) is not None
    assert name in dir(pxcompat)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'pxcompat' has no attribute 'nonsense'"):
        _ = pxcompat.nonsense  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse((ROOT / "pxcompat" / "__init__.py").read_text())
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname: "." * node.level + (node.module or "")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    exported = {name: home for home, names in pxcompat._EXPORTS.items() for name in names}
    assert {name: home for name, home in seen.items() if home != "."} == exported


def test_nothing_of_ipyparallels_is_missing() -> None:
    code = (
        "import types, ipyparallel\n"
        "print(*(n for n, o in vars(ipyparallel).items()"
        " if n[0] != '_' and not isinstance(o, types.ModuleType)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    # of traitlets, and of a Jupyter server's extension
    unwanted = {"MultipleInstanceError", "load_jupyter_server_extension"}
    assert set(done.stdout.split()) - unwanted - set(pxcompat.__all__) == set()


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    assert listed == {name for name, file in MODULES.items() if file.name == "__init__.py"}


def test_a_checkout_is_whole_also_where_the_package_is_installed_elsewhere() -> None:
    """Python, started in a checkout, imports from there."""
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
        "import pxcompat.backends.dask.launch, pxcompat.magics.px as px; print(px.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "magics" / "px.py"), done.stderr
