"""A lookup that may have to compute, as steps that a thread or a coroutine takes in its own way.

What is found at once is an `Outcome`. Else a generator yields `Turn`s to wait for, perhaps the `Work` of computing, and
the `Outcome` last. Between two steps it never waits, so that a coroutine can take each in another thread.
"""

from __future__ import annotations

import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager
    from typing import Any, Generic, NamedTuple, TypeVar

    from persistent_dict._single_flight import Turn

    V = TypeVar("V")

    class Outcome(NamedTuple, Generic[V]):
        """A value, and how it came about.

        Attributes
        ----------
        value : object
        how : str
            "found"; "waited", for another thread or process that computed it; or "computed".
        seconds : float
            How long it took to compute, when it was; 0.0 where nobody measured.
        """

        value: V
        how: str
        seconds: float

    Steps = Generator["Turn | Work | Outcome[V]", None, None]
else:
    Outcome = namedtuple("Outcome", "value how seconds")


class Work:
    """The step at which the value is to be computed, inside ``computing()``, and put here."""

    __slots__ = ("_begin", "computing", "seconds", "value")

    def __init__(self, computing: Callable[[], AbstractContextManager[None]]) -> None:
        self.computing = computing
        self.seconds = 0.0
        self.value: Any = None
        self._begin = time.perf_counter()

    def done(self, value: object) -> None:
        """Take the value, and the time that has gone by since this step was yielded."""
        self.seconds = time.perf_counter() - self._begin
        self.value = value


def take(steps: Steps[V], compute: Callable[[], V]) -> Outcome[V]:
    """Take all steps in this thread."""
    try:
        for step in steps:
            if isinstance(step, Outcome):
                return step
            if isinstance(step, Work):
                with step.computing():
                    step.done(compute())
            else:
                step.wait()
    finally:
        steps.close()
    raise AssertionError("the last step is an Outcome")
