"""From a call of a function to the key of its result."""

from __future__ import annotations

from persistent_dict._functions import code_checksum, layers_of, names_of, source_of
from persistent_dict.errors import UnkeyableError
from persistent_dict.key_builder import ContentKeyBuilder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_CODES = ("ast", "source", None)
_NUMBERS = frozenset({bool, int, float, type(None)})
_LONGEST = 500  # characters; a longer text stands in a key by its digest


class CallKeys:
    """The keys of one function's results: ``(name, version, code, names, *values)``.

    The function's module and qualified name; the version that was given; a checksum of its code; the names of the
    parameters that count; and their values. What is no number or short text stands there by its digest, as bytes: a
    key must not hold a second copy of an array, and flat keys are found fastest. The options are those of `memoize`.

    Attributes
    ----------
    name : str
    identifier : str
        A name for a dictionary of the function's own.
    asks : bool
        Whether callables of the user take part, which may read files.
    """

    def __init__(
        self,
        function: Any,
        *,
        version: object,
        code: str | None,
        ignore: Iterable[str],
        key: Callable[..., object] | None,
        key_by: Mapping[str, Callable[[Any], object]] | None,
        key_builder: Callable[[Any], str] | None,
    ) -> None:
        if code not in _CODES:
            raise ValueError(f"code={code!r}: use one of {', '.join(map(repr, _CODES))}")
        if key is not None and (ignore or key_by):
            raise TypeError("key= says all that counts: ignore= and key_by= cannot be given beside it")
        self.name, self.identifier = names_of(function)
        self.asks = bool(key or key_by)
        self._function = function
        self._version = version
        self._code = code
        self._layers = layers_of(function)
        # Now: the file may be edited while this program runs.
        self._sources = [source_of(layer) for layer in self._layers] if code else []
        self._key = key
        self._key_builder: Callable[[Any], str] = key_builder or ContentKeyBuilder()
        self._prefix: tuple[Any, ...] = ()
        self._look_at_parameters()
        self._look_at_enclosing_names()
        self._choose(frozenset([ignore] if isinstance(ignore, str) else ignore), dict(key_by or {}))

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the key of a call's result.

        Raises
        ------
        TypeError
            The function cannot be called so; or (`UnkeyableError`) an argument has no encoding.
        """
        if self._key is not None:
            values: Any = (self._standing_for(self._key(*args, **kwargs), "key"),)
        else:
            values = self._bound(args, kwargs)
            if not self._all_count:
                values = self._counting(values)
            values = [
                value if type(value) in _NUMBERS else self._standing_for(value, self._counted[i][1])
                for i, value in enumerate(values)
            ]
        return (*(self._prefix or self._make_prefix()), *values)

    def update_persistent_hash(self, key_hash: Any, key_builder: Any) -> None:
        """Write what tells the function, with its defaults and enclosing names, where it is itself part of a key."""
        prefix = self._prefix or self._make_prefix()
        defaults = tuple((name, self._standing_for(value, name)) for name, value in self._defaults.items())
        enclosing = tuple((name, self._standing_for(self._enclosed(cell), name)) for name, cell in self._cells)
        key_builder.rec(key_hash, (prefix, defaults, enclosing))

    def _make_prefix(self) -> tuple[Any, ...]:
        names = "" if self._key else ", ".join(name for _, name, _ in self._counted)
        code = code_checksum(self._code, self._layers, self._sources)
        self._prefix = (self.name, self._standing_for(self._version, "version"), code, names)
        return self._prefix

    def _standing_for(self, value: Any, name: str) -> Any:
        if type(value) in _NUMBERS or (type(value) is str and len(value) <= _LONGEST):
            return value
        try:
            return self._key_builder(value).encode()  # so no bytes stand for themselves
        except UnkeyableError as error:
            ways = f"In @memoize, ignore=({name!r},) leaves it out, and key_by={{{name!r}: ...}} says what counts of it"
            raise UnkeyableError(f"{error.problem}. {ways}", (f" of {self.name}, {name}", *error.where)) from None

    # Arguments

    def _look_at_parameters(self) -> None:
        import inspect

        try:
            self._signature = inspect.signature(self._function)
        except ValueError:
            raise TypeError(f"memoize: {self.name} does not tell its parameters: call it from a function") from None
        parameters = self._signature.parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        self._is_simple = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        self._names = tuple(self._signature.parameters)
        self._positional = sum(parameter.kind is not inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
        self._defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        # By the number of positional arguments: what follows them where nothing else is given.
        self._rest = {
            count: tuple(self._defaults[name] for name in self._names[count:])
            for count in range(self._positional + 1)
            if self._is_simple and self._defaults.keys() >= set(self._names[count:])
        }

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the values of all parameters, in their order. `inspect` takes five times as long for a usual call."""
        if not kwargs and len(args) in self._rest:
            return args + self._rest[len(args)]
        if self._is_simple and len(args) <= self._positional:
            rest = self._names[len(args) :]
            if kwargs.keys() <= set(rest) and all(name in kwargs or name in self._defaults for name in rest):
                return args + tuple([kwargs[name] if name in kwargs else self._defaults[name] for name in rest])
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function.__qualname__}() {error}") from None
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    # What a nested function takes from the enclosing one

    def _look_at_enclosing_names(self) -> None:
        self._cells = tuple(
            cell
            for layer in self._layers
            for cell in zip(layer.__code__.co_freevars, layer.__closure__ or (), strict=True)
        )

    def _enclosed(self, cell: Any) -> Any:
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            return None
        # What the function itself is called in it, before and after it was memoized, is no argument.
        is_itself = any(layer is value or layer is getattr(value, "__wrapped__", None) for layer in self._layers)
        return None if is_itself else value

    # What counts

    def _choose(self, ignore: frozenset[str], key_by: dict[str, Callable[[Any], object]]) -> None:
        known = (*self._names, *(name for name, _ in self._cells))
        for option, names in (("ignore", ignore), ("key_by", frozenset(key_by))):
            if names - set(known):
                raise TypeError(
                    f"memoize: {option}= names {', '.join(sorted(names - set(known)))}, and {self.name} has no such "
                    f"parameter. It has: {', '.join(known) or 'none'}"
                )
        self._counted = tuple((i, name, key_by.get(name)) for i, name in enumerate(known) if name not in ignore)
        self._all_count = not (ignore or key_by or self._cells)

    def _counting(self, values: tuple[Any, ...]) -> list[Any]:
        """Return what counts of the values of all parameters, and of the enclosing names."""
        values += tuple(self._enclosed(cell) for _, cell in self._cells)
        return [values[i] if by is None else by(values[i]) for i, _, by in self._counted]
