"""Classes by value: the receiver's own of that name first, else the sender's."""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .context import context, current_namespace
from .functions import is_interactive

__all__ = ["import_module_of", "reduce_class"]


def import_module_of(cls: type) -> None:
    """Import the module that a class says it is of, where nobody has yet, as pickle does: that of
    ``numpy.recarray`` is ``numpy.rec``.  cloudpickle would take the class for one without."""
    module = cls.__module__
    if module in sys.modules or module.partition(".")[0] not in sys.modules:
        return
    with suppress(ImportError):  # it is of none
        importlib.import_module(module)


#: classes that came by value and were bound on this engine, so that their methods find
#: them; a newer one of the name takes the place of an older
_sent_classes: weakref.WeakSet[type] = weakref.WeakSet()


def _own_class(qualname: str) -> type | None:
    """The receiver's own interactive class of that name."""
    first, *rest = qualname.split(".")
    found: Any = current_namespace().get(first)
    for part in rest:
        found = getattr(found, part, None)
    if not isinstance(found, type) or _is_sent(found):
        return None
    return found if is_interactive(found.__module__) else None


def _find_or_make_class(qualname: str, make: Callable[..., type], *args: Any) -> type:
    """The receiver's own class of that name, else the sender's, still without its contents."""
    own = _own_class(qualname)
    if own is not None:
        return own
    made = make(*args)
    scope = context.namespace
    if scope is not None and (qualname not in scope or _is_sent(scope[qualname])):
        # old code says super(MyClass, self)
        scope[qualname] = made
        _sent_classes.add(made)
    return made


def _is_sent(obj: Any) -> bool:
    return isinstance(obj, type) and obj in _sent_classes


def _fill_class(cls: type, state: tuple[str, Callable[..., Any], Any]) -> None:
    """Give the sender's class its contents; the receiver's own has its own."""
    qualname, fill, contents = state
    if cls is not _own_class(qualname):
        fill(cls, contents)


def reduce_class(cls: type, by_value: tuple[Any, ...]) -> tuple[Any, ...]:
    """What pickles an interactive class, of what cloudpickle would have done."""
    # in two steps, as cloudpickle makes classes, which may contain each other
    make, args, contents, _, _, fill = by_value
    args = (cls.__qualname__, make, *args)
    state = (cls.__qualname__, fill, contents)
    return (_find_or_make_class, args, state, None, None, _fill_class)
