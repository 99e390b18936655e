"""Code objects that can be pickled (``ipyparallel.serialize.codeutil``).

Importing this lets plain pickle do so in this process; requests need none of it.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

__all__ = ["code_ctor", "reduce_code"]

#: the constructor's parameters are attributes, all but these under their own names
_RENAMED = {"codestring": "code", "constants": "consts"}
_ATTRIBUTES = tuple(f"co_{_RENAMED.get(p, p)}" for p in inspect.signature(CodeType).parameters)


def code_ctor(*args: Any) -> CodeType:
    """A code object, from the arguments that this version of Python wants."""
    return CodeType(*args)


def reduce_code(obj: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    """A code object as what pickle's ``__reduce__`` would give."""
    return code_ctor, tuple(getattr(obj, name) for name in _ATTRIBUTES)


copyreg.pickle(CodeType, reduce_code)
