"""A least-recently-used mapping: what a dictionary keeps in memory."""

from __future__ import annotations

from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any


class Lru:
    """Up to `size` items, the least recently used going first; 0 keeps none, None sets no limit.

    Safe for threads without a lock: every step is one operation on an `OrderedDict`.
    """

    __slots__ = ("_items", "_size")

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._items: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, slot: Hashable) -> Any:
        """Return the item in a slot, None where there is none."""
        found = self._items.get(slot)
        if found is not None:
            try:
                self._items.move_to_end(slot)
            except KeyError:  # another thread has evicted it just now
                return None
        return found

    def put(self, slot: Hashable, item: Any) -> None:
        """Fill a slot with an item, which is not None."""
        if self._size == 0:
            return
        self._items[slot] = item
        while self._size is not None and len(self._items) > self._size:
            try:
                self._items.popitem(last=False)
            except KeyError:  # another thread has emptied it
                return

    def drop(self, slot: Hashable) -> None:
        """Empty a slot."""
        self._items.pop(slot, None)

    def clear(self) -> None:
        self._items.clear()
