"""What do packs cost and save: hits, packing, large containers, checking, taking entries elsewhere?

    python -m benchmarks.upkeep [--quick] [--dir DIR ...]

Five questions. Every step is a process of its own, in turn, round after round; the page cache is warm, unless said
otherwise.

- a hit: a new process opens a store of 100,000 values of 1,000 bytes and fetches 5,000 of its keys, each once;
  microseconds each, beside raw LMDB with pickle on top, pytools and diskcache. Each round has other keys, so that a
  packed hit notes that the entry was used, which it does once an hour; "again" is the same keys in another process;
- packing 100,000 loose entries: seconds, memory, what they take on disk before and after; beside `rm -rf` of a copy of
  those entries, since what is packed is removed;
- 1,000,000 tiny packed entries: opening, the first hit, counting, `survey.stats`, and the memory of the open index;
- `inspection.verify`, beside reading the same file with `cat`. The yardstick is `cat FILE >/dev/null`: it copies
  every byte out of the page cache, as the read loop beside it does, and looks at none; its time includes its start.
  "From the disk": the file was dropped from the page cache before;
- export and import of 100,000 entries.

`--quick`: a tenth of the entries. Each library gets its fairest settings (said at its class) and a new directory; all
are removed at the end only.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time

from benchmarks.harness import OURS, print_table, run
from persistent_dict import KeyBuilder, WriteOncePersistentDict, maintenance, survey
from persistent_dict.inspection import open_container, open_store, packs_of, verify
from persistent_dict.stores.base import Member, Part
from persistent_dict.stores.framing import FOOTER_SIZE, KEY, VALUE, frame
from persistent_dict.stores.pack_writer import write_pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Figures = dict[tuple[str, str], list[float]]

ENTRIES, MANY, LARGE = 100_000, 1_000_000, 200
KEYS: dict[str, Callable[[int], Any]] = {
    "str": lambda i: f"kernel number {i}",
    "tuple": lambda i: ("kernel", i, float(i), "float32"),
}
MB = 1e6


def value_of(number: int) -> bytes:
    """Return a value of 1,000 bytes."""
    return number.to_bytes(4, "little") * 250


class Ours:
    """The defaults."""

    def __init__(self, directory: str) -> None:
        self.cache: Any = WriteOncePersistentDict("benchmark", container_dir=directory)
        self.get = self.cache.fetch

    @classmethod
    def fill(cls, directory: str, kind: str, count: int) -> None:
        cache = cls(directory).cache
        for i in range(count):
            cache.store(KEYS[kind](i), value_of(i))


class Pytools(Ours):
    """safe_sync=False, as its users set it for caches; the default journal."""

    def __init__(self, directory: str) -> None:
        from pytools import persistent_dict

        self.cache = persistent_dict.WriteOncePersistentDict("benchmark", container_dir=directory, safe_sync=False)
        self.get = self.cache.fetch


class Diskcache:
    """Without eviction, which would write on every hit; filled in one transaction."""

    def __init__(self, directory: str) -> None:
        import diskcache

        self.cache = diskcache.Cache(directory, eviction_policy="none")
        self.get = self.cache.__getitem__

    @classmethod
    def fill(cls, directory: str, kind: str, count: int) -> None:
        cache = cls(directory).cache
        with cache.transact():
            for i in range(count):
                cache.set(KEYS[kind](i), value_of(i))


class Lmdb:
    """The floor: keys are their repr, nothing is checked, and nobody may write (no lock). No copy of the value is made
    before it is unpickled; one transaction a get, so that it sees what is there now."""

    def __init__(self, directory: str) -> None:
        import lmdb

        env, loads = lmdb.open(directory, readonly=True, lock=False), pickle.loads

        def get(key: Any) -> Any:
            with env.begin(buffers=True) as transaction:
                return loads(transaction.get(repr(key).encode()))

        self.get = get

    @classmethod
    def fill(cls, directory: str, kind: str, count: int) -> None:
        import lmdb

        with lmdb.open(directory, map_size=1 << 30) as env, env.begin(write=True) as transaction:
            for i in range(count):
                transaction.put(repr(KEYS[kind](i)).encode(), pickle.dumps(value_of(i), 5))


LIBRARIES: dict[str, Any] = {
    OURS: Ours,
    f"{OURS} (again)": Ours,
    f"{OURS} (loose)": Ours,
    "lmdb and pickle": Lmdb,
    "pytools": Pytools,
    "diskcache": Diskcache,
}


# Steps, each in a process of its own


def alone(step: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `step` returns, in a new process."""
    statement = "from benchmarks import upkeep; upkeep.answer()"
    command = [sys.executable, "-W", "ignore", "-c", statement, step.__name__, json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def answer() -> None:
    """Take the step that the command line names, and print what it returns."""
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))


def memory(which: str) -> float:
    """Return the MB that this process has, or has had. (What `getrusage` says would include the parent's.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which)) / MB


def fill(library: str, directory: str, kind: str, count: int) -> None:
    """Fill a store."""
    LIBRARIES[library].fill(directory, kind, count)


def hits(library: str, directory: str, kind: str, numbers: list[int]) -> tuple[float, float, float]:
    """Return the milliseconds until the first hit, the microseconds of each other one, and of each with opening."""
    keys = [KEYS[kind](number) for number in numbers]
    begin = time.perf_counter()
    get = LIBRARIES[library](directory).get
    first = get(keys[0])
    opened = time.perf_counter()
    for key in keys[1:]:
        get(key)
    end = time.perf_counter()
    if first != value_of(numbers[0]) or get(keys[-1]) != value_of(numbers[-1]):
        raise RuntimeError("a wrong value")
    return (opened - begin) * 1e3, (end - opened) / (len(keys) - 1) * 1e6, (end - begin) / len(keys) * 1e6


def pack(path: str) -> tuple[float, float, float]:
    """Pack what is loose. Return the seconds, the most MB that the process had, and the MB it had before."""
    store = open_container(path)
    before = memory("VmHWM")
    begin = time.perf_counter()
    maintenance.pack(store)
    return time.perf_counter() - begin, memory("VmHWM"), before


def on_disk(path: str) -> tuple[int, int]:
    """Return the bytes and the inodes that a directory takes."""
    stats = [os.lstat(path)]
    for place, directories, files in os.walk(path):
        stats += [os.lstat(f"{place}/{name}") for name in (*directories, *files)]
    return sum(status.st_blocks * 512 for status in stats), len(stats)


def pack_sizes(path: str) -> tuple[int, int, int]:
    """Return the bytes that the packs take, that their entries' files have, and these without footers."""
    packs = packs_of(open_store(path))
    net = sum(sum(found.column(name)) for found in packs for name in ("value_sizes", "key_sizes"))
    taken = sum(os.stat(found.path).st_blocks * 512 for found in packs)
    return taken, net, net - 2 * FOOTER_SIZE * sum(found.count for found in packs)


def fill_many(directory: str, count: int) -> None:
    """Make a container with a pack of tiny entries, and no more than what makes it one."""
    cache = Ours(directory).cache
    cache.store("loose", 0)
    os.mkdir(f"{cache.filename}/packs")
    digest, now = KeyBuilder(), time.time()
    numbers = {digest(KEYS["str"](i)): i for i in range(count)}

    def framed(part: Any, name: str, kind: int) -> bytes:
        return b"".join(map(bytes, frame(Part(pickle.dumps(part, 5), (), bytes(8), now), name, kind)))

    def member(name: str) -> Member:
        i = numbers[name]
        return Member(name, framed(i, name, VALUE), framed(KEYS["str"](i), name, KEY), now, 0.0, now)

    write_pack(f"{cache.filename}/packs/many.pack", map(member, sorted(numbers)), cache._store.container.about())


def fill_large(directory: str, count: int) -> None:
    """Make a container with a pack of values of 1 MB."""
    cache = Ours(directory).cache
    for i in range(count):
        cache.store(i, random.Random(i).randbytes(1_000_000))
    maintenance.pack(open_container(cache.filename))


def count_many(directory: str) -> float:
    """Return the seconds that opening a container and `len` take."""
    begin = time.perf_counter()
    len(Ours(directory).cache)
    return time.perf_counter() - begin


def first_hit(directory: str) -> tuple[float, float, float]:
    """Return the seconds that opening a container takes, and the first hit; and the MB that stay in use."""
    before = memory("VmRSS")
    begin = time.perf_counter()
    cache = Ours(directory).cache
    cache._store.open()
    opened = time.perf_counter()
    cache.fetch(KEYS["str"](1))
    return opened - begin, time.perf_counter() - opened, memory("VmRSS") - before


def stats(path: str) -> float:
    """Return the seconds that opening a container and `survey.stats` take."""
    begin = time.perf_counter()
    survey.stats(open_store(path))
    return time.perf_counter() - begin


def check(path: str, dropped: str = "") -> float:
    """Return the seconds that `verify` takes; from the disk, where a pack is to be `dropped` from the cache."""
    store = open_store(path)
    if dropped:
        drop(dropped)
    begin = time.perf_counter()
    if verify(store).problems:
        raise RuntimeError("damage")
    return time.perf_counter() - begin


def read_all(path: str) -> float:
    """Return the seconds that reading a file into one buffer takes."""
    buffer = bytearray(128 * 1024)
    with open(path, "rb", buffering=0) as file:
        begin = time.perf_counter()
        while file.readinto(buffer):
            pass
        return time.perf_counter() - begin


def export(path: str, to: str) -> float:
    """Return the seconds that an export takes."""
    begin = time.perf_counter()
    maintenance.export(open_store(path), to)
    return time.perf_counter() - begin


def import_(path: str, container: str) -> float:
    """Return the seconds that an import into a new container takes."""
    begin = time.perf_counter()
    maintenance.import_pack(path, container)
    return time.perf_counter() - begin


# Questions


def _note(figures: Figures, library: str, **answers: float) -> None:
    for question, figure in answers.items():
        figures.setdefault((question, library), []).append(figure)


def container(directory: str) -> str:
    """Return the container in a directory of ours."""
    return str(WriteOncePersistentDict("benchmark", container_dir=directory).filename)


def ask_hits(base: str, rounds: int, count: int) -> Figures:
    """Return how long a hit takes."""
    figures: Figures = {}
    order, each = random.Random(1).sample(range(count), count), count // 20
    names = list(LIBRARIES)[2:]
    for round_ in range(rounds):
        numbers = order[round_ * each : (round_ + 1) * each]
        turn = [*names[round_ % 4 :], *names[: round_ % 4]]
        turn.insert(round_ % 5, OURS)
        turn.insert(turn.index(OURS) + 1, f"{OURS} (again)")
        for kind in KEYS:
            for library in turn:
                answers = alone(hits, library, f"{base}/{library.replace(' (again)', '')} {kind}", kind, numbers)
                questions = (
                    f"a hit, {kind} keys, microseconds",
                    f"a hit, {kind} keys, microseconds with its share of opening",
                    f"opening and first hit, {kind} keys, milliseconds",
                )
                for question, figure in zip(questions, (answers[1], answers[2], answers[0]), strict=True):
                    figures.setdefault((question, library), []).append(figure)
    return figures


def ask_packing(directories: list[str]) -> Figures:
    """Return what packing takes, and what it leaves. Removing a copy takes its turn before or after it."""
    figures: Figures = {}
    for round_, path in enumerate(map(container, directories)):
        loose = on_disk(path)
        subprocess.run(["cp", "-a", f"{path}/entries", f"{path} copy"], check=True)
        os.sync()
        if round_ % 2:
            _note(figures, "rm -rf", seconds=_shell('rm -rf "$0"', f"{path} copy"))
        seconds, most, before = alone(pack, path)
        (packed, inodes), (taken, net, bare) = on_disk(path), pack_sizes(path)
        _note(
            figures,
            OURS,
            **{
                "seconds": seconds,
                "memory, MB at most": most,
                "memory, MB before": before,
                "inodes, loose": loose[1],
                "inodes, packed": inodes,
                "on disk over net bytes with footers, loose": loose[0] / net,
                "on disk over net bytes with footers, pack": taken / net,
                "on disk over net bytes without footers, loose": loose[0] / bare,
                "on disk over net bytes without footers, pack": taken / bare,
                "on disk, MB, loose": loose[0] / MB,
                "on disk, MB, packed, the whole container": packed / MB,
            },
        )
        if not round_ % 2:
            _note(figures, "rm -rf", seconds=_shell('rm -rf "$0"', f"{path} copy"))
    return figures


def ask_many(directory: str, rounds: int) -> Figures:
    """Return what a container with many packed entries takes."""
    figures: Figures = {}
    for _ in range(rounds):
        opening, first, resident = alone(first_hit, directory)
        _note(
            figures,
            OURS,
            **{
                "opening, milliseconds": opening * 1e3,
                "the first hit, milliseconds": first * 1e3,
                "memory of the open index, MB": resident,
                "opening and len(d), seconds": alone(count_many, directory),
                "opening and survey.stats, seconds": alone(stats, container(directory)),
            },
        )
    return figures


def ask_checks(stores: dict[str, str], rounds: int) -> Figures:
    """Return the MB that are checked, and read, in a second."""
    figures: Figures = {}
    for _ in range(rounds):
        for values, directory in stores.items():
            path = container(directory)
            file = packs_of(open_store(path))[0].path
            size = os.stat(file).st_size / MB
            for library, seconds in (
                (f"{OURS}, from the disk", alone(check, path, file)),
                ("cat FILE >/dev/null, from the disk", _shell('cat "$0" >/dev/null', drop(file))),
                (OURS, alone(check, path)),
                ("cat FILE >/dev/null", _shell('cat "$0" >/dev/null', file)),
                ("cat FILE, piped into cat >/dev/null", _shell('cat "$0" | cat >/dev/null', file)),
                ("a loop of reads", alone(read_all, file)),
            ):
                _note(figures, library, **{f"MB a second, {values}": size / seconds})
    return figures


def drop(path: str) -> str:
    """Let a file's pages go from the cache. Return its path."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def _shell(command: str, file: str) -> float:
    begin = time.perf_counter()
    subprocess.run(["sh", "-c", command, file], check=True)
    return time.perf_counter() - begin


def ask_moving(base: str, loose: str, packed: str, rounds: int) -> Figures:
    """Return the seconds that export and import take."""
    figures: Figures = {}
    for round_ in range(rounds):
        for which, directory in (("loose", loose), ("packed", packed)):
            path = f"{base}/{which} {round_}.pack"
            _note(figures, OURS, **{f"export of {which} entries, seconds": alone(export, container(directory), path)})
        _note(figures, OURS, **{"import, seconds": alone(import_, path, container(f"{base}/imported {round_}"))})
    return figures


def prepare(base: str, count: int, to_pack: int) -> list[str]:
    """Fill the stores, and return the directories of those to be packed. Packing comes last, since it deletes."""
    directories = [f"{base}/to pack {i}" for i in range(to_pack)]
    for directory in directories:
        alone(fill, OURS, directory, "str", count)
    for kind in KEYS:
        for library in list(LIBRARIES)[2:]:
            alone(fill, library, f"{base}/{library} {kind}", kind, count)
        path = f"{base}/{kind}.pack"  # the packed entries come from the loose ones
        alone(export, container(f"{base}/{OURS} (loose) {kind}"), path)
        alone(import_, path, container(f"{base}/{OURS} {kind}"))
    return directories


def main() -> None:
    """Print the tables."""

    def ask_in(base: str, where: str, rounds: int) -> None:
        tenth, few = (10, 1) if rounds < 5 else (1, 3)
        count, many, large = ENTRIES // tenth, MANY // tenth, LARGE // tenth
        packed, loose = f"{base}/{OURS} str", f"{base}/{OURS} (loose) str"
        to_pack = prepare(base, count, few)
        print_table(f"Hits in a new process, {count // 20:,} of {count:,}, {where}", ask_hits(base, rounds, count))
        alone(fill_many, f"{base}/many", many)
        print_table(f"{many:,} packed entries, {where}", ask_many(f"{base}/many", rounds))
        alone(fill_large, f"{base}/large", large)
        stores = {f"{count:,} values of 1,000 bytes": packed, f"{large} values of 1 MB": f"{base}/large"}
        print_table(f"Checking packed entries, {where}", ask_checks(stores, rounds))
        print_table(f"Moving {count:,} entries, {where}; rounds: {few}", ask_moving(base, loose, packed, few))
        print_table(f"Packing {count:,} entries, {where}; rounds: {few}", ask_packing(to_pack))

    run("upkeep", __doc__, ("lmdb", "pytools", "diskcache"), ask_in)


if __name__ == "__main__":
    main()
