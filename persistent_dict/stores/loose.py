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
from stat import S_ISREG

from persistent_dict import _fs
from persistent_dict.errors import InvalidEntryError, InvalidKeyFileError, InvalidValueFileError
from persistent_dict.stores.base import Entry, EntryInfo, MutableStore, Part
from persistent_dict.stores.framing import (
    ALGORITHMS,
    FOOTER_SIZE,
    KEY,
    VALUE,
    Damage,
    Footer,
    frame,
    read_part,
    unframe,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest

    T = TypeVar("T")

_FILES = {KEY: "key", VALUE: "value"}
_ERRORS = {KEY: InvalidKeyFileError, VALUE: InvalidValueFileError}
_SMALL = 64 * 1024  # bytes; a smaller file is read at once, into memory that malloc need not ask the kernel for
_OWN_PAGES = 1024 * 1024  # bytes; memory for a buffer from this size on comes from the kernel, zeroed and page-aligned
_SETTLED = 2_000_000_000  # ns; the coarsest clock of a file system in use ticks in 2 s
_LOOKS = 100  # at an entry that others keep replacing
_STALE = 3600.0  # seconds
_HEX = frozenset("0123456789abcdef")

DURABILITIES = ("none", "writeout", "consistent", "durable")


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
        self._synced_shards: set[str] = set()

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
            if size < _SMALL and (self._owners is None or status.st_uid in self._owners):
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
            if key.nonce != value.nonce:
                place = self.place(digest)
                reason = "its key and its value come from different stores"
                raise InvalidEntryError(place, reason, place, self._container)
            return Entry(key, value)

        return self._look_with(digest, read)

    def _look(self, digest: Digest, kind: int) -> Part | None:
        return self._look_with(digest, lambda directory: self._read(_FILES[kind], digest, kind, directory))

    def _read(self, path: str, digest: Digest, kind: int, directory: int | None = None) -> Part:
        """Return the part in a file. `path` is relative to the descriptor `directory`, where that is given."""
        try:
            fd = _fs.open_file(path, directory)
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
            if status.st_size < _SMALL:
                return unframe(os.read(fd, status.st_size), digest, kind)
            return self._read_large(fd, status.st_size, digest, kind)
        except Damage as damage:
            raise self._invalid(digest, kind, str(damage)) from None
        finally:
            os.close(fd)

    def _read_large(self, fd: int, size: int, digest: Digest, kind: int) -> Part:
        footer = Footer(os.pread(fd, FOOTER_SIZE, size - FOOTER_SIZE), size, digest, kind)
        return read_part(footer, _mapped(fd, size) if self._mmap else _reader(fd))

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
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        return EntryInfo(digest, status.st_size, stamp, time.time_ns() - status.st_mtime_ns > _SETTLED)

    def scan(self) -> Iterator[EntryInfo]:
        for digest in self.digests():
            info = self.stat(digest)
            if info is not None:
                info.nbytes += _fs.size_of(f"{self.place(digest)}/key")
                yield info

    def __len__(self) -> int:
        return sum(1 for _ in self.digests())

    def digests(self) -> Iterator[Digest]:
        """Yield the digests of all entries, also of those without a value file."""
        for shard in _fs.list_directory(self._entries):
            for name in _fs.list_directory(f"{self._entries}/{shard}"):
                if len(shard) == 2 and len(name) == 38 and _HEX.issuperset(shard + name):
                    yield shard + name

    # Writing

    def add(self, digest: Digest, entry: Entry) -> bool:
        final, stage, published = self.place(digest), self._new_stage(), False
        if self._durability == "durable" and self.stat(digest) is not None:
            self._make_durable(final, published)
            return False
        try:
            _fs.make_directory(stage, self._mode)
            self._write(f"{stage}/value", entry.value, digest, VALUE)
            self._write(f"{stage}/key", entry.key, digest, KEY)
            if self._durability in ("consistent", "durable"):
                _fs.sync_directory(stage)
            published = self._publish(stage, final, digest)
        finally:
            if not published:
                _fs.discard(stage)
        if self._durability == "durable":
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
        if shard not in self._synced_shards:  # whoever made it
            _fs.sync_directory(self._entries)
            self._synced_shards.add(shard)

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
        if not unloadable and self._is_intact(digest, aside):  # a writer has healed it just before
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
        except (InvalidEntryError, OSError):
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


def _reader(fd: int) -> Callable[[int, int], Buffer]:
    """Return a `read_at` that reads a file straight into memory which the caller's arrays will own."""

    def read_at(begin: int, size: int) -> Buffer:
        if size < _OWN_PAGES:
            buffer = memoryview(bytearray(size))
        else:
            from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

            buffer = memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS))
        if not _fs.read_into(fd, buffer, begin):
            raise Damage("it became shorter while it was read")
        return buffer

    return read_at


def _mapped(fd: int, size: int) -> Callable[[int, int], Buffer]:
    """Return a `read_at` that maps the file, copy-on-write."""
    from mmap import ACCESS_COPY, mmap

    view = memoryview(mmap(fd, size, access=ACCESS_COPY))
    return lambda begin, length: view[begin : begin + length]
