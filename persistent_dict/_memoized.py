"""The memoized function: what it offers, for people and for type checkers."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, overload

    from persistent_dict._computing import ComputingDictionary, Explanation

    P = ParamSpec("P")
    Q = ParamSpec("Q")
    S = TypeVar("S")
    T = TypeVar("T")
    R = TypeVar("R")
    R_co = TypeVar("R_co", covariant=True)
    V = TypeVar("V")

    class FunctionInfo(NamedTuple):
        """What a memoized function has done in this process, since it was decorated or `cache_clear` was called.

        Attributes
        ----------
        hits : int
            Calls that did not compute.
        misses : int
            Calls that did.
        waits : int
            Those of the hits that waited for another thread, process or coroutine, which computed.
        seconds_saved : float
            How long the results of the hits took to compute, when they were.
        """

        hits: int
        misses: int
        waits: int
        seconds_saved: float

    class BoundMemoized(Protocol[P, R_co]):
        """A memoized method of an object. To ask for one result, go by the class: ``Model.run.cache_key(model, 1)``."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        def cache_info(self) -> FunctionInfo: ...
        def cache_clear(self) -> None: ...

    class Memoized(Protocol[P, R, V]):
        """What `memoize` makes of a function.

        The parameters of the methods that ask for one result are the function's; for a method, the object comes first.
        mypy 2.4 does not see that ``@classmethod`` over ``@memoize`` binds the class, and asks for it as an argument.
        """

        __name__: str
        __qualname__: str
        #: The function itself: ``f.__wrapped__(1)`` computes, and neither reads nor stores.
        __wrapped__: Callable[P, R]
        #: The dictionary.
        cache: ComputingDictionary[Any, V]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

        def cache_info(self) -> FunctionInfo:
            """Return how often the function was computed and was not, and the seconds that were saved."""

        def cache_clear(self) -> None:
            """Remove all results of this function, of all its versions, and begin to count anew."""

        def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
            """Return the key of a result in the dictionary."""

        def cache_contains(self, *args: P.args, **kwargs: P.kwargs) -> bool:
            """Return whether there is a result."""

        def cache_put(self, value: V, *args: P.args, **kwargs: P.kwargs) -> None:
            """Store a result that was computed elsewhere, in place of what is there."""

        def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> bool:
            """Remove a result. Return whether there was one."""

        def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """Compute, store in place of what is there, and return."""

        def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
            """Return why a call would compute, or that it would not."""

        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Memoized[P, R, V]: ...
        @overload
        def __get__(
            self: Memoized[Concatenate[S, Q], R, V], instance: S, owner: type[S] | None = None, /
        ) -> BoundMemoized[Q, R]: ...

    class Decorator(Protocol):
        """What `memoize` returns when it is called with options."""

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, T]], /
        ) -> Memoized[P, Coroutine[Any, Any, T], T]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Memoized[P, R, R]: ...

    class Memoize(Protocol):
        """The types of `persistent_dict.memoize`."""

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, T]], /
        ) -> Memoized[P, Coroutine[Any, Any, T], T]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Memoized[P, R, R]: ...
        @overload
        def __call__(
            self,
            cache: ComputingDictionary[Any, Any] | str | None = None,
            /,
            *,
            version: object = None,
            code: str | None = "ast",
            ignore: Iterable[str] = (),
            key: Callable[..., object] | None = None,
            key_by: Mapping[str, Callable[[Any], object]] | None = None,
            key_builder: Callable[[Any], str] | None = None,
            min_seconds: float = 0.0,
            timeout: float | None = ...,
            on_invalid: str | None = None,
        ) -> Decorator: ...

else:
    FunctionInfo = namedtuple("FunctionInfo", "hits misses waits seconds_saved")
