"""What a miss leads to: the value is computed, once, and stored; or somebody is told why it was a miss."""

from __future__ import annotations

import time
from collections import namedtuple

from persistent_dict import _fs
from persistent_dict._dictionary import Dictionary
from persistent_dict._steps import Outcome, Work, take
from persistent_dict.errors import (
    InvalidEntryError,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    PersistentDictError,
    said,
    shown,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, NamedTuple, TypeVar

    from persistent_dict._single_flight import Turn
    from persistent_dict._steps import Steps
    from persistent_dict.stores.base import Digest

    K = TypeVar("K")
    V = TypeVar("V")

    class _Explanation(NamedTuple):
        verdict: str
        detail: str
else:
    _Explanation = namedtuple("_Explanation", "verdict detail")

DEFAULT_TIMEOUT = 600.0  # seconds


class Explanation(_Explanation):
    """Why a lookup would miss, or that it would not.

    Attributes
    ----------
    verdict : str
        "present", "absent", "invalid", "other version", "collision" or "disabled".
    detail : str
        The facts, for a person to read.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {self.detail}"


class ComputingDictionary(Dictionary["K", "V"]):
    """A dictionary that can have what it lacks computed."""

    def get_or_compute(
        self,
        key: K,
        compute: Callable[[], V],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        min_seconds: float = 0.0,
    ) -> V:
        """Return the value under `key`; if there is none, call `compute`, store what it returns, and return that.

        Of all threads and processes that ask for one key at the same time, one computes; the others wait for it. They
        go on as soon as the entry is there, or the one that computes fails or dies: then the next one computes.

        Parameters
        ----------
        key : object
        compute : callable
            Without arguments. What it raises goes to its own caller, and nothing is stored.
        timeout : float or None
            Seconds to wait for somebody else who computes the value. Then it is computed here, too, and a
            `CacheWriteWarning` says once who kept it waiting. None: wait as long as that one lives. 0: never wait.
        min_seconds : float
            A value that took less time to compute is not stored.

        Raises
        ------
        RecursiveComputationError
            `compute` asked for the same key.
        InvalidEntryError
            The entry is damaged; with ``on_invalid="quarantine"`` it is set aside, and computed anew.

        Notes
        -----
        A value that has been computed is never lost: where it cannot be encoded or stored, it is returned, and a
        `CacheWriteWarning` says so, once (where warnings are made errors, that is what you asked for). Threads that
        waited for a value that was not stored are given the same object. The value is returned as it was computed;
        later lookups return what was stored. A computation that hands its own key to another thread or process, and
        waits for that, is not noticed: it waits for `timeout`.
        """
        return self.resolve(key, compute, timeout=timeout, min_seconds=min_seconds).value

    def resolve(
        self,
        key: K,
        compute: Callable[[], V],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        min_seconds: float = 0.0,
    ) -> Outcome[V]:
        """Do what `get_or_compute` does, and return an `Outcome`, which also says how the value came about."""
        begun = self._begin(key, timeout, min_seconds)
        return begun if isinstance(begun, Outcome) else take(begun, compute)

    def resolve_async(
        self,
        key: K,
        compute: Callable[[], Awaitable[V]],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        min_seconds: float = 0.0,
    ) -> Awaitable[Outcome[V]]:
        """Do what `resolve` does, in an asyncio event loop, with a `compute` that returns an awaitable.

        Coroutines of one loop that ask for the same key share one lookup and one computation (and its `min_seconds`).
        All work on files is done in a few threads of this package. A coroutine that is cancelled does not disturb the
        others that wait; when all are, the computation is cancelled. A task that is started inside a computation is
        part of it: there, asking for its key is a `RecursiveComputationError`.
        """
        from persistent_dict._coroutines import resolve
        from persistent_dict._single_flight import slot_of

        slot = slot_of(self._store, self._digest(key)[0])
        return resolve(lambda limit: self._begin(key, limit, min_seconds), compute, slot, key, timeout)

    def _begin(self, key: K, timeout: float | None, min_seconds: float) -> Outcome[V] | Steps[V]:
        """Return what is there, or the steps that lead to it."""
        try:
            found = self._find(key)
        except NoSuchEntryCollisionError:  # the place is taken; there has been a warning
            return _unkept()
        except NoSuchEntryError:
            return _unkept() if _fs.disabled() else self._steps(key, timeout, min_seconds)
        return Outcome(found[0], "found", found[2])

    def _steps(self, key: K, timeout: float | None, min_seconds: float) -> Steps[V]:
        from persistent_dict._single_flight import Turn

        check_limits(timeout, min_seconds)
        digest, proven = self._digest(key)
        key_stream = self._format.dumps_key(key)  # now: what cannot be stored is known before anything is computed
        turn, how = Turn(self._store, digest, key, timeout), "found"
        try:
            while not turn.take():
                if turn.over:
                    self._tell_over(turn, key, timeout)
                    break
                if how == "found":
                    how = "waited"
                    self._waits += 1
                    self._tell("wait", key)
                yield turn
                found = self._look(key, digest, proven)
                if found is not None:
                    yield Outcome(found[0], how, found[2])
                if turn.result is not None:  # it could not be stored
                    yield turn.result._replace(how=how)
            found = self._look(key, digest, proven)
            if found is not None:
                yield Outcome(found[0], how, found[2])
            work = Work(turn.computing)
            yield work
            value = self._keep(key, digest, proven, key_stream, work) if work.seconds >= min_seconds else work.value
            outcome = Outcome(value, "computed", work.seconds)
            turn.hand_over(outcome)
            yield outcome
        finally:
            turn.leave()

    def _look(self, key: K, digest: Digest, proven: bool) -> tuple[V, K, float] | None:
        """Return what `_load` returns; None where there is no entry, which is no miss that counts."""
        if self._store.stat(digest) is None:
            return None
        try:
            return self._load(key, digest, proven)
        except NoSuchEntryError:
            return None

    def _keep(self, key: K, digest: Digest, proven: bool, key_stream: Any, work: Work) -> V:
        """Store what was computed, whatever happens, and return it; or what somebody else has stored meanwhile."""
        value: V = work.value
        try:
            if self._add(key, digest, value, work.seconds, key_stream) is False:
                found = self._look(key, digest, proven)
                return value if found is None else found[0]
        except (OSError, PersistentDictError) as error:
            self._warn_once(
                f"{self.identifier}: the value of {shown(key)} was computed, but cannot be stored in {self.filename}: "
                f"{said(error)}. It is returned all the same; later ones that cannot be stored are not mentioned.",
                "unstorable",
            )
        except Exception as error:  # an encoder, or the value's own methods, may raise anything
            self._warn_once(
                f"{self.identifier}: the value of {shown(key)} was computed, but cannot be stored: encoding it as "
                f"{self._format.name} fails with {type(error).__name__}: {said(error)}. It is returned all the same; "
                "later ones that cannot be encoded are not mentioned.",
                "unencodable",
            )
        return value

    def _tell_over(self, turn: Turn, key: K, timeout: float | None) -> None:
        if timeout == 0:  # nobody has waited
            return
        holder = "another coroutine" if timeout is None or timeout < 0 else turn.holder
        self._warn_once(
            f"{self.identifier}: {holder} has been computing the value of {shown(key)} for as long as the timeout "
            "allows. It is computed here, too; later ones that take as long are not mentioned. Pass a longer timeout "
            "to wait longer; if it is another process and hangs, end that.",
            "over",
        )

    def explain(self, key: K) -> Explanation:
        """Return why a lookup of `key` would miss, or that it would not. Nothing is changed or counted."""
        digest, proven = self._digest(key)
        place = self._store.place(digest)
        if _fs.disabled():
            return Explanation("disabled", "PERSISTENT_DICT_DISABLE is set: nothing is read or stored")
        try:
            entry = self._store.get(digest)
            if entry is not None and not proven and not self._is_same_key(entry.key, digest, key):
                return Explanation("collision", f"{place} is the entry of another key with the same digest")
            if entry is not None:
                self._try_to_decode(entry.value, digest)
        except InvalidEntryError as error:
            return Explanation("invalid", str(error.for_key(key)))
        if entry is not None:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.value.stored_at))
            return Explanation("present", f"{place}, stored {when}, computed in {entry.value.seconds:.3g} s")
        others = self._store.elsewhere(digest)
        if others:
            return Explanation("other version", f"there is none at {place}, but another Python stored {others[0]}")
        return Explanation("absent", f"there is no entry at {place}")


def check_limits(timeout: object, min_seconds: object) -> None:
    """Raise a `TypeError` for what is no number of seconds, before anything is computed."""
    for name, value in (("timeout", timeout), ("min_seconds", min_seconds)):
        if not isinstance(value, (int, float)) and (name, value) != ("timeout", None):
            raise TypeError(f"{name} is a number of seconds, not {shown(value)}")


def _unkept() -> Steps[V]:
    """Yield the steps where nothing is looked up or stored."""
    from contextlib import nullcontext

    work = Work(nullcontext)
    yield work
    yield Outcome(work.value, "computed", work.seconds)
