"""What ``ipython profile create --parallel``, with which tutorials begin, has of ipyparallel:
programs that write the configuration files of theirs into the new profile.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from traitlets.config import Config

from .app import write_profile_config
from .profiles import Profile

__all__ = ["IPClusterApp", "IPClusterStart", "IPControllerApp", "IPEngineApp"]


class IPControllerApp:
    """A program without configuration of its own.

    Attributes
    ----------
    config, log, overwrite, copy_config_files, ipython_dir, profile_dir
        As ``IPython.core.profileapp.ProfileCreate`` sets them.
    """

    log: Any = logging.getLogger("pxcompat")
    overwrite = copy_config_files = False
    ipython_dir = ""
    profile_dir: Any = None

    def __init__(self, **kwargs: Any) -> None:
        self.config = Config()
        vars(self).update(kwargs)

    def init_config_files(self) -> None:
        """Write nothing."""


class IPEngineApp(IPControllerApp):
    """Another one."""


class IPClusterStart(IPControllerApp):
    """The program that starts clusters."""

    def init_config_files(self) -> None:
        """Write ``pxcompat_config.py``, unless it is there and not to be overwritten."""
        path = Profile("", Path(self.profile_dir.location)).config_file
        if self.overwrite or not path.exists():
            self.log.warning("Generating default config file: %r", path)
            write_profile_config(path)


IPClusterApp = IPClusterStart
