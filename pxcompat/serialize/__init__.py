"""Pickling (``ipyparallel.serialize``): how functions, classes and data travel."""

from __future__ import annotations

from .pickling import dumps, loads, use_cloudpickle, use_dill, use_pickle
from .reference import Reference

__all__ = [
    "Reference",
    "dumps",
    "loads",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]
