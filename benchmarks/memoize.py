"""What does a call of a memoized function cost, and who computes how often when many processes begin at once?

    python -m benchmarks.memoize [--quick] [--dir DIR ...]

Two questions, asked of every library in turn, round after round:

- a hit: microseconds a call, for results that are there; functools.lru_cache, which keeps nothing, is the floor;
- a cold start: 8 processes ask for the same 100 results, all in the same order (as MPI ranks do), or each in an
  order of its own; a result takes 50 ms (asleep: the number of cores does not matter). Computing each once takes
  100 * 50 ms = 5 s in the same order, and could take an eighth of that, 0.625 s, in different ones.

Each library gets its fairest settings (said at its function) and a new directory; all are removed at the end only.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import time
import warnings
from pathlib import Path

from benchmarks.harness import OURS, print_table, run
from persistent_dict import PersistentDict, WriteOncePersistentDict, memoize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KEYS = 1000
COLD_KEYS, PROCESSES, SECONDS = 100, 8, 0.05
LIMIT = 60.0  # seconds; processes that have not finished then have failed
VALUE = "v" * 900


def ours(directory: str, function: Any) -> Any:
    """As ``@memoize`` has it: nothing in memory, so that each call returns an object of its own."""
    return memoize(PersistentDict("benchmark", container_dir=directory, in_mem_cache_size=0))(function)


def ours_write_once(directory: str, function: Any) -> Any:
    """Over a dictionary whose entries are never replaced: a hit in memory looks at no file."""
    return memoize(WriteOncePersistentDict("benchmark", container_dir=directory, in_mem_cache_size=KEYS))(function)


def ours_from_memory(directory: str, function: Any) -> Any:
    """With memory; a hit looks at the file's time, so that a result that was removed or replaced is noticed."""
    return memoize(PersistentDict("benchmark", container_dir=directory, in_mem_cache_size=KEYS))(function)


def by_joblib(directory: str, function: Any) -> Any:
    """Silent, without compression."""
    import joblib

    return joblib.Memory(directory, verbose=0).cache(function)


def by_diskcache(directory: str, function: Any) -> Any:
    """Without eviction, which would write on every hit."""
    import diskcache

    return diskcache.Cache(directory, eviction_policy="none").memoize()(function)


def by_cachier(directory: str, function: Any) -> Any:
    """A file a result: with one file for all, each hit would read everything. It waits for who computes, a second at
    most: without a limit (its default) some waiters never wake."""
    import cachier

    return cachier.cachier(cache_dir=directory, separate_files=True, wait_for_calc_timeout=1)(function)


def by_lru_cache(directory: str, function: Any) -> Any:  # noqa: ARG001  # it keeps nothing on disk
    """In memory alone: the floor."""
    return functools.lru_cache(maxsize=KEYS)(function)


LIBRARIES: dict[str, Callable[[str, Any], Any]] = {
    OURS: ours,
    "persistent_dict (memory)": ours_from_memory,
    "persistent_dict (memory, write-once)": ours_write_once,
    "joblib": by_joblib,
    "diskcache": by_diskcache,
    "cachier": by_cachier,
    "functools.lru_cache": by_lru_cache,
}


def result(number: int, name: str = "kernel") -> str:  # noqa: ARG001  # the libraries key by it
    """The function of the first question."""
    return VALUE


def slow_result(number: int, calls: str) -> int:
    """The function of the second: it counts its calls in a file."""
    fd = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)
    time.sleep(SECONDS)
    return number


def ask_hits(base: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the microseconds a hit takes: question and library -> one figure a round."""
    figures: dict[tuple[str, str], list[float]] = {}
    functions = {}
    for name, decorate in LIBRARIES.items():
        functions[name] = decorate(f"{base}/hits {name}", result)
        for _ in range(2):
            for number in range(KEYS):
                functions[name](number)
    time.sleep(2.5)  # a PersistentDict keeps in memory only what is older than the clock of any file system is coarse
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            for question, kwargs in (("f(1)", {}), ('f(1, name="kernel")', {"name": "kernel"})):
                begin = time.perf_counter()
                for number in range(KEYS):
                    function(number, **kwargs)
                if round_:  # the first fills the memory
                    took = (time.perf_counter() - begin) / KEYS * 1e6
                    figures.setdefault((f"hit, {question}", name), []).append(took)
    return figures


def _ask_for_all(order: list[int], name: str, directory: str, start: Any) -> None:
    warnings.simplefilter("ignore")
    function = LIBRARIES[name](f"{directory}/cache", slow_result)
    start.wait()
    for key in order:
        if function(key, f"{directory}/calls") != key:
            raise RuntimeError("a wrong result")


def ask_cold_start(base: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return how often was computed, the seconds that it took all processes, and how many of them did not end."""
    figures: dict[tuple[str, str], list[float]] = {}
    same = [list(range(COLD_KEYS))] * PROCESSES
    own = [random.Random(i).sample(range(COLD_KEYS), COLD_KEYS) for i in range(PROCESSES)]
    for round_ in range(rounds):
        for which, ideal, orders in (("the same order", 5.0, same), ("own orders", 0.625, own)):
            for name in (OURS, "joblib", "diskcache", "cachier", "functools.lru_cache"):
                directory = f"{base}/cold {name} {which} {round_}"
                os.makedirs(directory)
                took, failed = _run_all(orders, name, directory)
                computed = Path(directory, "calls").stat().st_size
                for question, figure in (
                    (f"computed, {which} (ideal: {COLD_KEYS})", computed),
                    (f"seconds, {which} (ideal: {ideal})", took),
                    (f"processes that did not end in {LIMIT:.0f} s, {which}", failed),
                ):
                    figures.setdefault((question, name), []).append(figure)
    return figures


def _run_all(orders: list[list[int]], name: str, directory: str) -> tuple[float, int]:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(PROCESSES + 1)
    workers = [context.Process(target=_ask_for_all, args=(order, name, directory, start)) for order in orders]
    for worker in workers:
        worker.start()
    start.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join(max(0.0, begin + LIMIT - time.perf_counter()))
    took = time.perf_counter() - begin
    failed = sum(worker.exitcode != 0 for worker in workers)
    for worker in workers:
        worker.kill()
    return took, failed


def main() -> None:
    """Print the tables."""

    def ask_in(directory: str, where: str, rounds: int) -> None:
        print_table(f"Microseconds a call, {where}", ask_hits(directory, rounds))
        print_table(f"8 processes, 100 results of 50 ms, {where}", ask_cold_start(directory, max(1, rounds // 4)))

    run("memoize", __doc__, ("joblib", "diskcache", "cachier"), ask_in)


if __name__ == "__main__":
    main()
