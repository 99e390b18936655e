"""``python -m pxcompat.cluster``: the command ``pxcluster``."""

from .app import main

main()
