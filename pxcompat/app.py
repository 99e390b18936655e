"""The command ``pxcompat``: run code written for ipyparallel, or turn the alias on for good."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryFile

import click

from . import __version__, alias
from .error import BackendError

__all__ = ["main"]


class Refused(click.ClickException):
    """What was asked cannot be done; shown as one line."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pxcompat")
def main() -> None:
    """Run notebooks, scripts and libraries written for ipyparallel on Dask and on Ray."""


@main.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--backend", metavar="B", help="What runs the engines, e.g. dask.")
@click.option("-n", type=click.IntRange(min=1), metavar="N", help="Number of embedded engines.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Where to write the executed notebook.  Without it, outputs are shown"
    " here, too, and the notebook is FILE.out.ipynb.",
)
@click.option("--allow-errors", is_flag=True, help="Go on after a notebook's cell that fails.")
def run(
    file: Path,
    args: tuple[str, ...],
    backend: str | None,
    n: int | None,
    output: Path | None,
    allow_errors: bool,
) -> None:
    """Run FILE (.ipynb, .py or .ipy), unchanged, with the alias on.

    A script gets ARGS (put them after "--") and its exit code is the exit code here.
    A notebook that fails gives 1, and what could not be begun gives 2.
    """
    _check_file(file)
    is_notebook = file.suffix == ".ipynb"
    if is_notebook and args:
        raise Refused("a notebook takes no arguments")
    if not is_notebook and (output is not None or allow_errors):
        raise Refused("--output and --allow-errors are for notebooks")
    if backend is not None:
        _check_backend(backend)
        os.environ["PXCOMPAT_BACKEND"] = backend
    if n is not None:
        os.environ["PXCOMPAT_N"] = str(n)
    sys.exit(_run_notebook(file, output, allow_errors) if is_notebook else _run_script(file, args))


def _check_file(file: Path) -> None:
    if file.suffix not in (".ipynb", ".py", ".ipy"):
        raise Refused(f"{file} is no .ipynb, .py or .ipy file")
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}") from None


def _check_backend(name: str) -> None:
    from .backends import get

    try:
        get(name)
    except BackendError as error:
        raise Refused(str(error)) from None


def _run_notebook(file: Path, output: Path | None, allow_errors: bool) -> int:
    from . import notebook

    out = output or file.with_suffix(".out.ipynb")
    if out.is_dir():
        raise Refused(f"cannot write {out}: it is a folder")
    try:
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise Refused(f"cannot write {out}: {error.strerror}; say where with --output") from None
    try:
        content = notebook.read(file)
    except notebook.NotFit as error:
        raise Refused(str(error)) from None
    try:
        return notebook.run(file, content, out, show=output is None, allow_errors=allow_errors)
    except OSError as error:
        raise click.ClickException(f"the notebook ran and was not saved: {error}") from error


def _run_script(file: Path, args: tuple[str, ...]) -> int:
    from . import script

    alias.enable()
    try:
        return (script.run_python if file.suffix == ".py" else script.run_ipython)(file, args)
    except KeyboardInterrupt:
        # a click command would say "Aborted!" and exit with 1
        click.echo("KeyboardInterrupt", err=True)
        return 130


@main.command()
def enable() -> None:
    """Make `import ipyparallel` mean pxcompat in this whole environment."""
    _change("enable")


@main.command()
def disable() -> None:
    """Undo `pxcompat enable`."""
    _change("disable")


@main.command()
def status() -> None:
    """Say what is on and what is installed in this environment."""
    from .environment import Environment

    click.echo("\n".join(Environment.current().status()))


@main.group()
def kernel() -> None:
    """Jupyter kernels in which `import ipyparallel` means pxcompat."""


@kernel.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--name",
    default="pxcompat",
    show_default=True,
    help="What notebooks call it; python3 makes it what most of them ask for.",
)
@click.option("--display-name", metavar="TEXT", help="What people choose it by.")
@click.option("--user", is_flag=True, help="For all environments of this user.")
@click.option("--prefix", metavar="DIR", help="For the environment in this folder.")
@click.option("--backend", metavar="B", help="What runs the engines, e.g. dask.")
@click.option("-n", type=click.IntRange(min=1), metavar="N", help="Number of embedded engines.")
def install(
    name: str,
    display_name: str | None,
    user: bool,
    prefix: str | None,
    backend: str | None,
    n: int | None,
) -> None:
    """Tell Jupyter of a kernel that is this Python with the alias on.

    Notebooks that use it need no edits.  Without --user and --prefix it is for this
    environment, where it is a virtual one, and else for this user.
    """
    from .kernel import DISPLAY_NAME, install as install_kernel

    if user and prefix is not None:
        raise Refused("--user and --prefix name two places")
    if backend is not None:
        _check_backend(backend)
    if prefix is None and not user and sys.prefix != sys.base_prefix:
        prefix = sys.prefix
    given = {"PXCOMPAT_BACKEND": backend, "PXCOMPAT_N": n}
    env = {variable: str(value) for variable, value in given.items() if value is not None}
    if display_name is None:
        display_name = DISPLAY_NAME if name == "pxcompat" else f"{DISPLAY_NAME}: {name}"
    try:
        folder = install_kernel(name, display_name=display_name, prefix=prefix, env=env)
    except ValueError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"cannot write {error.filename}: {error.strerror}") from None
    click.echo(f"Kernel {name!r} is in {folder}")
    click.echo(
        f"Choose {display_name!r}, or: jupyter lab --MultiKernelManager.default_kernel_name={name}"
    )


def _change(what: str) -> None:
    from .environment import Environment

    environment = Environment.current()
    try:
        click.echo("\n".join(environment.enable() if what == "enable" else environment.disable()))
    except OSError as error:
        raise Refused(f"cannot change {error.filename}: {error.strerror}") from None


if __name__ == "__main__":
    main()
