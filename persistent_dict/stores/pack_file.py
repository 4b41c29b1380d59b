"""One pack at a path of the user's choosing, as a store that is only read."""

from __future__ import annotations

import os
from errno import EROFS
from sys import implementation

from persistent_dict import _fs
from persistent_dict.errors import ContainerError, InvalidEntryError, UntrustedContainerError, shell_quoted
from persistent_dict.stores.base import Store
from persistent_dict.stores.container import parsed, quoted
from persistent_dict.stores.framing import Damage
from persistent_dict.stores.pack_writer import packed, write_pack
from persistent_dict.stores.packs import Pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import Any, NoReturn

    from persistent_dict.stores.base import Digest, Entry, EntryInfo, Member, Part


class PackFile(Store):
    """The entries of an exported pack. It is opened once; a file that replaces it is not looked at.

    Parameters
    ----------
    path : str
    format_name, identifier : str, or None
        What the pack must have been made with; None: whatever it was.
    mmap : bool
        As for `DiskStore`.
    trusted : bool
        Read it whoever owns it and may write to it.
    any_python : bool
        Read it whatever it was made with: for those who look at it without loading anything.

    Raises
    ------
    ContainerError
        It was made with another format or identifier, or by a Python whose pickles this one may not load; or
        (`UntrustedContainerError`) others may have written to it.

    Notes
    -----
    One of which parts can be read opens; what is asked for and not among them is an `InvalidEntryError`.
    `add` and `delete` raise an `OSError` (EROFS).
    """

    def __init__(
        self,
        path: str,
        format_name: str | None = None,
        identifier: str | None = None,
        *,
        mmap: bool = False,
        trusted: bool = False,
        any_python: bool = False,
    ) -> None:
        self.path = os.path.abspath(path)
        self._arguments = (self.path, format_name, identifier, mmap, trusted)
        reason, command = ("", "") if trusted else _fs.distrust(os.path.realpath(self.path), 0o700)
        if reason:
            raise UntrustedContainerError(self.path, reason, command)
        self.pack = Pack(os.path.realpath(self.path), container=self.path, mapped=mmap, mode=None)
        if not (self.pack.about or self.pack.count):
            raise ContainerError(self.path, f"this is no pack that can be read: {self.pack.problem or 'it is empty'}")
        self.facts = parsed(self.pack.about)
        if not any_python:
            self._check(format_name, identifier)

    def _check(self, format_name: str | None, identifier: str | None) -> None:
        if not self.facts.get("format"):
            raise ContainerError(
                self.path,
                "what it says about itself is lost, so it cannot be told how to read it: add it to the container that "
                f"it came from, with  persistent-dict import {shell_quoted(self.path)} CONTAINER",
            )
        for what, wanted in (("format", format_name), ("identifier", identifier)):
            known = self.facts.get(what)
            if wanted is not None and known != quoted(wanted):
                raise ContainerError(
                    self.path,
                    f"it was made with the {what} {known!r}, and is opened with {quoted(wanted)!r}: they must be equal",
                )
        python = self.facts.get("python", "")
        if python and python != implementation.cache_tag:
            raise ContainerError(
                self.path,
                f"it was made by {python}, whose pickles {implementation.cache_tag} may not load: export one with this "
                "Python, or use a format that all share, such as json",
            )

    def get(self, digest: Digest) -> Entry | None:
        i = self._find(digest)
        return None if i < 0 else self.pack.get(i)

    def get_key(self, digest: Digest) -> Part | None:
        i = self._living(digest)
        return None if i < 0 else self.pack.get_key(i)

    def get_value(self, digest: Digest) -> Part | None:
        i = self._find(digest)
        return None if i < 0 else self.pack.get_value(i)

    def _find(self, digest: Digest) -> int:
        i = self._living(digest)
        if i < 0 and not self.pack.complete:
            raise self.pack.incomplete()
        return i

    def _living(self, digest: Digest) -> int:
        """Return which entry has the digest, -1 if none, or one that was overwritten while a container had the pack."""
        i = self.pack.find(digest)
        return -1 if i >= 0 and self.pack.is_dead(i) else i

    def stat(self, digest: Digest) -> EntryInfo | None:
        i = self._living(digest)
        return None if i < 0 else self.pack.info(i)

    def scan(self) -> Iterator[EntryInfo]:
        return map(self.pack.info, self.pack.living())

    def __len__(self) -> int:
        return len(self.pack.living())

    def place(self, digest: Digest) -> str:
        return f"{self.path}:{digest}"

    def add(self, digest: Digest, entry: Entry) -> bool:
        self._refuse()

    def add_all(
        self, entries: Mapping[Digest, Entry], *, overwrite: Collection[Digest] = (), new: Collection[Digest] = ()
    ) -> frozenset[Digest]:
        self._refuse()

    def delete(self, digest: Digest) -> bool:
        self._refuse()

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        return ""

    def clear(self) -> None:
        self._refuse()

    def mend(self, progress: Callable[[int, int], object]) -> list[tuple[InvalidEntryError, str]]:
        """Write the file anew without what is damaged in it, if anything is. Return what that is, and where the damaged
        file was put."""
        intact = zip(range(self.pack.count), self.pack.intact(), strict=True)
        found = [self.pack.problem_of(i) or self.pack.scratch_at(i) for i, is_intact in intact if not is_intact]
        found += [self.pack.error()] if self.pack.problem else []
        if not found:
            return []
        kept = f"{self.path}.damaged-{os.urandom(4).hex()}"
        os.link(self.path, kept)
        self.write_to(self.path, progress)
        return [(problem, kept) for problem in found]

    def write_to(self, path: str, progress: Callable[[int, int], object]) -> tuple[int, list[Digest]]:
        """Write all entries to a pack at `path`, in place of what is there. Return how many, and the digests of those
        that are left out because they are damaged."""
        damaged: list[Digest] = []
        return write_pack(path, self._members(damaged, progress), self.pack.about), damaged

    def _members(self, damaged: list[Digest], progress: Callable[[int, int], object]) -> Iterator[Member]:
        for i in self.pack.living():
            try:
                yield packed(self.pack, i)
            except Damage:
                damaged.append(self.pack.digest(i))
            finally:
                progress(i + 1, self.pack.count)

    def _refuse(self) -> NoReturn:
        raise OSError(EROFS, "a pack that was opened by itself is only read", self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, self._arguments)


def _reopened(path: str, format_name: str | None, identifier: str | None, mmap: bool, trusted: bool) -> PackFile:
    return PackFile(path, format_name, identifier, mmap=mmap, trusted=trusted)
