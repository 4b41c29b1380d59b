"""From a call of a function to the key of its result."""

from __future__ import annotations

from functools import partial

from persistent_dict._argument_keys import ArgumentKeyBuilder, cell_value
from persistent_dict._functions import code_checksum, layers_of, names_of, source_of
from persistent_dict.errors import UnkeyableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_CODES = ("ast", "source", None)
_NUMBERS = frozenset({bool, int, float, type(None)})
_STATELESS = frozenset({"builtin_function_or_method", "_lru_cache_wrapper"})
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
        import inspect

        if code not in _CODES:
            raise ValueError(f"code={code!r}: use one of {', '.join(map(repr, _CODES))}")
        if key is not None and key_by:
            raise TypeError("key= says all that counts of the arguments: key_by= cannot be given beside it")
        self.name, self.identifier = names_of(function)
        self.asks = bool(key or key_by)
        self._function = function
        self._version = version
        self._code = code
        self._layers = layers_of(function)
        self._written = [layer for layer in self._layers if inspect.isfunction(layer)]
        # Now, although it is compared with what runs: it is gone when the file is.
        self._sources = [source_of(layer) for layer in self._written] if code else []
        self._key = key
        self._key_builder: Callable[[Any], str] = key_builder or ArgumentKeyBuilder()
        self._kept_types = frozenset() if key_builder else _NUMBERS
        self._prefix: tuple[Any, ...] = ()
        self._look_at_parameters()
        self._look_around()
        self._choose(frozenset([ignore] if isinstance(ignore, str) else ignore), dict(key_by or {}))

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the key of a call's result.

        Raises
        ------
        TypeError
            The function cannot be called so; or (`UnkeyableError`) an argument has no encoding.
        """
        prefix, values = self._prefix or self._make_prefix(), self._bound(args, kwargs)
        if values is None:  # a decorator takes arguments of its own
            prefix = (*prefix[:3], "*args, **kwargs")
            values = ((args, kwargs), *[value() for _, value in self._around])
        elif not self._all_count:
            values = self._counting(values)
        kept = self._kept_types
        return (*prefix, *[value if type(value) in kept else self._kept(value, i) for i, value in enumerate(values)])

    def update_persistent_hash(self, key_hash: Any, key_builder: Any) -> None:
        """Write what tells the function, with its defaults and what is around it, where it is itself part of a key."""
        beside = [*self._defaults.items(), *((name, value()) for name, value in self._around)]
        digests = tuple([(name, self._digest_of(value, name)) for name, value in beside])
        key_builder.rec(key_hash, (self._prefix or self._make_prefix(), digests))

    def _make_prefix(self) -> tuple[Any, ...]:
        code = code_checksum(self._code, self._written, self._sources)
        names = ", ".join(name for _, name, _ in self._counted)
        version, is_kept = self._version, type(self._version) in {*_NUMBERS, str}
        self._prefix = (self.name, version if is_kept else self._digest_of(version, "version="), code, names)
        return self._prefix

    def _kept(self, value: Any, i: int) -> Any:
        """Return what stands in a key for the i-th value."""
        if type(value) is str and len(value) <= _LONGEST and self._kept_types:
            return value
        return self._digest_of(value, self._counted[i][1] if i < len(self._counted) else "the arguments")

    def _digest_of(self, value: Any, name: str) -> bytes:
        try:
            return self._key_builder(value).encode()  # so no bytes stand for themselves
        except UnkeyableError as error:
            ways = (
                f". In @memoize, ignore=({name!r},) leaves it out, key_by={{{name!r}: ...}} says what counts of it, "
                "and key_builder= takes another builder"
            )
            problem = error.problem + (ways if name.isidentifier() else "")
            raise UnkeyableError(problem, (f" of {self.name}, {name}", *error.where)) from None

    # Arguments

    def _look_at_parameters(self) -> None:
        """Find the parameters that say what a call means: those of the first layer that has some of its own."""
        import inspect

        passing_all = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        for layer in self._layers:
            try:
                self._signature = inspect.signature(layer, follow_wrapped=False)
            except ValueError:
                if layer is not self._layers[-1]:
                    continue
                raise TypeError(f"memoize: {self.name} does not tell its parameters: call it from a function") from None
            parameters = self._signature.parameters.values()
            kinds = {parameter.kind for parameter in parameters}
            if kinds != passing_all:
                break
        self._takes_more = layer is not self._layers[0]  # or may: what is called passes all on
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

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return the values of all parameters, in their order; None where these are not all.

        `inspect` takes five times as long for a usual call.
        """
        if self._key is not None:
            return (self._key(*args, **kwargs),)
        if not kwargs and len(args) in self._rest:
            return args + self._rest[len(args)]
        if self._is_simple and len(args) <= self._positional:
            rest = self._names[len(args) :]
            if kwargs.keys() <= set(rest) and all(name in kwargs or name in self._defaults for name in rest):
                return args + tuple([kwargs[name] if name in kwargs else self._defaults[name] for name in rest])
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            if self._takes_more:
                return None
            raise TypeError(f"{self._function.__qualname__}() {error}") from None
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    # What is around the function

    def _look_around(self) -> None:
        """Find what its result depends on beside arguments and code: the names that it and its decorators take from
        enclosing functions, and decorators that are objects."""
        around: list[tuple[str, Callable[[], Any]]] = []
        for layer in self._layers:
            if layer in self._written:
                cells = zip(layer.__code__.co_freevars, layer.__closure__ or (), strict=True)
                around += [(name, partial(self._enclosed, cell)) for name, cell in cells]
            elif type(layer).__name__ not in _STATELESS:
                around.append((type(layer).__name__, partial(_itself, layer)))
        self._around = tuple(around)

    def _enclosed(self, cell: Any) -> Any:
        value = cell_value(cell)
        # What the function itself is called in it, before and after it was memoized, is no argument.
        is_itself = getattr(getattr(value, "update_persistent_hash", None), "__self__", None) is self
        return None if is_itself or any(layer is value for layer in self._layers) else value

    # What counts

    def _choose(self, ignore: frozenset[str], key_by: dict[str, Callable[[Any], object]]) -> None:
        if self._key is not None:
            self._names = ("key",)
        known = (*self._names, *(name for name, _ in self._around))
        for option, names in (("ignore", ignore), ("key_by", frozenset(key_by))):
            if names - set(known):
                raise TypeError(
                    f"memoize: {option}= names {', '.join(sorted(names - set(known)))}, and {self.name} has no such "
                    f"parameter. It has: {', '.join(known) or 'none'}"
                )
        self._around = tuple((name, value) for name, value in self._around if name not in ignore)
        known = (*self._names, *(name for name, _ in self._around))
        self._counted = tuple((i, name, key_by.get(name)) for i, name in enumerate(known) if name not in ignore)
        self._all_count = not (ignore or key_by or self._around)

    def _counting(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what counts of the values of all parameters, and of what is around the function."""
        values += tuple(value() for _, value in self._around)
        return tuple([values[i] if by is None else by(values[i]) for i, _, by in self._counted])


def _itself(value: Any) -> Any:
    return value
