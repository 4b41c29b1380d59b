"""What does it cost to write one file, or many entries, as a whole?

    python -m benchmarks.at_once [--quick] [--dir DIR ...]

Two questions, asked of every way in turn, round after round, in one process:

- a commit: microseconds to replace a JSON file of 2 kB by `AtomicStore.commit()`, with and without syncing, under a
  lock, and with a backup; beside atomic_store's `commit()`, which syncs, too, and asks for no lock, and a
  bare `json.dump` to the file, which a crash leaves half written;
- 1,000 entries of 1,000 bytes: milliseconds for one transaction, which is synced; beside 1,000 stores, which are not,
  1,000 stores with `safe_sync=True`, and one transaction of sqlite3 with `synchronous=FULL`, in both of its journals.

Every round has new files and stores; all are removed at the end only.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
import time
from pathlib import Path

from benchmarks.harness import OURS, print_table, run
from persistent_dict import WriteOncePersistentDict, atomic_store, transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COMMITS, ENTRIES = 50, 1000
STATE = {"runs": [{"number": i, "seconds": i * 0.1, "note": "as before"} for i in range(35)]}


def value_of(i: int) -> bytes:
    """Return a value of 1,000 bytes."""
    return i.to_bytes(4, "little") * 250


# One file


def ours(path: str, **options: Any) -> Callable[[], None]:
    """Return what commits the state to a file."""
    store = atomic_store.open(path, STATE, **options)
    return store.commit


def theirs(path: str) -> Callable[[], None]:
    """atomic_store, as it is."""
    import atomic_store as peer

    commit: Callable[[], None] = peer.open(path, STATE).commit
    return commit


def bare(path: str) -> Callable[[], None]:
    """What people write who do not think of crashes."""

    def write() -> None:
        with open(path, "w") as file:
            json.dump(STATE, file)

    return write


WAYS: dict[str, Callable[[str], Callable[[], None]]] = {
    OURS: ours,
    f"{OURS}, safe_sync=False": lambda path: ours(path, safe_sync=False),
    f"{OURS}, lock=True": lambda path: ours(path, lock=True),
    f"{OURS}, backup=True": lambda path: ours(path, backup=True),
    "atomic_store": theirs,
    "json.dump": bare,
}


# Many entries


def in_a_transaction(directory: str) -> None:
    """Store them at once."""
    with transaction(WriteOncePersistentDict("d", container_dir=directory)) as txn:
        for i in range(ENTRIES):
            txn.store(i, value_of(i))


def one_by_one(directory: str, *, safe_sync: bool = False) -> None:
    """Store each by itself."""
    cache = WriteOncePersistentDict[int, bytes]("d", container_dir=directory, safe_sync=safe_sync)
    for i in range(ENTRIES):
        cache.store(i, value_of(i))


def by_sqlite(directory: str, journal: str) -> None:
    """One transaction; pickled values, and nothing checked."""
    Path(directory).mkdir()
    connection = sqlite3.connect(f"{directory}/db")
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB)")
    with connection:
        for i in range(ENTRIES):
            connection.execute("INSERT INTO entries VALUES (?, ?)", (pickle.dumps(i, 5), pickle.dumps(value_of(i), 5)))
    connection.close()


STORES: dict[str, Callable[[str], None]] = {
    OURS: in_a_transaction,
    f"{OURS}, 1,000 stores": one_by_one,
    f"{OURS}, 1,000 stores, safe_sync=True": lambda directory: one_by_one(directory, safe_sync=True),
    "sqlite3": lambda directory: by_sqlite(directory, "DELETE"),
    "sqlite3, WAL": lambda directory: by_sqlite(directory, "WAL"),
}


def ask_commits(base: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the microseconds that a commit takes."""
    figures: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds):
        for number, (library, way) in enumerate(WAYS.items()):
            commit = way(f"{base}/{round_} {number}.json")
            commit()
            begin = time.perf_counter()
            for _ in range(COMMITS):
                commit()
            seconds = time.perf_counter() - begin
            figures.setdefault(("a commit, microseconds", library), []).append(seconds / COMMITS * 1e6)
    return figures


def ask_entries(base: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds that 1,000 entries take."""
    figures: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds):
        for number, (library, store) in enumerate(STORES.items()):
            begin = time.perf_counter()
            store(f"{base}/{round_} {number}")
            seconds = time.perf_counter() - begin
            figures.setdefault(("1,000 entries, milliseconds", library), []).append(seconds * 1e3)
    return figures


def main() -> None:
    """Print the tables."""

    def ask_in(base: str, where: str, rounds: int) -> None:
        print_table(f"One file, {where}", ask_commits(base, rounds))
        print_table(f"Many entries, {where}", ask_entries(base, rounds))

    run("at_once", __doc__, ("atomic_store",), ask_in)


if __name__ == "__main__":
    main()
