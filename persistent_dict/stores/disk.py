"""One container's store: loose entries over packs.

What is in a pack that nothing has overwritten is found there, without a look at the loose entries; then those are
looked at; and where the packs have changed meanwhile, all is looked at again, so that an entry which moves from one to
the other is never missed.
"""

from __future__ import annotations

import os
import time
from sys import implementation

from persistent_dict import _fs, _log
from persistent_dict.errors import InvalidEntryError
from persistent_dict.stores.base import EntryInfo, MutableStore
from persistent_dict.stores.container import Container
from persistent_dict.stores.loose import DURABILITIES, LooseStore
from persistent_dict.stores.packs import Pack, Packs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    from persistent_dict.stores.base import Digest, Entry, Part
    from persistent_dict.stores.limits import Limits
    from persistent_dict.stores.packing import Packing

    T = TypeVar("T")

_LARGE = 1024 * 1024  # bytes; two writers shall not write as much at the same time
_LOCK_TIMEOUT = 60.0  # seconds; then both write, and the rename decides
_SELDOM = 3600.0  # seconds
_LOOKS = 100  # at an entry that others keep moving


class DiskStore(MutableStore):
    """The entries of one container.

    Parameters
    ----------
    path : str
        The container.
    format_name, identifier : str, or None
        What the container must have been made with; None: whatever it was.
    durability : str
        What a write has done when it returns: "none", "writeout", "consistent" or "durable".
    mmap : bool
        Map large values, copy-on-write, instead of reading them. A program that truncates such a file kills this one.
    trusted : bool
        Read the container whoever owns it and may write to it.
    mode : int
        The permissions of its directories; files have the same without the execute bits. 0o770 shares it with a group.
    checksum : str
        What new files are checked by: "crc32", or "sha256", which is slower. Files with either are read.
    limits : Limits, optional
        What the container may keep. Looked at now and then after an entry was stored: whenever this store has added a
        tenth of what is allowed, and when nobody has looked for an hour. More than a tenth too much is then removed.

    Notes
    -----
    Every method may raise `ContainerError` where the container does not fit, and `UntrustedContainerError` where others
    may have written to it. Safe for threads and processes, pickles, survives a fork.
    """

    def __init__(
        self,
        path: str,
        format_name: str | None = None,
        identifier: str | None = None,
        *,
        durability: str = "none",
        mmap: bool = False,
        trusted: bool = False,
        mode: int = 0o700,
        checksum: str = "crc32",
        limits: Limits | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"unknown durability {durability!r}: use one of {', '.join(map(repr, DURABILITIES))}")
        if mode & 0o700 != 0o700:
            raise ValueError(f"mode {mode:o} would lock out the owner: it needs at least 0o700")
        self.path = os.path.abspath(path)
        self.durability = durability
        self._format_name = format_name
        self._identifier = identifier
        self._mode = mode
        self._options: dict[str, Any] = {
            "durability": durability, "mmap": mmap, "trusted": trusted, "mode": mode, "checksum": checksum,
            "limits": limits,
        }  # fmt: skip
        self._is_synced = False
        self._limits = limits
        self._added_bytes = self._added_entries = 0
        self._look_at = 0.0  # when it may be that nobody has looked at the limits for long
        self.quarantine_path = f"{self.path}/quarantine"
        owners = None if trusted or mode & 0o020 else _fs.trusted_owners()
        self.container = Container(self.path, format_name, identifier, trusted, mode)
        self.loose = LooseStore(
            f"{self.path}/entries",
            f"{self.path}/tmp",
            container=self.path,
            set_aside=self.quarantine_path,
            durability=durability,
            mmap=mmap,
            mode=mode,
            owners=owners,
            checksum=checksum,
        )
        self.packs = Packs(f"{self.path}/packs", self.path, owners, mmap, mode)

    @property
    def packing(self) -> Packing:
        """What moves entries between loose files and packs."""
        from persistent_dict.stores.packing import Packing  # here: few programs ever do

        try:  # a group shares the container, whoever packs it
            mode = os.stat(self.path).st_mode & 0o777
        except FileNotFoundError:
            mode = self._mode
        return Packing(self.path, self.loose, self.packs, mode, self.container.about)

    def open(self) -> bool:
        """Check the container, once. False: there is none yet."""
        if not self.container.is_open:
            if not self.container.open():
                return False
            self.packs.refresh()
        return True

    # Reading

    def get_value(self, digest: Digest) -> Part | None:
        packs = self.packs.view[0]
        for pack in packs:
            part = pack.last_word(digest)
            if part is not None:
                return part
        if not self.container.is_open:
            if not self.open():
                return None
            packs = self.packs.view[0]
        if not packs:
            part = self.loose.get_value(digest)
            if part is not None:
                return part
            self.packs.refresh()
            if not self.packs.view[0]:
                return None
        return self._found(digest, Pack.get_value, self.loose.get_value)

    def get(self, digest: Digest) -> Entry | None:
        return self._found(digest, Pack.get, self.loose.get) if self.open() else None

    def get_key(self, digest: Digest) -> Part | None:
        return self._found(digest, Pack.get_key, self.loose.get_key) if self.open() else None

    def stat(self, digest: Digest) -> EntryInfo | None:
        return self._found(digest, Pack.info, self.loose.stat) if self.open() else None

    def _found(
        self, digest: Digest, in_pack: Callable[[Pack, int], T], in_loose: Callable[[Digest], T | None]
    ) -> T | None:
        """Return what is found of an entry where it counts, None where it is nowhere."""
        for _ in range(_LOOKS):
            known = self.packs.known
            place = self.packs.find(digest)
            if place is None or place[2]:
                found = in_loose(digest)
                if found is not None:
                    return found
                self.packs.refresh()
                if self.packs.known != known:  # it may have moved; whichever thread has seen that first
                    continue
            if place is None:
                break
            return self._from_pack(digest, place[0], place[1], in_pack, in_loose)
        lost = self.packs.lost() if in_pack in (Pack.get, Pack.get_value) else None
        if lost is not None:
            raise lost
        return None

    def _from_pack(
        self,
        digest: Digest,
        pack: Pack,
        i: int,
        in_pack: Callable[[Pack, int], T],
        in_loose: Callable[[Digest], T | None],
    ) -> T:
        try:
            return in_pack(pack, i)
        except InvalidEntryError:
            found = in_loose(digest)  # a crash may have left a copy
            if found is None:
                raise
            return found

    def scan(self) -> Iterator[EntryInfo]:
        for digest, place in self._all():
            info = place[0].info(place[1]) if place else self._info(digest)
            if info is not None:
                yield info

    def _info(self, digest: Digest) -> EntryInfo | None:
        try:
            return self._found(digest, Pack.info, self.loose.info)
        except InvalidEntryError:  # it is there, for whoever reads it to be told
            return EntryInfo(digest, 0, None, settled=False)

    def _all(self) -> Iterator[tuple[Digest, tuple[Pack, int] | None]]:
        """Yield the digest of every entry, once, and where in a pack it is; None: it is loose, or takes a closer look.

        What moves from one to the other meanwhile is not missed: when the packs are others at the end than at the
        beginning, all is gone through again for what was not seen.
        """
        if not self.open():
            return
        seen: set[Digest] = set()
        seen_packs: list[tuple[Pack, set[int]]] = []  # whose living entries have been yielded, and are not in `seen`
        for _ in range(_LOOKS):
            self.packs.refresh()
            before = self.packs.view[:2]
            loose = list(self.loose.digests())
            self.packs.refresh()
            known = self.packs.known
            for digest in loose:
                place = self.packs.find(digest)
                if digest not in seen and (place is None or place[2]):
                    seen.add(digest)
                    yield digest, None
            for pack in known:
                dead = pack.dead()
                for i in range(pack.count):
                    digest = pack.digest(i)
                    if digest in seen or (i in dead and not self._is_loose(digest)):  # it may be, since a moment
                        continue
                    if len(known) > 1 or i in dead:
                        seen.add(digest)
                    yield digest, None if i in dead else (pack, i)
                if len(known) == 1:
                    seen_packs.append((pack, dead))
            self.packs.refresh()
            if self.packs.view[:2] == before:
                return
            for pack, dead in seen_packs:
                seen.update(pack.digest(i) for i in range(pack.count) if i not in dead)
            seen_packs.clear()

    def _is_loose(self, digest: Digest) -> bool:
        try:
            return self.loose.stat(digest) is not None
        except InvalidEntryError:  # it is there, for whoever reads it to be told
            return True

    def digests(self) -> Iterator[Digest]:
        """Yield the digests of all entries, also of loose ones without a value file."""
        for digest, _ in self._all():
            yield digest

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def elsewhere(self, digest: Digest) -> list[str]:
        parent, name = os.path.split(self.path)
        stem, _, tag = name.rpartition(".")
        if tag != implementation.cache_tag:  # the format is shared by all Pythons
            return []
        others = [other for other in _fs.list_directory(parent) if other.rpartition(".")[0] == stem and other != name]
        stores = [DiskStore(f"{parent}/{other}", **self._options) for other in others]
        return [store.place(digest) for store in stores if store._is_plainly_there(digest)]

    def _is_plainly_there(self, digest: Digest) -> bool:
        self.packs.refresh()
        return self.packs.find(digest) is not None or _fs.is_directory(self.loose.place(digest))

    def place(self, digest: Digest) -> str:
        found = self.packs.find(digest)
        return self.loose.place(digest) if found is None or found[2] else f"{found[0].path}:{digest}"

    # Writing

    def add(self, digest: Digest, entry: Entry) -> bool:
        add = self._add if entry.nbytes < _LARGE else self._add_large
        added = self._in_container(lambda: add(digest, entry))
        if added and self._limits:
            self._keep_within(self._limits, entry)
        return added

    def _add(self, digest: Digest, entry: Entry) -> bool:
        def publish(rename: Callable[[], bool]) -> bool:
            self.packs.refresh()
            if not self.packs.are_possible:  # whoever makes the first one leaves out what is staged now, or removes it
                return rename()
            with self._shared():
                return not self._is_packed(digest) and rename()

        return self.loose.add(digest, entry, publish)

    def _add_large(self, digest: Digest, entry: Entry) -> bool:
        lock = self._lock(f"{digest}.write")  # not the one of `lock`, whose holder may compute for long
        lock.acquire(_LOCK_TIMEOUT)
        try:
            if self.durability != "durable" and self.loose.stat(digest) is not None:  # the wait was for its writer
                return False
            return self._add(digest, entry)
        finally:
            lock.release()

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        self._in_container(lambda: self._set(digest, entry, same_key))
        if self._limits:
            self._keep_within(self._limits, entry)

    def add_all(
        self, entries: Mapping[Digest, Entry], *, overwrite: Collection[Digest] = (), new: Collection[Digest] = ()
    ) -> frozenset[Digest]:
        def write() -> frozenset[Digest]:
            self._sync_container()
            return frozenset(self.packing.add_all(entries, overwrite, new))

        kept = self._in_container(write)
        self._without_errors("joining packs", self.packing.join_small)
        if self._limits:
            for digest in entries.keys() - kept:
                self._keep_within(self._limits, entries[digest])
        return kept

    def _set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None) -> None:
        with self._shared():
            self.packs.refresh()
            holding = self.packs.having(digest)
            for pack in holding:
                if not pack.is_shadowed():
                    pack.shadow([digest], self.durability)
            self.loose.set(digest, entry, same_key)
            for pack in holding:  # so that the old value never comes back, even if somebody removes the new one by hand
                pack.shadow([digest], self.durability, dead=True)

    def delete(self, digest: Digest) -> bool:
        if not self.open():
            return False
        with self._shared():
            if not self._is_packed(digest):
                return self.loose.delete(digest)
        return self.delete_many([digest]) > 0

    def delete_many(self, digests: Iterable[Digest]) -> int:
        """Remove entries, those of one pack at once. Return how many there were."""
        return self._remove(dict.fromkeys(digests))

    def delete_unused(self, infos: Iterable[EntryInfo]) -> int:
        """Remove entries, but those that were replaced since these were made. Return how many."""
        return self._remove({info.digest: info.stamp for info in infos})

    def _remove(self, chosen: dict[Digest, object]) -> int:
        return self._in_container(lambda: self.packing.remove(chosen)) if chosen and self.open() else 0

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        if not self.open():
            return ""
        with self._shared():
            if not self._is_packed(digest):
                aside = self.loose.quarantine(digest, unloadable=unloadable)
                if aside or self.packs.lost() is None:
                    return aside
        return self.packing.quarantine(digest, self.quarantine_path, unloadable=unloadable)

    def prune(self, limits: Limits) -> list[EntryInfo]:
        """Remove the entries that are used least recently, until the limits hold. Return them."""
        surplus = limits.surplus(self.scan())
        self.delete_unused(surplus)
        return surplus

    def _keep_within(self, limits: Limits, entry: Entry) -> None:
        """Look whether the limits hold, if it is time. What goes wrong with it is nothing that a writer should hear."""
        self._added_bytes += entry.nbytes
        self._added_entries += 1
        tenth = limits.share(0.1)
        now = time.time()
        if not (
            (tenth.max_bytes is not None and self._added_bytes > tenth.max_bytes)
            or (tenth.max_entries is not None and self._added_entries > tenth.max_entries)
            or (now > self._look_at and now - _fs.time_of(f"{self.path}/locks/pruned") > _SELDOM)
        ):
            return
        self._added_bytes = self._added_entries = 0
        self._look_at = now + _SELDOM
        self._without_errors("pruning", lambda: self._prune_alone(limits))

    def _prune_alone(self, limits: Limits) -> None:
        lock = self._lock("prune")
        if lock.acquire():  # else somebody else is at it
            try:
                _fs.touch(f"{self.path}/locks/pruned", self._mode)
                infos = list(self.scan())
                if limits.surplus(infos):
                    self.delete_unused(limits.share(0.9).surplus(infos))
            finally:
                lock.release()

    def _without_errors(self, what: str, work: Callable[[], object]) -> None:
        """Do what can be done later as well, for a writer that has done its own part."""
        try:
            work()
        except OSError as error:
            log = _log.listener()
            if log is not None:
                log.debug("%s: %s failed: %s", self.path, what, error)

    def clear(self) -> None:
        if self.open():
            self._in_container(self.packing.clear)

    def take_in(self, pack: Pack, progress: Callable[[int, int], object]) -> tuple[int, int, list[Digest]]:
        """Add the entries of a pack that are not there yet. Return how many, how many were there, and the digests of
        those damaged."""
        return self._in_container(lambda: self.packing.take_in(pack, progress))

    def write_to(self, path: str, progress: Callable[[int, int], object]) -> tuple[int, list[Digest]]:
        """Write all entries to a pack at `path`, in place of what is there. Return how many, and the digests of those
        that are left out because they are damaged."""
        return self.packing.write_to(path, progress)

    def _is_packed(self, digest: Digest) -> bool:
        self.packs.refresh()
        return self.packs.find(digest) is not None

    def _shared(self) -> _fs.DirectoryLock:
        return _fs.DirectoryLock(self.path, f"{self.path}/FORMAT")

    def _in_container(self, write: Callable[[], T]) -> T:
        """Return what `write` does, in a container that is made if it is not there, or no longer."""
        if not self.open():
            self._create()
        if self.durability == "durable":
            self._sync_container()
        try:
            return write()
        except FileNotFoundError:
            self._create()
            return write()

    def _sync_container(self) -> None:
        if not self._is_synced:
            _fs.sync_with_parents(self.path)  # whoever made the container, and however long ago
            self._is_synced = True

    def _create(self) -> None:
        self.container.create()
        self.packs.refresh()
        self._is_synced = False

    def lock(self, digest: Digest) -> _fs.DigestLock | None:
        try:
            return self._in_container(lambda: self._lock(digest))
        except OSError:  # a place that cannot be written to
            return None

    def _lock(self, name: str) -> _fs.DigestLock:
        return _fs.DigestLock(f"{self.path}/locks", name, self._mode)

    def sweep(self) -> int:
        """Finish and remove what killed processes left, and what they staged over an hour ago. Return how many
        things."""
        if not self.open():
            return 0
        names = [name for name in _fs.list_directory(f"{self.path}/locks") if name.endswith(".lock")]
        locks = [self._lock(name.removesuffix(".lock")) for name in names]
        return self.packing.tidy() + self.loose.sweep() + sum(lock.acquire() and lock.release() for lock in locks)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self._format_name, self._identifier, self._options))


def _reopened(path: str, format_name: str | None, identifier: str | None, options: dict[str, Any]) -> DiskStore:
    return DiskStore(path, format_name, identifier, **options)
