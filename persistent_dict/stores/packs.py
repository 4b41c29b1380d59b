"""Packs: many entries in one immutable file, and a directory of them.

    header | value, key, mark, padding | value, key, mark, padding | … | columns | about | footer

The header (64 bytes) is a line of text, zeros, the pack's sequence number (8 bytes; of two packs that have an entry the
later one counts), and its mark: 8 random bytes that follow each entry, so that entries can be told from look-alikes
inside of values when the index is damaged. Its complement in their place: an entry that was overwritten or removed.
Values begin at multiples of 64 bytes; value and key are as their loose files are (`framing`).

The index is a table by columns, sorted by digest, of little-endian numbers: `fanout` (256 of 4 bytes: how many digests
begin with that byte or a lower one), then for each entry `digests` (20 bytes), `begins`, `value_sizes`, `key_sizes`
(8 bytes each), `checksums` (CRC-32 from the value's first byte to the end of the padding), `stored_at`, `seconds`,
`used_at` (doubles). `about` is text: what a container's file FORMAT says. The footer (88 bytes):

    offset  size  field
         0     8  number of entries
         8     8  where the columns begin
        16     8  the pack's sequence number, as in the header
        24     4  length of `about`
        28    36  CRC-32 of each column
        64     4  CRC-32 of the header
        68     4  CRC-32 of `about`
        72     4  format version: 1
        76     4  CRC-32 of the bytes before
        80     8  magic: 8f 50 44 50 4b 0d 0a 1a

A pack's name is a checksum of its index. Only two things are ever changed in it: before an entry in it is overwritten
by a loose one, and before it is removed, a byte is appended; afterwards such an entry's mark is inverted. So its
length tells how far it can be relied on: as it was written, it is the last word on its entries; longer, one has to
look further.
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from errno import ENOENT, ENOTDIR, ESTALE
from itertools import repeat
from operator import le
from stat import S_ISREG
from struct import Struct
from zlib import crc32

from persistent_dict import _fs
from persistent_dict.errors import InvalidEntryError, InvalidKeyFileError, InvalidValueFileError
from persistent_dict.stores.base import Entry, EntryInfo, Part
from persistent_dict.stores.framing import FOOTER_SIZE, KEY, MAGIC, VALUE, Damage, any_footer, unframe, unframe_pair
from persistent_dict.stores.reading import SMALL, read, read_bytes
from persistent_dict.stores.recency import FRESH, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest

HEADER_SIZE = 64
MARK_SIZE = 8
FOOTER = Struct("<QQQI9IIIII8s")
PACK_MAGIC = b"\x8fPDPK\r\n\x1a"
PACK_VERSION = 1
_TITLE = b"persistent_dict pack 1\n"
_SEQUENCE_AT = HEADER_SIZE - MARK_SIZE - 8
_DIGEST = 20
_TAIL = 4096  # bytes; more than are ever appended
_NEAR = 32  # digests each side of where one should be, were all evenly spread
_CHUNK = 1024 * 1024
_WINDOW = 256 * 1024  # bytes; stays in the processor's cache between reading and checking
_NOTICED = 0.01  # seconds
_SETTLED = 2_000_000_000  # ns; as in loose.py
_LOOKS = 100  # at a directory that others keep changing, or for an entry that is intact
_SELDOM = 64  # questions that are answered without counting again
COLUMNS = {
    "fanout": "I", "digests": "20s", "begins": "Q", "value_sizes": "Q", "key_sizes": "Q", "checksums": "I",
    "stored_at": "d", "seconds": "d", "used_at": "d",
}  # fmt: skip

INDEX_SIZE = 72  # bytes of an entry in the columns
LOOKUP = ("fanout", "digests", "begins", "value_sizes", "key_sizes")  # what finding an entry takes


def header(sequence: int, mark: bytes) -> bytes:
    """Return a pack's first bytes."""
    return _TITLE.ljust(_SEQUENCE_AT, b"\0") + sequence.to_bytes(8, "little") + mark


def inverted(mark: bytes) -> bytes:
    """Return what stands for a pack's mark behind an entry that is dead. Zeros could be an accident."""
    return bytes(byte ^ 0xFF for byte in mark)


def extent(value_size: int, key_size: int) -> int:
    """Return how many bytes an entry takes in a pack."""
    return -(-(value_size + key_size + MARK_SIZE) // 64) * 64


def fanout_of(digests: bytes) -> Any:
    """Return the column that says how many of the sorted `digests` begin with each byte or a lower one."""
    counts = [0] * 256
    for first in digests[::_DIGEST]:
        counts[first] += 1
    total, fanout = 0, array("I")
    for count in counts:
        total += count
        fanout.append(total)
    return fanout


def to_bytes(column: Any) -> bytes:
    """Return a column as a file has it."""
    if isinstance(column, (bytes, bytearray)):
        return bytes(column)
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return bytes(column.tobytes())


class Pack:
    """One pack, open. Reading it is safe for threads, and goes on after the file was removed.

    Attributes
    ----------
    path, name : str
    size : int
        Bytes of the file as it was written.
    sequence : int
        Of two packs, the later one has the higher.
    count : int
        Entries in it.
    problem : str
        What is wrong with it as a whole, "" if nothing is. Its entries were then found by their own footers.
    complete : bool
        Every entry that was in it is known.
    about : str
        The text of the container that it was made from.
    """

    def __init__(
        self,
        path: str,
        *,
        container: str = "",
        owners: frozenset[int] | None = None,
        mapped: bool = False,
        mode: int | None = 0o700,
    ) -> None:
        self.path = path
        self.name = os.path.basename(path).removesuffix(".pack")
        self._container = container
        self._mapped = mapped
        self._mode = mode
        self.fd = -1
        self._seen_at = 0.0
        self._mark = b""
        self._identity = (0, 0)
        self.problem, self.complete, self.about = "", True, ""
        self.count = self.size = self.sequence = self._columns_at = 0
        self._checksums: tuple[int, ...] = ()
        self._columns: dict[str, Any] = {}
        self._usage: Usage | None = None
        self._gone: set[int] | None = None  # entries that are known to be dead
        self._asked = 0
        try:
            self.fd = _fs.open_file(path)
        except OSError as error:
            if error.errno not in _fs.FOREIGN:
                raise
            self._give_up("it is no regular file")
            return
        status = os.fstat(self.fd)
        self.size, self._identity = status.st_size, _fs.identity(status)
        if not S_ISREG(status.st_mode):
            self._give_up("it is no regular file")
            _fs.close_quietly(self.fd)
            self.fd = -1
        elif owners is not None and status.st_uid not in owners:
            self._give_up(f"it belongs to the user {status.st_uid}, not to you")
        else:
            self._open()

    def _give_up(self, problem: str) -> None:
        self.problem, self.complete = problem, False
        self._take_columns({"fanout": [0] * 256, "digests": b"", **dict.fromkeys(LOOKUP[2:], ())})

    def _open(self) -> None:
        first = os.pread(self.fd, HEADER_SIZE, 0)
        self.sequence, self._mark = int.from_bytes(first[_SEQUENCE_AT:-MARK_SIZE], "little"), first[-MARK_SIZE:]
        try:
            self._read_footer(crc32(first))
            columns = {name: self._load(name) for name in LOOKUP}
            fanout = columns["fanout"]
            if not all(map(le, fanout, fanout[1:])) or fanout[-1] != self.count:
                raise Damage("its index does not make sense")
            self._take_columns(columns)
            if self.problem:
                self._mark = self._mark_behind_entries()
        except Damage as damage:
            self._recover(str(damage))

    def _read_footer(self, header_checksum: int) -> None:
        tail = os.pread(self.fd, _TAIL, max(0, self.size - _TAIL))
        appended = len(tail) - tail.rfind(PACK_MAGIC) - len(PACK_MAGIC)
        if 0 <= appended <= len(tail) - FOOTER.size:
            self.size -= appended
            tail = tail[: len(tail) - appended][-FOOTER.size :]
        tail = tail[-FOOTER.size :]
        if len(tail) < FOOTER.size:
            raise Damage("it is empty, as a power cut leaves a file" if not tail else "it is cut off")
        facts = FOOTER.unpack(tail)
        (count, columns_at, sequence, about_size), checksums = facts[:4], facts[4:13]
        of_header, of_about, version, checksum, magic = facts[13:]
        if magic != PACK_MAGIC:
            raise Damage("it does not end as a pack does: it is cut off, overwritten, or something else")
        if checksum != crc32(tail[:-12]):
            raise Damage("its closing footer's checksum does not hold")
        if version != PACK_VERSION:
            raise Damage(f"it has the format {version}, and this version of persistent_dict knows {PACK_VERSION}")
        self.count, self._columns_at, self._checksums = count, columns_at, tuple(checksums)
        end = columns_at + 4 * 256 + count * INDEX_SIZE
        if not HEADER_SIZE <= columns_at <= end == self.size - FOOTER.size - about_size:
            raise Damage("its footer's lengths do not fit together")
        about = os.pread(self.fd, about_size, end)
        if of_header != header_checksum:
            self.problem, self.sequence = "its first bytes are damaged", sequence
        if crc32(about) != of_about:
            self.problem, about = "what it says about itself is damaged", b""
        self.about = about.decode("utf-8", "replace")

    def _load(self, name: str) -> Any:
        """Return a column, read and checked."""
        sizes = {other: Struct(f"<{code}").size * self.count for other, code in COLUMNS.items()}
        sizes["fanout"] = 4 * 256
        number, size = list(COLUMNS).index(name), sizes[name]
        at, code = self._columns_at + sum(list(sizes.values())[:number]), COLUMNS[name]
        if at + size > self.size:
            raise Damage("its footer's lengths do not fit together")
        column: Any = bytearray(size) if code == "20s" else array(code, [0]) * (size // Struct(code).size)
        if size and not _fs.read_into(self.fd, memoryview(column).cast("B"), at):
            raise Damage("it is cut off")
        if crc32(column) != self._checksums[number]:
            raise Damage(f"the checksum of its index ({name}) does not hold")
        if sys.byteorder == "big" and code != "20s":
            column.byteswap()
        return column

    def _mark_behind_entries(self) -> bytes:
        """Return the mark with which an entry's checksum holds, since that in the header may be damaged; the header's
        where there is none."""
        checksums = self._load("checksums")
        for i in range(min(self.count, _LOOKS)):
            _, _, whole = self._files(i)
            at = self._mark_at(i) - self._begins[i]
            found = bytes(whole[at : at + MARK_SIZE])
            for mark in (found, inverted(found)):
                if crc32(whole[at + MARK_SIZE :], crc32(mark, crc32(whole[:at]))) == checksums[i]:
                    return mark
        return self._mark

    def _check_bounds(self, i: int) -> None:
        """Raise `Damage` where an index with the right checksums leads out of the entries, as a crafted one may."""
        end = self._begins[i] + self._value_sizes[i] + self._key_sizes[i]
        if not HEADER_SIZE <= self._begins[i] <= end <= self.size:
            raise Damage("its index leads out of the pack")

    def _take_columns(self, columns: dict[str, Any]) -> None:
        self._columns = columns
        self._digests: bytes = columns["digests"]
        self._fanout = [0, *columns["fanout"]]
        self._begins, self._value_sizes, self._key_sizes = (columns[name] for name in LOOKUP[2:])
        self.count = len(self._digests) // _DIGEST

    def column(self, name: str) -> Any:
        """Return a column of the index: bytes for `digests`, else a sequence of numbers."""
        if name not in self._columns:
            try:
                if self.problem:
                    raise Damage(self.problem)
                self._columns[name] = self._load(name)
            except Damage as damage:
                self.problem = str(damage)
                self._columns.update(self._facts())
        return self._columns[name]

    def _facts(self) -> dict[str, Any]:
        """Return the columns that are not needed to find an entry, from the entries themselves."""
        facts: dict[str, Any] = {"checksums": array("I"), "stored_at": array("d"), "seconds": array("d")}
        for i in range(self.count):
            part, whole, is_intact = Part(b""), memoryview(b""), False
            try:
                value, key, whole = self._files(i)
                part = unframe_pair(value, key, self.digest(i))
                is_intact = True
            except Damage:  # cut off, or not what was written
                pass
            facts["checksums"].append(crc32(whole) ^ (not is_intact))
            facts["stored_at"].append(part.stored_at)
            facts["seconds"].append(part.seconds)
        return {**facts, "used_at": facts["stored_at"]}

    def __del__(self) -> None:
        _fs.close_if_still(self.fd, self._identity)

    # Looking up

    def digest(self, i: int) -> Digest:
        """Return the digest of entry `i`, in the order of digests."""
        return self._digests[i * _DIGEST : i * _DIGEST + _DIGEST].hex()

    def find(self, digest: Digest) -> int:
        """Return which entry has the digest, -1 if none."""
        raw = bytes.fromhex(digest)
        digests, fanout, first = self._digests, self._fanout, raw[0]
        low, high = fanout[first], fanout[first + 1]
        near, far = low, high
        if high - low > 2 * _NEAR:  # they are hashes, so it is not far from where it would be, were all evenly spread
            guess = low + ((high - low) * (raw[1] << 8 | raw[2]) >> 16)
            near, far = guess - _NEAR if guess > _NEAR else 0, guess + _NEAR
        at = digests.find(raw, near * 20, far * 20)
        if at >= 0 and not at % 20:
            return at // 20
        while low < high:  # not there, or the digests are spread unevenly
            middle = (low + high) // 2
            if digests[middle * _DIGEST : middle * _DIGEST + _DIGEST] < raw:
                low = middle + 1
            else:
                high = middle
        return low if digests[low * _DIGEST : low * _DIGEST + _DIGEST] == raw else -1

    def is_there(self) -> bool:
        """Whether the file is what it was opened as: not replaced or removed."""
        try:
            return self.is_open() and self._identity == _fs.identity(os.lstat(self.path))
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, ESTALE):
                raise
            return False

    def is_open(self) -> bool:
        """Whether the descriptor is still this file's."""
        return self.fd < 0 or _fs.is_still(self.fd, self._identity)

    def is_shadowed(self) -> bool:
        """Whether loose entries come first."""
        return self.fd >= 0 and os.fstat(self.fd).st_size != self.size

    def shadow(self, digests: Iterable[Digest] = (), durability: str = "none", *, dead: bool = False) -> None:
        """Say to all who have it open that some entries may not be read from here without a look at the loose ones; or,
        with `dead`, that they may not be read from here at all."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _fs.identity(os.fstat(fd)) != self._identity:
                raise OSError(ESTALE, "the pack was replaced", self.path)
            os.ftruncate(fd, self.size + 1)  # needs no room on a full disk
            for i in map(self.find, digests) if dead else ():
                if i >= 0 and self._mark_at(i) < self.size:
                    os.pwrite(fd, inverted(self._mark), self._mark_at(i))
                    if self._gone is not None:
                        self._gone.add(i)
            if durability in ("consistent", "durable"):
                os.fsync(fd)
        finally:
            os.close(fd)

    def is_dead(self, i: int) -> bool:
        """Whether an entry was overwritten or removed."""
        if not self.is_shadowed() or self._mark_at(i) > self.size:
            return False
        return os.pread(self.fd, MARK_SIZE, self._mark_at(i)) == inverted(self._mark)

    def dead(self) -> set[int]:
        """Return the numbers of the entries that were overwritten or removed."""
        if not self.is_shadowed():
            return set()
        ends = map(sum, zip(self._begins, self._value_sizes, self._key_sizes, strict=True))
        marks = map(os.pread, repeat(self.fd), repeat(MARK_SIZE), map(min, ends, repeat(self.size)))
        is_dead = inverted(self._mark).__eq__
        self._gone = {i for i, mark in enumerate(marks) if is_dead(mark)}
        return self._gone.copy()

    def living(self) -> Sequence[int]:
        """Return the numbers of the entries that were not overwritten or removed."""
        dead = self.dead()
        return [i for i in range(self.count) if i not in dead] if dead else range(self.count)

    def share_alive(self) -> float:
        """Return what part of the entries is not dead, but for what others have removed since it was last counted."""
        self._asked += 1
        gone = self.dead() if self._gone is None or self._asked % _SELDOM == 0 else self._gone
        return 1 - len(gone) / self.count if self.count else 0.0

    def _mark_at(self, i: int) -> int:
        return int(self._begins[i] + self._value_sizes[i] + self._key_sizes[i])

    # Reading

    def last_word(self, digest: Digest) -> Part | None:
        """Return the value where it is here, intact, and nothing has overwritten it; None where it takes a closer look.

        The hot path. A pack that this package replaces or overwrites is longer from then on, which costs no status to
        see; one that somebody removes by hand is noticed within `_NOTICED` seconds.
        """
        i = self.find(digest)
        if i < 0:
            return None
        size = self._value_sizes[i]
        begin = self._begins[i]
        try:
            if size >= SMALL or begin > self.size or os.pread(self.fd, 1, self.size):  # something was appended
                return None
        except OSError:  # somebody has closed it
            return None
        now = time.time()
        if not 0.0 <= now - self._seen_at < _NOTICED:
            if not self.is_there():
                return None
            self._seen_at = now
        usage = self._usage or self.usage()
        if usage.hours[i] < now // FRESH:
            usage.note(i, now)
        try:
            return unframe(os.pread(self.fd, size, begin), digest, VALUE)
        except Damage:
            return None

    def get_value(self, i: int, *, is_hit: bool = True) -> Part:
        begin, size, digest = self._begins[i], self._value_sizes[i], self.digest(i)
        if is_hit:
            self.usage().note(i, time.time())
        try:
            self._check_bounds(i)
            if size < SMALL:
                return unframe(os.pread(self.fd, size, begin), digest, VALUE)
            return read(self.fd, begin, size, digest, VALUE, mapped=self._mapped)
        except Damage as damage:
            raise self._invalid(i, VALUE, damage) from None

    def get_key(self, i: int) -> Part:
        begin = self._begins[i] + self._value_sizes[i]
        try:
            self._check_bounds(i)
            return read(self.fd, begin, self._key_sizes[i], self.digest(i), KEY)
        except Damage as damage:
            raise self._invalid(i, KEY, damage) from None

    def get(self, i: int, *, is_hit: bool = True) -> Entry:
        entry = Entry(self.get_key(i), self.get_value(i, is_hit=is_hit))
        if entry.key.nonce != entry.value.nonce:
            raise self._invalid(i, VALUE, Damage("its key and its value come from different stores"))
        return entry

    def raw(self, i: int) -> tuple[Buffer, Buffer, bool]:
        """Return the value file and the key file of an entry, and whether they are as they were packed."""
        value, key, whole = self._files(i)
        return value, key, crc32(whole) == self.column("checksums")[i]

    def _files(self, i: int) -> tuple[memoryview, memoryview, memoryview]:
        """Return the value file and the key file of an entry, and both with what follows them; shorter at the end of a
        pack that is cut off."""
        self._check_bounds(i)
        begin, value_size, key_size = self._begins[i], self._value_sizes[i], self._key_sizes[i]
        size = min(extent(value_size, key_size), self.size - begin)
        whole = memoryview(read_bytes(self.fd, begin, size))
        return whole[:value_size], whole[value_size : value_size + key_size], whole

    def used_at(self, i: int) -> float:
        """Return when an entry was last hit, to about an hour."""
        return float(max(self.column("used_at")[i], self.usage().at(i)))

    def info(self, i: int) -> EntryInfo:
        """Return what the index knows of an entry."""
        value_size, key_size = self._value_sizes[i], self._key_sizes[i]
        return EntryInfo(
            self.digest(i),
            value_size + key_size,
            (self.name, i),
            settled=True,
            used_at=self.used_at(i),
            disk_bytes=extent(value_size, key_size) + INDEX_SIZE,
        )

    def usage(self) -> Usage:
        """Return what is known of the hits since it was packed."""
        if self._usage is None:
            path = "" if self.problem or self._mode is None else f"{self.path.removesuffix('.pack')}.used"
            self._usage = Usage(path, self.count, self._mode or 0)
        return self._usage

    def _invalid(self, i: int, kind: int, damage: Damage) -> InvalidEntryError:
        what, error = ("value", InvalidValueFileError) if kind == VALUE else ("key", InvalidKeyFileError)
        where = f"{self._value_sizes[i]} bytes at {self._begins[i]}"
        return error(
            self.path,
            f"the {what} of the entry {self.digest(i)} in the pack ({where}) is damaged: {damage}",
            "",
            self._container,
        )

    def problem_of(self, i: int) -> InvalidEntryError | None:
        """Return what is wrong with an entry, None if nothing but what stands between the entries is."""
        try:
            self.get(i, is_hit=False)
        except InvalidEntryError as error:
            return error
        return None

    def scratch_at(self, i: int) -> InvalidEntryError:
        """Return the error for bytes behind an entry that are damaged, and mean nothing."""
        reason = f"bytes behind the entry {self.digest(i)} in the pack are damaged; the entry itself is intact"
        return InvalidEntryError(self.path, reason, "", self._container)

    def error(self) -> InvalidEntryError:
        """Return the error for the pack as a whole."""
        rest = (
            "all entries in it can be read" if self.complete else f"{self.count} entries in it can be read, others not"
        )
        return InvalidEntryError(self.path, f"the pack is damaged: {self.problem}; {rest}", "", self._container)

    def incomplete(self) -> InvalidEntryError:
        """Return the error for an entry that may have been in what is lost of the pack."""
        reason = f"it may be one of those that are lost in a damaged pack: {self.problem}"
        return InvalidEntryError(self.path, reason, "", self._container)

    # Checking

    def intact(self) -> Iterator[bool]:
        """Yield for each entry whether its bytes are as they were packed. Reads the pack from front to back, and all of
        its index."""
        for name in COLUMNS:
            self.column(name)
        window = memoryview(bytearray(_WINDOW))
        window_at = window_end = 0  # in the file
        for i, (begin, value_size, key_size, checksum) in enumerate(
            zip(self._begins, self._value_sizes, self._key_sizes, self.column("checksums"), strict=True)
        ):
            size = extent(value_size, key_size)
            if begin + size > self.size:  # the index leads out of the pack
                is_intact = False
            elif size > _WINDOW:
                is_intact = self._checksum(begin, size) == checksum
            else:
                if not window_at <= begin <= begin + size <= window_end:
                    window_at, window_end = begin, begin + os.preadv(self.fd, [window], begin)
                at = begin - window_at
                is_intact = begin + size <= window_end and crc32(window[at : at + size]) == checksum
            yield is_intact or self.is_dead(i)

    def _checksum(self, begin: int, size: int) -> int:
        """Return the CRC-32 of a stretch of the file, which is not kept in memory as a whole."""
        checksum = 0
        for at in range(begin, begin + size, _CHUNK):
            checksum = crc32(os.pread(self.fd, min(_CHUNK, begin + size - at), at), checksum)
        return checksum

    # An index that is damaged

    def _recover(self, problem: str) -> None:
        """Find the entries by their own footers."""
        self.problem = problem
        mark = self._mark
        has_footer = bool(self._checksums)
        end = self._columns_at if has_footer else self.size
        found, self.complete, at = [], True, HEADER_SIZE
        for begin, value, key, digest in _pairs(self.fd, end):
            value_size, key_size = value.payload_size + FOOTER_SIZE, key.payload_size + FOOTER_SIZE
            is_ours = os.pread(self.fd, MARK_SIZE, begin + value_size + key_size)
            if begin < at or is_ours not in (mark, inverted(mark)):
                continue  # inside of another entry's value
            self.complete = self.complete and begin == at
            at = begin + extent(value_size, key_size)
            if is_ours == mark:
                found.append((digest, begin, value_size, key_size, value))
        found.sort(key=lambda item: item[0])
        columns: dict[str, Any] = {"digests": b"".join(item[0] for item in found)}
        columns["fanout"] = fanout_of(columns["digests"])
        for number, name in enumerate(("begins", "value_sizes", "key_sizes"), 1):
            columns[name] = array("Q", [item[number] for item in found])
        index = to_bytes(columns["fanout"]) + columns["digests"]
        is_last = at == end if has_footer else bool(found) and os.pread(self.fd, len(index), at) == index
        self.complete = self.complete and is_last
        self._take_columns(columns)


class Packs:
    """The packs in a directory, each opened once, and looked for again when the directory has changed."""

    def __init__(self, directory: str, container: str, owners: frozenset[int] | None, mapped: bool, mode: int) -> None:
        self.directory = directory
        self._container = container
        self._owners = owners
        self._mapped = mapped
        self._mode = mode
        # In one attribute, since threads look again at the same time: the packs, what the directory's status was before
        # they were listed, and whether every later change must bear another time than that.
        self.view: tuple[tuple[Pack, ...], object, bool] = ((), None, False)

    @property
    def known(self) -> tuple[Pack, ...]:
        """The packs that were there at the last look."""
        return self.view[0]

    @property
    def are_possible(self) -> bool:
        """Whether the directory was there at the last look."""
        return self.view[1] is not None

    def refresh(self, *, always: bool = False) -> None:
        """Look which packs are there, if the directory has changed."""
        before, known_stamp, is_settled = self.view
        try:
            status = os.stat(self.directory)
        except FileNotFoundError:
            self.view = ((), None, False)
            return
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == known_stamp and is_settled and not always and all(pack.is_open() for pack in before):
            return
        is_settled = time.time_ns() - status.st_mtime_ns > _SETTLED
        self.view = (self._opened(before), stamp, is_settled)

    def _opened(self, before: tuple[Pack, ...]) -> tuple[Pack, ...]:
        opened = {pack.name: pack for pack in before}
        names: list[str] = []
        for _ in range(_LOOKS):
            try:
                for name in self.names():
                    if name not in opened or not opened[name].is_there():
                        opened[name] = self.open(f"{self.directory}/{name}.pack")
            except FileNotFoundError:  # replaced by another since it was listed
                continue
            names = self.names()
            if opened.keys() >= set(names):
                break
        return tuple(sorted((opened[name] for name in names if name in opened), key=lambda pack: -pack.sequence))

    def open(self, path: str) -> Pack:
        """Return a pack, open."""
        return Pack(path, container=self._container, owners=self._owners, mapped=self._mapped, mode=self._mode)

    def names(self) -> list[str]:
        """Return the names of the packs, without suffix, sorted."""
        return [name[:-5] for name in _fs.list_directory(self.directory) if name.endswith(".pack")]

    def find(self, digest: Digest) -> tuple[Pack, int, bool] | None:
        """Return the pack that has the digest, the entry's number in it, and whether a loose one comes first."""
        for _ in range(_LOOKS):
            for pack in self.view[0]:
                i = pack.find(digest)
                if i >= 0:
                    if not pack.is_there():
                        break
                    if not pack.is_dead(i):
                        return pack, i, pack.is_shadowed()
            else:
                return None
            self.refresh(always=True)
        return None

    def having(self, digest: Digest) -> list[Pack]:
        """Return all packs that have the digest; there are two where a crash has left one."""
        return [pack for pack in self.view[0] if pack.find(digest) >= 0]

    def lost(self) -> InvalidEntryError | None:
        """Return the error for an entry that is nowhere, where it may have been in a pack of which parts are lost."""
        return next((pack.incomplete() for pack in self.view[0] if not pack.complete), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Packs, (self.directory, self._container, self._owners, self._mapped, self._mode))


def _pairs(fd: int, end: int) -> Iterator[tuple[int, Any, Any, bytes]]:
    """Yield where values with their keys behind them begin, the footers of both, and the digest."""
    before: tuple[int, int, Any, bytes] | None = None
    for at in _magics(fd, end):
        tail = os.pread(fd, FOOTER_SIZE, at - FOOTER_SIZE + len(MAGIC)) if at + len(MAGIC) >= FOOTER_SIZE else b""
        known = any_footer(tail)
        if known is None:
            continue
        footer, kind, digest = known
        stop = at + len(MAGIC)
        begin = stop - FOOTER_SIZE - footer.payload_size
        if kind == VALUE and begin >= HEADER_SIZE and not begin % 64:
            before = (begin, stop, footer, digest)
        elif kind == KEY and before is not None and before[1:2] + before[3:] == (begin, digest):
            if before[2].nonce == footer.nonce:
                yield before[0], before[2], footer, digest
            before = None


def _magics(fd: int, end: int) -> Iterator[int]:
    """Yield where the magic of the entries' footers stands."""
    at = HEADER_SIZE
    while at < end:
        chunk = os.pread(fd, min(_CHUNK, end - at), at)
        if not chunk:
            return
        place = chunk.find(MAGIC)
        while place >= 0:
            yield at + place
            place = chunk.find(MAGIC, place + 1)
        at += max(len(chunk) - len(MAGIC) + 1, 1)
