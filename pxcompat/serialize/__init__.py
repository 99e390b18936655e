"""Pickling (``ipyparallel.serialize``): how functions, classes and data travel.

``pickling`` has the rules, ``functions`` and ``classes`` what travels by value, ``context`` where
it arrives, ``culprit`` what cannot; ``reference`` is names on the engine, and ``canning`` what
ipyparallel's package of this name offers besides.
"""

from __future__ import annotations

from .canning import (
    PrePickled,
    can,
    can_map,
    deserialize_object,
    pack_apply_message,
    serialize_object,
    uncan,
    uncan_map,
    unpack_apply_message,
)
from .context import register_native
from .pickling import (
    Pickled,
    dumps,
    loads,
    use_cloudpickle,
    use_dill,
    use_pickle,
)
from .reference import Reference

__all__ = [
    "Pickled",
    "PrePickled",
    "Reference",
    "can",
    "can_map",
    "deserialize_object",
    "dumps",
    "loads",
    "pack_apply_message",
    "register_native",
    "serialize_object",
    "uncan",
    "uncan_map",
    "unpack_apply_message",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]
