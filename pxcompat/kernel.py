"""An IPython kernel in which ``import ipyparallel`` means pxcompat.

``python -m pxcompat.kernel -f CONNECTION_FILE`` takes the arguments of ``ipykernel_launcher``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import alias


def main() -> None:
    """Turn the alias on and become a kernel."""
    # "python -m" puts the working directory first: a notebook's neighbour named, say, random.py
    # must not be what the kernel itself imports.  IPython adds it again for the notebook's cells.
    if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
        del sys.path[0]
    alias.enable()

    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    main()
