"""What a task needs before it may run: ``@depend``, ``@require``, :class:`Dependency`.

(``ipyparallel.controller.dependency``)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Set
from types import FunctionType, ModuleType
from typing import Any

from .error import UnmetDependency
from .serialize import Reference
from .serialize.canning import can_dependent, can_map

__all__ = ["Dependency", "depend", "dependent", "require"]


class depend:
    """Decorate a function that may run only where another one allows it (ipyparallel.depend).

    The engine calls ``_wrapped_f(*args, **kwargs)`` first.  When that returns False or
    raises :class:`~pxcompat.error.UnmetDependency`, a load-balanced task tries another
    engine, and a task of a DirectView fails with UnmetDependency.

    Examples
    --------
    >>> @depend(has_gpu, memory=8)              # doctest: +SKIP
    ... def train(model): ...
    """

    def __init__(self, _wrapped_f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.f = _wrapped_f
        self.args = args
        self.kwargs = kwargs

    def __call__(self, f: Callable[..., Any]) -> dependent:
        return dependent(f, self.f, *self.args, **self.kwargs)


class dependent:
    """A function with a condition, which is checked where the function arrives
    (ipyparallel.dependent).

    Attributes
    ----------
    f : callable
        The function; calling the ``dependent`` calls it.
    df : callable
        The condition, called as ``df(*dargs, **dkwargs)``.
    """

    def __init__(
        self,
        _wrapped_f: Callable[..., Any],
        _wrapped_df: Callable[..., Any],
        *dargs: Any,
        **dkwargs: Any,
    ) -> None:
        self.f = _wrapped_f
        self.__name__ = getattr(_wrapped_f, "__name__", "f")
        self.df = _wrapped_df
        self.dargs = dargs
        self.dkwargs = dkwargs

    def check_dependency(self) -> None:
        """Raise :class:`~pxcompat.error.UnmetDependency` unless the condition holds here."""
        if self.df(*self.dargs, **self.dkwargs) is False:
            raise UnmetDependency(f"{_name_of(self.df)} does not allow {self.__name__} here")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    # Pickled with a Reference, which only an engine resolves: so the condition is checked
    # on arrival at an engine, before the function can run, and not where the function is
    # pulled to or copied.

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_engine": Reference("True")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        on_engine = state.pop("_on_engine")
        self.__dict__.update(state)
        if on_engine is True:
            self.check_dependency()


# ``uncan(can(f), namespace)`` is an arrival too
can_map[dependent] = can_dependent


def require(*objects: Any, **mapping: Any) -> Callable[[Callable[..., Any]], dependent]:
    """Decorate a function that needs modules or objects on the engine (ipyparallel.require).

    Parameters
    ----------
    *objects : str, module, or anything with a ``__name__``
        Modules, by name or themselves, are imported before the function is called;
        where one cannot be, UnmetDependency moves the task to another engine.
        Functions and classes travel with the task and get their own names.
    **mapping
        Other objects, under the names they are to have.

    Raises
    ------
    TypeError
        When a positional object has no name.

    Examples
    --------
    >>> @require("numpy")                       # doctest: +SKIP
    ... def norm(a):
    ...     return numpy.linalg.norm(a, 2)
    """
    modules: list[str] = []
    supplied = dict(mapping)
    for obj in objects:
        if isinstance(obj, str):
            modules.append(obj)
        elif isinstance(obj, ModuleType):
            modules.append(obj.__name__)
        elif hasattr(obj, "__name__"):
            supplied[obj.__name__] = obj
        else:
            raise TypeError(
                f"an object of type {type(obj).__name__} has no name of its own: "
                "pass it by keyword, require(name=object)"
            )

    def decorate(f: Callable[..., Any]) -> dependent:
        return dependent(f, _supply, f, modules, supplied)

    return decorate


def _supply(f: Callable[..., Any], modules: list[str], objects: dict[str, Any]) -> bool:
    """Give the function what it requires, among its globals: those of the engine's
    namespace by default, its own after ``use_cloudpickle()``."""
    while isinstance(f, dependent):
        f = f.f
    if isinstance(f, FunctionType):
        names = f.__globals__
    else:
        from .engine import namespace

        names = namespace()
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UnmetDependency(f"{_name_of(f)} requires {module}: {error}") from error
        top = module.partition(".")[0]
        names[top] = importlib.import_module(top)
    names.update(objects)
    return True


def _name_of(f: Any) -> str:
    return str(getattr(f, "__name__", f))


class Dependency(set[str]):
    """A set of msg_ids that a load-balanced task waits for (ipyparallel.Dependency).

    Parameters
    ----------
    dependencies : msg_id, AsyncResult, a collection of these, or what :meth:`as_dict` gave
    all : bool
        Whether all of them are needed, or any one.
    success, failure : bool
        Whether one that succeeded counts as done, and one that failed.

    Raises
    ------
    TypeError
        When something among ``dependencies`` is neither a msg_id nor an AsyncResult.
    ValueError
        When neither successes nor failures count.
    """

    all: bool
    success: bool
    failure: bool

    def __init__(
        self,
        dependencies: Any = (),
        all: bool = True,
        success: bool = True,
        failure: bool = False,
    ) -> None:
        if isinstance(dependencies, Mapping):
            all = dependencies.get("all", all)
            success = dependencies.get("success", success)
            failure = dependencies.get("failure", failure)
            dependencies = dependencies.get("dependencies", ())
        elif isinstance(dependencies, Dependency):
            all, success, failure = dependencies.all, dependencies.success, dependencies.failure
        if not (success or failure):
            raise ValueError("a dependency must count successes, failures or both as done")
        super().__init__(_msg_ids(dependencies))
        self.all = all
        self.success = success
        self.failure = failure

    def check(self, completed: Set[str], failed: Set[str] | None = None) -> bool:
        """Whether it is met, given the msg_ids that succeeded and that failed."""
        if not self:
            return True
        done: set[str] = set()
        if self.success:
            done.update(completed)
        if self.failure:
            done.update(failed or ())
        return self <= done if self.all else not self.isdisjoint(done)

    def unreachable(self, completed: Set[str], failed: Set[str] | None = None) -> bool:
        """Whether it can no longer be met, given what succeeded and what failed."""
        if not self:
            return False
        lost: set[str] = set()
        if not self.success:
            lost.update(completed)
        if not self.failure:
            lost.update(failed or ())
        return not self.isdisjoint(lost) if self.all else self <= lost

    def as_dict(self) -> dict[str, Any]:
        """It as a plain dict, which ``Dependency(...)`` takes back."""
        return {
            "dependencies": list(self),
            "all": self.all,
            "success": self.success,
            "failure": self.failure,
        }


def _msg_ids(dependencies: Any) -> Iterable[str]:
    if isinstance(dependencies, str) or _is_result(dependencies):
        dependencies = [dependencies]
    for dependency in dependencies:
        if isinstance(dependency, str):
            yield dependency
        elif _is_result(dependency):
            yield from dependency.msg_ids
        else:
            raise TypeError(
                "a dependency is a msg_id or an AsyncResult, "
                f"not an object of type {type(dependency).__name__}"
            )


def _is_result(obj: Any) -> bool:
    # an AsyncResult; not by class, as engines import this module and need no results
    return isinstance(getattr(obj, "msg_ids", None), list)
