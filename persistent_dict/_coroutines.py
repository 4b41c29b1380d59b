"""Coroutines that look up and compute: those of one event loop share the work; files are touched in other threads."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from persistent_dict._single_flight import check_recursion
from persistent_dict._steps import Outcome, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from persistent_dict._single_flight import Slot
    from persistent_dict._steps import Steps

T = TypeVar("T")
V = TypeVar("V")


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
            outcome = task.result()
            return outcome if outcome.how == "found" else outcome._replace(how="waited")


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
    steps = await _off_the_loop(begin)
    if isinstance(steps, Outcome):
        return steps
    try:
        while True:
            step = await _off_the_loop(steps.__next__)
            if isinstance(step, Outcome):
                return step
            if isinstance(step, Work):
                with step.computing():
                    step.done(await compute())
            else:
                await asyncio.sleep(step.pause)
    finally:
        await _off_the_loop(steps.close)


async def _off_the_loop(call: Callable[[], T]) -> T:
    """Return what `call` returns in another thread. It is never left running: being cancelled waits for its end."""
    running = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
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
