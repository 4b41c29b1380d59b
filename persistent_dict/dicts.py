"""The dictionaries: objects in, objects out, entries to and from a store."""

from __future__ import annotations

from collections.abc import MutableMapping

from persistent_dict import _fs
from persistent_dict._computing import ComputingDictionary
from persistent_dict._dictionary import check_choice
from persistent_dict.errors import InvalidEntryError, NoSuchEntryError, ReadOnlyEntryError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from persistent_dict._links import Draft
    from persistent_dict.stores.base import Digest, MutableStore, Store

    K = TypeVar("K")
    V = TypeVar("V")


class WriteOncePersistentDict(ComputingDictionary["K", "V"]):
    """A dictionary on disk whose entries are written once; any number of threads and processes share it.

    Parameters
    ----------
    identifier : str
        The dictionary's name: any text; quoted where a file name needs it.
    key_builder : callable, optional
        From a key to a str; a `KeyBuilder` by default. What is no digest of 40 hex characters is hashed into one.
    container_dir : path, optional
        The directory in which the dictionary's own directory is made. Default: PERSISTENT_DICT_DIR, else the user's
        cache directory.
    in_mem_cache_size : int or None
        How many values are kept in memory, the least recently used going first. None: all. 0: none, so that every
        fetch returns an object of its own.
    safe_sync : bool, optional
        True: what was stored outlives a power cut (``durability="durable"``).
    enable_wal : bool
        Accepted for pytools' sake, and ignored.
    format : str, module or object
        How values become bytes: "pickle", "json", "raw" (bytes), or anything with `dumps` and `loads`.
    on_invalid : str
        What a damaged entry is: "raise", an `InvalidEntryError`; "quarantine", a miss, with a warning.
    on_conflict : str
        What storing under a taken key is: "raise", a `ReadOnlyEntryError`; "keep", nothing; "verify", an error only if
        the values differ.
    store : Store, optional
        The place for the entries, instead of a container.
    durability, mmap, trusted, mode
        Of the container: see `DiskStore`.
    max_bytes, max_entries, max_age : int, int, float, optional
        What the container may keep: bytes on disk, entries, seconds since an entry was last used. Looked at now and
        then after an entry was stored (see `DiskStore`), never by a read. Nothing is removed where none is given.
    over : path, or a sequence of paths and read-only dictionaries, optional
        Packs that `persistent-dict export` made, or what `open_readonly` returned: what is in one of them is there,
        and need not be computed. They are never changed.
    references : callable or References, optional
        From an object to its key, or None: objects inside a stored value that have a key are entries of their own, in
        the same transaction, and the value refers to them (see `References`).

    Notes
    -----
    Readers take no lock. Of several writers of one key, one wins; nobody sees part of an entry, whatever crashes.
    Values from memory are shared: change them, and the next fetch sees it.
    """

    def __init__(
        self,
        identifier: str,
        key_builder: Callable[[Any], str] | None = None,
        container_dir: str | os.PathLike[str] | None = None,
        *,
        in_mem_cache_size: int | None = 256,
        safe_sync: bool | None = None,
        enable_wal: bool = False,
        format: Any = "pickle",  # noqa: A002  # the public name
        on_invalid: str = "raise",
        on_conflict: str = "raise",
        store: Store | None = None,
        durability: str | None = None,
        mmap: bool | None = None,
        trusted: bool | None = None,
        mode: int | None = None,
        max_bytes: int | None = None,
        max_entries: int | None = None,
        max_age: float | None = None,
        over: Sequence[Any] = (),
        references: Any = None,
    ) -> None:
        check_choice("on_conflict", on_conflict, ("raise", "keep", "verify"))
        super().__init__(
            identifier,
            key_builder,
            container_dir,
            in_mem_cache_size=in_mem_cache_size,
            safe_sync=safe_sync,
            enable_wal=enable_wal,
            format=format,
            on_invalid=on_invalid,
            store=store,
            durability=durability,
            mmap=mmap,
            trusted=trusted,
            mode=mode,
            max_bytes=max_bytes,
            max_entries=max_entries,
            max_age=max_age,
            over=over,
            references=references,
        )
        self._on_conflict = on_conflict

    _store: Store

    def _find(self, key: K) -> tuple[V, K, float]:
        if type(key) in self._plain_types:  # such a key is its own slot: no digest is needed
            slot: Any = key
            digest, proven = "", True
        else:
            digest, proven = self._digest(key)
            slot = (digest,)  # no key of a plain type equals a tuple
        found: tuple[V, K, float] | None = self._memory.get(slot)
        if found is None:
            if not digest:
                digest, proven = self._digest(key)
            found = self._load(key, digest, proven)
            self._memory.put(slot, found)
        elif proven or self._are_equal(found[1], key):
            self._memory_hits += 1
            if self._is_heard:
                self._tell("hit in memory", key)
        else:
            self._collide(key)
        return found

    def store(self, key: K, value: V, *, seconds: float = 0.0) -> None:
        """Store `value` under `key`. `seconds`: how long it took to compute.

        Raises
        ------
        ReadOnlyEntryError
            A `KeyError`: there is an entry already (see `on_conflict`).
        OSError
            The entry could not be written; nothing of it is visible. (A read-only place is a warning, once.)
        """
        digest, proven = self._digest(key)
        if self._add(key, digest, value, seconds) is False:
            self._check_conflict(key, value, lambda: self._load(key, digest, proven)[0])

    def _check_conflict(self, key: K, value: V, fetch: Callable[[], V]) -> None:
        """Raise where something that is there may not stay as it is (see `on_conflict`)."""
        if self._on_conflict == "raise":
            raise ReadOnlyEntryError(shown(key))
        if self._on_conflict == "verify" and not self._are_equal(fetch(), value):
            raise ReadOnlyEntryError(shown(key), "a different value is there already")

    def _draft(
        self, drafts: dict[Digest, Draft], key: K, value: V, seconds: float = 0.0, *, overwrite: bool = True
    ) -> None:
        draft = drafts.get(self._digest(key)[0])
        if draft is not None:
            self._check_conflict(key, value, lambda: self._resolved(draft.entry.value, drafts))
        elif key in self:
            self._check_conflict(key, value, lambda: self.fetch(key))
        else:
            super()._draft(drafts, key, value, seconds, overwrite=False)


class PersistentDict(ComputingDictionary["K", "V"], MutableMapping["K", "V"]):
    """A dictionary on disk whose entries can be overwritten and removed; any number of threads and processes share it.

    The parameters are those of `WriteOncePersistentDict`, without `on_conflict`.

    Notes
    -----
    Readers take no lock, and see the old value or the new one. A value in memory is used if the value file's inode,
    size and time of change are still those it was read with, so that nobody sees a stale one.
    """

    _store: MutableStore

    def _find(self, key: K) -> tuple[V, K, float]:
        digest, proven = self._digest(key)
        info = None
        if self._memory_size != 0 and self._links is None and not _fs.disabled():
            # Before reading: a value may then be remembered with an older stamp than its own, never with a later one.
            info = self._store.stat(digest)
            found: tuple[tuple[V, K, float], object] | None = self._memory.get(digest)
            if found is not None and info is not None and found[1] == info.stamp:
                if not proven and not self._are_equal(found[0][1], key):
                    self._collide(key)
                self._memory_hits += 1
                if self._is_heard:
                    self._tell("hit in memory", key)
                return found[0]
        loaded = self._load(key, digest, proven)
        if info is not None and info.settled:
            self._memory.put(digest, (loaded, info.stamp))
        return loaded

    def store(self, key: K, value: V, *, seconds: float = 0.0) -> None:
        """Store `value` under `key`, in place of what is there. `seconds`: how long it took to compute.

        Raises
        ------
        OSError
            The entry could not be written; the old value, if any, stays. (A read-only place is a warning, once.)
        """
        digest, proven = self._digest(key)
        drafts = self._drafts_of(key, digest, value, seconds, overwrite=True)
        if self._links is not None and len(drafts) > 1:
            self._links.store(drafts, digest)
            return
        entry = drafts[digest].entry
        same_key = None if proven else (lambda part: self._is_same_key(part, digest, key))
        self._write(key, lambda: self._store.set(digest, entry, same_key))
        self._memory.drop(digest)

    def remove(self, key: K) -> None:
        """Remove the entry of `key`, damaged or not.

        Raises
        ------
        NoSuchEntryError
            A `KeyError`: there is none.
        """
        digest, proven = self._digest(key)
        self._memory.drop(digest)
        if _fs.disabled():
            raise NoSuchEntryError(key)
        if not proven:
            try:
                part = self._store.get_key(digest)
            except InvalidEntryError:
                part = None
            if part is not None:
                self._check_key(part, digest, key)
        if not self._store.delete(digest):
            raise NoSuchEntryError(key)

    def __delitem__(self, key: K) -> None:
        self.remove(key)

    def pop(self, key: K, *default: Any) -> Any:
        """Remove the entry of `key` and return its value; if there is none, or another is faster, return `default`."""
        try:
            value = self.fetch(key)
            self.remove(key)
        except NoSuchEntryError:
            if default:
                return default[0]
            raise
        return value
