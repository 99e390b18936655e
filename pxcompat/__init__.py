"""ipyparallel's API on Dask and on Ray: ``import pxcompat as ipp``.

Every name that ``import ipyparallel`` offers is here, imported when it is first used, so that
``import pxcompat`` itself costs next to nothing.  :func:`enable` makes ``import ipyparallel``
and ``from IPython import parallel`` mean this package, in code that nobody edits.

``__version__`` and ``version_info`` are pxcompat's own; read through the alias, as
``ipyparallel.__version__``, they are those of the ipyparallel release whose API this is.
"""

from __future__ import annotations

import os as _os

from .alias import disable as disable, enable as enable

# A constant of our own, which type checkers take for true as they take typing's:
# to import typing would cost more than everything else here.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from concurrent.futures import (
        ALL_COMPLETED as ALL_COMPLETED,
        FIRST_COMPLETED as FIRST_COMPLETED,
        FIRST_EXCEPTION as FIRST_EXCEPTION,
    )
    from typing import Any

    from traitlets.config.configurable import MultipleInstanceError as MultipleInstanceError

    from . import error as error, util as util
    from .asyncresult import (
        AsyncHubResult as AsyncHubResult,
        AsyncMapResult as AsyncMapResult,
        AsyncResult as AsyncResult,
    )
    from .client import Client as Client
    from .cluster import Cluster as Cluster, ClusterManager as ClusterManager
    from .dependency import (
        Dependency as Dependency,
        depend as depend,
        dependent as dependent,
        require as require,
    )
    from .error import (
        AlreadyDisplayedError as AlreadyDisplayedError,
        BackendError as BackendError,
        CompositeError as CompositeError,
        ConnectError as ConnectError,
        ConnectionFileError as ConnectionFileError,
        DependencyTimeout as DependencyTimeout,
        EngineError as EngineError,
        ImpossibleDependency as ImpossibleDependency,
        InvalidDependency as InvalidDependency,
        InvalidEngineId as InvalidEngineId,
        IPythonError as IPythonError,
        KernelError as KernelError,
        NoEnginesRegistered as NoEnginesRegistered,
        RemoteError as RemoteError,
        SerializationError as SerializationError,
        TaskAborted as TaskAborted,
        TaskRejectError as TaskRejectError,
        TaskTimeout as TaskTimeout,
        TimeoutError as TimeoutError,
        UnmetDependency as UnmetDependency,
        collect_exceptions as collect_exceptions,
        unwrap_exception as unwrap_exception,
        wrap_exception as wrap_exception,
    )
    from .executor import ViewExecutor as ViewExecutor
    from .lbview import LoadBalancedView as LoadBalancedView
    from .remotefunction import (
        ParallelFunction as ParallelFunction,
        RemoteFunction as RemoteFunction,
        parallel as parallel,
        remote as remote,
    )
    from .serialize import (
        PrePickled as PrePickled,
        Reference as Reference,
        can as can,
        can_map as can_map,
        deserialize_object as deserialize_object,
        pack_apply_message as pack_apply_message,
        serialize_object as serialize_object,
        uncan as uncan,
        uncan_map as uncan_map,
        unpack_apply_message as unpack_apply_message,
        use_cloudpickle as use_cloudpickle,
        use_dill as use_dill,
        use_pickle as use_pickle,
    )
    from .util import interactive as interactive
    from .view import BroadcastView as BroadcastView, DirectView as DirectView

# In a checkout, from which Python imports when it is started there, two folders of this package
# lie beside it and not in it.
if not _os.path.isdir(_os.path.join(__path__[0], "backends")):
    __path__.append(_os.path.dirname(__path__[0]))

__version__ = "0.1.0"
version_info = (0, 1, 0)

#: module -> the public names that come from it
_EXPORTS = {
    "concurrent.futures": ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"),
    "traitlets.config.configurable": ("MultipleInstanceError",),
    ".asyncresult": ("AsyncHubResult", "AsyncMapResult", "AsyncResult"),
    ".client": ("Client",),
    ".cluster": ("Cluster", "ClusterManager"),
    ".dependency": ("Dependency", "depend", "dependent", "require"),
    ".error": (
        "AlreadyDisplayedError",
        "BackendError",
        "CompositeError",
        "ConnectError",
        "ConnectionFileError",
        "DependencyTimeout",
        "EngineError",
        "ImpossibleDependency",
        "InvalidDependency",
        "InvalidEngineId",
        "IPythonError",
        "KernelError",
        "NoEnginesRegistered",
        "RemoteError",
        "SerializationError",
        "TaskAborted",
        "TaskRejectError",
        "TaskTimeout",
        "TimeoutError",
        "UnmetDependency",
        "collect_exceptions",
        "unwrap_exception",
        "wrap_exception",
    ),
    ".executor": ("ViewExecutor",),
    ".lbview": ("LoadBalancedView",),
    ".remotefunction": ("ParallelFunction", "RemoteFunction", "parallel", "remote"),
    ".serialize": (
        "PrePickled",
        "Reference",
        "can",
        "can_map",
        "deserialize_object",
        "pack_apply_message",
        "serialize_object",
        "uncan",
        "uncan_map",
        "unpack_apply_message",
        "use_cloudpickle",
        "use_dill",
        "use_pickle",
    ),
    ".util": ("interactive",),
    ".view": ("BroadcastView", "DirectView"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ("error", "util", "serialize", "cluster", "client")

__all__ = sorted(
    [
        *_HOME,
        "bind_kernel",
        "disable",
        "enable",
        "error",
        "register_joblib_backend",
        "util",
        "version_info",
    ]
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


def bind_kernel(**kwargs: Any) -> str:
    """Make the engine that calls this a kernel, too, for Jupyter's frontends.

    ::

        %px import ipyparallel; print(ipyparallel.bind_kernel())
        $ jupyter console --existing FILE

    A console shares the engine's shell and names, and its cells run in turn with the engine's
    requests.  It listens on the engine's loopback interface, and ends with the engine.
    ``%px %connect_info`` says the file again, ``%px %qtconsole`` opens a console.

    Parameters
    ----------
    **kwargs
        Ignored, as by ipyparallel.bind_kernel.

    Returns
    -------
    str
        The connection file, on the engine's host; readable by its owner alone.
        (ipyparallel returns None.)

    Raises
    ------
    RuntimeError
        When this is no engine's code.
    """
    from .engine import current

    engine = current()
    from .engine.console import bind

    return str(bind(engine))


def register_joblib_backend(name: str = "ipyparallel", make_default: bool = False) -> None:
    """Register pxcompat as a joblib backend (ipyparallel.register_joblib_backend).

    Parameters
    ----------
    name : str
        What ``joblib.parallel_backend`` is to call it.
    make_default : bool
        Whether joblib uses it from now on without being told to.

    Raises
    ------
    ModuleNotFoundError
        When joblib is not installed.
    """
    from .joblib import register

    register(name=name, make_default=make_default)
