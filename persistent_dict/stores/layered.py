"""A store over others that are only read: what is in none of them is kept in the first."""

from __future__ import annotations

from persistent_dict.errors import ContainerError, InvalidEntryError
from persistent_dict.stores.base import MutableStore, TakenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import TypeVar

    from persistent_dict.stores.base import Digest, Entry, EntryInfo, Lock, Part, Reader

    T = TypeVar("T")


class LayeredStore(MutableStore):
    """Entries of `near`, and those of the readers below it, the first of which that has an entry counts.

    Notes
    -----
    What is below is never changed: `add` says False for what is there intact; `set` overwrites it in `near`; `delete`
    raises a `ContainerError`, since it would come back; `clear` clears `near` alone.
    """

    def __init__(self, near: MutableStore, below: Sequence[Reader]) -> None:
        self.near = near
        self.below = tuple(below)
        self._unloadable: set[Digest] = set()

    def get(self, digest: Digest) -> Entry | None:
        return self._first(lambda store: store.get(digest))

    def get_key(self, digest: Digest) -> Part | None:
        return self._first(lambda store: store.get_key(digest))

    def get_value(self, digest: Digest) -> Part | None:
        return self._first(lambda store: store.get_value(digest))

    def stat(self, digest: Digest) -> EntryInfo | None:
        return self._first(lambda store: store.stat(digest))

    def _first(self, look: Callable[[Reader], T | None]) -> T | None:
        for store in (self.near, *self.below):
            found = look(store)
            if found is not None:
                return found
        return None

    def scan(self) -> Iterator[EntryInfo]:
        seen: set[Digest] = set()
        for store in (self.near, *self.below):
            for info in store.scan():
                if info.digest not in seen:
                    seen.add(info.digest)
                    yield info

    def place(self, digest: Digest) -> str:
        holding = self.near if self.near.stat(digest) is not None else self._holding(digest) or self.near
        return holding.place(digest)

    def elsewhere(self, digest: Digest) -> list[str]:
        return self.near.elsewhere(digest)

    def _holding(self, digest: Digest) -> Reader | None:
        return next((store for store in self.below if store.stat(digest) is not None), None)

    def add(self, digest: Digest, entry: Entry) -> bool:
        return not self._is_below(digest) and self.near.add(digest, entry)

    def add_all(
        self, entries: Mapping[Digest, Entry], *, overwrite: Collection[Digest] = (), new: Collection[Digest] = ()
    ) -> frozenset[Digest]:
        below = frozenset(digest for digest in entries if digest not in overwrite and self._is_below(digest))
        if not below.isdisjoint(new):
            raise TakenError(below.intersection(new))
        above = {digest: entry for digest, entry in entries.items() if digest not in below}
        return below | self.near.add_all(above, overwrite=overwrite, new=new)

    def _is_below(self, digest: Digest) -> bool:
        return digest not in self._unloadable and any(_has_intact(store, digest) for store in self.below)

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        self.near.set(digest, entry, same_key)

    def delete(self, digest: Digest) -> bool:
        holding = self._holding(digest)
        if holding is not None:
            raise ContainerError(
                holding.place(digest),
                "the entry is in a dictionary that is only read (over=), and would come back: overwrite it",
            )
        return self.near.delete(digest)

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        if unloadable and self.near.stat(digest) is None:  # what is below cannot be moved, but overwritten
            self._unloadable.add(digest)
        return self.near.quarantine(digest, unloadable=unloadable)

    def clear(self) -> None:
        self.near.clear()

    def lock(self, digest: Digest) -> Lock | None:
        return self.near.lock(digest)


def _has_intact(store: Reader, digest: Digest) -> bool:
    try:
        return store.get_value(digest) is not None
    except InvalidEntryError:
        return False
