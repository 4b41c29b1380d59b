"""How arguments of memoized functions are keyed: by more than equality, since a function sees more.

The code of a function, attributes beside a record's fields, whether a number is NumPy's.
"""

from __future__ import annotations

from contextvars import ContextVar

from persistent_dict._functions import bytecode, names_of
from persistent_dict._key_encodings import is_memoized
from persistent_dict.errors import UnkeyableError
from persistent_dict.key_builder import ContentKeyBuilder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The functions that are being keyed: one may refer to itself.
_inside: ContextVar[tuple[Any, ...]] = ContextVar("persistent_dict_keyed_functions", default=())

#: Libraries whose objects are what they pickle as: functions written in C, patterns, addresses, time stamps.
_PICKLED = frozenset([
    "array", "builtins", "collections", "functools", "ipaddress", "numpy", "operator", "pandas", "re", "types",
    "typing",
])  # fmt: skip
_CONTAINERS = (str, bytes, bytearray, int, float, complex, tuple, list, dict, set, frozenset)


class ArgumentKeyBuilder(ContentKeyBuilder):
    """A `ContentKeyBuilder` that looks closer: what `memoize` keys arguments with.

    Functions, lambdas included, are keyed by name, code, defaults and enclosing names, and not by the globals that they
    use; modules by name. Records (dataclasses, attrs, named tuples) also by what else is in their ``__dict__``, without
    cached properties; objects with ``update_persistent_hash`` also by their class; NumPy's scalars are told from
    Python's; some libraries' objects by what they pickle as. Classes that were made inside a function, and records of
    such a class, are refused: the name does not tell them apart.
    """

    def update_for_function(self, key_hash: Any, key: Any) -> None:
        around = _inside.get()
        if key in around:
            self.rec(key_hash, ("function", around.index(key)))
            return
        token = _inside.set((*around, key))
        try:
            if is_memoized(key):
                super().update_for_function(key_hash, key)
                return
            self.rec(key_hash, ("function", names_of(key)[0], bytecode(key.__code__)))
            enclosed = zip(key.__code__.co_freevars, key.__closure__ or (), strict=True)
            self.rec(key_hash, {name: cell_value(cell) for name, cell in enclosed})
            self.rec(key_hash, (key.__defaults__, key.__kwdefaults__))
        finally:
            _inside.reset(token)

    def update_for__lru_cache_wrapper(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("lru_cache", key.__wrapped__))

    def update_for_reduced(self, key_hash: Any, key: Any) -> None:
        """Write what an object of a library pickles as: a global name, or a callable and its arguments and state."""
        from copyreg import dispatch_table

        try:
            reduced = dispatch_table[type(key)](key) if type(key) in dispatch_table else key.__reduce_ex__(4)
        except Exception as error:  # whatever the library raises for what cannot be pickled
            raise UnkeyableError(f"is of type {type(key).__qualname__}, which cannot be pickled: {error}") from None
        if isinstance(reduced, str):
            reduced = (getattr(key, "__module__", None), reduced)
        items = [list(part) if i in (3, 4) and part is not None else part for i, part in enumerate(reduced)]
        self.rec_items(key_hash, ("reduced", type(key), *items), lambda _: "")

    def update_for_object(self, key_hash: Any, key: Any) -> None:
        raise UnkeyableError("is a bare object, which nothing but its identity tells from another")

    def _native_name(self, kind: type) -> str:
        try:
            return super()._native_name(kind)
        except UnkeyableError:
            if kind is not object and kind.__module__.partition(".")[0] in _PICKLED:
                return "update_for_reduced"
            raise

    def _choose_updater(self, kind: type) -> Any:
        updater = super()._choose_updater(kind)
        if not hasattr(kind, "update_persistent_hash") or issubclass(kind, type):
            return updater

        def with_type(builder: Any, key_hash: Any, key: Any) -> None:  # subclasses inherit the hook
            builder.rec(key_hash, ("object", kind.__module__, kind.__qualname__))
            updater(builder, key_hash, key)

        return with_type

    def update_for_range(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("range", key.start, key.stop, key.step))

    def update_for_module(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("module", key.__name__))

    def update_for_type(self, key_hash: Any, key: type) -> None:
        self._check_class(key)
        super().update_for_type(key_hash, key)

    update_for_ABCMeta = update_for_type

    def update_for_enum(self, key_hash: Any, key: Any) -> None:
        self.update_for_type(key_hash, type(key))
        super().update_for_enum(key_hash, key)

    def update_for_dataclass(self, key_hash: Any, key: Any) -> None:
        super().update_for_dataclass(key_hash, key)
        self._update_more(key_hash, key, key.__dataclass_fields__)

    def update_for_attrs(self, key_hash: Any, key: Any) -> None:
        super().update_for_attrs(key_hash, key)
        self._update_more(key_hash, key, [field.name for field in type(key).__attrs_attrs__])

    def update_for_namedtuple(self, key_hash: Any, key: Any) -> None:
        super().update_for_namedtuple(key_hash, key)
        self._update_more(key_hash, key, ())

    def _check_class(self, key: type) -> None:
        if "<locals>" in key.__qualname__:
            raise UnkeyableError(
                f"is the class {key.__qualname__}, which was made inside a function: its name does not tell it from "
                "another. Define it at the top of a module"
            )

    def _update_more(self, key_hash: Any, key: Any, fields: Any) -> None:
        """Write what else is in a record's ``__dict__`` and slots, and no cached property has put there."""
        from functools import cached_property

        kind = type(key)
        self._check_class(kind)
        if issubclass(kind, _CONTAINERS) and not hasattr(kind, "_fields"):
            raise UnkeyableError(f"is of type {kind.__qualname__}, which is a record and a container at once")
        slots = [slot for base in kind.__mro__ for slot in _tuple(base.__dict__.get("__slots__", ()))]
        more = {name: getattr(key, name) for name in slots if name not in fields and hasattr(key, name)}
        more |= {
            name: value
            for name, value in getattr(key, "__dict__", {}).items()
            if name not in fields and not isinstance(getattr(kind, name, None), cached_property)
        }
        for name in ("__weakref__", "__dict__"):
            more.pop(name, None)
        if more:
            self.rec_items(key_hash, (more,), lambda _: ".__dict__")

    def update_for_PurePath(self, key_hash: Any, key: Any) -> None:
        super().update_for_PurePath(key_hash, key)
        if type(key).__module__.partition(".")[0] != "pathlib":
            super().update_for_type(key_hash, type(key))

    def _warn_of_nan(self, key_hash: Any) -> None:
        """Be silent: a NaN's digest equals itself."""

    def update_for_numpy_scalar(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("numpy", key.dtype.str))
        super().update_for_numpy_scalar(key_hash, key)


def _tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def cell_value(cell: Any) -> Any:
    """Return what an enclosing name stands for; None where nothing has been assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
