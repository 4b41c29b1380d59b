"""Transactions: all of their entries or none, for every reader, whatever is killed, cut off or done meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from crash.explorer import Recorder, explore
from faults import CALLS, KILLED, Injector, make_old
from storms import context, run_all

from persistent_dict import (
    CacheWriteWarning,
    CollisionWarning,
    InvalidEntryError,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    PersistentDict,
    ReadOnlyEntryError,
    WriteOncePersistentDict,
    open_readonly,
    transaction,
)
from persistent_dict.inspection import open_store, verify
from persistent_dict.maintenance import export, pack, repair
from persistent_dict.stores.base import MutableStore
from persistent_dict.stores.memory import MemoryStore

ROOT = str(Path(__file__).resolve().parent.parent)
BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])


def make(kind, directory, **options):
    return kind("d", container_dir=directory, in_mem_cache_size=0, **options)


@pytest.fixture(params=["disk", "packed", "memory", "over"])
def place(request, tmp_path):
    """What a dictionary is made with; one place, however often."""
    if request.param == "memory":
        return {"store": MemoryStore()}
    options = {"container_dir": tmp_path}
    if request.param == "packed":
        d = PersistentDict("d", **options)
        d["before"] = 0
        pack(open_store(d.filename))
        del d["before"]
    elif request.param == "over":
        d = PersistentDict("d", container_dir=tmp_path / "below")
        d["below"] = "below"
        export(open_store(d.filename), str(tmp_path / "x.pack"))
        options["over"] = str(tmp_path / "x.pack")
    return options


@BOTH
def test_nothing_is_there_before_the_end_and_all_of_it_afterwards(kind, place):
    d, other = kind("d", **place), kind("d", **place)
    with transaction(d) as txn:
        txn.store("a", [1], seconds=5.0)
        txn["b"] = 2
        assert txn.store_if_not_present("c", 3)
        assert not txn.store_if_not_present("c", 4)
        assert (txn.fetch("a"), txn["b"], txn.get("c"), txn.get("x", 9)) == ([1], 2, 3, 9)
        assert "a" in txn
        assert "x" not in txn
        with pytest.raises(NoSuchEntryError):
            txn["x"]
        assert "a" not in d
        assert "a" not in other
        assert txn.result is None
    assert txn.result == (("a", "b", "c"), ())
    assert (txn.result.stored, txn.result.kept) == (("a", "b", "c"), ())
    for reader in (d, other, kind("d", **place)):
        assert [reader[key] for key in "abc"] == [[1], 2, 3]
        assert len(reader) == 3 + ("over" in place)
    assert d.cache_info().stores == 3
    assert "computed in 5 s" in d.explain("a").detail


@BOTH
def test_an_exception_leaves_nothing(kind, place):
    d = kind("d", **place)
    for broken in (lambda txn: 1 / 0, lambda txn: txn.store("b", lambda: None), lambda txn: txn.store(object(), 1)):
        with pytest.raises(Exception, match="zero|pickle|local|key"), transaction(d) as txn:
            txn["a"] = 1
            broken(txn)
        assert txn.result is None
        assert "a" not in d
    with transaction(d) as txn:
        pass
    assert txn.result == ((), ())


@BOTH
def test_a_transaction_inside_another_joins_it(kind, place):
    d = kind("d", **place)
    with transaction(d) as outer:
        outer["a"] = 1
        with transaction(d) as inner:
            inner["b"] = 2
            assert inner["a"] == 1
        assert inner.result is None
        assert outer["b"] == 2
        with pytest.raises(ZeroDivisionError), transaction(d) as failing:
            failing["c"] = 3
            1 / 0
        assert "c" not in outer
        with transaction(kind("another", store=MemoryStore())) as unrelated:
            unrelated["x"] = 1
        assert unrelated.result == (("x",), ())
        assert "b" not in d
    assert inner.result is outer.result
    assert set(outer.result.stored) == {"a", "b"}
    assert d["b"] == 2
    with pytest.raises(ZeroDivisionError), transaction(d):
        with transaction(d) as inner:
            inner["z"] = 1
        1 / 0
    assert "z" not in d


def test_a_transaction_is_used_once_and_inside_of_its_block(tmp_path):
    d = make(PersistentDict, tmp_path)
    txn = transaction(d)
    for use in (lambda: txn.store(1, 1), lambda: txn.store_if_not_present(1, 1)):
        with pytest.raises(RuntimeError, match="inside"):
            use()
    with txn:
        txn[1] = 1
    with pytest.raises(RuntimeError, match="inside"):
        txn.store(2, 2)
    failed = transaction(d)
    with pytest.raises(ZeroDivisionError), failed:
        1 / 0
    for over in (txn, failed):
        with pytest.raises(RuntimeError, match="entered once"):
            over.__enter__()
    assert txn[1] == 1


def test_equal_digests_of_unequal_keys_are_told_apart(tmp_path):
    d = PersistentDict("d", lambda key: "ab" * 20, tmp_path)
    with transaction(d) as txn:
        txn[1] = "one"
        with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
            txn[2]


def test_threads_and_tasks_have_transactions_of_their_own(tmp_path):
    d = make(PersistentDict, tmp_path)
    results = []

    def work(number):
        with transaction(d) as txn:
            for i in range(20):
                txn[number, i] = i
        results.append(txn.result)

    with transaction(d) as txn:
        txn["mine"] = 1
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert len(d) == 80
        assert "mine" not in d

    async def task(number):
        with transaction(d) as txn:
            txn["task", number] = 1
            await asyncio.sleep(0.01)
            if number % 2:
                raise ValueError

    async def tasks():
        await asyncio.gather(*map(task, range(6)), return_exceptions=True)

    asyncio.run(tasks())
    assert sorted(key for key in d if key[0] == "task") == [("task", i) for i in (0, 2, 4)]

    async def around():
        with transaction(d) as txn:
            txn["around"] = 1
            await asyncio.gather(*map(task, range(6, 9)), return_exceptions=True)
            result = await asyncio.to_thread(lambda: work(9))
            assert result is None
            assert ("task", 6) in d
            assert (9, 0) in d
            assert "around" not in d

    asyncio.run(around())
    assert "around" in d


# Those who were faster


def test_over_a_write_once_dictionary_what_was_there_first_stays(place):
    d = WriteOncePersistentDict("d", **place)
    with transaction(d) as txn:
        txn["a"] = txn["b"] = 1
        WriteOncePersistentDict("d", **place)["a"] = "first"
    assert txn.result == (("b",), ("a",))
    assert (d["a"], d["b"]) == ("first", 1)


def test_over_a_dictionary_that_is_mutable_the_transaction_wins_but_for_what_is_to_be_new(place):
    d = PersistentDict("d", **place)
    with transaction(d) as txn:
        txn["a"] = 1
        assert txn.store_if_not_present("b", 1)
        PersistentDict("d", **place)["a"] = "first"
        PersistentDict("d", **place)["b"] = "first"
    assert txn.result == (("a",), ("b",))
    assert (d["a"], d["b"]) == (1, "first")


@pytest.mark.parametrize("conflict", ["raise", "keep", "verify"])
def test_conflicts_that_are_known_are_told_at_once(conflict, tmp_path):
    d = make(WriteOncePersistentDict, tmp_path, on_conflict=conflict)
    d["there"] = 1
    with transaction(d) as txn:
        txn["mine"] = 1
        for key in ("there", "mine"):
            with contextlib.nullcontext() if conflict != "raise" else pytest.raises(ReadOnlyEntryError):
                txn[key] = 1
            with contextlib.nullcontext() if conflict == "keep" else pytest.raises(ReadOnlyEntryError):
                txn[key] = 2
    assert (d["there"], d["mine"]) == (1, 1)


def test_what_is_below_is_there(tmp_path):
    below = PersistentDict("d", container_dir=tmp_path / "below")
    below["k"] = "below"
    export(open_store(below.filename), str(tmp_path / "x.pack"))
    d = make(WriteOncePersistentDict, tmp_path, over=str(tmp_path / "x.pack"), on_conflict="keep")
    with transaction(d) as txn:
        txn["k"], txn["new"] = 1, 1
    assert txn.result == (("new",), ())
    mutable = make(PersistentDict, tmp_path, over=str(tmp_path / "x.pack"))
    with transaction(mutable) as txn:
        txn["k"] = "above"
    assert (d["k"], mutable["k"], below["k"]) == ("above", "above", "below")


@pytest.mark.parametrize("was", ["loose", "packed", "both", "shadowed", "damaged", "removed"])
def test_what_is_overwritten_is_seen_by_all_and_never_comes_back(was, tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    for i in range(6):
        d[i] = "old"
    if was != "loose":
        pack(open_store(d.filename))
    if was in ("both", "damaged"):
        d[1] = "newer"
        if was == "damaged":
            Path(d.entry_path(1), "value").write_bytes(b"")
    if was == "shadowed":
        d[5] = "old"
    if was == "removed":
        del d[1]
    reader = PersistentDict("d", container_dir=tmp_path)
    for i in (0, 2, 3, 4, 5):
        assert reader[i] == d[i] == "old"
    with transaction(d) as txn:
        for i in (0, 1, 2, "new"):
            txn[i] = "transaction"
    expected = {
        0: "transaction",
        1: "transaction",
        2: "transaction",
        3: "old",
        4: "old",
        5: "old",
        "new": "transaction",
    }
    others = [reader, d, PersistentDict("d", container_dir=tmp_path)]
    assert all(dict(other.items()) == expected and len(other) == 7 for other in others)
    d[3] = "x"  # the packs are no last word any more
    del d[4], expected[4]
    expected[3] = "x"
    assert all(dict(other.items()) == expected and len(other) == 6 for other in others)
    assert verify(open_store(d.filename)).problems == []
    pack(open_store(d.filename), everything=True)
    repair(open_store(d.filename))
    assert all(dict(other.items()) == expected for other in others)
    assert len(os.listdir(Path(d.filename, "packs"))) <= 2
    for key in list(d):
        del d[key]
    assert all(dict(other.items()) == {} for other in others)


def test_many_small_transactions_make_few_packs(tmp_path):
    d, reader = make(PersistentDict, tmp_path), make(PersistentDict, tmp_path)
    most = 0
    for i in range(200):
        with transaction(d) as txn:
            txn[i] = txn["last"] = i
        assert reader["last"] == reader[i] == i
        most = max(most, len(list(Path(d.filename, "packs").glob("*.pack"))))
    assert most <= 14
    assert dict(d.items()) == {**{i: i for i in range(200)}, "last": 199}
    assert len(d) == 201


def test_limits_hold_after_a_transaction_too(tmp_path):
    d = make(PersistentDict, tmp_path, max_entries=20)
    for number in range(10):
        with transaction(d) as txn:
            for i in range(10):
                txn[number, i] = i
    assert 10 <= len(d) <= 22


# Places


def test_a_place_that_cannot_be_written_to_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    d = make(PersistentDict, tmp_path / "file" / "deeper")
    with pytest.warns(CacheWriteWarning, match="nothing is stored"), transaction(d) as txn:
        txn["a"] = 1
    assert txn.result == ((), ())
    source = make(PersistentDict, tmp_path)
    source["k"] = 1
    export(open_store(source.filename), str(tmp_path / "x.pack"))
    with pytest.warns(CacheWriteWarning, match="only read"), transaction(open_readonly(tmp_path / "x.pack")) as txn:
        txn["a"] = 1
    assert txn.result == ((), ())


def test_caches_that_are_off_store_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    d = make(PersistentDict, tmp_path)
    with transaction(d) as txn:
        txn["a"] = 1
        assert txn["a"] == 1
    assert txn.result == ((), ())
    assert os.listdir(tmp_path) == []


def test_a_store_that_cannot_do_it_says_so():
    class Plain(MutableStore):
        def __init__(self):
            self.inner = MemoryStore()

        def __getattribute__(self, name):
            if name in ("add", "set", "get", "stat", "scan", "place", "delete"):
                return getattr(self.inner, name)
            return super().__getattribute__(name)

    d = PersistentDict("d", store=Plain())
    d["plain"] = 1
    with pytest.raises(NotImplementedError, match="Plain cannot store many entries at once"), transaction(d) as txn:
        txn["a"] = 1
    assert dict(d) == {"plain": 1}


def test_a_full_disk_leaves_nothing_of_it(small_disk):
    d = PersistentDict("d", container_dir=small_disk, in_mem_cache_size=0)
    d["before"] = 1
    with pytest.raises(OSError, match="No space left"), transaction(d) as txn:
        for i in range(20):
            txn[i] = os.urandom(1_000_000)
    assert dict(d) == {"before": 1}
    assert os.listdir(Path(d.filename, "tmp")) == []
    with transaction(d) as txn:
        txn["before"] = txn["small"] = 2
    assert dict(d) == {"before": 2, "small": 2}


@pytest.mark.parametrize("dies", [False, True])
def test_an_adder_that_saw_no_packs_yields_to_a_transaction(dies, tmp_path, monkeypatch):
    """It has looked before there were any, and would rename after the transaction has ended."""
    slow, d = make(WriteOncePersistentDict, tmp_path), make(WriteOncePersistentDict, tmp_path)
    slow["other"] = 1
    digest = slow._digest("k")[0]
    real, seen = os.rename, []

    def rename(source, target, **options):
        if not seen and str(target) == slow._store.loose.place(digest):
            seen.append(1)
            with transaction(d) as txn:
                txn["k"] = "transaction"
                txn["l"] = "transaction"
            with pytest.raises(FileNotFoundError):
                real(source, target)
            if dies:
                raise KeyboardInterrupt
        return real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    if dies:
        with pytest.raises(KeyboardInterrupt):
            slow["k"] = "slow"
    else:
        assert slow.store_if_not_present("k", "slow") is False
    assert seen
    assert not os.path.exists(slow._store.loose.place(digest))
    for reader in (slow, d, make(WriteOncePersistentDict, tmp_path)):
        assert reader["k"] == reader["l"] == "transaction"
    slow["m"] = 1
    assert slow["m"] == 1


# Accidents


def prepared(directory):
    """A dictionary with loose, packed and overwritten entries, all of the first version."""
    d = make(PersistentDict, directory)
    for i in range(6):
        d[i] = "zeroth"
    pack(open_store(d.filename))
    for i in range(4, 9):
        d[i] = "first"
    for i in range(4):
        d[i] = "first"
        if i < 2:
            pack(open_store(d.filename), everything=True)
    Path(d.entry_path(2), "value").write_bytes(b"")
    del d[4]
    return d


def what_is_in(d):
    """Return what can be read, and nothing of what is damaged."""
    found = {}
    for key in NEW:
        with contextlib.suppress(InvalidEntryError, NoSuchEntryError):
            found[key] = d[key]
    return found


OLD = {key: "first" for key in range(9) if key not in (2, 4)}  # 2 is damaged, 4 was removed
NEW = {**OLD, **dict.fromkeys((0, 2, 4, 6, 7, "a", "b"), "second")}
ACTION = """
from persistent_dict import transaction
with transaction(d) as txn:
    for key in (0, 2, 4, 6, 7, "a", "b"):
        txn[key] = "second"
"""


def check_all_or_nothing(directory, allowed, label, before=None):
    """Assert that readers see all of it or nothing, also one that was open before; after a store, repair, packing."""
    seen, changes = None, {}
    for look in range(5):
        d = make(PersistentDict, directory)
        if look == 1:
            d[8] = changes[8] = "later"  # what a pack has is no last word any more
        if look == 2:
            make_old(Path(d.filename, "tmp"))
            assert all("empty" in error.reason for error, _ in repair(open_store(d.filename)).set_aside), label
            assert os.listdir(Path(d.filename, "tmp")) == [], label
        if look == 3:
            pack(open_store(d.filename), everything=True)
        if look == 4:
            d.pop(3)
            changes[3] = None
        for reader in [d] if before is None else [before, d]:
            found = what_is_in(reader)
            expected = [{key: changes.get(key, was[key]) for key in was if changes.get(key, 1) is not None}
                        for was in allowed]  # fmt: skip
            assert found in expected, (label, look, found)
            seen = expected.index(found) if seen is None else seen
            assert expected.index(found) == seen, (label, look)
            if look > 1:
                assert dict(reader.items()) == found, (label, look)
                assert len(reader) == len(found), (label, look)
    assert verify(open_store(d.filename)).problems == [], label
    d[0] = "after"
    assert d[0] == "after"


@pytest.mark.storm
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_an_error_at_any_call_leaves_all_or_nothing(code, tmp_path, monkeypatch):
    injector = Injector(monkeypatch, tmp_path)
    for at in range(1, 1000):
        injector.start(-1, None)
        directory = tmp_path / str(at)
        d, reader = prepared(directory), make(PersistentDict, directory)
        assert what_is_in(reader) == OLD
        injector.start(at, OSError(getattr(errno, code), os.strerror(getattr(errno, code))))
        with contextlib.suppress(OSError):
            exec(ACTION, {"d": d})
        is_over = injector.count < at
        label = f"{injector.failed} at call {at}"
        injector.start(-1, None)
        check_all_or_nothing(directory, (OLD, NEW), label, reader)
        if is_over:
            assert at > 50
            return
    pytest.fail("it never came to its end")


@pytest.mark.storm
def test_a_kill_at_any_call_leaves_all_or_nothing(tmp_path):
    calls = [*(name for name in CALLS if name not in ("fstat", "lstat", "listdir", "read", "pread", "preadv", "close")),
             "pwrite", "ftruncate", "link"]  # fmt: skip
    outcomes = set()
    for at in range(1, 300):
        directory = tmp_path / str(at)
        reader = prepared(directory)
        assert what_is_in(reader) == OLD
        source = KILLED.format(root=ROOT, directory=str(directory), at=at, after=at % 2 == 0, calls=calls,
                               action=ACTION, durability="none")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        outcomes.add("second" in what_is_in(reader).values())
        check_all_or_nothing(directory, (OLD, NEW), f"call {at}", reader)
        if done.returncode == 0:
            assert at > 25
            assert outcomes == {False, True}
            return
    pytest.fail("it never came to its end")


@pytest.mark.storm
def test_a_power_cut_at_any_moment_leaves_all_or_nothing(tmp_path):
    root = tmp_path / "root"
    d = prepared(root)
    with Recorder(root) as recorder:
        exec(ACTION, {"d": d})
        recorder.mark("committed")

    def check(place, promised):
        check_all_or_nothing(place, (NEW,) if promised else (OLD, NEW), sorted(promised))

    assert explore(recorder, tmp_path, check, limit=40) > 100


KILLED_LATER = """
from persistent_dict import PersistentDict, transaction
d = PersistentDict("d", container_dir={directory!r}, in_mem_cache_size=0)
number = d["k", 0]
while True:
    number += 1
    with transaction(d) as txn:
        for i in range(10):
            txn["k", i] = number
    print(number, flush=True)
    d["loose", number % 3] = number
"""


@pytest.mark.storm
def test_a_kill_at_any_time_leaves_all_or_nothing(tmp_path):
    d = make(PersistentDict, tmp_path)
    for i in range(10):
        d["k", i] = 0
    for number in range(int(os.environ.get("PERSISTENT_DICT_KILLS", "500"))):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_LATER.format(directory=str(tmp_path))],
            env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        last = int(process.stdout.readline())
        time.sleep(number % 20 * 0.0011)
        process.kill()
        last = max(
            [last, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n"))]
        )
        process.wait()
        process.stdout.close()
        for reader in (d, make(PersistentDict, tmp_path)):
            found = [reader["k", i] for i in range(10)]
            assert len(set(found)) == 1, found
            assert last <= found[0] <= last + 1
    assert len(d) <= 13
    assert repair(open_store(d.filename)).set_aside == []


# All at once, by processes


def race_reader(directory, stop, told, strict):
    reads = 0
    while not stop.is_set():
        d = make(PersistentDict, directory)
        for _ in range(50):
            found = [d.get(("k", i)) for i in range(10)]
            versions = [version for version in found if version is not None]
            assert versions == sorted(versions), f"older after newer: {found}"  # all change at once
            assert not strict or len(versions) == 10, found
            reads += 1
    told.put(reads)


def race_writer(directory, stop, told, turn, version):
    d = make(PersistentDict, directory)
    count = 0
    while not stop.is_set():
        with turn:  # versions shall grow; the transactions of two processes would end in any order
            version.value += 1
            with transaction(d) as txn:
                for i in range(10):
                    txn["k", i] = version.value
        d["loose", count % 5] = count
        d.pop(("loose", (count + 1) % 5), None)
        count += 1
    told.put(count)


def race_single(directory, stop, told, turn, version):
    d = make(PersistentDict, directory)
    count = 0
    while not stop.is_set():
        with turn:
            version.value += 1
            for i in reversed(range(10)):
                d["k", i] = version.value
        time.sleep(0.02)
        count += 1
    told.put(count)


def race_upkeep(directory, stop, told, what):
    store = open_store(make(PersistentDict, directory).filename)
    rounds = 0
    while not stop.is_set():
        if what == "clear":
            make(PersistentDict, directory).clear()
            time.sleep(0.05)
        else:
            pack(store, everything=rounds % 3 == 0)
            assert verify(store).problems == []
        rounds += 1
    told.put(rounds)


@pytest.mark.storm
@pytest.mark.parametrize("what", ["pack", "clear"])
def test_transactions_race_stores_readers_and_upkeep(what, tmp_path):
    d = make(PersistentDict, tmp_path)
    for i in range(10):
        d["k", i] = 0
    turn, version = context.Lock(), context.Value("q", 0)
    run_all(tmp_path, [
        *[(race_reader, what == "pack")] * 2,
        *[(race_writer, turn, version)] * 2,
        (race_single, turn, version),
        (race_upkeep, what),
    ])  # fmt: skip
    if what == "pack":
        assert {d["k", i] for i in range(10)} == {version.value}
    assert verify(open_store(d.filename)).problems == []
