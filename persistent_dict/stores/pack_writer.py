"""Writing a pack to a file that nobody looks at yet."""

from __future__ import annotations

import os
from array import array
from hashlib import blake2b
from zlib import crc32

from persistent_dict import _fs
from persistent_dict.stores.base import Member
from persistent_dict.stores.framing import unframe_pair
from persistent_dict.stores.packs import (
    COLUMNS,
    FOOTER,
    HEADER_SIZE,
    MARK_SIZE,
    PACK_MAGIC,
    PACK_VERSION,
    extent,
    fanout_of,
    header,
    inverted,
    to_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest
    from persistent_dict.stores.packs import Pack

_BATCH = 4 * 1024 * 1024  # bytes; written at once


class PackWriter:
    """Writes a pack to a file that nobody looks at yet. Members come in the order of their digests."""

    def __init__(self, path: str, mode: int, about: str, *, exactly: bool = True) -> None:
        self._about = about.encode()
        self._mark = os.urandom(MARK_SIZE)
        self._digests: list[bytes] = []
        self._columns: dict[str, Any] = {name: array(code) for name, code in COLUMNS.items() if len(code) == 1}
        self._chunks: list[Buffer] = [header(0, self._mark)]
        self._pending = 0
        self._at = HEADER_SIZE
        self.path = path
        self._fd = _fs.create_file(path, mode)
        if exactly and mode & 0o077:  # the umask has taken what the group was to have
            os.fchmod(self._fd, mode & 0o666)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it, and remove it where it has not been moved to its place."""
        try:
            os.close(self._fd)
        finally:
            _fs.discard(self.path)

    def digest(self, number: int) -> Digest:
        """Return the digest of what was added as `number`."""
        return self._digests[number].hex()

    def add(self, member: Member, *, is_damaged: bool = False) -> None:
        """Write an entry. One that is damaged gets a checksum that does not hold, so that it stays so."""
        sizes = len(member.value), len(member.key)
        size = extent(*sizes)
        end = self._mark + bytes(size - sum(sizes) - MARK_SIZE)
        facts = {
            "begins": self._at, "value_sizes": sizes[0], "key_sizes": sizes[1], "stored_at": member.stored_at,
            "seconds": member.seconds, "used_at": member.used_at,
            "checksums": crc32(end, crc32(member.key, crc32(member.value))) ^ is_damaged,
        }  # fmt: skip
        for name, fact in facts.items():
            self._columns[name].append(fact)
        self._digests.append(bytes.fromhex(member.digest))
        self._chunks += (member.value, member.key, end)
        self._at += size
        self._pending += size
        if self._pending > _BATCH or len(self._chunks) > 500:
            self._flush()

    def _flush(self) -> None:
        _fs.write_all(self._fd, self._chunks)
        self._chunks, self._pending = [], 0

    def sync(self) -> None:
        """Hand what was written so far to the disk."""
        self._flush()
        os.fsync(self._fd)

    def finish(self, sequence: int, is_current: Callable[[int], bool] = lambda _: True) -> tuple[str, int]:
        """Write the index, without the entries that are not current, and sync. Return the pack's name and its count."""
        first = header(sequence, self._mark)
        kept = []
        for i in range(len(self._digests)):
            if is_current(i):
                kept.append(i)
            else:  # what finds entries without the index must not find this one
                begin, *sizes = (self._columns[name][i] for name in ("begins", "value_sizes", "key_sizes"))
                os.pwrite(self._fd, inverted(self._mark), begin + sum(sizes))
        digests = b"".join(self._digests[i] for i in kept)
        index: dict[str, Any] = {"fanout": fanout_of(digests), "digests": digests}
        for name in COLUMNS:
            if name not in index:
                column = self._columns[name]
                index[name] = column if len(kept) == len(column) else array(COLUMNS[name], [column[i] for i in kept])
        columns = [to_bytes(index[name]) for name in COLUMNS]
        checksums = [crc32(part) for part in (*columns, first, self._about)]
        body = FOOTER.pack(len(kept), self._at, sequence, len(self._about), *checksums, PACK_VERSION, 0, PACK_MAGIC)[
            :-12
        ]
        end = body + crc32(body).to_bytes(4, "little") + PACK_MAGIC
        self._chunks += (*columns, self._about, end)
        self._flush()
        os.pwrite(self._fd, first, 0)
        os.fsync(self._fd)
        checksum = blake2b(self._mark, digest_size=16)
        for column in columns:
            checksum.update(column)
        return checksum.hexdigest(), len(kept)


def write_pack(path: str, members: Iterable[Member], about: str) -> int:
    """Write a pack at `path`, in place of what is there, at once and synced. Return how many entries it has.

    Others may read it, if the umask lets them.
    """
    directory, name = os.path.split(path)
    with PackWriter(f"{directory}/.{name}.{os.urandom(8).hex()}", 0o644, about, exactly=False) as writer:
        for member in members:
            writer.add(member)
        _, count = writer.finish(1)
        os.rename(writer.path, path)
        _fs.sync_directory(directory)
    return count


def packed(pack: Pack, i: int) -> Member:
    """Return an entry of a pack.

    Raises
    ------
    Damage
        Its files are not what was written.
    """
    digest = pack.digest(i)
    value, key, is_intact = pack.raw(i)
    if not is_intact:  # it may be the padding
        unframe_pair(value, key, digest)
    return Member(digest, value, key, pack.column("stored_at")[i], pack.column("seconds")[i], pack.used_at(i))
