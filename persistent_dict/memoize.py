"""@memoize: what a function returned is kept in a dictionary, and computed once over threads, processes, coroutines."""

from __future__ import annotations

import time
from hashlib import blake2b
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from persistent_dict._computing import DEFAULT_TIMEOUT, ComputingDictionary, Explanation, check_limits
from persistent_dict._memoized import FunctionInfo
from persistent_dict._steps import Outcome
from persistent_dict.dicts import PersistentDict
from persistent_dict.errors import CacheWriteWarning, NoSuchEntryError, said, shown, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, NoReturn, TypeVar

    from persistent_dict._calls import CallKeys
    from persistent_dict._memoized import Memoize

    V = TypeVar("V")


if TYPE_CHECKING:
    memoize: Memoize


def memoize(  # type: ignore[no-redef]  # its types are above
    function: Any = None,
    /,
    *,
    version: object = None,
    code: str | None = "ast",
    ignore: Iterable[str] = (),
    key: Callable[..., object] | None = None,
    key_by: Mapping[str, Callable[[Any], object]] | None = None,
    key_builder: Callable[[Any], str] | None = None,
    min_seconds: float = 0.0,
    timeout: float | None = DEFAULT_TIMEOUT,
    on_invalid: str | None = None,
) -> Any:
    """Keep what a function returns, so that it is computed once for the same arguments: ``@memoize``.

    Called with options, it returns a decorator: ``@memoize("results", version=2)``.

    Parameters
    ----------
    function : callable, or dictionary, or str, optional
        The function; or a `PersistentDict` or `WriteOncePersistentDict` to keep results in, or the identifier of one;
        several functions may share it. Default: a `PersistentDict` named after the function. One that is made here
        keeps nothing in memory, so that each call returns an object of its own, which may be changed; one that is given
        may (`in_mem_cache_size`). Of a `WriteOncePersistentDict` nothing can be removed: `cache_clear`, `cache_delete`
        and `refresh` raise `TypeError`.
    version : object
        Anything that can be part of a key. Other versions' results stay, and are hit again when the version returns.
    code : str or None
        What of the function's code is part of the key: "ast", what it means, so that comments, docstring and formatting
        do not count; "source", its text; None, nothing. Where there is no source text, its bytecode.
    ignore : iterable of str
        Parameters that do not change the result; also names that the function takes from an enclosing one.
    key : callable
        From the function's arguments to what counts, in place of all of them. Enclosing names count beside it.
    key_by : dict of callables
        From the name of a parameter to what is to count in place of its value: ``{"path": file_checksum}``.
    key_builder : callable
        From a value to its digest. By default a `ContentKeyBuilder` that looks closer: at the code of functions, at
        what is in a record's ``__dict__`` beside its fields, at the types of NumPy's numbers.
    min_seconds : float
        A result that took less time to compute is not stored.
    timeout : float or None
        Seconds to wait for somebody else who computes the same; see `PersistentDict.get_or_compute`.
    on_invalid : str
        What a damaged entry is: "quarantine" (the default), computed anew, with a warning; "raise", an error. A
        dictionary that is given brings its own.

    Raises
    ------
    TypeError
        What is decorated is no function whose results could be told apart and kept: a generator, a lambda, a class.

    Notes
    -----
    Arguments are bound as in a call, with defaults, so that ``f(1, y=2)`` and ``f(x=1, y=2)`` are one result (under a
    decorator that takes ``*args, **kwargs`` they are two: nobody knows what it makes of them). ``f(1)``, ``f(1.0)`` and
    ``f(True)`` are three. They are keyed by content: lists, dicts, sets, arrays, frames, dataclasses, and objects with
    ``update_persistent_hash``. So is ``self``, since what a method returns depends on it; what has no encoding is an
    error, and ``ignore=("self",)`` says that it does not count. Names that a nested function takes from the enclosing
    one are keyed like arguments; so is what decorators below `memoize` hold. Classes that were made inside a function
    are refused as arguments: their names do not tell them apart. The order of a dict's items, and that of keyword
    arguments, does not count. Neither do globals, files, attributes set on functions and classes, and the code of
    methods and of functions that are called, unless they are arguments or enclosing names: that is what `version` is
    for.

    ``None`` is a result like any other; exceptions are not kept. Of all threads, processes and coroutines that ask for
    one result at the same time, one computes. A result that cannot be stored is returned, with a warning.

    ``async def`` functions are computed in the event loop; files are read and written in other threads.
    """
    is_cache = function is None or isinstance(function, (str, ComputingDictionary))
    keys = {
        "version": version, "code": code, "ignore": ignore, "key": key, "key_by": key_by, "key_builder": key_builder,
    }  # fmt: skip
    limits = {"min_seconds": min_seconds, "timeout": timeout}
    decorate = _Decorator(function if is_cache else None, on_invalid, keys, limits)
    return decorate if is_cache else decorate(function)


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Return a checksum of a file's contents: ``@memoize(key_by={"path": file_checksum})``."""
    checksum = blake2b(digest_size=20)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum.update(chunk)
    return checksum.hexdigest()


class _Decorator:
    """What `memoize` was told, to be applied to functions."""

    def __init__(
        self,
        cache: ComputingDictionary[Any, Any] | str | None,
        on_invalid: str | None,
        keys: dict[str, Any],
        limits: dict[str, float | None],
    ) -> None:
        if isinstance(cache, ComputingDictionary) and on_invalid is not None:
            raise TypeError("the dictionary brings its own on_invalid: give it there")
        check_limits(**limits)
        self._cache = cache
        self._on_invalid = on_invalid or "quarantine"
        self._keys = keys
        self._limits = limits

    def __call__(self, function: Any) -> Any:
        import inspect

        from persistent_dict._calls import CallKeys

        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self(function.__func__))
        _check(function)
        keys, cache = CallKeys(function, **self._keys), self._cache
        if not isinstance(cache, ComputingDictionary):
            # No memory: every call returns an object of its own, as the function does. A list that one caller changes
            # would be another's wrong result.
            identifier = keys.identifier if cache is None else cache
            cache = PersistentDict(identifier, on_invalid=self._on_invalid, in_mem_cache_size=0)
        memo = _Memo(function, keys, cache)
        wrapper = _async_wrapper if inspect.iscoroutinefunction(function) else _wrapper
        return wrapper(memo, self._limits)


def _check(function: Any) -> None:
    """Refuse what is no function whose results could be told apart and kept."""
    import inspect

    name = getattr(function, "__qualname__", None) or shown(function)
    problem = ""
    if not callable(function):
        problem = "is no function"
    elif inspect.isclass(function):
        problem = "is a class: memoize a function that makes its objects"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        problem = "is a generator, whose results come one by one and cannot be kept: return a list"
    elif inspect.ismethod(function):
        problem = "is the method of an object, which would not be part of the key: decorate it in the class"
    elif not getattr(function, "__qualname__", None) or not getattr(function, "__module__", None):
        problem = "has no name that its results could be kept under: define a function with def that calls it"
    elif function.__name__ == "<lambda>":
        problem = "is a lambda, which has no name to tell its results from another's: define it with def"
    if problem:
        raise TypeError(f"memoize: {name} {problem}")


def _wrapper(memo: _Memo, limits: dict[str, float | None]) -> Any:
    function, keys, resolve, counted = memo.function, memo.keys, memo.cache.resolve, memo.counted

    def memoized(*args: Any, **kwargs: Any) -> Any:
        def compute() -> Any:
            value = function(*args, **kwargs)
            if type(value) in _ENDED_BY_USE:
                _refuse(keys.name, value)
            return value

        return counted(resolve(keys(args, kwargs), compute, **limits))

    def refresh(*args: Any, **kwargs: Any) -> Any:
        memo.check_mutable()
        key = keys(args, kwargs)
        begin = time.perf_counter()
        value = function(*args, **kwargs)
        memo.replace(key, value, time.perf_counter() - begin)
        return value

    return memo.dress(memoized, refresh)


def _async_wrapper(memo: _Memo, limits: dict[str, float | None]) -> Any:
    from persistent_dict._coroutines import off_the_loop

    function, keys, resolve, counted = memo.function, memo.keys, memo.cache.resolve_async, memo.counted

    async def key_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
        if not keys.asks:
            return keys(args, kwargs)
        return await off_the_loop(lambda: keys(args, kwargs))  # what the user gave may read files

    async def memoized(*args: Any, **kwargs: Any) -> Any:
        key = await key_of(args, kwargs)

        async def compute() -> Any:
            # Others have run since the key was made, and may have changed a list that is an argument.
            is_as_keyed = keys.asks or keys(args, kwargs) == key
            value = await function(*args, **kwargs)
            if not is_as_keyed:
                raise _NotToBeKept(value)
            return value

        try:
            return counted(await resolve(key, compute, **limits))
        except _NotToBeKept as result:
            return counted(Outcome(result.value, "computed", 0.0))

    async def refresh(*args: Any, **kwargs: Any) -> Any:
        memo.check_mutable()
        key = await key_of(args, kwargs)
        begin = time.perf_counter()
        value = await function(*args, **kwargs)
        seconds = time.perf_counter() - begin
        await off_the_loop(lambda: memo.replace(key, value, seconds))
        return value

    return memo.dress(memoized, refresh)


class _NotToBeKept(Exception):  # a way out of a computation
    """Carries the value of a computation past the dictionary."""

    def __init__(self, value: object) -> None:
        self.value = value


_ENDED_BY_USE = frozenset({GeneratorType, AsyncGeneratorType, CoroutineType})


def _refuse(name: str, value: Any) -> NoReturn:
    kind = type(value).__name__
    if kind == "coroutine":
        value.close()
        way = "put @memoize directly over the async def"
    else:
        way = "its results come one by one and cannot be kept: return a list"
    raise TypeError(f"memoize: {name} returned a {kind}, {way}")


class _Memo:
    """What a memoized function offers beside calling it."""

    def __init__(self, function: Any, keys: CallKeys, cache: ComputingDictionary[Any, Any]) -> None:
        self.function = function
        self.keys = keys
        self.cache: Any = cache
        self._hits = self._misses = self._waits = 0
        self._saved = 0.0

    def dress(self, wrapper: Any, refresh: Any) -> Any:
        """Give the wrapper the function's name and what is offered beside calling it."""
        from functools import update_wrapper

        update_wrapper(wrapper, self.function)
        wrapper.cache = self.cache
        wrapper.update_persistent_hash = self.keys.update_persistent_hash  # its own closure is no part of a key
        self.keys.memoized = wrapper
        wrapper.refresh = refresh
        for offered in (
            self.cache_info, self.cache_clear, self.cache_key, self.cache_contains,
            self.cache_put, self.cache_delete, self.explain,
        ):  # fmt: skip
            setattr(wrapper, offered.__name__, offered)
        return wrapper

    def counted(self, outcome: Outcome[V]) -> V:
        """Count an outcome, and return its value."""
        if outcome.how == "computed":
            self._misses += 1
        else:
            self._hits += 1
            self._waits += outcome.how == "waited"
            self._saved += outcome.seconds
        return outcome.value

    def cache_info(self) -> FunctionInfo:
        return FunctionInfo(self._hits, self._misses, self._waits, self._saved)

    def cache_key(self, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return self.keys(args, kwargs)

    def cache_contains(self, /, *args: Any, **kwargs: Any) -> bool:
        return self.keys(args, kwargs) in self.cache

    def cache_put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        self.cache.store(self.keys(args, kwargs), value)

    def cache_delete(self, /, *args: Any, **kwargs: Any) -> bool:
        self.check_mutable()
        return self._remove(self.keys(args, kwargs))

    def cache_clear(self) -> None:
        self.check_mutable()
        for key in list(self.cache):
            if _is_of(key, self.keys.name):
                self._remove(key)
        self._hits = self._misses = self._waits = 0
        self._saved = 0.0

    def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        key = self.keys(args, kwargs)
        explanation: Explanation = self.cache.explain(key)
        if explanation.verdict != "absent":
            return explanation
        name, version, code, names, *values = key
        for other in self.cache:
            if _is_of(other, name) and [*other[4:]] == values:
                changed = [what for what, ours, its in zip(
                    (f"version {other[1]!r} and not {version!r}", "other code", f"the parameters ({other[3]})"),
                    (version, code, names), other[1:4], strict=True,
                ) if ours != its]  # fmt: skip
                if changed:
                    found = f"{explanation.detail}, but there is one for these arguments with {', '.join(changed)}"
                    return Explanation("other version", found)
        return explanation

    def _remove(self, key: tuple[Any, ...]) -> bool:
        try:
            self.cache.remove(key)
        except NoSuchEntryError:
            return False
        return True

    def check_mutable(self) -> None:
        """Refuse what a `WriteOncePersistentDict` does not do."""
        if not isinstance(self.cache, PersistentDict):
            raise TypeError(f"{self.cache!r} neither removes nor replaces: memoize with a PersistentDict")

    def replace(self, key: tuple[Any, ...], value: Any, seconds: float) -> None:
        """Store a new result, and lose no result if that fails."""
        self._misses += 1
        try:
            self.cache.store(key, value, seconds=seconds)
        except Exception as error:  # an encoder, or the value's own methods, may raise anything
            warn(
                f"{self.keys.name}: the new result cannot be stored, and the old one stays, if there is one: "
                f"{type(error).__name__}: {said(error)}",
                CacheWriteWarning,
            )


def _is_of(key: object, name: str) -> bool:
    """Whether a key of a shared dictionary is that of a result of the function `name`."""
    return isinstance(key, tuple) and len(key) >= 4 and key[0] == name
