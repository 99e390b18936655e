"""An IPython kernel in which ``import ipyparallel`` means pxcompat.

``python -m pxcompat.kernel -f CONNECTION_FILE`` takes the arguments of ``ipykernel_launcher``;
:func:`install` tells Jupyter of it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from . import alias

__all__ = ["ARGV", "DISPLAY_NAME", "install", "main"]

#: how Jupyter starts the kernel
ARGV = [sys.executable, "-m", "pxcompat.kernel", "-f", "{connection_file}"]
DISPLAY_NAME = "Python 3 (pxcompat)"


def main() -> None:
    """Turn the alias on and become a kernel."""
    # "python -m" puts the working directory first: a notebook's neighbour named, say, random.py
    # must not be what the kernel itself imports.  IPython adds it again for the notebook's cells.
    if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
        del sys.path[0]
    alias.enable()

    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


def install(
    name: str = "pxcompat",
    *,
    display_name: str = DISPLAY_NAME,
    prefix: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Path:
    """Tell Jupyter of a kernel that is this Python with the alias on.

    Parameters
    ----------
    name : str
        What notebooks call the kernel; one of this name that is there already is replaced.
    display_name : str
        What people choose it by.
    prefix : str, optional
        The environment whose Jupyter is to find it.  Default: the user's, in all environments.
    env : dict, optional
        Variables to set in the kernel.

    Returns
    -------
    Path
        The folder of the kernelspec.

    Raises
    ------
    ValueError
        When the name has other characters than ASCII letters, digits and ``-_.``.
    OSError
        When the folder cannot be written.
    """
    import ipykernel
    from jupyter_client.kernelspec import KernelSpecManager

    spec = {
        "argv": ARGV,
        "display_name": display_name,
        "language": "python",
        "metadata": {"debugger": True},
        "env": dict(env or {}),
    }
    with TemporaryDirectory(prefix="pxcompat-") as parent:
        # with the pictures of ipykernel's own
        folder = Path(parent) / "kernel"
        folder.mkdir()
        for picture in Path(ipykernel.__file__).parent.glob("resources/logo*"):
            shutil.copy(picture, folder)
        (folder / "kernel.json").write_text(json.dumps(spec, indent=1))
        manager = KernelSpecManager()
        where = manager.install_kernel_spec(
            str(folder), kernel_name=name, user=prefix is None, prefix=prefix
        )
    return Path(where)


if __name__ == "__main__":
    main()
