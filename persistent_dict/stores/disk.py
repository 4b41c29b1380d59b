"""A container: the directory of one dictionary. The only file that knows its layout.

    <container_dir>/<identifier>.cpython-311/
        CACHEDIR.TAG  .gitignore  FORMAT      FORMAT: layout, format of the values, identifier
        entries/      tmp/                    loose entries, and where they are staged
        locks/        quarantine/             made when first needed

Nothing is made before the first write. A container is built beside its place and renamed there, so that it is whole or
absent. Before anything is read, its owner and mode are checked, and those of the directories above.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from sys import implementation

from persistent_dict import _fs
from persistent_dict.errors import ContainerError, UntrustedContainerError, shell_quoted
from persistent_dict.stores.base import MutableStore
from persistent_dict.stores.loose import DURABILITIES, LooseStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from persistent_dict.formats import Format
    from persistent_dict.stores.base import Digest, Entry, EntryInfo, Part

    T = TypeVar("T")

_LAYOUT = "1"
_LARGE = 1024 * 1024  # bytes; two writers shall not write as much at the same time
_LOCK_TIMEOUT = 60.0  # seconds; then both write, and the rename decides
_MAX_NAME = 64  # characters of a container's name that come from the identifier
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir/
    "# This directory is a cache of persistent_dict. Backups may leave it out.\n"
)


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
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"unknown durability {durability!r}: use one of {', '.join(map(repr, DURABILITIES))}")
        if mode & 0o700 != 0o700:
            raise ValueError(f"mode {mode:o} would lock out the owner: it needs at least 0o700")
        self.path = os.path.abspath(path)
        self.durability = durability
        self._format_name = format_name
        self._identifier = identifier
        self._trusted = trusted
        self._mode = mode
        self._options = {
            "durability": durability, "mmap": mmap, "trusted": trusted, "mode": mode, "checksum": checksum,
        }  # fmt: skip
        self._is_open = self._is_synced = False
        self._loose = LooseStore(
            f"{self.path}/entries",
            f"{self.path}/tmp",
            container=self.path,
            set_aside=f"{self.path}/quarantine",
            durability=durability,
            mmap=mmap,
            mode=mode,
            owners=None if trusted or mode & 0o020 else _fs.trusted_owners(),
            checksum=checksum,
        )

    # Opening

    def open(self) -> bool:
        """Check the container, once. False: there is none yet."""
        if self._is_open:
            return True
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            if os.path.lexists(self.path):
                raise ContainerError(self.path, "a file stands where the container belongs") from None
            return False  # a file stands further up
        if not names:
            return False
        reason, command = ("", "") if self._trusted else _fs.distrust(self.path, self._mode)
        for name in ("tmp", "entries"):
            if not reason and os.path.islink(f"{self.path}/{name}"):
                reason, command = f"{name} in it is a link", f"rm {shell_quoted(f'{self.path}/{name}')}"
        if reason:
            raise UntrustedContainerError(self.path, reason, command)
        self._check_format()
        self._is_open = True
        return True

    def _check_format(self) -> None:
        known = self._read_format()
        if known.get("layout") != _LAYOUT:
            raise ContainerError(
                self.path,
                f"it has the layout {known.get('layout', 'of no version')}, and this version of persistent_dict knows "
                f"{_LAYOUT}: upgrade the package, or start anew with  rm -rf {shell_quoted(self.path)}",
            )
        for what, wanted in (("format", self._format_name), ("identifier", self._identifier)):
            if wanted is not None and known.get(what) != quoted(wanted):
                raise ContainerError(
                    self.path,
                    f"it was made with the {what} {known.get(what)!r}, and is opened with {quoted(wanted)!r}: open it "
                    f"as it was made, or start anew with  rm -rf {shell_quoted(self.path)}",
                )

    def _read_format(self) -> dict[str, str]:
        try:
            fd = _fs.open_file(f"{self.path}/FORMAT")
        except OSError:
            raise ContainerError(
                self.path,
                "it has no readable file FORMAT: it is no container of this package, or damaged. If it is one, start "
                f"anew with  rm -rf {shell_quoted(self.path)}",
            ) from None
        try:
            lines = os.read(fd, 4096).decode("utf-8", "replace").splitlines()
        finally:
            os.close(fd)
        return dict(line.split(": ", 1) for line in lines if ": " in line)

    def _create(self) -> None:
        """Make the container, or what is missing in it."""
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        self._is_open = False
        if self.open():
            for name in ("tmp", "entries"):
                _fs.make_directory(f"{self.path}/{name}", self._mode)
            return
        parent, name = os.path.split(self.path)
        stage, published = f"{parent}/.{name}.{os.urandom(8).hex()}", False
        try:
            _fs.make_directory(stage, self._mode)
            for directory in ("tmp", "entries"):
                _fs.make_directory(f"{stage}/{directory}", self._mode)
            for file, text in (("FORMAT", self._new_format()), ("CACHEDIR.TAG", _TAG), (".gitignore", "*\n")):
                _fs.write_file(f"{stage}/{file}", [text.encode()], self._mode, "consistent")
            _fs.sync_directory(stage)
            published = _fs.publish_directory(stage, self.path)
        finally:
            if not published:
                _fs.remove_tree(stage)
        self._is_synced = False
        self.open()

    def _new_format(self) -> str:
        format_name, identifier = quoted(self._format_name or ""), quoted(self._identifier or "")
        return f"layout: {_LAYOUT}\nformat: {format_name}\nidentifier: {identifier}\n"

    # Reading

    def get(self, digest: Digest) -> Entry | None:
        return self._loose.get(digest) if self._is_open or self.open() else None

    def get_value(self, digest: Digest) -> Part | None:
        return self._loose.get_value(digest) if self._is_open or self.open() else None

    def get_key(self, digest: Digest) -> Part | None:
        return self._loose.get_key(digest) if self._is_open or self.open() else None

    def stat(self, digest: Digest) -> EntryInfo | None:
        return self._loose.stat(digest) if self._is_open or self.open() else None

    def scan(self) -> Iterator[EntryInfo]:
        if self.open():
            yield from self._loose.scan()

    def elsewhere(self, digest: Digest) -> list[str]:
        parent, name = os.path.split(self.path)
        stem, _, tag = name.rpartition(".")
        if tag != implementation.cache_tag:  # the format is shared by all Pythons
            return []
        others = [other for other in _fs.list_directory(parent) if other.rpartition(".")[0] == stem and other != name]
        places = [f"{parent}/{other}/entries/{digest[:2]}/{digest[2:]}" for other in others]
        return [place for place in places if _fs.is_directory(place)]

    def __len__(self) -> int:
        return len(self._loose) if self.open() else 0

    def place(self, digest: Digest) -> str:
        return self._loose.place(digest)

    # Writing

    def add(self, digest: Digest, entry: Entry) -> bool:
        if entry.nbytes < _LARGE:
            return self._in_container(lambda: self._loose.add(digest, entry))
        return self._in_container(lambda: self._add_large(digest, entry))

    def _add_large(self, digest: Digest, entry: Entry) -> bool:
        lock = self._lock(f"{digest}.write")  # not the one of `lock`, whose holder may compute for long
        lock.acquire(_LOCK_TIMEOUT)
        try:
            if self.durability != "durable" and self._loose.stat(digest) is not None:  # the wait was for its writer
                return False
            return self._loose.add(digest, entry)
        finally:
            lock.release()

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        self._in_container(lambda: self._loose.set(digest, entry, same_key))

    def delete(self, digest: Digest) -> bool:
        return self.open() and self._loose.delete(digest)

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        return self._loose.quarantine(digest, unloadable=unloadable) if self.open() else ""

    def clear(self) -> None:
        if self.open():
            self._loose.clear()

    def _in_container(self, write: Callable[[], T]) -> T:
        """Return what `write` does, in a container that is made if it is not there, or no longer."""
        if not self.open():
            self._create()
        if self.durability == "durable" and not self._is_synced:
            _fs.sync_with_parents(self.path)  # whoever made the container, and however long ago
            self._is_synced = True
        try:
            return write()
        except FileNotFoundError:
            self._create()
            return write()

    def lock(self, digest: Digest) -> _fs.DigestLock | None:
        try:
            return self._in_container(lambda: self._lock(digest))
        except OSError:  # a place that cannot be written to
            return None

    def _lock(self, name: str) -> _fs.DigestLock:
        return _fs.DigestLock(f"{self.path}/locks", name, self._mode)

    # Upkeep

    def digests(self) -> Iterator[Digest]:
        """Yield the digests of all entries, also of those without a value file."""
        if self.open():
            yield from self._loose.digests()

    def sweep(self) -> int:
        """Remove what killed writers left: locks, and what they staged over an hour ago. Return how many."""
        if not self.open():
            return 0
        locks = [self._lock(name.removesuffix(".lock")) for name in _fs.list_directory(f"{self.path}/locks")]
        return self._loose.sweep() + sum(lock.acquire() and lock.release() for lock in locks)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self._format_name, self._identifier, self._options))


def _reopened(path: str, format_name: str | None, identifier: str | None, options: dict[str, Any]) -> DiskStore:
    return DiskStore(path, format_name, identifier, **options)


def container_path(container_dir: str, identifier: str, format: Format) -> str:  # noqa: A002  # the public name
    """Return where the container of a dictionary is.

    Its name carries the Python version where the format's bytes may not survive another.
    """
    if not isinstance(identifier, str) or not identifier:
        raise ValueError(f"an identifier is a str of at least one character, not {identifier!r}")
    name = quoted(identifier)
    if len(name) > _MAX_NAME:
        mark = blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: _MAX_NAME - 17]}-{mark}"
    return os.path.join(container_dir, name if format.portable else f"{name}.{implementation.cache_tag}")


def quoted(text: str) -> str:
    """Return `text` as a safe file name: ASCII letters, digits, ``_``, ``-``, inner dots; the rest as %XX."""
    out = []
    for i, character in enumerate(text):
        if (character.isascii() and character.isalnum()) or character in "_-" or (character == "." and i):
            out.append(character)
        else:
            out += [f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass")]
    return "".join(out)
