"""How each type is written into a digest. `key_builder` finds the method for a type; this file writes the bytes."""

from __future__ import annotations

import sys
from functools import lru_cache, partial
from marshal import dumps
from struct import Struct

from persistent_dict.errors import NanKeyWarning, UnkeyableError, shown, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_MARSHAL_VERSION = 2
_count = Struct("<Q").pack
_tuple_head = Struct("<ci").pack
_float = Struct("<cd").pack
_complex = Struct("<cdd").pack
_NAN = float("nan")  # whatever a NaN's bits are, it is written as this one


def flat_encoding(key: object, atoms: frozenset[type]) -> bytes:
    """Return the encoding of one of `atoms` or a tuple of them; b"" for any other key, and where a NaN is in it."""
    kind = type(key)
    if kind not in atoms and not (kind is tuple and atoms.issuperset(map(type, key))):  # type: ignore[call-overload]  # a tuple
        return b""
    try:
        data = dumps(key, _MARSHAL_VERSION)  # type: ignore[arg-type]  # atoms are what marshal takes
    except ValueError:  # 2 GiB or more
        return b""
    if (b"\x7f" in data or b"\xff" in data) and _has_nan(key):  # the last byte of every NaN is one of these
        return b""
    return data


def _has_nan(key: Any) -> bool:
    return any(part != part for part in (key if type(key) is tuple else (key,)))  # noqa: PLR0124


def _named(*names: object) -> bytes:
    return dumps(names, _MARSHAL_VERSION)  # type: ignore[arg-type]  # callers give atoms


def _type_name(kind: type) -> bytes:
    return _named(kind.__module__, kind.__qualname__)


@lru_cache(1024)
def _record_head(kind: Any, names: tuple[str, ...]) -> bytes:
    return _type_name(kind) + _named(*names)


@lru_cache(1024)
def _dataclass_fields(kind: Any) -> tuple[str, ...]:
    from dataclasses import fields

    return tuple(field.name for field in fields(kind))


class _Unset:
    """Stands for an attribute that a dataclass's or attrs object's field has not been given."""

    def update_persistent_hash(self, key_hash: Any, key_builder: object) -> None:
        key_hash.update(b"unset")


_UNSET = _Unset()


class Encodings:
    """The encodings of immutable types, as the ``update_for_<type name>`` methods that pytools' users know.

    ``key_hash`` is a hash object. Every method writes a self-delimiting encoding of ``key`` into it.
    """

    by_content = False  # mutable things are keyed, too, so no digest is remembered

    flat_types = ATOMS  # tuples of nothing but these are encoded at once

    if TYPE_CHECKING:

        @staticmethod
        def new_hash(data: bytes = b"") -> Any: ...
        def rec(self, key_hash: Any, key: Any) -> Any: ...
        def rec_items(self, key_hash: Any, parts: Iterable[object], step: Callable[[int], str]) -> None: ...
        def inner_digest(self, key_hash: Any, write: Callable[[Any], object]) -> bytes: ...

    # Atoms

    def update_for_NoneType(self, key_hash: Any, key: Any) -> None:
        data = flat_encoding(key, ATOMS)
        if data:
            key_hash.update(data)
        elif type(key) in (str, bytes):  # longer than marshal writes
            data = key.encode("utf-8", "surrogatepass") if type(key) is str else key
            key_hash.update((b"\x80U" if type(key) is str else b"\x80S") + _count(len(data)))
            key_hash.update(data)
        else:
            self._update_for_nan(key_hash, key)

    update_for_bool = update_for_int = update_for_float = update_for_complex = update_for_NoneType
    update_for_str = update_for_bytes = update_for_ellipsis = update_for_NoneType

    def _update_for_nan(self, key_hash: Any, key: float | complex) -> None:
        self._warn_of_nan(key_hash)
        if isinstance(key, complex):
            real, imag = (_NAN if x != x else x for x in (key.real, key.imag))  # noqa: PLR0124
            key_hash.update(_complex(b"y", real, imag))
        else:
            key_hash.update(_float(b"g", _NAN))

    def _warn_of_nan(self, key_hash: Any) -> None:
        warn(
            "a NaN in a key: it equals nothing, not even itself, so an entry stored under this key cannot be fetched "
            "again, unless the dictionary has a ContentKeyBuilder, which goes by content",
            NanKeyWarning,
        )
        if not self.by_content:
            _set(key_hash, proven=False)

    # Containers

    def update_for_tuple(self, key_hash: Any, key: Any) -> None:
        key_hash.update(_tuple_head(b"(", len(key)))
        self.rec_items(key_hash, key, "[{}]".format)

    def update_for_frozenset(self, key_hash: Any, key: Any) -> None:
        self._update_unordered(key_hash, b"\x80f", zip(key), lambda _: "{…}")

    update_for_FrozenOrderedSet = update_for_frozenset

    def update_for_frozendict(self, key_hash: Any, key: Mapping[Any, Any]) -> None:
        self._update_mapping(key_hash, b"\x80m", key)

    update_for_immutabledict = update_for_constantdict = update_for_frozendict
    update_for_PMap = update_for_Map = update_for_frozendict

    def update_for_mappingproxy(self, key_hash: Any, key: Mapping[Any, Any]) -> None:
        _set(key_hash, stable=False)
        self._update_mapping(key_hash, b"\x80m", key)

    def _update_mapping(self, key_hash: Any, code: bytes, key: Mapping[Any, Any]) -> None:
        names = list(key)
        self._update_unordered(key_hash, code, key.items(), lambda i: f"[{shown(names[i], 40)}]")

    def _update_unordered(
        self, key_hash: Any, code: bytes, groups: Iterable[Iterable[object]], step: Callable[[int], str]
    ) -> None:
        """Write groups of parts, whose order does not count, as the sorted digests of the groups."""
        digests: list[bytes] = []
        for group in groups:
            flat = [flat_encoding(part, self.flat_types) for part in group]
            if all(flat):
                digests.append(self.new_hash(b"".join(flat)).digest())
            else:
                write = partial(self.rec_items, parts=group, step=lambda _: step(len(digests)))
                digests.append(self.inner_digest(key_hash, write))
        digests.sort()
        key_hash.update(code + _count(len(digests)) + b"".join(digests))

    def update_for_range(self, key_hash: Any, key: range) -> None:
        start, step = (key.start if key else 0), (key.step if len(key) > 1 else 1)  # what equality looks at
        key_hash.update(b"\x80r" + _named(len(key), start, step))

    def update_for_slice(self, key_hash: Any, key: slice) -> None:
        key_hash.update(b"\x80:")
        self.rec_items(key_hash, (key.start, key.stop, key.step), (".start", ".stop", ".step").__getitem__)

    # Names

    def update_for_type(self, key_hash: Any, key: type) -> None:
        key_hash.update(b"\x80t" + _type_name(key))

    update_for_ABCMeta = update_for_type

    def update_for_enum(self, key_hash: Any, key: Any) -> None:
        from enum import Flag

        # The name of a combination of flags differs between Python versions; its number does not.
        member = int(key.value) if isinstance(key, Flag) else key.name
        key_hash.update(b"\x80e" + _type_name(type(key)) + _named(member))

    def update_for_function(self, key_hash: Any, key: Any) -> None:
        if key.__name__ == "<lambda>":
            raise UnkeyableError("is a lambda, which has no name to tell it from another. Define it with def")
        if is_memoized(key):
            _set(key_hash, stable=False, proven=False)
            write = key.update_persistent_hash
            key_hash.update(b"\x80w" + self.inner_digest(key_hash, lambda inner: write(inner, self)))
            return
        key_hash.update(b"\x80F" + _type_name(key))
        cells = tuple(cell.cell_contents for cell in key.__closure__ or ())
        keyword_defaults = tuple(sorted((key.__kwdefaults__ or {}).items()))
        if cells or key.__defaults__ or keyword_defaults:
            _set(key_hash, stable=False)
        parts = (cells, key.__defaults__, keyword_defaults)
        self.rec_items(key_hash, parts, (".__closure__", ".__defaults__", ".__kwdefaults__").__getitem__)

    def update_for_method(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80M")
        self.rec_items(key_hash, (key.__func__, key.__self__), (".__func__", ".__self__").__getitem__)

    def update_for_builtin_function_or_method(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80B" + _type_name(key))
        owner = None if isinstance(key.__self__, type(sys)) else key.__self__
        self.rec_items(key_hash, (owner,), lambda _: ".__self__")

    def update_for_partial(self, key_hash: Any, key: Any) -> None:
        _set(key_hash, stable=False)
        key_hash.update(b"\x80P")
        self.rec_items(key_hash, (key.func, key.args), (".func", ".args").__getitem__)
        self._update_mapping(key_hash, b"\x80m", key.keywords)

    # Records

    def update_for_dataclass(self, key_hash: Any, key: Any) -> None:
        kind: Any = type(key)
        if not kind.__dataclass_params__.frozen:
            _set(key_hash, stable=False)
        self._update_fields(key_hash, b"\x80D", key, _dataclass_fields(kind))

    def update_for_attrs(self, key_hash: Any, key: Any) -> None:
        _set(key_hash, stable=False)
        self._update_fields(key_hash, b"\x80A", key, tuple(field.name for field in type(key).__attrs_attrs__))

    def update_for_namedtuple(self, key_hash: Any, key: Any) -> None:
        self._update_fields(key_hash, b"\x80N", key, key._fields)

    def _update_fields(self, key_hash: Any, code: bytes, key: Any, names: tuple[str, ...]) -> None:
        kind: Any = type(key)
        key_hash.update(code + _record_head(kind, names))
        values = tuple([getattr(key, name, _UNSET) for name in names])
        flat = flat_encoding(values, self.flat_types)
        if flat:
            key_hash.update(flat)
        else:
            key_hash.update(_tuple_head(b"(", len(values)))
            self.rec_items(key_hash, values, lambda i: f".{names[i]}")

    # Values of the standard library, by all that they print: two that are equal but print differently differ

    def update_for_date(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80d" + _named(key.isoformat()))

    def update_for_time(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80h" + _named(key.replace(tzinfo=None).isoformat(), key.fold))
        self._update_for_tzinfo(key_hash, key)

    def update_for_datetime(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80T" + _named(key.replace(tzinfo=None).isoformat(), key.fold))
        self._update_for_tzinfo(key_hash, key)

    def _update_for_tzinfo(self, key_hash: Any, key: Any) -> None:
        self.rec_items(key_hash, (key.tzinfo,), lambda _: ".tzinfo")

    def update_for_timedelta(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80l" + _named(key.days, key.seconds, key.microseconds))

    def update_for_timezone(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80z" + _named(key.tzname(None)))
        self.update_for_timedelta(key_hash, key.utcoffset(None))

    def update_for_ZoneInfo(self, key_hash: Any, key: Any) -> None:
        if key.key is None:
            raise UnkeyableError("is a ZoneInfo without a key, made from a file: use ZoneInfo(name)")
        key_hash.update(b"\x80Z" + _named(key.key))

    def update_for_Decimal(self, key_hash: Any, key: Any) -> None:
        if key.is_nan():
            self._warn_of_nan(key_hash)
        key_hash.update(b"\x80c" + _named(*key.as_tuple()))

    def update_for_Fraction(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80q" + _named(key.numerator, key.denominator))

    def update_for_UUID(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80u" + key.bytes)

    def update_for_PurePath(self, key_hash: Any, key: Any) -> None:
        from pathlib import PureWindowsPath

        flavour = "windows" if isinstance(key, PureWindowsPath) else "posix"
        key_hash.update(b"\x80p" + _named(flavour, *key.parts))

    # NumPy's immutable things

    def update_for_specific_dtype(self, key_hash: Any, key: Any) -> None:
        from persistent_dict._key_arrays import dtype_parts

        key_hash.update(b"\x80y")
        self.rec(key_hash, dtype_parts(key))

    update_for_dtype = update_for_specific_dtype

    def update_for_numpy_scalar(self, key_hash: Any, key: Any) -> None:
        from persistent_dict._key_arrays import python_twin, scalar_parts

        twin = python_twin(key)
        if twin is not None:
            self.rec(key_hash, twin)
            return
        if key != key:  # noqa: PLR0124
            self._warn_of_nan(key_hash)
        key_hash.update(b"\x80x")
        self.rec(key_hash, scalar_parts(key))


class ContentEncodings(Encodings):
    """The encodings of mutable types, by their content."""

    by_content = True

    def update_for_list(self, key_hash: Any, key: list[Any]) -> None:
        key_hash.update(b"\x80L" + _count(len(key)))
        self.rec_items(key_hash, key, "[{}]".format)

    def update_for_deque(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80Q" + _named(key.maxlen))
        self.update_for_list(key_hash, key)

    def update_for_set(self, key_hash: Any, key: set[Any]) -> None:
        self._update_unordered(key_hash, b"\x80s", zip(key), lambda _: "{…}")

    def update_for_dict(self, key_hash: Any, key: Mapping[Any, Any]) -> None:
        self._update_mapping(key_hash, b"\x80k", key)

    def update_for_Counter(self, key_hash: Any, key: Any) -> None:
        self._update_mapping(key_hash, b"\x80C", key)

    def update_for_defaultdict(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80K")
        self.rec_items(key_hash, (key.default_factory,), lambda _: ".default_factory")
        self._update_mapping(key_hash, b"\x80k", key)

    def update_for_OrderedDict(self, key_hash: Any, key: Any) -> None:
        key_hash.update(b"\x80O")
        self.rec_items(key_hash, (tuple(key.items()),), lambda _: ".items()")

    def update_for_bytearray(self, key_hash: Any, key: bytearray) -> None:
        key_hash.update(b"\x80a" + _count(len(key)))
        key_hash.update(key)

    def update_for_memoryview(self, key_hash: Any, key: memoryview) -> None:
        key_hash.update(b"\x80v" + _named(key.format, *key.shape or ()))
        key_hash.update(key.cast("B") if key.c_contiguous and key.nbytes else key.tobytes())

    def update_for_ndarray(self, key_hash: Any, key: Any) -> None:
        from persistent_dict._key_arrays import update_for_array

        key_hash.update(b"\x80n")
        update_for_array(self, key_hash, key)

    def update_for_DataFrame(self, key_hash: Any, key: Any) -> None:
        from persistent_dict._key_arrays import frame_parts

        key_hash.update(b"\x80W" + _type_name(type(key)))
        self.rec_items(key_hash, frame_parts(key), "'s part {}".format)


def is_memoized(function: Any) -> bool:
    """Whether a function is what `memoize` made, and no wrapper of that, which has its attributes, too."""
    own = getattr(function, "__dict__", {}).get("update_persistent_hash")
    return getattr(getattr(own, "__self__", None), "memoized", None) is function


def _set(key_hash: Any, **learned: bool) -> None:
    """Note on the pass, if `key_hash` is one, what was learned of the key."""
    if hasattr(key_hash, "proven"):
        for name, truth in learned.items():
            setattr(key_hash, name, truth)
