"""Objects stored by reference: what has a name, inside a value, is an entry of its own, and the value refers to it.

In a pickle a reference is a persistent id (the name itself); in JSON it is
``{"#type": "reference", "#identifier": name}``, as qupulse writes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from persistent_dict.formats import JsonFormat, PickleFormat, from_plain, to_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from persistent_dict.formats import Buffer, Format

    Named = list[tuple[Any, Any]]  # names, and the objects that bear them

_TYPE, _IDENTIFIER, _REFERENCE = "#type", "#identifier", "reference"
_NAMELESS = frozenset({type(None), bool, int, float, complex, str, bytes})


class References:
    """Which objects inside a value are entries of their own.

    Storing a value stores them, too, in the same transaction; loading it loads them, each once. Under a name that is
    taken, an equal object (by ``==``, or by what its bytes say) is fine.

    Parameters
    ----------
    name_of : callable
        From an object to its key in the dictionary, or None where it is a part of what it is in. Asked for every object
        but numbers and texts, so it should be quick; and for what is no business of yours, too (a member of an enum has
        a `name`, a module a `__name__`).
    to_json : callable, optional
        With ``format="json"``: from an object that JSON does not know to one that it knows, in which other objects may
        be.
    from_json : callable, optional
        With ``format="json"``: from each dict that was read, in which references are objects already, to what it stands
        for, or that dict.
    """

    def __init__(
        self,
        name_of: Callable[[Any], Any],
        *,
        to_json: Callable[[Any], Any] | None = None,
        from_json: Callable[[Any], Any] | None = None,
    ) -> None:
        self.name_of = name_of
        self.to_json = to_json
        self.from_json = from_json

    def name(self, thing: Any) -> Any:
        """Return the object's key, None where it has no name."""
        return None if type(thing) in _NAMELESS else self.name_of(thing)

    def format_for(self, inner: Format) -> ReferringFormat:
        """Return the format that also knows references.

        Raises
        ------
        ValueError
            The format cannot have any.
        """
        if type(inner) is PickleFormat:
            return PickledReferences(self)
        if type(inner) is JsonFormat:
            return JsonReferences(self)
        raise ValueError(f'references= needs format="pickle" or format="json", not {inner.name!r}')


class ReferringFormat(ABC):
    """A format with references.

    Attributes
    ----------
    resolver : callable
        Returns what makes objects of names, for the time of reading one value. Its dictionary sets it.
    """

    resolver: Callable[[], Callable[[Any], Any]]

    def __init__(self, references: References) -> None:
        self.references = references

    @abstractmethod
    def dumps_named(self, value: Any, *, is_root: bool) -> tuple[Buffer, Sequence[Buffer], Named]:
        """Return what `dumps` does, and the objects that have names; the value itself is one unless it `is_root`."""

    @abstractmethod
    def loads_resolving(self, stream: Buffer, buffers: Sequence[Buffer], resolve: Callable[[Any], Any]) -> Any:
        """Return what `loads` does, with what `resolve` makes of the names."""

    def plain_bytes(self, value: Any) -> bytes:
        """Return bytes that are equal for values that consist of the same."""
        return bytes(self.dumps_named(value, is_root=True)[0])

    def loads(self, stream: Buffer, buffers: Sequence[Buffer]) -> Any:
        return self.loads_resolving(stream, buffers, self.resolver())

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.references,))


class PickledReferences(ReferringFormat, PickleFormat):
    """Pickle, with names as persistent ids."""

    def __init__(self, references: References) -> None:
        ReferringFormat.__init__(self, references)
        PickleFormat.__init__(self)
        from pickle import Pickler, Unpickler

        class Referring(Pickler):
            def __init__(self, file: Any, root: Any, named: Named, keep: Callable[[Any], bool] | None) -> None:
                super().__init__(file, 5, buffer_callback=keep)
                self.root, self.named = root, named

            def persistent_id(self, thing: Any) -> Any:
                if thing is self.root:
                    return None
                name = references.name(thing)
                if name is not None:
                    self.named.append((name, thing))
                return name

        class Resolving(Unpickler):
            def __init__(self, file: Any, buffers: Sequence[Buffer], resolve: Callable[[Any], Any]) -> None:
                super().__init__(file, buffers=buffers)
                self.persistent_load = resolve  # type: ignore[method-assign]

        self._pickler, self._unpickler = Referring, Resolving

    def dumps_named(self, value: Any, *, is_root: bool) -> tuple[Buffer, Sequence[Buffer], Named]:
        from io import BytesIO

        named: Named = []
        buffers, keep = self.buffer_keeper()
        file = BytesIO()
        self._pickler(file, value if is_root else self, named, keep).dump(value)
        return file.getvalue(), buffers, named

    def plain_bytes(self, value: Any) -> bytes:
        from io import BytesIO

        file = BytesIO()
        pickler = self._pickler(file, value, [], None)
        pickler.fast = True  # without a memo, in which it would matter which objects are the same one
        pickler.dump(value)
        return file.getvalue()

    def loads_resolving(self, stream: Buffer, buffers: Sequence[Buffer], resolve: Callable[[Any], Any]) -> Any:
        from io import BytesIO

        return self._unpickler(BytesIO(stream), buffers, resolve).load()


class JsonReferences(ReferringFormat, JsonFormat):
    """JSON, with dicts that stand for names, and for what JSON does not know."""

    def dumps_named(self, value: Any, *, is_root: bool) -> tuple[Buffer, Sequence[Buffer], Named]:
        named: Named = []
        plain = self._plain(value, named, is_root=is_root)
        return (*self.dumps(plain), named)

    def _plain(self, thing: Any, named: Named, *, is_root: bool = False) -> Any:
        """Return what JSON knows, for an object."""
        if type(thing) in _NAMELESS:
            return thing
        name = None if is_root else self.references.name(thing)
        if name is not None:
            named.append((name, thing))
            return {_TYPE: _REFERENCE, _IDENTIFIER: to_plain(name)}
        if type(thing) is list:
            return [self._plain(part, named) for part in thing]
        if type(thing) is dict:
            if thing.get(_TYPE) == _REFERENCE:
                raise ValueError(f"a dict with {_TYPE!r}: {_REFERENCE!r} would be read as a reference")
            return {key: self._plain(part, named) for key, part in thing.items()}
        if self.references.to_json is None:
            return thing  # for `dumps` to refuse
        made = self.references.to_json(thing)
        if type(made) is type(thing):
            raise TypeError(f"to_json made a {type(made).__name__} of one: JSON knows neither")
        return self._plain(made, named, is_root=True)

    def loads_resolving(self, stream: Buffer, buffers: Sequence[Buffer], resolve: Callable[[Any], Any]) -> Any:
        from json import loads

        return self._made(loads(bytes(stream)), resolve)

    def _made(self, plain: Any, resolve: Callable[[Any], Any]) -> Any:
        if type(plain) is list:
            return [self._made(part, resolve) for part in plain]
        if type(plain) is not dict:
            return plain
        if plain.get(_TYPE) == _REFERENCE:
            return resolve(from_plain(plain[_IDENTIFIER]))
        found = {name: self._made(part, resolve) for name, part in plain.items()}
        return found if self.references.from_json is None else self.references.from_json(found)
