"""How a sequence is split over engines, and put together again (``ipyparallel.client.map``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from itertools import accumulate, islice
from typing import Any

__all__ = ["Map", "RoundRobinMap", "as_sequence", "dists", "is_array", "mappable"]


def is_array(obj: Any) -> bool:
    """Whether an object is a numpy array; imports nothing to find out."""
    numpy = sys.modules.get("numpy")  # whoever has an array has imported numpy
    return numpy is not None and isinstance(obj, numpy.ndarray)


def mappable(obj: Any) -> bool:
    """Whether results of this kind are joined into one (lists, tuples and arrays are)."""
    return isinstance(obj, (list, tuple)) or is_array(obj)


def as_sequence(values: Iterable[Any]) -> Any:
    """The values as something with a length and slices; itself where it has them."""
    sliceable = isinstance(values, Sized) and hasattr(values, "__getitem__")
    if sliceable and not isinstance(values, (Mapping, Set)):
        return values
    return list(values)


class Map:
    """Contiguous parts; the first ``n % q`` of them are one longer
    (ipyparallel.client.map.Map)."""

    def getPartition(self, seq: Any, p: int, q: int, n: int | None = None) -> Any:
        """Part ``p`` of ``q`` of a sequence.

        Parameters
        ----------
        seq : sequence
            Anything with slices; an iterator is read through.
        p, q : int
            Which part, of how many.
        n : int, optional
            Length of the whole; default ``len(seq)``.

        Raises
        ------
        ValueError
            Unless ``0 <= p < q``.
        """
        size, longer = divmod(self._length(seq, p, q, n), q)
        start = p * size + min(p, longer)
        return self._slice(seq, start, start + size + (p < longer), 1)

    def joinPartitions(self, listOfPartitions: Sequence[Any]) -> Any:
        """The parts as one list or array, or as they are where they are neither."""
        return self.concatenate(listOfPartitions)

    def concatenate(self, listOfPartitions: Sequence[Any]) -> Any:
        """The parts end to end.  Values behind a list (``scatter(flatten=True)``) are items;
        what the first part is says whether they are parts at all."""
        first = listOfPartitions[0]
        if is_array(first) and first.ndim:
            return sys.modules["numpy"].concatenate(listOfPartitions, dtype=_kind(listOfPartitions))
        if not isinstance(first, (list, tuple)):
            return listOfPartitions
        return [item for part in listOfPartitions for item in _items(part)]

    def places(self, lengths: Sequence[int]) -> list[slice]:
        """Where in the whole parts of such lengths are."""
        ends = list(accumulate(lengths))
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    @staticmethod
    def _length(seq: Any, p: int, q: int, n: int | None) -> int:
        if not 0 <= p < q:
            raise ValueError(f"there is no part {p} of {q}: 0 <= p < q must hold")
        return len(seq) if n is None else n

    @staticmethod
    def _slice(seq: Any, start: int, stop: int, step: int) -> Any:
        try:
            return seq[start:stop:step] if step != 1 else seq[start:stop]
        except (TypeError, KeyError):  # no slices: an iterator, a set, a dict
            return list(islice(seq, start, stop, step))


class RoundRobinMap(Map):
    """Part ``p`` has every ``q``-th item from ``p`` on (ipyparallel.client.map.RoundRobinMap)."""

    def getPartition(self, seq: Any, p: int, q: int, n: int | None = None) -> Any:
        """Part ``p`` of ``q``; see :meth:`Map.getPartition`."""
        return self._slice(seq, p, self._length(seq, p, q, n), q)

    def joinPartitions(self, listOfPartitions: Sequence[Any]) -> Any:
        """The parts dealt back into one list or array, or as they are where they are neither."""
        first = listOfPartitions[0]
        if is_array(first) and first.ndim:
            return self.flatten_array(listOfPartitions)
        if isinstance(first, (list, tuple)):
            return self.flatten_list(listOfPartitions)
        return listOfPartitions

    def places(self, lengths: Sequence[int]) -> list[slice]:
        """Where in the whole parts of such lengths are."""
        return [slice(p, None, len(lengths)) for p in range(len(lengths))]

    def flatten_array(self, listOfPartitions: Sequence[Any]) -> Any:
        """Arrays interleaved along their first axis."""
        numpy: Any = sys.modules["numpy"]
        lengths = [len(part) for part in listOfPartitions]
        shape = (sum(lengths), *listOfPartitions[0].shape[1:])
        kind = _kind(listOfPartitions) or numpy.result_type(*listOfPartitions)
        whole = numpy.empty(shape, dtype=kind)
        for place, part in zip(self.places(lengths), listOfPartitions, strict=True):
            whole[place] = part
        return whole

    def flatten_list(self, listOfPartitions: Sequence[Any]) -> list[Any]:
        """Lists interleaved."""
        parts = [_items(part) for part in listOfPartitions]
        rounds = max(len(part) for part in parts)
        return [part[i] for i in range(rounds) for part in parts if i < len(part)]


def _kind(parts: Sequence[Any]) -> Any:
    """The dtype that all arrays have, which numpy would make native; None if they differ."""
    kinds = {getattr(part, "dtype", None) for part in parts}
    return kinds.pop() if len(kinds) == 1 else None


def _items(part: Any) -> Sequence[Any]:
    return part if mappable(part) else [part]


#: what ``dist=`` may be: ``"b"`` for contiguous parts, ``"r"`` for round robin
dists: dict[str, type[Map]] = {"b": Map, "r": RoundRobinMap}
