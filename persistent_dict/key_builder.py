"""From a key to its digest: a canonical, injective encoding, and 160-bit BLAKE2b over it.

The encoding is prefix-free: every object begins with a code that tells how it goes on. None, bool, int, float, complex,
str, bytes, Ellipsis and tuples are written as `marshal` writes them in its version 2: one C call for a whole flat key,
the same bytes since Python 2.5 (golden digests in the tests pin them). Everything else begins with the byte 0x80, which
marshal's version 2 never uses as a code, and a letter (`_key_encodings`). What a hook wrote (`update_for_...` of a
subclass, `update_persistent_hash` of an object) is entered as the 20 bytes of a hash of its own, so that it cannot run
into its neighbours.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Set
from hashlib import blake2b

from persistent_dict._key_encodings import ATOMS, ContentEncodings, Encodings, flat_encoding
from persistent_dict.errors import UnkeyableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol, TypeVar

    H = TypeVar("H")
    Updater = Callable[["KeyBuilder", "_Pass", Any], object]  # writes one key's encoding into the pass

    class Hash(Protocol):
        """What `KeyBuilder.new_hash` returns: a hash object in the manner of `hashlib`."""

        def update(self, data: Any, /) -> None: ...
        def digest(self) -> bytes: ...
        def hexdigest(self) -> str: ...


_DIGEST_SIZE = 20  # bytes
_MAX_DEPTH = 250  # containers in one another: three Python frames each, below the interpreter's limit of 1000
_STANDARD = frozenset(
    ["builtins", "abc", "collections", "datetime", "decimal", "fractions", "functools", "types", "uuid", "zoneinfo"]
)
_IMMUTABLE_BY_NAME = frozenset(["frozendict", "immutabledict", "constantdict", "Map", "PMap", "FrozenOrderedSet"])


class _Pass:
    """A hash on its way through one key, and what became known of the key while it was encoded.

    proven : only built-in, injective encodings took part, so equal digests mean equal keys.
    stable : nothing in the key can change, so the digest may be remembered.
    """

    __slots__ = ("depth", "digest", "hexdigest", "proven", "stable", "update")

    def __init__(self, hash_: Hash, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise UnkeyableError(f"is recursive, or nested more than {_MAX_DEPTH} levels deep")
        self.update = hash_.update
        self.digest = hash_.digest
        self.hexdigest = hash_.hexdigest
        self.depth = depth
        self.proven = True
        self.stable = True


class KeyBuilder(Encodings):
    """Computes digests of immutable keys, the same in every process, Python version, platform and hash seed.

    Call it with a key; the answer is 40 lower-case hex characters. Keys of different types have different digests (`1`,
    `1.0`, `True`, `"1"`), with one exception: a NumPy scalar that stands for a Python one (`np.int64(1)`) keys like it.
    A digest depends on values and names, never on code: a function is keyed by module, qualified name, defaults and
    closure.

    To key a type of your own, give it a method ``update_persistent_hash(self, key_hash, key_builder)``, or subclass
    `KeyBuilder` with ``update_for_<type name>(self, key_hash, key)``; an alias such as
    ``update_for_list = KeyBuilder.update_for_tuple`` will do. Both write with ``key_hash.update(bytes)`` and
    ``key_builder.rec(key_hash, part)``. Such keys are compared with the stored key at every lookup, since only the
    built-in encodings are known to be injective. Hooks are found on the class, not on an instance.

    Digests of frozen dataclasses and of objects with ``update_persistent_hash`` are remembered while the object lives,
    per builder class: such an object must not change once it has been used in a key.

    Notes
    -----
    The methods have the names of ``pytools.persistent_dict.KeyBuilder`` (2026.1). The digests are not the same.
    Safe for threads; an instance has no state.
    """

    # Whether what a call returns is what `digest` returns: 40 hex characters, and known to prove keys.
    makes_digests = True

    # Equal keys of these exact types are the same key: a dictionary may look them up in memory without a digest.
    plain_types: frozenset[type] = frozenset({str, bytes, int})

    _hooks: frozenset[str] = frozenset()  # the update_for_... that a user's subclass defines
    _updaters: dict[type, Updater] = {}
    _remembered: dict[int, tuple[weakref.ref[Any], bytes, bool]] = {}  # by id; the reference drops the item

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._updaters = {}
        cls._remembered = {}
        ours = next(base for base in cls.__mro__ if base.__module__ == __name__)
        cls._hooks = frozenset(
            name
            for name in dir(cls)
            if name.startswith("update_for_") and getattr(cls, name) is not getattr(ours, name, None)
        )
        cls.makes_digests = all(
            getattr(cls, name) is getattr(KeyBuilder, name) for name in ("__call__", "digest", "new_hash")
        )
        hooked = cls._hooks & {f"update_for_{kind.__name__}" for kind in (*ATOMS, tuple)}
        if hooked or not cls.makes_digests or cls.rec is not KeyBuilder.rec:
            cls.plain_types = cls.flat_types = frozenset()

    @staticmethod
    def new_hash(data: bytes = b"") -> Hash:
        """Return a new hash object in the manner of `hashlib`, of 20 bytes."""
        return blake2b(data, digest_size=_DIGEST_SIZE)

    def __call__(self, key: object) -> str:
        """Return the digest of `key`, 40 lower-case hex characters.

        Raises
        ------
        UnkeyableError
            A `TypeError`: something in the key has no encoding, or the key is recursive or too deep. It says where.
        """
        return self.digest(key)[0]

    def digest(self, key: object) -> tuple[str, bool]:
        """Return the digest of `key`, and whether an equal digest proves an equal key."""
        data = flat_encoding(key, self.flat_types)
        if data:
            return blake2b(data, digest_size=_DIGEST_SIZE).hexdigest(), True
        key_hash = _Pass(self.new_hash(), 0)
        try:
            self.rec(key_hash, key)
        except RecursionError:
            raise UnkeyableError("is recursive, or too deep for the stack that is left") from None
        return key_hash.hexdigest(), key_hash.proven

    def rec(self, key_hash: H, key: object) -> H:
        """Write the encoding of `key` into `key_hash`, a hash object, and return that."""
        data = flat_encoding(key, self.flat_types)
        if data:
            key_hash.update(data)  # type: ignore[attr-defined]  # H is any hash object, also one of a hook's making
            return key_hash
        kind = type(key)
        updater = self._updaters.get(kind) or self._find_updater(kind)
        key_pass: Any = key_hash if type(key_hash) is _Pass else _Pass(key_hash, 0)  # type: ignore[arg-type]  # as above
        updater(self, key_pass, key)
        return key_hash

    def rec_items(self, key_hash: Any, parts: Iterable[object], step: Callable[[int], str]) -> None:
        """Write the encodings of the parts of a key one after another; `step` names the i-th for an error message."""
        inner = _Pass(key_hash, getattr(key_hash, "depth", 0) + 1)
        i = 0
        try:
            for part in parts:
                self.rec(inner, part)
                i += 1
        except UnkeyableError as error:
            raise error.inside(step(i)) from None
        _learn(key_hash, inner)

    def inner_digest(self, key_hash: Any, write: Callable[[Any], object]) -> bytes:
        """Return the 20 bytes that hash what `write` writes into the hash that it is given."""
        inner = _Pass(self.new_hash(), getattr(key_hash, "depth", 0) + 1)
        write(inner)
        _learn(key_hash, inner)
        return inner.digest()

    def _find_updater(self, kind: type) -> Updater:
        if len(self._updaters) > 4096:  # types that a program makes on the fly must not pile up
            self._updaters.clear()
        self._updaters[kind] = updater = self._choose_updater(kind)
        return updater

    def _choose_updater(self, kind: type) -> Updater:
        """Hooks go first, as in pytools: the object's own, the subclass's for this name, for this kind of type."""
        if hasattr(kind, "update_persistent_hash") and not issubclass(kind, type):
            return _of_object(kind)
        name = f"update_for_{kind.__name__}"
        if name in self._hooks:
            return _of_hook(name)
        name = self._native_name(kind)
        if name in self._hooks:
            return _of_hook(name)
        updater: Updater = getattr(type(self), name)
        return _remembering(updater) if name == "update_for_dataclass" and _is_frozen(kind) else updater

    def _native_name(self, kind: type) -> str:
        """Return the name of the method that encodes `kind`."""
        name = f"update_for_{kind.__name__}"
        module = kind.__module__.partition(".")[0]
        by_name = kind.__name__ in _IMMUTABLE_BY_NAME and issubclass(kind, (Mapping, Set))
        if hasattr(self, name) and (module in _STANDARD or by_name):
            return name
        for family, holds in _FAMILIES:
            if hasattr(self, family) and holds(kind):
                return family
        raise UnkeyableError(_no_encoding(kind))


class ContentKeyBuilder(ContentEncodings, KeyBuilder):
    """A `KeyBuilder` that also takes mutable things, by their content at the time of the call.

    Lists, dicts (whatever their order), sets, bytearrays, memoryviews, `collections`' containers, NumPy arrays (by
    dtype, shape and values, whatever their layout in memory), pandas and polars frames and series. No digest is
    remembered.
    """


def _from(module: str, *names: str) -> Callable[[type], bool]:
    """Return a test for subclasses of a module's classes. A module that is not loaded has made no key."""

    def holds(kind: type) -> bool:
        loaded = sys.modules.get(module)
        return loaded is not None and issubclass(kind, tuple(getattr(loaded, name) for name in names))

    return holds


def _own(module: str, *names: str) -> Callable[[type], bool]:
    """Return a test for a library's own such subclasses: those of others may hold more than is looked at here."""
    subclasses = _from(module, *names)
    return lambda kind: kind.__module__.partition(".")[0] == module and subclasses(kind)


# Asked in this order.

_FAMILIES: tuple[tuple[str, Callable[[type], bool]], ...] = (
    ("update_for_type", lambda kind: issubclass(kind, type)),
    ("update_for_enum", _from("enum", "Enum")),
    ("update_for_dataclass", lambda kind: hasattr(kind, "__dataclass_fields__")),
    ("update_for_attrs", lambda kind: hasattr(kind, "__attrs_attrs__")),
    ("update_for_namedtuple", lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields")),
    ("update_for_PurePath", _from("pathlib", "PurePath")),
    ("update_for_specific_dtype", _from("numpy", "dtype")),
    ("update_for_numpy_scalar", _from("numpy", "generic")),
    ("update_for_ndarray", lambda kind: kind.__module__ == "numpy" and kind.__name__ in ("ndarray", "memmap")),
    ("update_for_DataFrame", _own("pandas", "DataFrame", "Series", "Index")),
    ("update_for_DataFrame", _own("polars", "DataFrame", "Series")),
)


def _learn(outer: object, inner: _Pass) -> None:
    if type(outer) is _Pass:
        outer.proven &= inner.proven
        outer.stable &= inner.stable


def _of_hook(name: str) -> Updater:
    """Return an updater that lets a subclass's ``update_for_...`` write into a hash of its own."""

    def update(builder: KeyBuilder, key_hash: _Pass, key: object) -> None:
        hook = getattr(builder, name)
        key_hash.update(b"\x80H" + builder.inner_digest(key_hash, lambda inner: hook(inner, key)))
        key_hash.proven = False

    return update


def _of_object(kind: Any) -> Updater:
    """Return an updater that lets an object's ``update_persistent_hash`` write into a hash of its own."""

    def update(builder: KeyBuilder, key_hash: _Pass, key: Any) -> None:
        key.update_persistent_hash(key_hash, builder)
        key_hash.proven = False

    return _remembering(update, carries=_carries_its_digest(kind))


def _remembering(update: Updater, carries: bool = False) -> Updater:
    """Return an updater that enters the digest of what `update` writes, and remembers it while the object lives.

    carries : the object itself takes its digest along when it is pickled.
    """

    def remembered(builder: KeyBuilder, key_hash: _Pass, key: object) -> None:
        memory, ident = builder._remembered, id(key)
        known = memory.get(ident)
        if known is not None and known[0]() is key:
            _, digest, proven = known
        else:
            carried = _carried_digest(builder, key) if carries else b""
            inner = _Pass(builder.new_hash(), key_hash.depth + 1)
            if not carried:
                update(builder, inner, key)
            digest, proven = carried or inner.digest(), inner.proven and not carried
            key_hash.stable &= inner.stable
            if inner.stable and not builder.by_content:
                try:
                    memory[ident] = (weakref.ref(key, lambda _: memory.pop(ident, None)), digest, proven)
                except TypeError:  # slots without __weakref__
                    pass
            if carries:
                object.__setattr__(key, _CARRIED, _builder_mark(builder) + digest)
        key_hash.proven &= proven
        key_hash.update(b"\x80#" + digest)

    return remembered


# pytools leaves an object's digest on it under this name. Here it is used for those objects only that put it into their
# pickles themselves, and take it out again (loopy's kernels: their digest after unpickling would be another). On any
# other object it could have come along in a copy that was then changed.
_CARRIED = "_pytools_persistent_hash_digest"


def _carries_its_digest(kind: Any) -> bool:
    code = getattr(getattr(kind, "__setstate__", None), "__code__", None)
    return code is not None and _CARRIED in (*code.co_names, *code.co_consts)


def _carried_digest(builder: KeyBuilder, key: object) -> bytes:
    mark, carried = _builder_mark(builder), getattr(key, _CARRIED, b"")
    return carried[len(mark) :] if type(carried) is bytes and carried.startswith(mark) else b""


def _builder_mark(builder: KeyBuilder) -> bytes:
    """Return what tells the digests of one builder class from those of others."""
    kind = type(builder)
    return blake2b(f"{kind.__module__}.{kind.__qualname__}".encode(), digest_size=8).digest()


def _is_frozen(kind: Any) -> bool:
    return bool(kind.__dataclass_params__.frozen)


def _no_encoding(kind: type) -> str:
    name = kind.__name__
    content = (
        "use ContentKeyBuilder, which keys it by its content"
        if hasattr(ContentKeyBuilder, f"update_for_{name}")
        else f"subclass KeyBuilder with update_for_{name}(self, key_hash, key)"
    )
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return (
        f"is of type {module}{kind.__qualname__}, which has no encoding. Three ways out: give the type a "
        f"method update_persistent_hash(self, key_hash, key_builder); {content}; or put something else into the key "
        "(numbers, strings, tuples, frozen dataclasses)"
    )
