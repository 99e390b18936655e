"""``python -m pxcompat.cluster``: the command ``pxcluster``."""

from .app import main

if __name__ == "__main__":
    main()
