"""A store in memory: a double for tests, and the shortest example of a store."""

from __future__ import annotations

from itertools import count
from threading import Lock

from persistent_dict.stores.base import Entry, EntryInfo, MutableStore, TakenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from persistent_dict.stores.base import Digest, Part


class MemoryStore(MutableStore):
    """Entries in a dict of this process, which end with it."""

    def __init__(self) -> None:
        self._entries: dict[Digest, tuple[int, Entry]] = {}
        self._stamps = count()
        self._turn = Lock()  # of those who look before they write

    def get(self, digest: Digest) -> Entry | None:
        _, entry = self._entries.get(digest, (0, None))
        return entry

    def stat(self, digest: Digest) -> EntryInfo | None:
        stamp, entry = self._entries.get(digest, (0, None))
        return None if entry is None else EntryInfo(digest, entry.nbytes, stamp, settled=True)

    def scan(self) -> Iterator[EntryInfo]:
        for digest in list(self._entries):
            info = self.stat(digest)
            if info is not None:
                yield info

    def place(self, digest: Digest) -> str:
        return f"memory:{digest}"

    def add(self, digest: Digest, entry: Entry) -> bool:
        item = (next(self._stamps), entry)
        with self._turn:
            return self._entries.setdefault(digest, item) is item

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        self._entries[digest] = (next(self._stamps), entry)

    def add_all(
        self, entries: Mapping[Digest, Entry], *, overwrite: Collection[Digest] = (), new: Collection[Digest] = ()
    ) -> frozenset[Digest]:
        with self._turn:
            there = self._entries.keys() & entries.keys()
            if not there.isdisjoint(new):
                raise TakenError(there.intersection(new))
            kept = there.difference(overwrite)
            self._entries.update({digest: (next(self._stamps), entries[digest]) for digest in entries.keys() - kept})
        return frozenset(kept)

    def delete(self, digest: Digest) -> bool:
        return self._entries.pop(digest, None) is not None
