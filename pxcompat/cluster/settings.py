"""Settings, and where each comes from.

An explicit argument comes first, then a ``PXCOMPAT_*`` variable, then the profile's
``pxcompat_config.py``, then the default::

    c.PxCompat.backend = "dask"      # PXCOMPAT_BACKEND
    c.PxCompat.n = 4                 # PXCOMPAT_N
    c.DaskBackend.<option> = ...     # handed to the backend as it is
"""

from __future__ import annotations

import ast
import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traitlets import Bool, Float, Integer, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import (
    DeferredConfigString,
    JSONFileConfigLoader,
    PyFileConfigLoader,
)

from .. import backends
from ..error import KernelError
from ..progress import noninteractive
from .profiles import Profile

__all__ = [
    "PxCompat",
    "SettingError",
    "backend_options",
    "backend_section",
    "cpu_count",
    "load_config",
    "load_file",
    "write_config",
]

#: not traitlets' own, whose warnings a script does not show
log = logging.getLogger("pxcompat")


class SettingError(KernelError, TraitError, ValueError):
    """A setting has a bad value; the message names its source and the value."""


class PxCompat(Configurable):
    """How clusters are found and started."""

    backend = Unicode("dask", help="What clusters run on. Variable: PXCOMPAT_BACKEND.").tag(
        config=True
    )
    n = Integer(
        None,
        allow_none=True,
        min=1,
        help="How many engines to start; None: one for each CPU. Variable: PXCOMPAT_N.",
    ).tag(config=True)
    address = Unicode(
        "",
        help="""Connect to this cluster instead of starting one: an address that a backend knows
        ("tcp://...", "tls://...") or the path of a connection file. Variable: PXCOMPAT_ADDRESS.""",
    ).tag(config=True)
    cluster_id = Unicode(
        "",
        help="""Which cluster of the profile, when several run under names of their own.
        Variable: PXCOMPAT_CLUSTER_ID.""",
    ).tag(config=True)
    timeout = Float(
        10.0,
        min=0,
        help="Seconds to wait for a running cluster to answer. Variable: PXCOMPAT_TIMEOUT.",
    ).tag(config=True)
    start_timeout = Float(
        60.0,
        min=0,
        help="Seconds that starting a cluster may take. Variable: PXCOMPAT_START_TIMEOUT.",
    ).tag(config=True)
    copy = Bool(
        True,
        help="""Whether arrays that are pushed and scattered are the engines' own, and writable;
        False: read-only, and shared by the engines of a host where the backend can.
        Variable: PXCOMPAT_COPY.""",
    ).tag(config=True)
    max_results = Integer(
        1024,
        min=1,
        help="""How many results a client remembers that no AsyncResult holds.
        Variable: PXCOMPAT_MAX_RESULTS.""",
    ).tag(config=True)
    max_result_bytes = Integer(
        1 << 30,
        min=0,
        help="""How many bytes of them. Variable: PXCOMPAT_MAX_RESULT_BYTES.""",
    ).tag(config=True)
    noninteractive = Bool(
        False, help="Show no progress bars. Variable: PXCOMPAT_NONINTERACTIVE."
    ).tag(config=True)

    #: what the backend is to be told beyond that
    options: dict[str, Any]
    #: by setting: where it comes from, of those that are not the default
    origins: dict[str, str]

    @classmethod
    def resolve(
        cls,
        profile: Profile,
        *,
        config: Config | None = None,
        sections: Sequence[str] = ("PxCompat",),
        **explicit: Any,
    ) -> PxCompat:
        """Every setting, from the first source that has it.

        Parameters
        ----------
        profile
            Whose ``pxcompat_config.py`` is read.
        config
            What that file says, where it was read already.
        sections
            The parts of the configuration that may hold settings, the first before the others.
        **explicit
            Settings given as arguments; None where they were not.

        Raises
        ------
        SettingError
            On a bad value, naming where it came from.
        """
        config = load_config(profile) if config is None else config
        _warn_of_misspelt(cls)
        settings = cls(config=Config())  # not traitlets' own loading: errors name the source
        traits = cls.class_traits(config=True)
        for said, where in (
            (config.get("PxCompat", {}), f"{profile.config_file}: "),
            (explicit, ""),
        ):
            if unknown := said.keys() - traits.keys():
                name = min(unknown)
                close = difflib.get_close_matches(name, traits, n=1)
                there = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(traits)}"
                raise SettingError(f"{where}no setting PxCompat.{name}; {there}")

        settings.origins = origins = {}
        for name, trait in traits.items():
            variable = f"PXCOMPAT_{name.upper()}"
            section = next((s for s in sections if name in config.get(s, {})), None)
            value: Any
            if (value := explicit.get(name)) is not None:
                origin = f"argument {name}"
            elif value := os.environ.get(variable):
                origin = f"variable {variable}"
            elif section is not None:
                value = config[section][name]
                origin = f"{profile.config_file}: c.{section}.{name}"
            else:
                continue
            origins[name] = origin
            try:
                if isinstance(value, str):
                    settings.set_trait(name, trait.from_string(value))
                else:
                    settings.set_trait(name, value)
            except (TraitError, ValueError) as exc:
                raise SettingError(f"{origin} = {value!r} is no good value: {exc}") from exc

        if settings.backend not in (known := backends.names()):
            origin = origins.get("backend", "setting backend")
            raise SettingError(
                f"{origin} = {settings.backend!r}: no such backend; there are {', '.join(known)}"
            )
        settings.options = backend_options(config, settings.backend)
        return settings

    @property
    def engines(self) -> int:
        """How many engines to start."""
        return cpu_count() if self.n is None else int(self.n)

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        return not (self.noninteractive or noninteractive())


#: variables PXCOMPAT_* that are read elsewhere
_OTHER_VARIABLES = ("PROFILE", "PROFILE_DIR")
#: those that were warned of
_misspelt: set[str] = set()


def _warn_of_misspelt(settings: type[PxCompat]) -> None:
    """Say of variables that look like ours that they are none; once."""
    known = [*(name.upper() for name in settings.class_traits(config=True)), *_OTHER_VARIABLES]
    for variable in os.environ:
        prefix, _, name = variable.partition("_")
        if prefix != "PXCOMPAT" or name.startswith("TEST_") or name in {*known, *_misspelt}:
            continue
        _misspelt.add(name)
        close = difflib.get_close_matches(name, known, n=1)
        there = ", ".join(f"PXCOMPAT_{known_name}" for known_name in close or known)
        hint = f"did you mean {there}?" if close else f"there are {there}"
        log.warning("variable %s is not used: there is no such setting; %s", variable, hint)


def backend_section(backend: str) -> str:
    """The part of the configuration that holds a backend's options."""
    return f"{backend.capitalize()}Backend"


def backend_options(config: Config, backend: str) -> dict[str, Any]:
    """What ``c.<Backend>Backend`` holds, as ``c.DaskBackend`` for ``dask``."""
    options = config.get(backend_section(backend), {})
    return {name: _meant(value) for name, value in options.items()}


def _meant(value: Any) -> Any:
    """A backend's option; of the command line, where all are text, what the text stands for."""
    if not isinstance(value, DeferredConfigString):
        return value
    text = str(value)
    if text.lower() in ("true", "false"):  # as traitlets takes them
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # an address, a name


def load_config(profile: Profile, *basenames: str) -> Config:
    """What the profile's configuration files say.

    Parameters
    ----------
    *basenames
        Names of files without their ending, ``.json`` or ``.py``; later ones win.  Default is
        ``pxcompat_config``.

    Raises
    ------
    SettingError
        When a file cannot be read or raises.
    """
    config = Config()
    for basename in basenames or ("pxcompat_config",):
        for loader, ending in ((JSONFileConfigLoader, ".json"), (PyFileConfigLoader, ".py")):
            path = profile.path / (basename + ending)
            if path.is_file():
                config.merge(_load(loader, path))
    return config


def load_file(path: Path) -> Config:
    """What one configuration file says.

    Raises
    ------
    SettingError
        When it is not there, cannot be read or raises.
    """
    return _load(JSONFileConfigLoader if path.suffix == ".json" else PyFileConfigLoader, path)


def _load(loader: type[JSONFileConfigLoader | PyFileConfigLoader], path: Path) -> Config:
    try:
        return loader(path.name, str(path.parent)).load_config()
    except Exception as exc:
        raise SettingError(f"{path}: {type(exc).__name__}: {exc}") from exc


def write_config(path: Path, classes: Sequence[type[Configurable]]) -> None:
    """Write a configuration file in which everything is explained and nothing is set."""
    parts = [
        "# Configuration of pxcompat for this IPython profile.\n"
        "# An explicit argument or a PXCOMPAT_* variable wins over what is set here.\n"
        "\n"
        "c = get_config()  # noqa\n",
        *(cls.class_config_section() for cls in classes),
        "# A backend's own options are handed to it as they are:\n# c.DaskBackend.<option> = ...\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
