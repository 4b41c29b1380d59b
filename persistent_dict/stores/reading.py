"""A part out of an open file: all of a loose file, or a stretch of a pack."""

from __future__ import annotations

import os

from persistent_dict import _fs
from persistent_dict.stores.framing import FOOTER_SIZE, Damage, Footer, read_part, unframe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest, Part

SMALL = 64 * 1024  # bytes; what is smaller is read at once, into memory that malloc need not ask the kernel for
_OWN_PAGES = 1024 * 1024  # bytes; memory for a buffer from this size on comes from the kernel, zeroed and page-aligned


def read(fd: int, begin: int, size: int, digest: Digest, kind: int, *, mapped: bool = False) -> Part:
    """Return the part in `size` bytes from `begin` of a file; `mapped`: map it, copy-on-write, if it is large.

    Raises
    ------
    Damage
        The bytes are not what was written, or not for this place.
    """
    if size < SMALL:
        return unframe(os.pread(fd, size, begin), digest, kind)
    footer = Footer(os.pread(fd, FOOTER_SIZE, begin + size - FOOTER_SIZE), size, digest, kind)
    return read_part(footer, _mapped(fd, begin, size) if mapped else _reader(fd, begin))


def read_bytes(fd: int, begin: int, size: int) -> bytes | bytearray:
    """Return `size` bytes from `begin` of a file."""
    if size < SMALL and len(whole := os.pread(fd, size, begin)) == size:
        return whole
    buffer = bytearray(size)
    if not _fs.read_into(fd, memoryview(buffer), begin):
        raise Damage("it is cut off")
    return buffer


def _reader(fd: int, at: int) -> Callable[[int, int], Buffer]:
    """Return a `read_at` that reads a file straight into memory which the caller's arrays will own."""

    def read_at(begin: int, size: int) -> Buffer:
        if size < _OWN_PAGES:
            buffer = memoryview(bytearray(size))
        else:
            from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

            buffer = memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS))
        if not _fs.read_into(fd, buffer, at + begin):
            raise Damage("it became shorter while it was read")
        return buffer

    return read_at


def _mapped(fd: int, at: int, size: int) -> Callable[[int, int], Buffer]:
    """Return a `read_at` that maps the file, copy-on-write."""
    from mmap import ACCESS_COPY, ALLOCATIONGRANULARITY, mmap

    before = at % ALLOCATIONGRANULARITY
    view = memoryview(mmap(fd, before + size, access=ACCESS_COPY, offset=at - before))[before:]
    return lambda begin, length: view[begin : begin + length]
