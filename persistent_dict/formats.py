"""From an object to bytes and back. A container is opened with one format and remembers it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    Buffer = bytes | bytearray | memoryview

    class Format(Protocol):
        """Turns values and keys into bytes.

        Attributes
        ----------
        name : str
            What the container remembers.
        portable : bool
            Whether the bytes are the same for every Python, so that all share one container.
        """

        name: str
        portable: bool

        def dumps(self, value: Any) -> tuple[Buffer, Sequence[Buffer]]:
            """Return a value's stream, and the buffers that stand beside it without having been copied."""

        def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any: ...

        def dumps_key(self, key: Any) -> Buffer: ...

        def loads_key(self, stream: Buffer) -> Any: ...


_OUT_OF_BAND = 16 * 1024  # bytes; smaller buffers are cheaper to copy into the stream than to keep apart


class PickleFormat:
    """Pickle protocol 5; the memory of large arrays is written as it stands, outside the stream."""

    name = "pickle"
    portable = False

    def __init__(self) -> None:
        import pickle  # here, since neither the package's import nor the other formats need it

        self._dumps, self._loads = pickle.dumps, pickle.loads

    def dumps(self, value: Any) -> tuple[Buffer, Sequence[Buffer]]:
        buffers, keep_in_band = self.buffer_keeper()
        return self._dumps(value, 5, buffer_callback=keep_in_band), buffers

    def buffer_keeper(self) -> tuple[list[Buffer], Callable[[Any], bool]]:
        """Return where large buffers go, and the callback for pickle that puts them there."""
        buffers: list[Buffer] = []

        def keep_in_band(buffer: Any) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _OUT_OF_BAND:
                return True
            buffers.append(raw)
            return False

        return buffers, keep_in_band

    def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any:
        return self._loads(stream, buffers=buffers) if buffers else self._loads(stream)

    def dumps_key(self, key: Any) -> Buffer:
        return self._dumps(key, 5)

    def loads_key(self, stream: Buffer) -> Any:
        return self._loads(stream)


class _PlainKeys:
    """Keys as JSON: None, bool, int, float, str as they are; bytes, tuples and frozensets wrapped to tell which."""

    def dumps_key(self, key: Any) -> Buffer:
        from json import dumps

        return dumps(to_plain(key), separators=(",", ":")).encode()

    def loads_key(self, stream: Buffer) -> Any:
        from json import loads

        return from_plain(loads(bytes(stream)))


def to_plain(key: Any) -> object:
    """Return what JSON knows, for a key."""
    kind = type(key)
    if key is None or kind in (bool, int, float, str):
        return key
    if kind is bytes:
        return {"bytes": key.hex()}
    if kind is tuple:
        return {"tuple": [to_plain(part) for part in key]}
    if kind is frozenset:
        return {"frozenset": [to_plain(part) for part in key]}
    raise TypeError(
        f"a key with a {kind.__name__} in it cannot be kept without pickle: use numbers, strings, bytes, tuples and "
        'frozensets, or open the dictionary with format="pickle"'
    )


def from_plain(wrapped: Any) -> object:
    """Return the key that `to_plain` was given."""
    if type(wrapped) is not dict:
        return wrapped
    ((kind, parts),) = wrapped.items()
    if kind == "bytes":
        return bytes.fromhex(parts)
    return {"tuple": tuple, "frozenset": frozenset}[kind](map(from_plain, parts))


class JsonFormat(_PlainKeys):
    """JSON of what comes back from it unchanged: None, bool, int, float, str, lists, and dicts with str keys."""

    name = "json"
    portable = True

    def dumps(self, value: Any) -> tuple[Buffer, Sequence[Buffer]]:
        from json import dumps

        _refuse_what_json_changes(value, "value")
        return dumps(value, separators=(",", ":")).encode(), ()

    def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any:
        from json import loads

        return loads(bytes(stream))


def _refuse_what_json_changes(value: Any, where: str) -> None:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return
    if kind is list:
        for i, part in enumerate(value):
            _refuse_what_json_changes(part, f"{where}[{i}]")
        return
    if kind is dict:
        for name, part in value.items():
            if type(name) is not str:
                raise TypeError(
                    f"{where} has the key {name!r}: JSON would make it a str. Use str keys, or another format"
                )
            _refuse_what_json_changes(part, f"{where}[{name!r}]")
        return
    raise TypeError(f"{where} is a {kind.__name__}: it would not come back from JSON as it is. Use another format")


class RawFormat(_PlainKeys):
    """Bytes, as they are."""

    name = "raw"
    portable = True

    def dumps(self, value: Any) -> tuple[Buffer, Sequence[Buffer]]:
        if type(value) is not bytes:
            raise TypeError(f'format="raw" keeps bytes and nothing else, not a {type(value).__name__}')
        return value, ()

    def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any:
        return bytes(stream)


class ModuleFormat(PickleFormat):
    """Values by the `dumps` and `loads` of a module or object; keys by pickle."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        missing = [name for name in ("dumps", "loads") if not callable(getattr(codec, name, None))]
        if missing:
            raise TypeError(
                f'a format is "pickle", "json", "raw", or a module or object with dumps and loads; {codec!r} has no '
                + " and no ".join(missing)
            )
        kind = type(codec)
        self.name = getattr(codec, "__name__", None) or f"{kind.__module__}.{kind.__qualname__}"
        self._codec = codec
        self._is_text: bool | None = None

    def dumps(self, value: Any) -> tuple[Buffer, Sequence[Buffer]]:
        encoded = self._codec.dumps(value)
        self._is_text = isinstance(encoded, str)
        if isinstance(encoded, (bytes, bytearray, str)):
            return (encoded.encode("utf-8", "surrogatepass") if isinstance(encoded, str) else encoded), ()
        raise TypeError(f"{self.name}.dumps returned a {type(encoded).__name__} where bytes or a str belong")

    def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any:
        if self._is_text is None:
            self._is_text = self._writes_text()
        return self._codec.loads(bytes(stream).decode("utf-8", "surrogatepass") if self._is_text else bytes(stream))

    def _writes_text(self) -> bool:
        probes: tuple[Any, ...] = ({}, "", 0, None, [])
        for probe in probes:
            try:
                return isinstance(self._codec.dumps(probe), str)
            except Exception:  # noqa: S112  # a codec for other things than this
                continue
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        import sys

        if self._codec is sys.modules.get(self.name):  # modules do not pickle
            return (_module_format, (self.name,))
        return (ModuleFormat, (self._codec,))


def _module_format(name: str) -> ModuleFormat:
    from importlib import import_module

    return ModuleFormat(import_module(name))


def find_format(format: Any) -> Format:  # noqa: A002  # the argument's public name
    """Return the format for ``"pickle"``, ``"json"``, ``"raw"``, or any module or object with `dumps` and `loads`."""
    if isinstance(format, str):
        named: dict[str, type[Format]] = {"pickle": PickleFormat, "json": JsonFormat, "raw": RawFormat}
        if format not in named:
            raise ValueError(
                f'unknown format {format!r}: use "pickle", "json", "raw", or a module with dumps and loads'
            )
        return named[format]()
    return ModuleFormat(format)
