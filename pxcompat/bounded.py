"""Containers that do not grow with the session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any, Generic, TypeVar

__all__ = ["BoundedDict", "BoundedList"]

T = TypeVar("T")


class BoundedList(list[T], Generic[T]):
    """A list that forgets its first items when it gets longer than ``limit``.

    Forgotten in blocks, so that appending stays cheap.
    """

    def __init__(self, limit: int = 65_536) -> None:
        super().__init__()
        self.limit = limit

    def append(self, item: T) -> None:
        super().append(item)
        if len(self) > self.limit + self.limit // 4:
            del self[: len(self) - self.limit]


class BoundedDict(MutableMapping[str, T]):
    """A mapping that forgets its oldest items beyond a number or a size.

    Parameters
    ----------
    max_count : int
    max_bytes : int, optional
        Of the values whose size :meth:`put` was told.
    """

    def __init__(self, max_count: int, max_bytes: int | None = None) -> None:
        self.max_count = max_count
        self.max_bytes = max_bytes
        self._items: OrderedDict[str, T] = OrderedDict()
        #: of those that have one
        self._sizes: dict[str, int] = {}
        self._nbytes = 0

    def __getitem__(self, key: str) -> T:
        return self._items[key]

    def __setitem__(self, key: str, value: T) -> None:
        self.put(key, value, 0)

    def put(self, key: str, value: T, size: int) -> None:
        """Set an item of so many bytes."""
        if key in self._items:
            self.pop(key)
        self._items[key] = value
        if size:
            self._sizes[key] = size
            self._nbytes += size
        while len(self._items) > self.max_count or (
            self.max_bytes is not None and self._nbytes > self.max_bytes and len(self._items) > 1
        ):
            self.pop(next(iter(self._items)))

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def pop(self, key: str, *default: Any) -> Any:
        """Forget an item; it, or the default."""
        if key not in self._items and default:
            return default[0]
        value = self._items.pop(key)
        self._nbytes -= self._sizes.pop(key, 0)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items
