"""From a call of a function to the key of its result."""

from __future__ import annotations

from functools import partial

from persistent_dict._argument_keys import ArgumentKeyBuilder, cell_value
from persistent_dict._functions import code_checksum, layers_of, names_of, source_of
from persistent_dict._key_encodings import is_memoized
from persistent_dict.errors import UnkeyableError, shown

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
    memoized : function
        What was made of the function; set by who makes it.
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
        self.memoized: Any = None
        self._layers = [
            layer for layer in layers_of(function) if not is_memoized(layer)
        ]  # which has no say in a result
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
        values = self._bound(args, kwargs)
        if not self._all_count:
            values = self._counting(values)
        kept = self._kept_types
        return (
            *(self._prefix or self._make_prefix()),
            *[v if type(v) in kept and v == v else self._kept(v, i) for i, v in enumerate(values)],  # noqa: PLR0124  # NaN
        )

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
        return self._digest_of(value, self._counted[i][1])

    def _digest_of(self, value: Any, name: str) -> bytes:
        try:
            digest = self._key_builder(value)
        except UnkeyableError as error:
            ways = (
                f". In @memoize, ignore=({name!r},) leaves it out, key_by={{{name!r}: ...}} says what counts of it, "
                "and key_builder= takes another builder"
            )
            problem = error.problem + (ways if name.isidentifier() else "")
            raise UnkeyableError(problem, (f" of {self.name}, {name}", *error.where)) from None
        if not isinstance(digest, str):
            raise TypeError(f"memoize: key_builder= returned {shown(digest)} for {name}, and not a str")
        return digest.encode()  # so no bytes stand for themselves

    # Arguments

    def _look_at_parameters(self) -> None:
        """Find out what a call means to what is called: what a decorator passes on, it may have changed."""
        import inspect

        try:
            self._signature = inspect.signature(self._layers[0], follow_wrapped=False)
        except ValueError:
            self._signature = inspect.Signature([
                inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
                inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
            ])  # fmt: skip
        parameters = self._signature.parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        self._keywords = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
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
            raise TypeError(f"{self._function.__qualname__}() {error}") from None
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    # What is around the function

    def _look_around(self) -> None:
        """Find what its result depends on beside arguments and code: the names that it and its decorators take from
        enclosing functions, defaults of what decorators call, and decorators that are objects."""
        around: list[tuple[str, Callable[[], Any]]] = []
        for layer in self._layers:
            if layer in self._written:
                cells = zip(layer.__code__.co_freevars, layer.__closure__ or (), strict=True)
                around += [(name, partial(self._enclosed, cell)) for name, cell in cells]
                if layer is not self._layers[0] and (layer.__defaults__ or layer.__kwdefaults__):
                    around.append(("defaults", partial(_itself, (layer.__defaults__, layer.__kwdefaults__))))
            elif type(layer).__name__ not in _STATELESS:
                around.append((type(layer).__name__, partial(_itself, layer)))
        self._around = tuple([(f"enclosing {n}" if n in self._names else n, value) for n, value in around])

    def _enclosed(self, cell: Any) -> Any:
        value = cell_value(cell)
        if value is self.memoized:  # what the function itself is called in it is no argument
            return None
        return next((("layer", i) for i, layer in enumerate(self._layers) if layer is value), value)

    # What counts

    def _choose(self, ignore: frozenset[str], key_by: dict[str, Callable[[Any], object]]) -> None:
        if self._key is not None:
            self._names, self._keywords = ("key",), []
        known = (*self._names, *(name for name, _ in self._around))
        for option, names in (("ignore", ignore), ("key_by", frozenset(key_by))):
            unknown = names - set(known)
            if unknown and not (self._keywords and option == "ignore"):
                raise TypeError(
                    f"memoize: {option}= names {', '.join(sorted(unknown))}, and {self.name} has no such parameter. "
                    f"It has: {', '.join(known) or 'none'}"
                )
        self._ignored_keywords = ignore - set(known)
        self._around = tuple((name, value) for name, value in self._around if name not in ignore)
        known = (*self._names, *(name for name, _ in self._around))
        self._counted = tuple((i, name, key_by.get(name)) for i, name in enumerate(known) if name not in ignore)
        self._all_count = not (ignore or key_by or self._around)

    def _counting(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what counts of the values of all parameters, and of what is around the function."""
        if self._ignored_keywords:
            i = self._names.index(self._keywords[0])
            keywords = {name: value for name, value in values[i].items() if name not in self._ignored_keywords}
            values = (*values[:i], keywords, *values[i + 1 :])
        values += tuple([value() for _, value in self._around])
        return tuple([values[i] if by is None else by(values[i]) for i, _, by in self._counted])


def _itself(value: Any) -> Any:
    return value
