"""Look into a pickle without running anything of it: what it would make is described, not made."""

from __future__ import annotations

import io
import pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from persistent_dict.formats import Buffer


class Inert:
    """Stands for an object of a class that was not looked up. Its arguments and state are kept, and not used."""

    _where = ""

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        made = object.__new__(cls)
        made.__dict__["args"] = args
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:  # what a class that was made by a call would make
        return type(self)(*args)

    def append(self, item: Any) -> None:
        """Take an item of a list that is not one here."""

    def extend(self, items: Any) -> None:
        """Take items likewise."""

    def add(self, item: Any) -> None:
        """Take an item of a set likewise."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __repr__(self) -> str:
        parts = list(map(repr, self.__dict__.get("args", ())))
        state = self.__dict__.get("state")
        if isinstance(state, dict):
            parts += [f"{name}={value!r}" for name, value in state.items()]
        return f"{self._where}({', '.join(parts)})"


class _Described(type):
    """A class whose repr is its name, since a key may have a class in it."""

    def __repr__(cls) -> str:
        return str(getattr(cls, "_where", "")) or super().__repr__()


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        where = name if module == "builtins" else f"{module}.{name}"
        return _Described(name.rpartition(".")[2] or "object", (Inert,), {"_where": where})

    def persistent_load(self, pid: Any) -> Any:
        return ("reference", pid)


def described(stream: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """Return what a pickle holds, with an `Inert` for every object that is not of a built-in type.

    Raises
    ------
    Exception
        Of any kind: it is no pickle, or one that needs its classes.
    """
    return _InertUnpickler(io.BytesIO(stream), buffers=buffers).load()


def type_name(thing: Any) -> str:
    """Return the name of a described object's type."""
    if isinstance(thing, Inert):
        is_array = thing._where.startswith("numpy.") and thing._where.endswith(("_frombuffer", "_reconstruct"))
        return "numpy.ndarray" if is_array else thing._where
    return type(thing).__name__
