"""The package itself as one file, for machines that lack it."""

from __future__ import annotations

import importlib
import os
import zipfile

__all__ = ["NAME", "pack"]

NAME = "pxcompat"


def pack(path: str) -> None:
    """Write it, as it is imported here: some of its folders lie elsewhere."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        written = set()
        for package in (NAME, f"{NAME}.backends", f"{NAME}.magics"):
            root = importlib.import_module(package).__path__[0]
            for folder, _, files in os.walk(root):
                inside = os.path.join(*package.split("."), os.path.relpath(folder, root))
                for file in files:
                    target = os.path.normpath(os.path.join(inside, file))
                    if file.endswith((".py", ".typed")) and target not in written:
                        written.add(target)
                        archive.write(os.path.join(folder, file), target)
