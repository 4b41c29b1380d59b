"""One computation of a digest at a time, over the threads of a process (an event) and processes (a lock file).

    turn = Turn(store, digest, timeout)
    try:
        while not turn.take():       # never waits
            turn.wait()              # until it is worth looking again
            ... is the entry there? ...
        ... is the entry there? compute, store ...
    finally:
        turn.leave()

Nothing here computes, reads or stores: waiting is a step of its own, so that a coroutine can do it in its own way.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

from persistent_dict.errors import RecursiveComputationError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from persistent_dict.stores.base import Digest, Lock, Store

    Slot = tuple[object, Digest, int]

_SHORTEST, _LONGEST = 0.001, 0.05  # seconds between two looks
_PATIENCE = 0.1  # of the time waited so far: so much later than necessary a waiter may notice

#: The computations under way. Every step on it is one operation on a dict, so that no lock is left locked by a fork.
_flights: dict[Slot, Flight] = {}

#: The computations that this thread or coroutine is in.
_inside: ContextVar[tuple[Flight, ...]] = ContextVar("persistent_dict_flights", default=())


class Flight:
    """A computation of this process: under way until `done` is set.

    result : what it came to, for those who waited and find nothing stored.
    """

    __slots__ = ("done", "result", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.done = Event()
        self.result: Any = None


class Turn:
    """A caller's turn to compute one digest, to be taken and left.

    Parameters
    ----------
    key : object
        Named in an error.
    timeout : float or None
        Seconds after which it is `over`: whoever waits has waited long enough. None: never.
    """

    def __init__(self, store: Store, digest: Digest, key: object, timeout: float | None) -> None:
        self._digest = digest
        self._key = key
        self._store = store
        self._flight = Flight(slot_of(store, digest))
        self._lock: Lock | None = None
        self._ahead: Flight | None = None  # who has the turn, where that is a thread of this process
        self._waited_for: Flight | None = None
        self._begin = time.monotonic()
        self._timeout = timeout

    def take(self) -> bool:
        """Try to take the turn, without waiting. False: another thread or process has it.

        Raises
        ------
        RecursiveComputationError
            It is this very caller, further up, who has it: waiting would never end.
        """
        check_recursion(self._flight.slot, self._key)
        flight = _flights.setdefault(self._flight.slot, self._flight)
        if flight is not self._flight:
            self._ahead = self._waited_for = flight
            return False
        self._ahead = None
        if self._lock is None:
            self._lock = self._store.lock(self._digest)
        return self._lock is None or self._lock.acquire()

    def leave(self) -> None:
        """Let others have the turn, and wake those of this process."""
        try:
            if self._lock is not None:
                self._lock.release()
        finally:  # also if a signal's handler raises in there
            if _flights.get(self._flight.slot) is self._flight:
                del _flights[self._flight.slot]
            self._flight.done.set()

    @property
    def pause(self) -> float:
        """Seconds until it is worth looking again: a tenth of what has been waited, so that short computations are
        noticed soon and long ones looked at seldom."""
        waited = time.monotonic() - self._begin
        pause = min(max(waited * _PATIENCE, _SHORTEST), _LONGEST)
        return pause if self._timeout is None else max(0.0, min(pause, self._timeout - waited))

    def wait(self) -> None:
        """Wait until it is worth looking again."""
        if self._ahead is None:
            time.sleep(self.pause)
        else:
            self._ahead.done.wait(self.pause)

    @property
    def over(self) -> bool:
        """Whether the time for waiting is over."""
        return self._timeout is not None and time.monotonic() - self._begin >= self._timeout

    @property
    def result(self) -> Any:
        """What the computation in this process came to that was waited for; None where it has no result."""
        return None if self._waited_for is None else self._waited_for.result

    def hand_over(self, result: object) -> None:
        """Give what was computed to the threads that wait, in case that it cannot be stored."""
        self._flight.result = result

    @property
    def holder(self) -> str:
        """Who has the turn, for a person to read."""
        if self._ahead is not None:
            return "another thread of this process"
        return (self._lock is not None and self._lock.holder()) or "an unknown process"

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute inside this: asking for the same digest is then an error, and not a wait for oneself."""
        token = _inside.set((*_inside.get(), self._flight))
        try:
            yield
        finally:
            _inside.reset(token)


def slot_of(store: Store, digest: Digest) -> Slot:
    """Return what the threads of this process have in common that ask for the same entry.

    The process is part of it: what another thread computed during a fork is not under way in the child.
    """
    return getattr(store, "path", id(store)), digest, os.getpid()


def check_recursion(slot: Slot, key: object) -> None:
    """Raise a `RecursiveComputationError` if this thread or coroutine is computing the same entry."""
    for flight in _inside.get():
        if flight.slot == slot and not flight.done.is_set():
            raise RecursiveComputationError(shown(key))
