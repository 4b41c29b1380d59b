"""Writing packs, and moving entries between loose files and packs while others read and write.

A pack is written privately, synced, and published by one rename; then its directory is synced, and only then what it
replaces is removed. Who publishes or replaces a pack holds the container's lock alone for that time, and looks once
more whether each entry is still what was written: who adds, overwrites or removes an entry holds the lock shared, and
looks into the packs.
"""

from __future__ import annotations

import os
from errno import EDQUOT, ENOSPC
from itertools import groupby
from time import time

from persistent_dict import _fs
from persistent_dict.errors import InvalidEntryError
from persistent_dict.stores.base import Member, TakenError
from persistent_dict.stores.framing import Damage
from persistent_dict.stores.pack_writer import PackWriter, packed, write_pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest, Entry, EntryInfo
    from persistent_dict.stores.loose import LooseStore
    from persistent_dict.stores.packs import Pack, Packs

    Progress = Callable[[int, int], object]

_NO_ROOM = frozenset({EDQUOT, ENOSPC})
_ALIVE = 0.75  # share of a pack's entries; it is written anew when fewer are left
_SMALL_PACK = 4 * 1024 * 1024  # bytes; a smaller one is written anew at once
_REMOVERS = 4  # threads; the disk is what they wait for
_LOOKS = 100  # at a container that others keep changing
_MANY = 8  # packs; each costs a look on a miss


class Packing:
    """What moves the entries of one container between loose files and packs.

    `about` is what new packs say about themselves; `progress` is called with how many entries are done, of how many.
    """

    def __init__(self, path: str, loose: LooseStore, packs: Packs, mode: int, about: Callable[[], str]) -> None:
        self._path = path
        self._loose = loose
        self._packs = packs
        self._mode = mode
        self._about = about

    def tidy(self) -> int:
        """Finish what killed processes left: packs that later ones have replaced, tables of hits without a pack, loose
        copies of packed entries. Return how many things were removed."""
        self._packs.refresh()
        copies: dict[Digest, object] = {}
        for digest in self._loose.digests():
            found = self._packs.find(digest)
            if found is not None and not found[2]:
                copies[digest] = None
        removed = self._remove_loose(copies)
        with self._alone():
            self._packs.refresh()
            packs = self._packs.known
            for number, pack in enumerate(packs[1:], 1):
                if not pack.problem and all(
                    any(later.find(pack.digest(i)) >= 0 for later in packs[:number]) for i in range(pack.count)
                ):
                    self._retire([pack])
                    removed += 1
            names = self._packs.names()
            for name in _fs.list_directory(self._packs.directory):
                if name.endswith(".used") and name.removesuffix(".used") not in names:
                    _fs.remove_tree(f"{self._packs.directory}/{name}")
                    removed += 1
        return removed

    # From loose files into a pack

    def pack(self, max_entry: int, everything: bool, progress: Progress) -> tuple[int, int, list[Digest]]:
        """Move loose entries of at most `max_entry` bytes into a pack, together with those of small packs.

        Return how many entries the new pack has, how many of them were loose, and the digests of those that stay where
        they are because they are damaged.
        """
        self._packs.refresh()
        infos = {digest: self._loose_info(digest) for digest in list(self._loose.digests())}
        folded = self._to_fold(sum(info.nbytes for info in infos.values() if info is not None), everything)
        sources = self._sources(folded)
        left_over: dict[Digest, object] = {}
        for digest, info in infos.items():
            found = self._packs.find(digest)
            if info is None:  # a directory without a value hides nothing
                continue
            if found is not None and not found[2]:
                left_over[digest] = None
            elif info.nbytes <= max_entry:
                sources[digest] = None
            else:  # large, and in place of what a pack has
                sources.pop(digest, None)
        self._remove_loose(left_over)
        if None not in sources.values() and len(folded) < 2 and not any(pack.is_shadowed() for pack in folded):
            return 0, 0, []
        return self._move(sources, folded, progress)

    def _loose_info(self, digest: Digest) -> EntryInfo | None:
        """Return what is known of a loose entry, None where there is none, or something else."""
        try:
            return self._loose.info(digest)
        except InvalidEntryError:
            return None

    def _sources(self, folded: list[Pack]) -> dict[Digest, tuple[Pack, int] | None]:
        """Return where the entries of packs are, of which the first one counts."""
        sources: dict[Digest, tuple[Pack, int] | None] = {}
        for pack in sorted(folded, key=lambda pack: pack.sequence):
            sources.update((pack.digest(i), (pack, i)) for i in pack.living())
        return sources

    def _to_fold(self, total: int, everything: bool) -> list[Pack]:
        """Return the packs to be joined with `total` bytes of loose entries: those with entries that were overwritten,
        and those that are small beside the rest."""
        whole = [pack for pack in self._packs.known if not pack.problem and pack.is_there()]
        folded = [pack for pack in whole if everything or pack.is_shadowed()]
        rest = [pack for pack in whole if pack not in folded]
        return folded + self._small_beside(total + sum(pack.size for pack in folded), rest)

    def _small_beside(self, total: int, packs: list[Pack]) -> list[Pack]:
        """Return the packs that are small beside `total` bytes and each other."""
        small = []
        for pack in sorted(packs, key=lambda pack: pack.size):
            if pack.size < 2 * total:
                small.append(pack)
                total += pack.size
        return small

    def _move(
        self, sources: dict[Digest, tuple[Pack, int] | None], folded: list[Pack], progress: Progress
    ) -> tuple[int, int, list[Digest]]:
        moved: dict[Digest, object] = {}  # with what tells whether the loose entry is still the same
        damaged = []
        stamps: list[object] = []
        self._make_place()
        were_loose = 0
        with self._writer() as writer:
            for done, (digest, source) in enumerate(sorted(sources.items()), 1):
                try:
                    stamp, member = (None, packed(*source)) if source else self._loose.raw(digest)
                except (Damage, InvalidEntryError):
                    damaged.append(digest)
                    folded = [pack for pack in folded if source is None or pack is not source[0]]
                    continue
                if member is not None:  # else it was removed meanwhile
                    writer.add(member)
                    stamps.append(stamp)
                    if source is None:
                        moved[digest] = stamp
                progress(done, len(sources))
            writer.sync()
            with self._alone():
                self._packs.refresh()
                staged = self._loose.staged()
                trusted = {id(pack) for pack in self._packs.known if pack.is_there() and not pack.is_shadowed()}

                def is_current(number: int) -> bool:
                    digest = writer.digest(number)
                    source = sources[digest]
                    if source is None:
                        nonlocal were_loose
                        is_still = digest not in staged and self._loose.is_still(digest, stamps[number])
                        were_loose += is_still
                        return is_still
                    return id(source[0]) in trusted or self._is_last_word(digest, *source)

                count = self._publish(writer, is_current)
                self._retire([pack for pack in folded if self._is_replaced(pack)])
        self._remove_loose(moved)
        return count, were_loose, damaged

    def _is_replaced(self, pack: Pack) -> bool:
        """Whether every entry of a pack is in a later one, or was overwritten by a loose one."""
        later = [other for other in self._packs.known if other.sequence > pack.sequence]
        return all(
            any(other.find(pack.digest(i)) >= 0 for other in later) or self._loose_info(pack.digest(i)) is not None
            for i in pack.living()
        )

    def _is_last_word(self, digest: Digest, pack: Pack, i: int) -> bool:
        found = self._packs.find(digest)
        if found is None or (found[2] and self._loose_info(digest) is not None):
            return False
        return all(found[0].column(name)[found[1]] == pack.column(name)[i] for name in ("value_sizes", "stored_at"))

    def _remove_loose(self, stamps: dict[Digest, object]) -> int:
        """Remove loose entries that are in a pack: whose stamp is the one given, or which are never looked at. Return
        how many."""
        total, trash = 0, []
        for _, shard in groupby(sorted(stamps), key=lambda digest: digest[:2]):  # others wait for one at a time
            with self._alone():
                self._packs.refresh()
                removed = [digest for digest in shard if self._is_spare(digest, stamps)]
                trash.append(self._loose.set_apart(removed))
            total += len(removed)
        _remove_in_threads(trash)
        return total

    def _is_spare(self, digest: Digest, stamps: dict[Digest, object]) -> bool:
        found = self._packs.find(digest)
        if found is None or (found[2] and not self._loose.is_still(digest, stamps[digest])):
            return False
        return stamps[digest] is not None or found[0].raw(found[1])[2]

    # Many entries at once, as a pack

    def add_all(
        self, entries: Mapping[Digest, Entry], overwrite: Collection[Digest], new: Collection[Digest]
    ) -> set[Digest]:
        """Do what `Store.add_all` does: what is stored becomes a pack, which one rename makes visible.

        What it overwrites is by then in packs, too, that say they are not the last word: so nobody sees values of
        before beside those of now, wherever this ends.
        """
        self._make_place()
        trash: list[str] = []
        try:
            with self._writer() as writer:
                for digest, entry in sorted(entries.items()):
                    writer.add(self._loose.as_member(digest, entry))
                writer.sync()
                with self._alone():
                    return self._publish_all(writer, entries, overwrite, new, trash)
        finally:
            for path in trash:
                _fs.discard(path)

    def _publish_all(
        self,
        writer: PackWriter,
        entries: Mapping[Digest, Entry],
        overwrite: Collection[Digest],
        new: Collection[Digest],
        trash: list[str],
    ) -> set[Digest]:
        self._packs.refresh()
        trash += self._loose.unstage(entries)  # whose writers may have seen no packs
        there = {digest for digest in entries if self.has(digest)}
        if not there.isdisjoint(new):
            raise TakenError(there.intersection(new))
        replaced = there.intersection(overwrite)
        kept = there - replaced
        for digest in kept:  # what is stored refers to it, or is told to be there
            self._loose.make_durable(digest)
        spent = self._pack_loose(replaced)
        trash += self._loose.set_apart(entries.keys() - kept)  # what could not be packed: it was damaged
        if replaced:
            self._loose.sync_names(replaced)
        holding = [pack for pack in self._packs.known if any(pack.find(digest) >= 0 for digest in replaced)]
        for pack in holding:
            pack.shadow(durability="durable")
        self._publish(writer, lambda number: writer.digest(number) not in kept)
        for pack in holding:
            pack.shadow(replaced, "durable", dead=True)
        self._retire(spent)
        return kept

    def _pack_loose(self, digests: set[Digest]) -> list[Pack]:
        """Move loose entries, but damaged ones, into a pack of their own, and return it; for who holds the lock."""
        loose = [digest for digest in sorted(digests) if self._loose_info(digest) is not None]
        if not loose:
            return []
        moved = []
        with self._writer() as writer:
            for digest in loose:
                try:
                    member = self._loose.raw(digest)[1]
                except (Damage, InvalidEntryError):
                    continue
                if member is not None:
                    writer.add(member)
                    moved.append(digest)
            if not self._publish(writer):
                return []
        trash = self._loose.set_apart(moved)
        self._loose.sync_names(moved)  # before anything else is: else what is half removed might come back
        _fs.remove_all(trash)
        return list(self._packs.known[:1])

    def join_small(self) -> None:
        """Join the smallest packs where there are many, so that their number grows with the logarithm of their size."""
        if len(self._packs.known) <= _MANY:
            return
        whole = [pack for pack in self._packs.known if not pack.problem]
        folded = self._small_beside(min((pack.size for pack in whole), default=0), whole)
        if len(folded) > 1:
            self._move(self._sources(folded), folded, lambda *_: None)

    # From elsewhere into a pack

    def take_in(self, pack: Pack, progress: Progress) -> tuple[int, int, list[Digest]]:
        """Add the entries of a pack that are not there yet. Return how many, how many were there, and the digests of
        those damaged."""
        damaged, now = [], time()
        self._make_place()
        with self._writer() as writer:
            for i in pack.living():
                if not self.has(pack.digest(i)):
                    try:
                        writer.add(packed(pack, i)._replace(used_at=now))  # else a limit of age would undo it at once
                    except Damage:
                        damaged.append(pack.digest(i))
                progress(i + 1, pack.count)
            writer.sync()
            with self._alone():
                self._packs.refresh()
                there = self._loose.staged()
                kept = sum(self.has(pack.digest(i)) for i in pack.living())
                count = self._publish(
                    writer, lambda number: not (writer.digest(number) in there or self.has(writer.digest(number)))
                )
        return count, kept, damaged

    def has(self, digest: Digest) -> bool:
        """Whether the container has the entry, as far as its packs are known."""
        return self._packs.find(digest) is not None or self._loose_info(digest) is not None

    # Out of packs

    def remove(self, chosen: Mapping[Digest, object]) -> int:
        """Remove entries, loose and packed, whose stamp is still the one that is given, or not None. Return how many.

        They are gone at once; their packs are written anew when enough in them is dead, and there is room for that.
        """
        with self._alone():
            self._packs.refresh()
            digests = {digest for digest, stamp in chosen.items() if stamp is None or stamp == self._stamp(digest)}
            there = {digest for digest in digests if self.has(digest)}
            holding = [pack for pack in self._packs.known if any(pack.find(digest) >= 0 for digest in digests)]
            for pack in holding:
                pack.shadow(digests, "durable", dead=True)
            trash = self._loose.set_apart(digests)
            try:
                for pack in holding:
                    if pack.share_alive() <= _ALIVE or pack.size < _SMALL_PACK:
                        self._rewrite(pack, set())
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
        _fs.remove_all(trash)
        return len(there)

    def _stamp(self, digest: Digest) -> object:
        found = self._packs.find(digest)
        info = self._loose_info(digest) if found is None or found[2] else None
        if info is None and found is not None:
            info = found[0].info(found[1])
        return info and info.stamp

    def quarantine(self, digest: Digest, aside: str, *, unloadable: bool) -> str:
        """Set a damaged entry aside, or the packs in which it may have been; with `unloadable`, one that is intact.

        Return where it was put, "" where it is not damaged, or overwritten.
        """
        with self._alone():
            self._packs.refresh()
            found = self._packs.find(digest)
            if found is None:
                lost = [self._mend(pack, aside) for pack in self._packs.known if not pack.complete]
                return lost[0][-1][1] if lost and lost[0] else ""
            pack, i, is_shadowed = found
            holding = self._packs.having(digest)
            if is_shadowed and self._loose.stat(digest) is not None:
                for other in holding:  # what it overwrote may not come back
                    other.shadow([digest], "durable", dead=True)
                return self._loose.quarantine(digest, unloadable=unloadable)
            if not unloadable and self._is_readable(pack, i):
                return ""
            place = self._set_aside(pack, i, aside)
            for other in holding:
                other.shadow([digest], "durable", dead=True)
        return place

    def mend(self, pack: Pack, aside: str) -> list[tuple[InvalidEntryError, str]]:
        """Write a pack anew without what is damaged in it, if anything is. Return what that is, and where in the
        directory `aside` it was put; the pack itself, too, if its index is damaged."""
        is_intact = all(pack.intact())  # also finds what is wrong with the index
        if is_intact and not pack.problem:
            return []
        with self._alone():
            self._packs.refresh()
            return self._mend(pack, aside)

    def _mend(self, pack: Pack, aside: str) -> list[tuple[InvalidEntryError, str]]:
        if pack.fd >= 0 and not pack.is_there():  # somebody else has replaced it
            return []
        problems = {i: problem for i in pack.living() if (problem := pack.problem_of(i)) is not None}
        found = [(problem, self._set_aside(pack, i, aside)) for i, problem in problems.items()]
        dropped = {pack.digest(i) for i in problems}
        for other in self._packs.known:  # what they overwrote may not come back
            if other is not pack and any(other.find(digest) >= 0 for digest in dropped):
                other.shadow(dropped, "durable", dead=True)
        kept = f"{aside}/{pack.name}-{os.urandom(4).hex()}.pack" if pack.problem else ""
        if kept:
            found.append((pack.error(), kept))
        self._rewrite(pack, dropped, kept)
        return found

    def _set_aside(self, pack: Pack, i: int, aside: str) -> str:
        """Write the files of a packed entry, as they are, to a directory of their own in `aside`. Return that."""
        place = f"{aside}/{pack.digest(i)}-{os.urandom(4).hex()}"
        _fs.make_directory(aside, self._mode)
        _fs.make_directory(place, self._mode)
        value, key = self._what_is_left(pack, i)
        _fs.write_file(f"{place}/value", [value], self._mode, "consistent")
        _fs.write_file(f"{place}/key", [key], self._mode, "consistent")
        _fs.sync_directory(aside)
        return place

    def _what_is_left(self, pack: Pack, i: int) -> tuple[Buffer, Buffer]:
        try:
            return pack.raw(i)[:2]
        except Damage:
            return b"", b""

    def _is_readable(self, pack: Pack, i: int) -> bool:
        try:
            packed(pack, i)
        except Damage:
            return False
        return True

    def _rewrite(self, pack: Pack, dropped: set[Digest], kept: str = "") -> None:
        """Replace a pack by one without some entries, and without those that were overwritten; or by none. With `kept`,
        the pack goes there."""
        later = [other for other in self._packs.known if other.sequence >= pack.sequence and other is not pack]
        is_shadowed = pack.is_shadowed()

        def stays(i: int) -> bool:
            digest = pack.digest(i)
            return not (
                digest in dropped
                or (is_shadowed and self._loose_info(digest) is not None)
                or any(other.find(digest) >= 0 for other in later)
            )

        numbers = [i for i in pack.living() if stays(i)]
        if numbers:
            with self._writer() as writer:
                for i in numbers:
                    try:
                        writer.add(packed(pack, i))
                    except Damage:
                        value, key = self._what_is_left(pack, i)
                        used_at, stored_at = pack.used_at(i), pack.column("stored_at")[i]
                        member = Member(pack.digest(i), value, key, stored_at, pack.column("seconds")[i], used_at)
                        writer.add(member, is_damaged=True)
                self._publish(writer, sequence=pack.sequence)
        if kept:
            _tell(pack)  # while it bears its name
            _fs.make_directory(os.path.dirname(kept), self._mode)
            _fs.rename_if_there(pack.path, kept)
            _fs.sync_directory(os.path.dirname(kept))
        self._retire([pack])

    def clear(self) -> None:
        """Remove everything."""
        with self._alone():
            self._packs.refresh()
            self._retire(self._packs.known)  # first: what overwrote an entry may not go before that
            trash = self._loose.set_apart_all()
        _fs.remove_all(trash)

    # A pack for elsewhere

    def write_to(self, path: str, progress: Progress) -> tuple[int, list[Digest]]:
        """Write all entries to a pack at `path`, in place of what is there. Return how many, and the digests of those
        that are left out because they are damaged."""
        damaged: list[Digest] = []
        digests: set[Digest] = set()
        for _ in range(_LOOKS):
            self._packs.refresh()
            before = self._packs.view[:2]
            digests.update(self._loose.digests())
            for pack in self._packs.known:
                digests.update(map(pack.digest, range(pack.count)))  # the dead, too: a loose one may come first
            self._packs.refresh()
            if self._packs.view[:2] == before:  # else something may have moved from one to the other
                break
        return write_pack(path, self._members(digests, damaged, progress), self._about()), damaged

    def _members(self, digests: set[Digest], damaged: list[Digest], progress: Progress) -> Iterator[Member]:
        for done, digest in enumerate(sorted(digests), 1):
            try:
                member = self._member(digest)
            except (Damage, InvalidEntryError):
                damaged.append(digest)
            else:
                if member is not None:
                    yield member
            progress(done, len(digests))

    def _member(self, digest: Digest) -> Member | None:
        """Return an entry as readers see it, None where it was removed meanwhile."""
        while True:
            known = self._packs.known
            found = self._packs.find(digest)
            member = self._loose.raw(digest)[1] if found is None or found[2] else None
            if member is None and found is not None:
                try:
                    member = packed(found[0], found[1])
                except Damage:
                    member = self._loose.raw(digest)[1]  # a crash may have left a copy
                    if member is None:
                        raise
            if member is not None:
                return member
            self._packs.refresh()
            if self._packs.known == known:  # else it may have moved
                return None

    # Steps

    def _make_place(self) -> None:
        """Make the directory of the packs. From now on, who adds an entry takes the lock; who looked before has its
        stage under the entry's digest."""
        if _fs.make_directory(self._packs.directory, self._mode):
            _fs.sync_directory(self._path)
        self._loose.sweep()  # the stages of killed writers would keep their entries out

    def _alone(self) -> _fs.DirectoryLock:
        return _fs.DirectoryLock(self._path, f"{self._path}/FORMAT", alone=True)

    def _writer(self) -> PackWriter:
        return PackWriter(f"{self._path}/tmp/{os.urandom(8).hex()}", self._mode, self._about())

    def _publish(
        self, writer: PackWriter, is_current: Callable[[int], bool] = lambda _: True, *, sequence: int | None = None
    ) -> int:
        """Make a pack visible, as the latest one, or in the place of another. Return how many entries it has."""
        if sequence is None:
            sequence = 1 + max((pack.sequence for pack in self._packs.known), default=0)
        name, count = writer.finish(sequence, is_current)
        if count:
            os.rename(writer.path, f"{self._packs.directory}/{name}.pack")
            _fs.sync_directory(self._packs.directory)
            self._packs.refresh(always=True)
        return count

    def _retire(self, packs: Iterable[Pack]) -> None:
        """Remove packs whose entries are elsewhere, or to be removed."""
        for pack in packs:
            _tell(pack)
            _fs.remove_tree(pack.path)
            _fs.remove_tree(f"{self._packs.directory}/{pack.name}.used")
        if _fs.is_directory(self._packs.directory):
            _fs.sync_directory(self._packs.directory)
        self._packs.refresh(always=True)


def _remove_in_threads(trash: list[list[str]]) -> None:
    if not trash:
        return
    try:
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(_REMOVERS)
        removals = pool.map(_fs.remove_all, trash)
    except RuntimeError:  # no more threads, or the interpreter is ending
        for paths in trash:
            _fs.remove_all(paths)
        return
    try:
        list(removals)
    finally:
        pool.shutdown(cancel_futures=True)


def _tell(pack: Pack) -> None:
    """Say to those who have a pack open that it is replaced; where that is not allowed, they notice a little later."""
    try:
        pack.shadow()
    except OSError:  # another user's, or no file
        return
