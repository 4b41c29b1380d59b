"""One file of an entry, as bytes and back: a part, then a footer that tells whether the file is what it should be.

    stream | padding, buffer | padding, buffer | ... | table | footer

Without buffers a file is its stream and its footer. With them, each begins at a multiple of 64 bytes, and the table has
an item for each: where it begins, how long it is, and the checksum of it and the padding before it. The footer's
checksum covers stream and table. All numbers are little-endian. The footer (96 bytes):

    offset  size  field
         0     8  payload length: all bytes before the footer
         8     8  stream length
        16     8  time of storing, seconds since the epoch (IEEE 754 double)
        24     8  seconds that computing the value took (IEEE 754 double)
        32     8  nonce: key and value of one store share it
        40    20  digest
        60    16  checksum, padded with zeros
        76     1  algorithm of the checksums: 1 CRC-32, 2 SHA-256 (its first 16 bytes)
        77     1  kind: K key, V value
        78     1  format version: 1
        79     1  flags: none is defined yet
        80     4  number of buffers
        84     4  CRC-32 of the bytes before
        88     8  magic: 8f 50 44 49 43 0d 0a 1a
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from persistent_dict.stores.base import Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest

KEY, VALUE = ord("K"), ord("V")
FOOTER_SIZE = 96
_FOOTER = Struct("<QQdd8s20s16sBBBBII8s")
_PLAIN = Struct("<QQdd8s20sI20sI8s")  # the same, with all that is constant in a file without buffers as one field
_TABLE_ITEM = Struct("<QQ16s")
MAGIC = b"\x8fPDIC\r\n\x1a"
_VERSION = 1
_ALIGNMENT = 64
_CRC_AT = 84
_PLAIN_FACTS = {kind: bytes(12) + bytes([1, kind, _VERSION, 0]) + bytes(4) for kind in (KEY, VALUE)}


class Damage(ValueError):
    """Bytes that are not an intact part. The text says what is wrong."""


class Footer:
    """A file's footer, whose own checks hold and which is what was expected there.

    Attributes are the fields of the layout above.
    """

    __slots__ = (
        "algorithm",
        "buffer_count",
        "checksum",
        "nonce",
        "payload_size",
        "seconds",
        "stored_at",
        "stream_size",
    )

    def __init__(self, tail: Buffer, file_size: int, digest: Digest, kind: int) -> None:
        """Read the footer that ends `tail`, the last bytes of a file of `file_size` bytes."""
        if min(file_size, len(tail)) < FOOTER_SIZE:
            raise Damage(_too_short(min(file_size, len(tail))))
        at = len(tail) - FOOTER_SIZE
        (
            self.payload_size, self.stream_size, self.stored_at, self.seconds, self.nonce, footer_digest, self.checksum,
            self.algorithm, footer_kind, version, flags, self.buffer_count, crc, magic,
        ) = _FOOTER.unpack_from(tail, at)  # fmt: skip
        if magic != MAGIC:
            raise Damage(_no_magic(tail))
        if crc != crc32(tail[at : at + _CRC_AT]):
            raise Damage("its footer's checksum does not hold")
        if version != _VERSION:
            raise Damage(
                f"it has the file format {version}, and this version of persistent_dict knows {_VERSION}: upgrade the "
                "package, or remove the entry"
            )
        if self.payload_size != file_size - FOOTER_SIZE:
            raise Damage(f"it holds {file_size - FOOTER_SIZE} bytes where {self.payload_size} were written")
        if footer_kind != kind:
            raise Damage(f"it is a {_KINDS.get(footer_kind, 'file of unknown kind')} where a {_KINDS[kind]} belongs")
        if footer_digest.hex() != digest:
            raise Damage("it belongs to another entry")
        if flags or self.algorithm not in _CHECKSUMS:
            raise Damage("it needs a newer version of persistent_dict: upgrade the package, or remove the entry")


def frame(part: Part, digest: Digest, kind: int, algorithm: int = 1) -> list[Buffer]:
    """Return the chunks that make up the part's file. Buffers are not copied."""
    checksum = _CHECKSUMS[algorithm]
    chunks, table, size = [part.stream], b"", len(part.stream)
    for buffer in part.buffers:
        raw = memoryview(buffer).cast("B")
        padding = bytes(-size % _ALIGNMENT)
        begin = size + len(padding)
        size = begin + raw.nbytes
        chunks += [padding, raw]
        table += _TABLE_ITEM.pack(begin, raw.nbytes, checksum(padding, raw))
    if table:
        chunks.append(table)
    body = _FOOTER.pack(
        size + len(table), len(part.stream), part.stored_at, part.seconds, part.nonce, bytes.fromhex(digest),
        checksum(part.stream, table), algorithm, kind, _VERSION, 0, len(part.buffers), 0, MAGIC,
    )[:_CRC_AT]  # fmt: skip
    chunks.append(body + crc32(body).to_bytes(4, "little") + MAGIC)
    return chunks


def unframe(blob: bytes, digest: Digest, kind: int) -> Part:
    """Return the part that a whole file's bytes hold.

    Raises
    ------
    Damage
        The bytes are not what was written, or not for this place.
    """
    at = len(blob) - FOOTER_SIZE
    if at >= 0:  # the hot path: a stream without buffers, and every check in one expression
        payload_size, stream_size, stored_at, seconds, nonce, footer_digest, checksum, facts, crc, magic = (
            _PLAIN.unpack_from(blob, at)
        )
        stream = blob[:at]
        if (
            magic == MAGIC
            and crc == crc32(blob[at : at + _CRC_AT])
            and payload_size == stream_size == at
            and footer_digest.hex() == digest
            and facts == _PLAIN_FACTS[kind]
            and checksum == crc32(stream)
        ):
            return Part(stream, (), nonce, stored_at, seconds)
    footer = Footer(blob, len(blob), digest, kind)  # says what is wrong
    return read_part(footer, lambda begin, size: (bytearray if begin else bytes)(blob[begin : begin + size]))


def unframe_pair(value: Buffer, key: Buffer, digest: Digest) -> Part:
    """Return the value that an entry's two files hold, if they belong together.

    Raises
    ------
    Damage
        They are not what was written.
    """
    part = unframe(bytes(value), digest, VALUE)
    if part.nonce != unframe(bytes(key), digest, KEY).nonce:
        raise Damage("its key and its value come from different stores")
    return part


def read_part(footer: Footer, read_at: Callable[[int, int], Buffer]) -> Part:
    """Return the part under a footer; `read_at(begin, size)` gives the bytes, writable where the caller wants that.

    Raises
    ------
    Damage
        The bytes are not what was written.
    """
    checksum = _CHECKSUMS[footer.algorithm]
    table_at = footer.payload_size - footer.buffer_count * _TABLE_ITEM.size
    if not 0 <= footer.stream_size <= table_at:
        raise Damage("its footer's lengths do not fit together")
    stream, table = read_at(0, footer.stream_size), read_at(table_at, footer.payload_size - table_at)
    if footer.checksum != checksum(stream, table):
        raise Damage("its checksum does not hold")
    buffers: list[Buffer] = []
    end = footer.stream_size
    for begin, size, expected in _TABLE_ITEM.iter_unpack(table):
        padding, buffer = read_at(end, begin - end), read_at(begin, size)
        if expected != checksum(padding, buffer):
            raise Damage(f"the checksum of its buffer {len(buffers)} does not hold")
        buffers.append(buffer)
        end = begin + size
    if end != table_at:
        raise Damage("its lengths do not fit together")
    return Part(stream, buffers, footer.nonce, footer.stored_at, footer.seconds)


def any_footer(tail: bytes) -> tuple[Footer, int, bytes] | None:
    """Return the footer that `tail` is, of whatever kind and entry, with its kind and digest; None: it is none."""
    if len(tail) != FOOTER_SIZE or tail[-len(MAGIC) :] != MAGIC:
        return None
    fields = _FOOTER.unpack(tail)
    payload_size, digest, kind = fields[0], fields[5], fields[8]
    try:
        return Footer(tail, payload_size + FOOTER_SIZE, digest.hex(), kind), kind, digest
    except (Damage, KeyError):
        return None


def _crc(first: Buffer, second: Buffer = b"") -> bytes:
    return crc32(second, crc32(first)).to_bytes(16, "little")


def _sha256(first: Buffer, second: Buffer = b"") -> bytes:
    from hashlib import sha256

    hash_ = sha256(first)
    hash_.update(second)
    return hash_.digest()[:16]


_KINDS = {KEY: "key", VALUE: "value"}
_CHECKSUMS: dict[int, Callable[..., bytes]] = {1: _crc, 2: _sha256}
ALGORITHMS = {"crc32": 1, "sha256": 2}


def _too_short(size: int) -> str:
    return f"it is cut off after {size} bytes" if size else "it is empty, as a power cut leaves a file"


def _no_magic(tail: Buffer) -> str:
    if not any(tail[-FOOTER_SIZE:]):
        return "its end is all zeros, as a power cut or a full disk leaves a file"
    return "it does not end as this package's files do: it is cut off, overwritten, or something else"
