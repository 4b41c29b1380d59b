"""What stores move, and the protocols that they fulfil."""

from __future__ import annotations

import os
from collections import namedtuple
from time import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
    from typing import NamedTuple, Protocol

    from persistent_dict.formats import Buffer

    class _Member(NamedTuple):
        digest: str
        value: Buffer
        key: Buffer
        stored_at: float
        seconds: float
        used_at: float
else:
    Protocol = object
    _Member = namedtuple("_Member", "digest value key stored_at seconds used_at")

# A digest is a str of 40 lower-case hex characters.
Digest = str


class Part:
    """One half of an entry: an encoded key or an encoded value, and the facts that its footer keeps.

    Attributes
    ----------
    stream : bytes or memoryview
        What the format wrote.
    buffers : sequence of buffers
        What the format left outside the stream, in order.
    nonce : bytes
        8 random bytes that an entry's two parts share.
    stored_at : float
        Seconds since the epoch.
    seconds : float
        How long the value took to compute, 0.0 where nobody measured.
    """

    __slots__ = ("buffers", "nonce", "seconds", "stored_at", "stream")

    def __init__(
        self,
        stream: Buffer,
        buffers: Sequence[Buffer] = (),
        nonce: bytes = b"",
        stored_at: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        self.stream = stream
        self.buffers = buffers
        self.nonce = nonce
        self.stored_at = stored_at
        self.seconds = seconds

    @property
    def nbytes(self) -> int:
        """The encoded size in bytes, without footer and padding."""
        return len(self.stream) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # buffers may change

    def __repr__(self) -> str:
        return f"Part({self.nbytes} bytes, stored_at={self.stored_at!r}, seconds={self.seconds!r})"


class Entry:
    """An encoded key and an encoded value, which belong together."""

    __slots__ = ("key", "value")

    def __init__(self, key: Part, value: Part) -> None:
        self.key = key
        self.value = value

    @classmethod
    def new(cls, key: Buffer, value: Buffer, buffers: Sequence[Buffer] = (), seconds: float = 0.0) -> Entry:
        """Return an entry of now."""
        nonce, now = os.urandom(8), time()
        return cls(Part(key, (), nonce, now), Part(value, buffers, nonce, now, seconds))

    @property
    def nbytes(self) -> int:
        """The encoded size in bytes."""
        return self.key.nbytes + self.value.nbytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.key == other.key and self.value == other.value

    __hash__ = None  # type: ignore[assignment]  # see Part


class EntryInfo:
    """What a store knows of an entry without reading it.

    Attributes
    ----------
    digest : str
    nbytes : int
        What it takes in the store, footers included.
    stamp : hashable
        Changes whenever the value is replaced.
    settled : bool
        The stamp is old enough for the clock of the place that no later replacement can bear the same one.
    used_at : float
        When it was last read or stored, in seconds since the epoch, to about an hour; 0.0 where nobody knows.
    disk_bytes : int
        What it takes of the disk, about: with what a file system rounds up and needs for names.
    """

    __slots__ = ("digest", "disk_bytes", "nbytes", "settled", "stamp", "used_at")

    def __init__(
        self,
        digest: Digest,
        nbytes: int,
        stamp: Hashable,
        settled: bool,
        *,
        used_at: float = 0.0,
        disk_bytes: int | None = None,
    ) -> None:
        self.digest = digest
        self.nbytes = nbytes
        self.stamp = stamp
        self.settled = settled
        self.used_at = used_at
        self.disk_bytes = nbytes if disk_bytes is None else disk_bytes


class Member(_Member):
    """An entry on its way from one file to another: its two files' bytes, and the facts that an index keeps."""

    __slots__ = ()


class Lock(Protocol):
    """A lock that one holder has at a time, and which is freed when its holder dies."""

    def acquire(self) -> bool:
        """Try to take it, without waiting. False: somebody else holds it. True also where it cannot be had."""

    def release(self) -> object:
        """Free it, if it is held."""

    def holder(self) -> str:
        """Return who holds it, for a person to read; "" where that is not known."""


class Reader(Protocol):
    """Entries to be read. Every method is safe for threads, and raises `OSError` where the place does not answer."""

    def get(self, digest: Digest) -> Entry | None:
        """Return the entry, or None where there is none.

        Raises
        ------
        InvalidEntryError
            Something is there, but it is damaged. So do the next two.
        """

    def get_key(self, digest: Digest) -> Part | None:
        """Return the entry's key alone, where that is cheaper."""
        entry = self.get(digest)
        return None if entry is None else entry.key

    def get_value(self, digest: Digest) -> Part | None:
        """Return the entry's value alone, where that is cheaper."""
        entry = self.get(digest)
        return None if entry is None else entry.value

    def stat(self, digest: Digest) -> EntryInfo | None:
        """Return what is known of the entry without reading it, or None where there is none."""

    def scan(self) -> Iterator[EntryInfo]:
        """Yield every entry once, in no order. What is added or deleted meanwhile may be missing."""

    def __len__(self) -> int:
        """Return the number of entries."""
        return sum(1 for _ in self.scan())

    def place(self, digest: Digest) -> str:
        """Return where the entry is, or would be, for a person to look at."""

    def elsewhere(self, digest: Digest) -> list[str]:
        """Return the places of an entry of that digest which this store does not look at (another Python's)."""
        return []


class TakenError(Exception):
    """Somebody else has stored, since it was looked for, what was to be new. Nothing was written.

    Attributes
    ----------
    digests : collection of str
    """

    def __init__(self, digests: Collection[Digest]) -> None:
        super().__init__(digests)
        self.digests = digests


class Store(Reader, Protocol):
    """A place for entries that are written once."""

    def add(self, digest: Digest, entry: Entry) -> bool:
        """Put the entry there if there is none, atomically. False: one is there already, and nothing was changed."""

    def add_all(
        self, entries: Mapping[Digest, Entry], *, overwrite: Collection[Digest] = (), new: Collection[Digest] = ()
    ) -> frozenset[Digest]:
        """Put many entries there at once: whoever looks sees all of them or none, also after a crash.

        Parameters
        ----------
        entries : dict of Entry by digest
        overwrite : collection of str
            The digests of those that replace what is there. Of the others, what is there stays.
        new : collection of str
            The digests of those that must not be there.

        Returns
        -------
        frozenset of str
            The digests of what was there, and stays.

        Raises
        ------
        TakenError
            Something in `new` is there. Nothing was written.
        NotImplementedError
            The store cannot do it.
        """
        lacks = f"{type(self).__name__} cannot store many entries at once: it has no add_all"
        raise NotImplementedError(lacks)

    def delete(self, digest: Digest) -> bool:
        """Remove the entry, atomically. False: there was none."""

    def quarantine(self, digest: Digest, *, unloadable: bool = False) -> str:
        """Free the place of an entry that is damaged, or whose intact bytes do not decode (`unloadable`).

        Return where the entry was set aside, "" where it was not kept, or was not damaged any more.
        """
        self.delete(digest)
        return ""

    def clear(self) -> None:
        """Remove every entry."""
        for info in self.scan():
            self.delete(info.digest)

    def lock(self, digest: Digest) -> Lock | None:
        """Return a lock for the work on a digest, over all processes that use the place; None where it has none.

        What is stored needs no lock: this one keeps others from computing what is being computed.
        """
        return None


class MutableStore(Store, Protocol):
    """A place for entries that can be replaced."""

    def set(self, digest: Digest, entry: Entry, same_key: Callable[[Part], bool] | None = None) -> None:
        """Put the entry there. Readers see the old value or the new one, never neither.

        same_key : asked, where a digest does not prove a key, whether the stored key is the entry's. If not, a store
            that would keep the stored key must replace that, too.
        """
