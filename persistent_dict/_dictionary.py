"""What both dictionaries do: keys to digests, objects to entries and back, and what to do with damage."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import namedtuple
from collections.abc import Mapping
from errno import EACCES, ENOENT, ENOTDIR, EPERM, EROFS
from functools import partial
from hashlib import blake2b

from persistent_dict import _fs, _log
from persistent_dict._links import Draft, Links, PlaceError
from persistent_dict._lru import Lru
from persistent_dict._placed import Placed
from persistent_dict.errors import (
    CacheWriteWarning,
    CollisionWarning,
    CorruptEntryWarning,
    InvalidEntryError,
    MissingReferenceError,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    UnloadableEntryError,
    shown,
    warn,
)
from persistent_dict.formats import find_format
from persistent_dict.key_builder import KeyBuilder
from persistent_dict.stores.base import Entry
from persistent_dict.stores.limits import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any, NamedTuple, NoReturn, TypeVar

    from typing_extensions import Self

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest, Part

    K = TypeVar("K")
    V = TypeVar("V")
    T = TypeVar("T")

    class CacheInfo(NamedTuple):
        """What a dictionary has done since it was made, in this process. Exact unless threads collide in a count."""

        memory_hits: int
        disk_hits: int
        misses: int
        stores: int
        in_memory: int
        waits: int
else:
    CacheInfo = namedtuple("CacheInfo", "memory_hits disk_hits misses stores in_memory waits")

_ATTEMPTS = 100  # at an entry that others keep adding and removing
_UNWRITABLE = frozenset({EACCES, ENOENT, ENOTDIR, EPERM, EROFS})  # a place that is missing, or not ours to write to
_HEX = frozenset("0123456789abcdef")


class Dictionary(Placed, Mapping["K", "V"]):
    """What both dictionaries have in common."""

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
        store: Any = None,
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
        check_choice("on_invalid", on_invalid, ("raise", "quarantine"))
        if safe_sync and durability not in (None, "durable"):
            raise ValueError(
                f'safe_sync=True is durability="durable", and durability={durability!r} is given beside it'
            )
        durability = "durable" if safe_sync else durability
        options = {
            "durability": durability,
            "mmap": mmap,
            "trusted": trusted,
            "mode": mode,
            "limits": Limits(max_bytes, max_entries, max_age) or None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        if store is not None and (given or container_dir is not None or over):
            beside = [*given, *["container_dir"] * (container_dir is not None), *["over"] * bool(over)]
            raise TypeError(f"store= brings its own place: {', '.join(beside)} cannot be given beside it")
        self.identifier = identifier
        self.key_builder: Callable[[Any], str] = KeyBuilder() if key_builder is None else key_builder
        self._format: Any = find_format(format)
        self._references = None
        if references is not None:
            from persistent_dict.references import References

            self._references = references if isinstance(references, References) else References(references)
            self._format = self._references.format_for(self._format)
        self._options: dict[str, Any] = given
        self._over = [over] if isinstance(over, (str, os.PathLike, Mapping)) else list(over)
        self._on_invalid = on_invalid
        self._must_be_durable = durability == "durable"
        self._warned: set[str] = set()
        self._memory_size = in_mem_cache_size
        self._memory_hits = self._disk_hits = self._misses = self._stores = self._waits = 0
        self._prepare()
        self._settle(store, container_dir)

    def _displace(self) -> None:
        super()._displace()
        self._memory = Lru(self._memory_size)

    def _prepare(self) -> None:
        """Make what does not go into a pickle."""
        self._memory = Lru(self._memory_size)
        # Asking each time would double the time of a hit in memory: these are told if the last word on the store was.
        self._is_heard = _log.listener() is not None
        builder = self.key_builder
        self._links: Links | None = None
        if self._references is not None:
            self._links = Links(self, self._references)
            self._format.resolver = partial(self._links.resolver, {})
        self._digest: Callable[[Any], tuple[Digest, bool]] = self._foreign_digest
        self._plain_types: frozenset[type] = frozenset()
        if isinstance(builder, KeyBuilder) and builder.makes_digests:
            self._digest = builder.digest
            self._plain_types = builder.plain_types

    def _foreign_digest(self, key: Any) -> tuple[Digest, bool]:
        text = self.key_builder(key)
        if len(text) != 40 or not _HEX.issuperset(text):
            text = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return text, False

    # Reading

    def fetch(self, key: K) -> V:
        """Return the value stored under `key`. What comes from memory is the same object each time.

        Raises
        ------
        NoSuchEntryError
            A `KeyError`: there is none.
        InvalidEntryError
            There is one, but it is damaged; with ``on_invalid="quarantine"`` it is set aside instead, and a miss.
        """
        return self._find(key)[0]

    @abstractmethod
    def _find(self, key: K) -> tuple[V, K, float]:
        """Return the value from memory or the store, the key that it was stored under, and its seconds; and count."""

    def __getitem__(self, key: K) -> V:
        return self.fetch(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry. One that is damaged is there, too."""
        digest, proven = self._digest(key)
        if _fs.disabled():
            return False
        if proven:
            return self._store.stat(digest) is not None
        try:
            stored = self._store.get_key(digest)
            return stored is not None and self._is_same_key(stored, digest, key)
        except InvalidEntryError:
            return True

    def keys(self) -> Iterator[K]:  # type: ignore[override]  # as pytools has it, and for next()
        """Yield the keys in the order of storing."""
        for _, _, key in self._ordered():
            yield key

    def __iter__(self) -> Iterator[K]:
        return self.keys()

    def values(self) -> Iterator[V]:  # type: ignore[override]  # see keys
        """Yield the values in the order of storing."""
        for _, value in self.items():  # noqa: PERF102  # values() is this method
            yield value

    def items(self) -> Iterator[tuple[K, V]]:  # type: ignore[override]  # see keys
        """Yield pairs of key and value in the order of storing."""
        for _, digest, key in self._ordered():
            try:
                part = self._store.get_value(digest)
                if part is not None:
                    yield key, self._decode(part, digest)
            except InvalidEntryError as error:
                self._handle_invalid(error, digest, key)

    def _ordered(self) -> Iterator[tuple[float, Digest, K]]:
        parts = []
        for info in () if _fs.disabled() else self._store.scan():
            try:
                part = self._store.get_key(info.digest)
                if part is not None:  # else removed meanwhile
                    parts.append((part.stored_at, info.digest, part))
            except InvalidEntryError as error:
                self._handle_invalid(error, info.digest)
        parts.sort(key=lambda item: item[:2])
        for stored_at, digest, part in parts:
            try:
                key = self._decode_key(part, digest)
            except InvalidEntryError as error:
                self._handle_invalid(error, digest)
            else:
                yield stored_at, digest, key

    def __len__(self) -> int:
        """The number of entries, damaged ones included."""
        return 0 if _fs.disabled() else len(self._store)

    def nbytes(self) -> int:
        """Return how many bytes the entries take in the store."""
        return 0 if _fs.disabled() else sum(info.nbytes for info in self._store.scan())

    def entry_path(self, key: K) -> str:
        """Return where the entry of `key` is, or would be."""
        place: str = self._store.place(self._digest(key)[0])
        return place

    def _load(self, key: K, digest: Digest, proven: bool) -> tuple[Any, K, float]:
        """Return the value from the store, the key that it was stored under, and how long it took to compute."""
        try:
            if _fs.disabled():
                raise NoSuchEntryError(key)
            if proven:  # the value file alone is read
                part, stored_key = self._store.get_value(digest), key
            else:
                entry = self._store.get(digest)
                part = entry and entry.value
                if entry is not None:
                    stored_key = self._check_key(entry.key, digest, key)
            if part is None:
                raise NoSuchEntryError(key)
            try:  # as _decode does, without the time for a call
                value = self._format.loads(part.stream, part.buffers)
            except Exception as error:
                raise self._unloadable(digest, error) from error
        except InvalidEntryError as error:
            self._handle_invalid(error, digest, key)
            self._misses += 1
            raise NoSuchEntryError(key) from error
        except NoSuchEntryError:
            self._misses += 1
            self._tell("miss", key)
            raise
        self._disk_hits += 1
        if self._is_heard or _log.listener() is not None:
            self._tell("hit in the store", key)
        return value, stored_key, part.seconds

    def _decode(self, part: Part, digest: Digest) -> Any:
        try:
            return self._format.loads(part.stream, part.buffers)
        except Exception as error:
            raise self._unloadable(digest, error) from error

    def _try_to_decode(self, part: Part, digest: Digest) -> None:
        """Do what `_decode` does, and leave what is damaged where it is."""
        try:
            self._resolved(part, {}, sets_aside=False)
        except Exception as error:
            raise self._unloadable(digest, error) from error

    def _resolved(self, part: Part, drafts: dict[Digest, Draft], *, sets_aside: bool = True) -> Any:
        """Return a value, with what was drafted in place of the stored entries that it refers to."""
        if self._links is None:
            return self._format.loads(part.stream, part.buffers)
        resolve = self._links.resolver(drafts, sets_aside=sets_aside)
        return self._format.loads_resolving(part.stream, part.buffers, resolve)

    def _decode_key(self, part: Part, digest: Digest) -> Any:
        try:
            return self._format.loads_key(part.stream)
        except Exception as error:
            raise self._unloadable(digest, error) from error

    def _unloadable(self, digest: Digest, error: Exception) -> Exception:
        if isinstance(error, PlaceError):
            return error.error
        if isinstance(error, (MemoryError, RecursionError)):
            return error
        place = self._store.place(digest)
        if isinstance(error, MissingReferenceError):
            return MissingReferenceError(error.path, error.reason, place, self.filename)
        if isinstance(error, InvalidEntryError):  # of something that the value refers to
            return error
        reason = f"its bytes are intact, but decoding them fails with {type(error).__name__}: {error}"
        return UnloadableEntryError(place, reason, place, self.filename)

    # Equal digests, unequal keys

    def _check_key(self, part: Part, digest: Digest, key: Any) -> Any:
        stored = self._decode_key(part, digest)
        if not self._are_equal(stored, key):
            self._collide(key)
        return stored

    def _is_same_key(self, part: Part, digest: Digest, key: Any) -> bool:
        return self._are_equal(self._decode_key(part, digest), key)

    def _are_equal(self, stored: Any, key: Any) -> bool:
        try:
            return bool(stored == key)
        except (TypeError, ValueError):  # arrays do not compare to one bool
            return bytes(self._format.dumps_key(stored)) == bytes(self._format.dumps_key(key))

    def _collide(self, key: Any) -> NoReturn:
        warn(
            f"{self.identifier}: the key {shown(key)} has the digest of another key that is stored in {self.filename}. "
            "Most likely the key builder, or an update_persistent_hash, leaves out something that equality looks at.",
            CollisionWarning,
        )
        raise NoSuchEntryCollisionError(key)

    # Writing

    @abstractmethod
    def store(self, key: K, value: V, *, seconds: float = 0.0) -> None:
        """Store `value` under `key`. `seconds`: how long it took to compute."""

    def __setitem__(self, key: K, value: V) -> None:
        self.store(key, value)

    def store_if_not_present(self, key: K, value: V) -> bool:
        """Store `value` under `key` if there is no entry yet. Return whether it was stored.

        Of any number of threads and processes that do this at the same time, one is told True.
        """
        return self._add_if_absent(key, value) is True

    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value under `key`; if there is none, store `default` and return it. Atomic: all get the same."""
        for _ in range(_ATTEMPTS):
            try:
                return self.fetch(key)
            except NoSuchEntryCollisionError:
                raise
            except NoSuchEntryError:
                if self._add_if_absent(key, default) is not False:
                    return default
        return self.fetch(key)

    def _add_if_absent(self, key: K, value: Any) -> bool | None:
        digest, _ = self._digest(key)
        if _fs.disabled():
            return None
        if not self._must_be_durable and self._store.stat(digest) is not None:
            return False
        return self._add(key, digest, value)

    def _add(
        self, key: K, digest: Digest, value: Any, seconds: float = 0.0, key_stream: Buffer | None = None
    ) -> bool | None:
        """Return whether the value was stored; False: there is one; None: nothing is ever stored here."""
        drafts = self._drafts_of(key, digest, value, seconds, key_stream, overwrite=False)
        if self._links is not None and len(drafts) > 1:
            return self._links.store(drafts, digest)
        return self._write(key, lambda: self._store.add(digest, drafts[digest].entry))

    def _drafts_of(
        self,
        key: K,
        digest: Digest,
        value: Any,
        seconds: float = 0.0,
        key_stream: Buffer | None = None,
        *,
        overwrite: bool,
    ) -> dict[Digest, Draft]:
        """Return the entries that storing a value takes: its own, and those of the objects that it refers to."""
        if self._links is not None:
            return self._links.drafts_of(key, value, seconds, key_stream, overwrite)
        stream, buffers = self._format.dumps(value)
        key_stream = self._format.dumps_key(key) if key_stream is None else key_stream
        return {digest: Draft(key, Entry.new(key_stream, stream, buffers, seconds), overwrite)}

    def _write(self, key: K, write: Callable[[], T]) -> T | None:
        """Return what `write` does, and count one store unless that is False; None: nothing is ever stored here."""
        is_possible, done = self._attempt(write)
        if is_possible and done is not False:
            self._count_store(key)
        return done

    def _attempt(self, write: Callable[[], T]) -> tuple[bool, T | None]:
        """Return whether anything is ever stored here, and what `write` does."""
        if _fs.disabled():
            return False, None
        try:
            return True, write()
        except OSError as error:
            if error.errno not in _UNWRITABLE or self._must_be_durable:
                raise
            self._warn_once(
                f"{self.identifier}: nothing is stored, since {self.filename} cannot be written to: {error}. "
                "What is there is still read. Pass another container_dir or set PERSISTENT_DICT_DIR, or set "
                "PERSISTENT_DICT_DISABLE=1 to do without the cache.",
                "unwritable",
            )
            return False, None

    def _count_store(self, key: K) -> None:
        self._stores += 1
        self._tell("store", key)

    # Many at once

    def _draft(
        self, drafts: dict[Digest, Draft], key: K, value: V, seconds: float = 0.0, *, overwrite: bool = True
    ) -> None:
        """Add to `drafts` what storing a value would write."""
        more = self._drafts_of(key, self._digest(key)[0], value, seconds, overwrite=overwrite)
        if self._links is not None:
            self._links.new_parts(more, drafts)
        for digest, draft in more.items():
            known = drafts.get(digest)
            if draft.part is None or known is None:
                drafts[digest] = draft
            elif known.part is None and not known.overwrite:  # somebody else's may come first, and be another
                drafts[digest] = known._replace(part=draft.part)

    def _drafted(self, drafts: dict[Digest, Draft], key: K) -> Draft | None:
        """Return what was drafted for a key, None where nothing was."""
        digest, proven = self._digest(key)
        draft = drafts.get(digest)
        if draft is not None and not proven and not self._are_equal(draft.key, key):
            self._collide(key)
        return draft

    def _fetch_around(self, drafts: dict[Digest, Draft], key: K) -> Any:
        """Return what `fetch` does, with what was drafted in place of what is stored."""
        draft = self._drafted(drafts, key)
        if draft is not None:
            return self._resolved(draft.entry.value, drafts)
        return self.fetch(key) if self._links is None else self._links.fetch(key, drafts)

    def _store_drafts(self, drafts: dict[Digest, Draft]) -> tuple[tuple[K, ...], tuple[K, ...]]:
        """Store what was drafted, all at once. Return the keys that are stored, and those of what was there first."""
        if not drafts:
            return (), ()
        kept = self._store_all(drafts, ()) if self._links is None else self._links.store_all(drafts)
        if kept is None:
            return (), ()
        stored = tuple(draft.key for digest, draft in drafts.items() if digest not in kept)
        return stored, tuple(draft.key for digest, draft in drafts.items() if digest in kept)

    def _store_all(self, drafts: dict[Digest, Draft], new: Collection[Digest]) -> frozenset[Digest] | None:
        """Return what `Store.add_all` does; None: nothing is ever stored here."""
        overwrite = {digest for digest, draft in drafts.items() if draft.overwrite}
        entries = {digest: draft.entry for digest, draft in drafts.items()}
        _, kept = self._attempt(lambda: self._store.add_all(entries, overwrite=overwrite, new=new))
        if kept is not None:
            for digest, draft in drafts.items():
                if digest not in kept:
                    self._memory.drop(digest)
                    self._count_store(draft.key)
        return kept

    def clear(self) -> None:
        """Remove all entries, also those that others have stored."""
        self._memory.clear()
        if not _fs.disabled():
            self._store.clear()

    def clear_in_mem_cache(self) -> None:
        """Forget what is in memory; the entries stay."""
        self._memory.clear()

    # Damage

    def _handle_invalid(self, error: InvalidEntryError, digest: Digest, *keys: K) -> None:
        """Raise the error, naming the key if there is one; or set the entry aside and warn."""
        cause = error.__cause__
        if keys:
            error = error.for_key(keys[0])
        if self._on_invalid == "raise":
            raise error from cause
        aside = self._store.quarantine(digest, unloadable=isinstance(error, UnloadableEntryError))
        if aside:
            told = "\n".join(str(error).splitlines()[:2])  # not the cures: this is one
            warn(f"{told}\n  It was moved to {aside}, and counts as missing.", CorruptEntryWarning)

    # Telling

    def _warn_once(self, text: str, what: str) -> None:
        """Warn that something cannot be kept, the first time that it is `what`."""
        if what not in self._warned:
            self._warned.add(what)
            warn(text, CacheWriteWarning)

    def _tell(self, what: str, key: object) -> None:
        log = _log.listener()
        self._is_heard = log is not None
        if log is not None:
            log.debug("%s: %s: %s", self.identifier, what, shown(key))

    # The object itself

    def cache_info(self) -> CacheInfo:
        """Return the counts of hits in memory, hits on disk, misses and stores, the number of values in memory, and how
        often somebody else was waited for who computed."""
        hits, reads = self._memory_hits, self._disk_hits
        return CacheInfo(hits, reads, self._misses, self._stores, len(self._memory), self._waits)

    def close(self) -> None:
        """Forget what is in memory. Nothing else is held; the dictionary can still be used."""
        self._memory.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        place = self.filename or self._store
        return f"{type(self).__name__}({self.identifier!r}, {place!r}, format={self._format.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_memory", "_digest", "_plain_types", "_links")
        return {
            "filename": self.filename,
            **{name: value for name, value in vars(self).items() if name not in left_out},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()


def check_choice(name: str, choice: str, choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` that lists the choices."""
    if choice not in choices:
        raise ValueError(f"{name}={choice!r}: use one of {', '.join(map(repr, choices))}")
