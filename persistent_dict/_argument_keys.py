"""How arguments of memoized functions are keyed: by all that a function could tell them apart by.

A dictionary's key is what its equality says; of an argument, more counts: the code of a function, attributes beside a
record's fields, whether a number is NumPy's.
"""

from __future__ import annotations

from contextvars import ContextVar

from persistent_dict._functions import bytecode, names_of
from persistent_dict.errors import UnkeyableError
from persistent_dict.key_builder import ContentKeyBuilder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The functions that are being keyed: one may refer to itself.
_inside: ContextVar[tuple[Any, ...]] = ContextVar("persistent_dict_keyed_functions", default=())


class ArgumentKeyBuilder(ContentKeyBuilder):
    """A `ContentKeyBuilder` that looks closer: what `memoize` keys arguments with.

    Functions, lambdas included, are keyed by name, code, defaults and enclosing names, and not by the globals that they
    use; modules by name. Records (dataclasses, attrs, named tuples) also by what else is in their ``__dict__``, without
    cached properties; NumPy's scalars are told from Python's. Classes that were made inside a function are refused: the
    name does not tell them apart.
    """

    def update_for_function(self, key_hash: Any, key: Any) -> None:
        around = _inside.get()
        if key in around:
            self.rec(key_hash, ("function", around.index(key)))
            return
        token = _inside.set((*around, key))
        try:
            if "update_persistent_hash" in vars(key):  # it is memoized
                super().update_for_function(key_hash, key)
                return
            self.rec(key_hash, ("function", names_of(key)[0], bytecode(key.__code__)))
            enclosed = zip(key.__code__.co_freevars, key.__closure__ or (), strict=True)
            self.rec(key_hash, {name: cell_value(cell) for name, cell in enclosed})
            self.rec(key_hash, (key.__defaults__, key.__kwdefaults__))
        finally:
            _inside.reset(token)

    def update_for_module(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("module", key.__name__))

    def update_for_type(self, key_hash: Any, key: type) -> None:
        if "<locals>" in key.__qualname__:
            raise UnkeyableError(
                f"is the class {key.__qualname__}, which was made inside a function: its name does not tell it from "
                "another. Define it at the top of a module"
            )
        super().update_for_type(key_hash, key)

    update_for_ABCMeta = update_for_EnumMeta = update_for_EnumType = update_for_type

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

    def _update_more(self, key_hash: Any, key: Any, fields: Any) -> None:
        """Write what else is in a record's ``__dict__``, and no cached property has put there."""
        from functools import cached_property

        kind = type(key)
        more = {
            name: value
            for name, value in getattr(key, "__dict__", {}).items()
            if name not in fields and not isinstance(getattr(kind, name, None), cached_property)
        }
        if more:
            self.rec_items(key_hash, (more,), lambda _: ".__dict__")

    def update_for_PurePath(self, key_hash: Any, key: Any) -> None:
        super().update_for_PurePath(key_hash, key)
        if not type(key).__module__.startswith("pathlib"):
            super().update_for_type(key_hash, type(key))

    def update_for_numpy_scalar(self, key_hash: Any, key: Any) -> None:
        self.rec(key_hash, ("numpy", key.dtype.str))
        super().update_for_numpy_scalar(key_hash, key)


def cell_value(cell: Any) -> Any:
    """Return what an enclosing name stands for; None where nothing has been assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
