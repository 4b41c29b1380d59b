"""Loose entries: one directory per digest, with a key file and a value file in it.

    entries/ab/cdef0123…/key, value        ab…: the digest; published by one rename, so never half there

Readers take no lock and write nothing. A hit is open, fstat, read, close; a miss is one open that fails. What looks
damaged is looked at again through one directory descriptor that still bears the name, since an entry that is removed
and stored anew between two opens looks damaged, too.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY
from functools import partial
from itertools import groupby
from stat import S_ISREG

from persistent_dict import _fs
from persistent_dict.errors import InvalidEntryError, InvalidKeyFileError, InvalidValueFileError
from persistent_dict.stores.base import Entry, EntryInfo, Member, MutableStore, Part
from persistent_dict.stores.framing import ALGORITHMS, FOOTER_SIZE, KEY, VALUE, Damage, Footer, frame, unframe
from persistent_dict.stores.reading import SMALL, read, read_bytes
from persistent_dict.stores.recency import FRESH, refresh, used_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from typing import Any, TypeVar

    from persistent_dict.stores.base import Digest

    T = TypeVar("T")

_FILES = {KEY: "key", VALUE: "value"}
_ERRORS = {KEY: InvalidKeyFileError, VALUE: InvalidValueFileError}
_SETTLED = 2_000_000_000  # ns; the coarsest clock of a file system in use ticks in 2 s
_LOOKS = 100  # at an entry that others keep replacing
_STALE = 3600.0  # seconds
_BLOCK = 4096  # bytes; what file systems give to a small file, and to a directory
_HEX = frozenset("0123456789abcdef")

DURABILITIES = ("none", "writeout", "consistent", "durable")


def _at_once(publish: Callable[[], bool]) -> bool:
    return publish()


class LooseStore(MutableStore):
    """Entries under a directory `entries`, staged in `staging` on the same file system.

    Parameters
    ----------
    container : str
        What error messages name as the place to repair.
    set_aside : str
        The directory for damaged entries.
    durability : str
        One of `DURABILITIES`.
    owners : frozenset of int, or None
        The user ids whose files are read; None: anybody's.
    checksum : str
        "crc32" or "sha256".
    """

    def __init__(
        self,
        entries: str,
        staging: str,
        *,
        container: str,
        set_aside: str,
        durability: str = "none",
        mmap: bool = False,
        mode: int = 0o700,
        owners: frozenset[int] | None = None,
        checksum: str = "crc32",
    ) -> None:
        self._entries = entries
        self._staging = staging
        self._container = container
        self._set_aside = set_aside
        self._durability = durability
        self._mmap = mmap
        self._mode = mode
        self._owners = owners
        if checksum not in ALGORITHMS:
            raise ValueError(f"unknown checksum {checksum!r}: use one of {', '.join(map(repr, ALGORITHMS))}")
        self._algorithm = ALGORITHMS[checksum]
        self._synced_shards: dict[str, int] = {}

    def place(self, digest: Digest) -> str:
        return f"{self._entries}/{digest[:2]}/{digest[2:]}"

    # Reading

    def get_value(self, digest: Digest) -> Part | None:
        # A hit is open, fstat, read, close; a miss is one open. What is large, somebody else's (a planted link leads to
        # it), damaged, or no file at all (it has no size) is left to the careful look, which explains it.
        try:
            fd = os.open(f"{self._entries}/{digest[:2]}/{digest[2:]}/value", _fs.READ)
        except FileNotFoundError:
            return None
        except OSError:
            return self._look(digest, VALUE)
        try:
            status = os.fstat(fd)
            size = status.st_size
            if size < SMALL and (self._owners is None or status.st_uid in self._owners):
                if time.time() - status.st_atime > FRESH:
                    refresh(fd, status)
                return unframe(os.read(fd, size), digest, VALUE)
        except (OSError, Damage):
            pass
        finally:
            os.close(fd)
        return self._look(digest, VALUE)

    def get_key(self, digest: Digest) -> Part | None:
        return self._look(digest, KEY)

    def get(self, digest: Digest) -> Entry | None:
        def read(directory: int) -> Entry:
            key, value = (self._read(_FILES[kind], digest, kind, directory) for kind in (KEY, VALUE))
            self._check_pair(digest, key, value)
            return Entry(key, value)

        return self._look_with(digest, read)

    def _check_pair(self, digest: Digest, key: Part, value: Part) -> None:
        if key.nonce != value.nonce:
            place = self.place(digest)
            reason = "its key and its value come from different stores"
            raise InvalidEntryError(place, reason, place, self._container)

    def _look(self, digest: Digest, kind: int) -> Part | None:
        return self._look_with(digest, lambda directory: self._read(_FILES[kind], digest, kind, directory))

    def _read(self, path: str, digest: Digest, kind: int, directory: int | None = None) -> Part:
        """Return the part in a file. `path` is relative to the descriptor `directory`, where that is given."""

        def read_it(fd: int, status: os.stat_result) -> Part:
            if kind == VALUE and time.time() - used_at(status) > FRESH:
                refresh(fd, status)
            return read(fd, 0, status.st_size, digest, kind, mapped=self._mmap)

        return self._with_file(path, digest, kind, directory, read_it)

    def _with_file(
        self, path: str, digest: Digest, kind: int, directory: int | None, use: Callable[[int, os.stat_result], T]
    ) -> T:
        """Return what `use` makes of an open file and its status. What is no file of ours is an `InvalidEntryError`."""
        try:
            fd = _fs.open_quietly(path, directory)
        except FileNotFoundError:
            if kind == KEY and directory is not None and "value" in os.listdir(directory):
                raise self._invalid(digest, kind, "it is missing") from None
            raise
        except OSError as error:
            if error.errno in _fs.FOREIGN:
                raise self._invalid(digest, kind, "it is no regular file") from None
            raise
        try:
            status = os.fstat(fd)
            if not S_ISREG(status.st_mode):
                raise self._invalid(digest, kind, "it is no regular file")
            if self._owners is not None and status.st_uid not in self._owners:
                raise self._invalid(digest, kind, f"it belongs to the user {status.st_uid}, not to you")
            return use(fd, status)
        except Damage as damage:
            raise self._invalid(digest, kind, str(damage)) from None
        finally:
            os.close(fd)

    def _look_with(self, digest: Digest, read: Callable[[int], T]) -> T | None:
        """Return what `read` makes of the entry's directory, seen through one descriptor.

        An `InvalidEntryError` is believed if the directory still bears the name; else the entry has been replaced, and
        is looked at again. None: no entry, or one without a file that `read` wants.
        """
        place = self.place(digest)
        for look in range(_LOOKS):
            try:
                directory = _fs.open_directory(place)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in _fs.FOREIGN:
                    raise self._foreign(digest) from None
                raise
            try:
                return read(directory)
            except FileNotFoundError:
                if _bears_name(directory, place):
                    return None
            except InvalidEntryError:
                if _bears_name(directory, place) or look == _LOOKS - 1:
                    raise
            finally:
                os.close(directory)
        return None

    def stat(self, digest: Digest) -> EntryInfo | None:
        try:
            status = os.lstat(f"{self._entries}/{digest[:2]}/{digest[2:]}/value")
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise self._foreign(digest) from None
        return EntryInfo(digest, status.st_size, _stamp(status), _is_settled(status), used_at=used_at(status))

    def info(self, digest: Digest) -> EntryInfo | None:
        """Return what `stat` does, with the key file counted."""
        info = self.stat(digest)
        if info is not None:
            key_size = _fs.size_of(f"{self.place(digest)}/key")
            info.disk_bytes = _BLOCK + sum(-(-size // _BLOCK) * _BLOCK for size in (info.nbytes, key_size))
            info.nbytes += key_size
        return info

    def scan(self) -> Iterator[EntryInfo]:
        for digest in self.digests():
            info = self.info(digest)
            if info is not None:
                yield info

    def __len__(self) -> int:
        return sum(1 for _ in self.digests())

    def digests(self) -> Iterator[Digest]:
        """Yield the digests of all entries, also of those without a value file."""
        for shard in _fs.list_directory(self._entries):
            for name in _fs.list_directory(f"{self._entries}/{shard}"):
                if len(shard) == 2 and len(name) == 38 and _HEX.issuperset(shard + name):
                    yield shard + name

    # For packing

    def size(self, digest: Digest) -> int:
        """Return how many bytes the entry's files have, 0 where there is none."""
        info = self.info(digest)
        return 0 if info is None else info.nbytes

    def check(self, digest: Digest) -> Entry | None:
        """Return what `get` does, and do not note that it was read."""

        def read_both(directory: int) -> Entry:
            key, value = (
                self._with_file(_FILES[kind], digest, kind, directory, partial(self._as_part, digest, kind))
                for kind in (KEY, VALUE)
            )
            self._check_pair(digest, key, value)
            return Entry(key, value)

        return self._look_with(digest, read_both)

    def is_wreck(self, digest: Digest) -> bool:
        """Whether the entry's directory is there, and no value in it."""
        place = self.place(digest)
        try:
            directory = _fs.open_directory(place)
        except FileNotFoundError:
            return False
        try:
            return "value" not in os.listdir(directory) and _bears_name(directory, place)
        finally:
            os.close(directory)

    def _as_part(self, digest: Digest, kind: int, fd: int, status: os.stat_result) -> Part:
        return read(fd, 0, status.st_size, digest, kind)

    def times(self, digest: Digest) -> tuple[float, float]:
        """Return when the value was stored, and the seconds that it took to compute, of an entry's footer alone; zeros
        where there is no entry."""

        def read_footer(fd: int, status: os.stat_result) -> tuple[float, float]:
            tail = os.pread(fd, FOOTER_SIZE, max(0, status.st_size - FOOTER_SIZE))
            footer = Footer(tail, status.st_size, digest, VALUE)
            return footer.stored_at, footer.seconds

        try:
            return self._with_file(f"{self.place(digest)}/value", digest, VALUE, None, read_footer)
        except FileNotFoundError:
            return 0.0, 0.0

    def raw(self, digest: Digest) -> tuple[object, Member | None]:
        """Return an entry's files, checked, with what `is_still` wants to know; None where there is none. That it was
        read is not noted."""

        def read_file(kind: int, directory: int) -> tuple[bytes, Part, os.stat_result]:
            def read_it(fd: int, status: os.stat_result) -> tuple[bytes, Part, os.stat_result]:
                whole = bytes(read_bytes(fd, 0, status.st_size))
                return whole, unframe(whole, digest, kind), status

            return self._with_file(_FILES[kind], digest, kind, directory, read_it)

        def read_both(directory: int) -> tuple[object, Member]:
            (value, part, status), (key, key_part, _) = (read_file(kind, directory) for kind in (VALUE, KEY))
            self._check_pair(digest, key_part, part)
            stamp = _stamp(status), b"" if _is_settled(status) else value[-FOOTER_SIZE:]
            return stamp, Member(digest, value, key, part.stored_at, part.seconds, used_at(status))

        return self._look_with(digest, read_both) or (None, None)

    def as_member(self, digest: Digest, entry: Entry) -> Member:
        """Return the files that an entry would have."""
        value, key = (
            b"".join(frame(part, digest, kind, self._algorithm))
            for part, kind in ((entry.value, VALUE), (entry.key, KEY))
        )
        return Member(digest, value, key, entry.value.stored_at, entry.value.seconds, entry.value.stored_at)

    def is_still(self, digest: Digest, stamp: Any) -> bool:
        """Whether the entry has not been replaced or removed since `raw` gave that stamp."""
        info = self.stat(digest)
        if info is None or stamp is None or info.stamp != stamp[0]:
            return False
        if not stamp[1]:
            return True
        _, member = self.raw(digest)  # its file was so new that another may have the same status
        return member is not None and bytes(member.value[-FOOTER_SIZE:]) == stamp[1]

    def staged(self) -> set[Digest]:
        """Return the digests of entries that are about to be published, and of those whose writers were killed."""
        return {name.partition("-")[0] for name in _fs.list_directory(self._staging) if "-" in name}

    def unstage(self, digests: Collection[Digest]) -> list[str]:
        """Move what is about to be published under some digests away, for the caller to remove: its writers begin
        again. Return where it is."""
        trash = []
        for name in _fs.list_directory(self._staging):
            if "-" in name and name.partition("-")[0] in digests:
                place = self._new_stage()
                if _fs.rename_if_there(f"{self._staging}/{name}", place):
                    trash.append(place)
        return trash

    def make_durable(self, digest: Digest) -> None:
        """Sync an entry that somebody else has stored, if it is there."""
        if _fs.is_directory(self.place(digest)):
            self._make_durable(self.place(digest), published=False)

    def set_apart(self, digests: Iterable[Digest]) -> list[str]:
        """Move entries to the staging directory, for the caller to remove. Return where they are."""
        trash = []
        busy = {digest[:2] for digest in self.staged()}  # first: whoever is not among them has published, or will look
        for shard, members in groupby(sorted(digests), key=lambda digest: digest[:2]):
            path = f"{self._entries}/{shard}"
            there = _fs.list_directory(path)
            names = {digest[2:] for digest in members}.intersection(there)
            is_whole = shard not in busy and names and len(names) == len(there)
            for source in [path] if is_whole else [f"{path}/{name}" for name in names]:
                place = self._new_stage()
                if _fs.rename_if_there(source, place):
                    trash.append(place)
                    if self._durability == "durable":
                        _fs.sync_directory(os.path.dirname(source))
        return trash

    def sync_names(self, digests: Iterable[Digest]) -> None:
        """Let a power cut not undo that entries came or went."""
        for shard in sorted({digest[:2] for digest in digests}):
            path = f"{self._entries}/{shard}"
            if _fs.is_directory(path):
                _fs.sync_directory(path)
        _fs.sync_directory(self._entries)

    def set_apart_all(self) -> list[str]:
        """Move all entries away, as `set_apart` does."""
        trash = self._new_stage()
        return [trash] if _fs.rename_if_there(self._entries, trash) else []

    # Writing

    def add(self, digest: Digest, entry: Entry, publish: Callable[[Callable[[], bool]], bool] = _at_once) -> bool:
        """Put the entry there if there is none. `publish` is given what makes it visible, and returns what that does,
        or False, for an entry that is elsewhere."""
        final, stage, published = self.place(digest), f"{self._staging}/{digest}-{os.urandom(8).hex()}", False
        if self._durability == "durable" and self.stat(digest) is not None:
            self._make_durable(final, published)
            return False
        try:
            _fs.make_directory(stage, self._mode)
            self._write(f"{stage}/value", entry.value, digest, VALUE)
            self._write(f"{stage}/key", entry.key, digest, KEY)
            if self._durability in ("consistent", "durable"):
                _fs.sync_directory(stage)
            published = publish(lambda: self._publish(stage, final, digest))
        finally:
            if not published:
                _fs.discard(stage)
        if self._durability == "durable" and (published or self.stat(digest) is not None):
            self._make_durable(final, published)
        return published

    def _write(self, path: str, part: Part, digest: Digest, kind: int) -> None:
        _fs.write_file(path, frame(part, digest, kind, self._algorithm), self._mode, self._durability)

    def _publish(self, stage: str, final: str, digest: Digest) -> bool:
        for _ in range(_LOOKS):
            try:
                if _fs.publish_directory(stage, final):
                    return True
            except FileNotFoundError:  # no shard yet, or `clear` has just moved it away
                if not _fs.is_directory(stage):  # `unstage` has
                    raise
                self._make_shard(os.path.dirname(final))
                continue
            except NotADirectoryError:
                raise self._foreign(digest) from None
            if self.stat(digest) is not None:
                return False
            self._remove_wreck(final)
        raise self._busy(final)

    def _busy(self, place: str) -> OSError:
        return OSError(EBUSY, "others keep removing and replacing the entry", place)

    def _make_shard(self, shard: str) -> None:
        try:
            _fs.make_directory(shard, self._mode)
        except FileNotFoundError:
            _fs.make_directory(self._entries, self._mode)
            _fs.make_directory(shard, self._mode)

    def _remove_wreck(self, final: str) -> None:
        """Remove a directory without a value, such as somebody's clumsy deletion leaves."""
        trash = self._new_stage()
        if not _fs.rename_if_there(final, trash):
            return
        if "value" not in _fs.list_directory(trash) or not _fs.publish_directory(trash, final):
            _fs.remove_tree(trash)

    def _make_durable(self, final: str, published: bool) -> None:
        """Sync what the staging has not: the name, and the winner's files where the race was lost."""
        shard = os.path.dirname(final)
        if not published:
            for path in (f"{final}/key", f"{final}/value", final):
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:  # removed again
                    continue
                try:
                    _fs.sync(fd)
                finally:
                    os.close(fd)
        _fs.sync_directory(shard)
        made = os.stat(shard).st_ino  # a shard may go and come again
        if self._synced_shards.get(shard) != made:  # whoever made it
            _fs.sync_directory(self._entries)
            self._synced_shards[shard] = made

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        """Replace the value file by one rename; the key file stays, and its nonce goes into the new value.

        The rename goes through a descriptor of the very directory whose key was read, so that a value never gets beside
        the key of another store: if the entry is removed meanwhile, the new value goes with it.
        """
        for _ in range(_LOOKS):
            if self._replace_value(digest, entry, same_key) or self.add(digest, entry):
                return
        raise self._busy(self.place(digest))

    def _replace_value(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None) -> bool:
        place = self.place(digest)
        try:
            directory = _fs.open_directory(place)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in _fs.FOREIGN:
                raise self._foreign(digest) from None
            raise
        stage = self._new_stage()
        try:
            key = self._read("key", digest, KEY, directory)
            if same_key is not None and not same_key(key):
                self._move_away(place)  # the digest belongs to another key: the whole entry is replaced
                return False
            value = Part(entry.value.stream, entry.value.buffers, key.nonce, entry.value.stored_at, entry.value.seconds)
            self._write(stage, value, digest, VALUE)
            os.rename(stage, "value", dst_dir_fd=directory)
            if self._durability == "durable":  # the key file may have been written by somebody who did not sync it
                self._make_durable(place, published=False)
        except (InvalidEntryError, FileNotFoundError):  # the key is damaged or gone: the whole entry is replaced
            self._move_away(place)
            return False
        finally:
            os.close(directory)
            _fs.discard(stage)
        return True

    def delete(self, digest: Digest) -> bool:
        if not self._move_away(self.place(digest)):
            return False
        if self._durability == "durable":
            _fs.sync_directory(os.path.dirname(self.place(digest)))
        return True

    def _move_away(self, path: str) -> bool:
        """Remove what stands at `path`, as a whole: a directory emptied in place could be renamed over half-way."""
        trash = self._new_stage()
        if not _fs.rename_if_there(path, trash):
            return False
        _fs.remove_tree(trash)
        return True

    def clear(self) -> None:
        self._move_away(self._entries)

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        """Set a damaged entry aside; with `unloadable`, one whose bytes are intact."""
        place, aside = self.place(digest), f"{self._set_aside}/{digest}-{os.urandom(4).hex()}"
        _fs.make_directory(self._set_aside, self._mode)
        if not _fs.rename_if_there(place, aside):
            return ""
        try:
            is_intact = not unloadable and self._is_intact(digest, aside)
        except OSError:
            _fs.publish_directory(aside, place)
            raise
        if is_intact:  # a writer has healed it just before
            if not _fs.publish_directory(aside, place):
                _fs.remove_tree(aside)
            return ""
        _fs.sync_directory(self._set_aside)
        return aside

    def sweep(self) -> int:
        """Remove what stands in the staging directory and has not changed for an hour. Return how many things."""
        swept = 0
        for name in _fs.list_directory(self._staging):
            path = f"{self._staging}/{name}"
            try:
                stale = all(time.time() - os.lstat(file).st_mtime > _STALE for file in _fs.tree(path))
            except FileNotFoundError:  # published or removed by its writer
                continue
            # Renamed first: a writer that was merely slow must not publish a directory that is being emptied.
            swept += stale and self._move_away(path)
        return swept

    def _is_intact(self, digest: Digest, path: str) -> bool:
        try:
            parts = [self._read(f"{path}/{_FILES[kind]}", digest, kind) for kind in (KEY, VALUE)]
        except (InvalidEntryError, FileNotFoundError):
            return False
        return parts[0].nonce == parts[1].nonce

    def _new_stage(self) -> str:
        return f"{self._staging}/{os.urandom(8).hex()}"

    def _invalid(self, digest: Digest, kind: int, reason: str) -> InvalidEntryError:
        place = self.place(digest)
        return _ERRORS[kind](
            f"{place}/{_FILES[kind]}", f"the {_FILES[kind]} file is damaged: {reason}", place, self._container
        )

    def _foreign(self, digest: Digest) -> InvalidEntryError:
        place = self.place(digest)
        return InvalidEntryError(place, "a file or a link stands where its directory belongs", place, self._container)


def _bears_name(directory: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(directory), os.lstat(path))
    except FileNotFoundError:
        return False


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_settled(status: os.stat_result) -> bool:
    return time.time_ns() - status.st_mtime_ns > _SETTLED
