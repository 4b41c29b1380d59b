"""How long do the dictionary's basic operations take, beside pytools, diskcache and joblib?

    python -m benchmarks.foundation [--quick] [--dir DIR ...]

Every question is asked of every library in turn, round after round, so that a noisy machine is noisy for all; the table
gives the median of the rounds and their quartiles. Values are 900-byte strings under 1,000 keys; each library gets its
fairest settings (said at its class) and a new directory, and all directories are removed at the end only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.harness import OURS, print_table, run
from persistent_dict import KeyBuilder, PersistentDict, WriteOncePersistentDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Library = Any

KEYS = 1000
VALUE = "v" * 900
KEY_KINDS = {
    "str": [f"kernel number {i}" for i in range(KEYS)],
    "tuple": [("kernel", i, 17.0, "float32") for i in range(KEYS)],
}


class Ours:
    """The defaults."""

    name = OURS

    def __init__(self, directory: str, memory: int = 0) -> None:
        self.cache: Any = WriteOncePersistentDict("benchmark", container_dir=directory, in_mem_cache_size=memory)
        self.digest = KeyBuilder()
        self.store, self.hit, self.store_again = self.cache.store, self.cache.fetch, self.cache.store_if_not_present


class OursMutable(Ours):
    name = "persistent_dict (PersistentDict)"

    def __init__(self, directory: str, memory: int = 0) -> None:
        super().__init__(directory, memory)
        self.cache = PersistentDict("benchmark mutable", container_dir=directory, in_mem_cache_size=memory)
        self.store, self.hit, self.store_again = self.cache.store, self.cache.fetch, self.cache.store_if_not_present


class Pytools:
    """safe_sync=False, as its users set it for caches; the default journal."""

    name = "pytools"

    def __init__(self, directory: str, memory: int = 0) -> None:
        from pytools import persistent_dict

        self.cache = persistent_dict.WriteOncePersistentDict(
            "benchmark", container_dir=directory, safe_sync=False, in_mem_cache_size=memory
        )
        self.digest = persistent_dict.KeyBuilder()
        self.store, self.hit, self.store_again = self.cache.store, self.cache.fetch, self.cache.store_if_not_present


class Diskcache:
    """Without eviction, which would write on every hit."""

    name = "diskcache"

    def __init__(self, directory: str, memory: int = 0) -> None:
        import diskcache

        self.cache = diskcache.Cache(directory, eviction_policy="none")
        self.store, self.hit, self.store_again = self.cache.set, self.cache.__getitem__, self.cache.add


class Joblib:
    """Memory without compression; a miss computes and stores, a hit reads."""

    name = "joblib"

    def __init__(self, directory: str, memory: int = 0) -> None:
        import joblib

        self.hit = joblib.Memory(directory, verbose=0).cache(_value_of)
        self.digest = joblib.hash

    def store(self, key: object, value: str) -> None:
        self.hit(key)


def _value_of(key: object) -> str:  # noqa: ARG001  # joblib keys by it
    return VALUE


LIBRARIES: tuple[type[Library], ...] = (Ours, OursMutable, Pytools, Diskcache, Joblib)


def _each(call: Callable[[Any], object], keys: Iterable[object]) -> float:
    """Return the microseconds that one call takes, over all keys."""
    keys = list(keys)
    begin = time.perf_counter()
    for key in keys:
        call(key)
    return (time.perf_counter() - begin) / len(keys) * 1e6


def ask(base: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the microseconds per operation: question and library -> one figure a round."""
    figures: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds):
        for kind, keys in KEY_KINDS.items():
            for library in LIBRARIES[round_ % 5 :] + LIBRARIES[: round_ % 5]:
                for question, microseconds in _questions(library, keys, f"{base}/{round_}-{kind}-{library.__name__}"):
                    figures.setdefault((f"{question}, {kind} keys", library.name), []).append(microseconds)
    return figures


def _questions(library: type[Library], keys: list[object], directory: str) -> Iterable[tuple[str, float]]:
    cold = library(directory)
    yield "store", _each(lambda key: cold.store(key, VALUE), keys)
    cold.hit(keys[0])
    yield "loose hit (not from memory)", _each(cold.hit, keys * 3)
    if hasattr(cold, "store_again"):
        yield "store_if_not_present, present", _each(lambda key: cold.store_again(key, VALUE), keys * 3)
    if hasattr(cold, "digest"):
        yield "digest", _each(cold.digest, keys * 10)
    if library in (Ours, Pytools):
        warm = library(directory, KEYS)
        _each(warm.hit, keys)
        yield "memory hit", _each(warm.hit, keys * 10)
    if library is Ours:
        yield "miss", _each(lambda key: cold.cache.get(("absent", key)), keys * 3)


def import_times(rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds that importing takes over a Python that imports nothing."""
    statements = {"persistent_dict": "import persistent_dict", "pytools": "import pytools.persistent_dict",
                  "diskcache": "import diskcache", "joblib": "import joblib"}  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    figures: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        bare = _run_time("pass", environment)
        for name, statement in statements.items():
            took = (_run_time(statement, environment) - bare) * 1e3
            figures.setdefault(("import, over bare Python (ms)", name), []).append(took)
    return figures


def _run_time(statement: str, environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    return time.perf_counter() - begin


def main() -> None:
    """Print the tables."""

    def ask_in(directory: str, where: str, rounds: int) -> None:
        print_table(f"Microseconds an operation, {where}", ask(directory, rounds))

    rounds = run("foundation", __doc__, ("pytools", "diskcache", "joblib"), ask_in)
    print_table("Milliseconds", import_times(rounds))


if __name__ == "__main__":
    main()
