"""The alias and the command ``ipcluster`` for a whole environment (``pxcompat enable``).

What is written: one line in ``pxcompat-alias.pth`` among the environment's packages, which
every interpreter of it reads when it starts, and a script named ``ipcluster`` where there is
none.  Nothing that somebody else put there is changed.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pxcompat

from . import alias

__all__ = ["Environment"]

PTH_NAME = "pxcompat-alias.pth"

#: Of a line in a .pth file site.py runs what begins with "import".  Nothing is said where
#: pxcompat was uninstalled; of any other error site.py prints the traceback, and goes on.
PTH_LINE = (
    "import sys; exec('try: import pxcompat.alias\\nexcept ModuleNotFoundError: pass\\n"
    "else: pxcompat.alias.enable()')\n"
)

MARK = "# written by `pxcompat enable`; `pxcompat disable` removes it"

SCRIPT = """\
#!/bin/sh
{mark}
exec {python} -c 'import sys
sys.argv[0] = "ipcluster"
from pxcompat.cluster.app import main
sys.exit(main())' "$@"
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment: where its packages and its commands are.

    The methods return lines that say what they did, for a human to read.
    """

    packages: Path
    scripts: Path

    @classmethod
    def current(cls) -> Environment:
        """The environment of the running interpreter."""
        return cls(Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts")))

    @property
    def pth(self) -> Path:
        return self.packages / PTH_NAME

    @property
    def ipcluster(self) -> Path:
        return self.scripts / "ipcluster"

    def enable(self) -> list[str]:
        """Turn the alias on for every interpreter that starts from now on.

        Raises
        ------
        OSError
            When a file cannot be written.
        """
        self.pth.write_text(PTH_LINE)
        said = [f"alias on: {self.pth}"]
        if self._has_foreign_ipcluster():
            said.append(f"{self.ipcluster} is not pxcompat's and stays as it is: use pxcluster")
        elif sys.platform == "win32":
            said.append("the command ipcluster is not offered on Windows: use pxcluster")
        else:
            self.ipcluster.write_text(SCRIPT.format(mark=MARK, python=shlex.quote(sys.executable)))
            self.ipcluster.chmod(0o755)
            said.append(f"command ipcluster: {self.ipcluster}")
        said.append("Interpreters and kernels that run already are not changed: restart them.")
        return said

    def disable(self) -> list[str]:
        """Undo :meth:`enable`.

        Raises
        ------
        OSError
            When a file cannot be removed.
        """
        said = []
        if self.pth.exists():
            self.pth.unlink()
            said.append(f"alias off: removed {self.pth}")
        else:
            said.append("alias off: it was not on")
        if self._has_own_ipcluster():
            self.ipcluster.unlink()
            said.append(f"removed {self.ipcluster}")
        return said

    def status(self) -> list[str]:
        """What is on, what is installed, and what an import would give."""
        version = ".".join(map(str, sys.version_info[:3]))
        facts = {
            "pxcompat": f"{pxcompat.__version__} at {Path(pxcompat.__file__).parent}",
            "environment": f"{sys.prefix} (Python {version})",
            "alias": self._alias_status(),
            "ipyparallel": _ipyparallel_status(),
            "import": _import_status(),
            "ipcluster": self._ipcluster_status(),
        }
        return [f"{name:<12} {fact}" for name, fact in facts.items()]

    def _alias_status(self) -> str:
        folders = [self.packages, *map(Path, site.getsitepackages())]
        if site.ENABLE_USER_SITE:
            folders.append(Path(site.getusersitepackages()))
        found = [file for folder in dict.fromkeys(folders) if (file := folder / PTH_NAME).exists()]
        if not found:
            return "off" if not alias.is_enabled() else "on in this process only"
        said = "on: " + ", ".join(map(str, found))
        if self.pth in found and self.pth.read_text() != PTH_LINE:
            said += " (not as this version writes it: run `pxcompat enable` again)"
        if not alias.is_enabled():
            said += " (but this interpreter did not read it: was it started with -S?)"
        return said

    def _ipcluster_status(self) -> str:
        if self._has_own_ipcluster():
            said = f"{self.ipcluster} starts pxcluster"
        elif self._has_foreign_ipcluster():
            said = f"{self.ipcluster} is not pxcompat's; pxcluster takes the same arguments"
            if alias.is_enabled() and b"ipyparallel.cluster.app" in self.ipcluster.read_bytes():
                said += " (what it imports is pxcompat's, though, so it starts pxcluster)"
        else:
            said = "none in this environment; pxcluster takes the same arguments"
        first = shutil.which("ipcluster")
        if first is not None and Path(first) != self.ipcluster:
            said += f" (typing ipcluster runs {first})"
        return said

    def _has_own_ipcluster(self) -> bool:
        return self.ipcluster.is_file() and MARK.encode() in self.ipcluster.read_bytes()

    def _has_foreign_ipcluster(self) -> bool:
        there = self.ipcluster.exists() or self.ipcluster.is_symlink()
        return there and not self._has_own_ipcluster()


def _ipyparallel_status() -> str:
    try:
        found = metadata.distribution("ipyparallel")
    except metadata.PackageNotFoundError:
        return "not installed"
    return f"{found.version} installed at {found.locate_file('ipyparallel')}, untouched"


def _import_status() -> str:
    if alias.is_enabled():
        return f"`import ipyparallel` gives pxcompat, with the API of {alias.API_LEVEL}"
    if importlib.util.find_spec("ipyparallel") is not None:
        return "`import ipyparallel` gives the installed ipyparallel"
    return "`import ipyparallel` fails"
