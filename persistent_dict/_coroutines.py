"""Coroutines that look up and compute: those of one event loop share the work; files are touched in other threads."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from persistent_dict._single_flight import check_recursion
from persistent_dict._steps import Outcome, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from persistent_dict._single_flight import Slot
    from persistent_dict._steps import Steps

T = TypeVar("T")
V = TypeVar("V")

_THREADS = 4


class _Shared:
    """A lookup under way, and how many coroutines wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.waiting = 0


_shared: dict[tuple[asyncio.AbstractEventLoop, Slot], _Shared] = {}


async def resolve(
    begin: Callable[[float | None], Outcome[V] | Steps[V]],
    compute: Callable[[], Awaitable[V]],
    slot: Slot,
    key: object,
    timeout: float | None,
) -> Outcome[V]:
    """Return the outcome of a lookup, shared by all coroutines of this loop that ask with the same `slot`.

    An exception goes to the coroutine that started the lookup; another one then starts anew. Who has waited for
    `timeout` seconds looks up alone, with a timeout that is over: -1, or 0 where that was it.
    """
    check_recursion(slot, key)
    loop = asyncio.get_running_loop()
    place, deadline = (loop, slot), None if timeout is None else loop.time() + timeout
    while True:
        shared = _shared.get(place)
        is_first = shared is None
        if shared is None:
            shared = _shared[place] = _Shared(asyncio.ensure_future(_alone(lambda: begin(timeout), compute)))
            shared.task.add_done_callback(lambda task: _end(place, task))
        await _wait_for(shared, None if is_first or deadline is None else max(0.0, deadline - loop.time()))
        task: asyncio.Task[Outcome[V]] = shared.task
        if is_first:
            return task.result()
        if not task.done():
            return await _alone(lambda: begin(-1.0 if timeout else 0.0), compute)
        if not task.cancelled() and task.exception() is None:
            return await _own_object(begin, task.result())


async def _own_object(begin: Callable[[float | None], Outcome[V] | Steps[V]], outcome: Outcome[V]) -> Outcome[V]:
    """Return the outcome that somebody else was given, with a value of one's own, if it was stored."""
    how = "found" if outcome.how == "found" else "waited"
    begun = await off_the_loop(lambda: begin(0.0))
    if isinstance(begun, Outcome):
        return begun._replace(how=how)
    begun.close()
    return outcome._replace(how=how)


def _end(place: tuple[asyncio.AbstractEventLoop, Slot], task: asyncio.Task[Any]) -> None:
    del _shared[place]
    if not task.cancelled():
        task.exception()  # seen, even if all who waited have gone


async def _wait_for(shared: _Shared, timeout: float | None) -> None:
    """Wait, without raising what the lookup raises. Whoever is the last to be cancelled here cancels the lookup."""
    shared.waiting += 1
    try:
        await asyncio.wait({shared.task}, timeout=timeout)
    finally:
        shared.waiting -= 1
        if not shared.waiting:
            shared.task.cancel()  # does nothing if it is done


async def _alone(begin: Callable[[], Outcome[V] | Steps[V]], compute: Callable[[], Awaitable[V]]) -> Outcome[V]:
    steps = await off_the_loop(begin)
    if isinstance(steps, Outcome):
        return steps
    try:
        while True:
            step = await off_the_loop(steps.__next__)
            if isinstance(step, Outcome):
                return step
            if isinstance(step, Work):
                with step.computing():
                    step.done(await compute())
            else:
                await asyncio.sleep(step.pause)
    finally:
        await off_the_loop(steps.close)


@lru_cache(1)
def _executor(_process: int) -> ThreadPoolExecutor:
    """Return the threads of this process for work on files. What is done in them never waits; in the loop's own, others
    may wait for us."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="persistent_dict")


async def off_the_loop(call: Callable[[], T]) -> T:
    """Return what `call` returns in another thread. It is never left running: being cancelled waits for its end."""
    running = asyncio.get_running_loop().run_in_executor(_executor(os.getpid()), copy_context().run, call)
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # seen
        raise cancelled
    return running.result()
