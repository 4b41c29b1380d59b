"""Many processes and threads over one container: every read right or a miss, one winner, nothing half."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from persistent_dict import InvalidEntryError, NoSuchEntryError, PersistentDict, WriteOncePersistentDict
from persistent_dict.maintenance import open_store, repair
from persistent_dict.testing import in_threads

STORM_SECONDS = float(os.environ.get("PERSISTENT_DICT_STORM_SECONDS", "3"))
KEYS = 60


def value_of(key, writer=0):
    """A value that tells who wrote it, of a length that depends on the key."""
    return (key, writer, b"%d;" % key * (1 + key * 7919 % 3000))


def is_right(key, value):
    return value[0] == key and value[2] == b"%d;" % key * (1 + key * 7919 % 3000)


def make(kind, directory):
    return kind("d", container_dir=directory, in_mem_cache_size=0)


def run(method, work, count, *args):
    """Run ``work(number, *args, results)`` in processes at the same time, and return what they put."""
    context = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [context.Process(target=work, args=(number, *args, results)) for number in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return found


def store_all(number, directory, results):
    """Store every key, in an order of one's own, and read others' meanwhile. Report the wins and the wrong reads."""
    d = make(WriteOncePersistentDict, directory)
    keys = random.Random(number).sample(range(KEYS), KEYS)
    won, wrong = [], 0
    for key in keys:
        if d.store_if_not_present(key, value_of(key, number)):
            won.append(key)
        wrong += not is_right(key, d[key])
        other = random.Random(key * 99 + number).randrange(KEYS)
        seen = d.get(other)
        wrong += seen is not None and not is_right(other, seen)
    results.put((number, won, wrong))


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_of_many_processes_one_wins_each_key_and_every_read_is_right(method, count, tmp_path):
    reports = run(method, store_all, count, str(tmp_path))
    assert sum(wrong for _, _, wrong in reports) == 0
    won = [key for _, keys, _ in reports for key in keys]
    assert sorted(won) == list(range(KEYS))
    d = make(WriteOncePersistentDict, tmp_path)
    for number, keys, _ in reports:
        assert all(d[key][1] == number for key in keys)


def store_own(number, directory, results):
    d = make(PersistentDict, directory)
    for i in range(KEYS):
        d[(number, i)] = value_of(i, number)
    results.put(all(d[(number, i)] == value_of(i, number) for i in range(KEYS)))


@pytest.mark.parametrize("count", [2, 8])
def test_processes_with_keys_of_their_own_do_not_disturb_each_other(count, tmp_path):
    assert all(run("spawn", store_own, count, str(tmp_path)))
    assert len(make(PersistentDict, tmp_path)) == count * KEYS


def test_nobody_sees_an_empty_or_half_directory(tmp_path):
    d = make(WriteOncePersistentDict, tmp_path)
    d["first"] = 1
    stop = threading.Event()
    half = []

    def watch():
        while not stop.is_set():
            entries = Path(d.filename, "entries").glob("*/*")
            half.extend(entry for entry in entries if sorted(os.listdir(entry)) != ["key", "value"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run("fork", store_all, 3, str(tmp_path))
    finally:
        stop.set()
        watcher.join()
    assert not half


@pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])
def test_threads_over_one_object(kind, tmp_path):
    d = kind("d", container_dir=tmp_path, in_mem_cache_size=16)
    wins = []

    def work(number):
        for key in random.Random(number).sample(range(KEYS), KEYS):
            if d.store_if_not_present(key, value_of(key, number)):
                wins.append(key)
            assert is_right(key, d[key])

    in_threads(work)
    assert sorted(wins) == list(range(KEYS))


def test_setdefault_gives_all_the_same(tmp_path):
    d = make(WriteOncePersistentDict, tmp_path)
    seen = {}

    def work(number):
        seen[number] = [d.setdefault(key, value_of(key, number)) for key in range(KEYS)]

    in_threads(work)
    assert all(seen[number] == seen[0] for number in seen)


def overwrite(number, directory, results):
    d = make(PersistentDict, directory)
    for i in range(300):
        d[i % 3] = value_of(i % 3, number * 1000 + i)
    results.put(0)


def test_readers_of_overwritten_keys_always_see_a_value(tmp_path):
    d = make(PersistentDict, tmp_path)
    for key in range(3):
        d[key] = value_of(key)
    stop = threading.Event()
    failures = []

    def read():
        while not stop.is_set():
            for key in range(3):
                try:
                    if not is_right(key, d[key]):
                        failures.append("wrong")
                except (NoSuchEntryError, InvalidEntryError) as error:
                    failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        run("fork", overwrite, 3, str(tmp_path))
    finally:
        stop.set()
        reader.join()
    assert not failures


def churn(number, directory, results):
    """Store, overwrite, remove, clear, set aside, and read; report wrong reads and unexpected errors."""
    chance = random.Random(number)
    d = make(PersistentDict, directory)
    wrong = []
    for i in range(400):
        key = chance.randrange(12)
        action = chance.choice(["store", "add", "remove", "read", "read", "iterate", "clear", "quarantine"])
        try:
            if action == "store":
                d[key] = value_of(key, i)
            elif action == "add":
                d.store_if_not_present(key, value_of(key, i))
            elif action == "remove":
                d.remove(key)
            elif action == "quarantine":
                d._store.quarantine(d.key_builder(key), unloadable=True)
            elif action == "clear" and chance.random() < 0.2:
                d.clear()
            elif action == "iterate":
                wrong += [k for k, v in d.items() if not is_right(k, v)]
            else:
                value = d.get(key)
                if value is not None and not is_right(key, value):
                    wrong.append(key)
        except NoSuchEntryError:
            pass
        except Exception as error:  # reported, and asserted on
            wrong.append(f"{action}: {error!r}")
    results.put(wrong)


@pytest.mark.parametrize("round_", range(3))
def test_writers_race_clear_remove_and_quarantine(round_, tmp_path):
    assert run("fork", churn, 4, str(tmp_path)) == [[]] * 4
    report = repair(open_store(make(PersistentDict, tmp_path).filename))
    assert report.set_aside == []


def test_a_fork_while_another_thread_stores_does_not_disturb_either(tmp_path):
    d = make(PersistentDict, tmp_path)
    d[0] = value_of(0)
    stop = threading.Event()

    def store():
        i = 0
        while not stop.is_set():
            i += 1
            d[i % 20] = value_of(i % 20, i)

    writer = threading.Thread(target=store)
    writer.start()
    try:
        for child in range(15):
            pid = os.fork()
            if not pid:
                code = 1
                with contextlib.suppress(BaseException):
                    d[("child", child)] = value_of(child)
                    code = 0 if is_right(0, d[0]) and is_right(child, d[("child", child)]) else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        writer.join()
    assert all(is_right(child, d[("child", child)]) for child in range(15))


@pytest.mark.parametrize("size", [2_000_000])
def test_large_values_are_written_under_a_lock_that_is_taken_away_after(size, tmp_path):
    d = make(WriteOncePersistentDict, tmp_path)
    won = []

    def work(number):
        if d.store_if_not_present("large", b"%d" % number * size):
            won.append(number)

    in_threads(work, 4)
    assert len(won) == 1
    assert d["large"] == b"%d" % won[0] * size
    assert os.listdir(os.path.join(d.filename, "locks")) == []


def test_a_lock_that_cannot_be_made_does_not_keep_from_storing(tmp_path):
    d = make(WriteOncePersistentDict, tmp_path)
    d["small"] = 1
    Path(d.filename, "locks").touch()  # a file where the directory belongs
    d["large"] = b"x" * 2_000_000
    assert d["large"] == b"x" * 2_000_000


def storm_writer(number, directory, results):
    chance = random.Random(number)
    d = make(PersistentDict, directory)
    while True:
        key = chance.randrange(100)
        action = chance.random()
        if action < 0.5:
            d.store_if_not_present(key, value_of(key, number))
        elif action < 0.8:
            d[key] = value_of(key, number)
        else:
            with contextlib.suppress(NoSuchEntryError):
                d.remove(key)


@pytest.mark.storm
def test_a_storm_of_kills_leaves_every_entry_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    d = make(PersistentDict, tmp_path)
    chance = random.Random(7)
    kills = reads = 0
    running: dict[multiprocessing.Process, float] = {}
    end = time.monotonic() + STORM_SECONDS
    number = 0
    try:
        while time.monotonic() < end:
            while len(running) < 4:
                number += 1
                process = context.Process(target=storm_writer, args=(number, str(tmp_path), None))
                process.start()
                running[process] = time.monotonic() + chance.expovariate(1 / 0.03)
            for process, when in list(running.items()):
                if time.monotonic() >= when:
                    process.kill()
                    process.join()
                    assert process.exitcode == -signal.SIGKILL
                    kills += 1
                    del running[process]
            key = chance.randrange(100)
            value = d.get(key)
            reads += 1
            assert value is None or is_right(key, value)
    finally:
        for process in running:
            process.kill()
            process.join()
    assert kills > 5
    assert reads > 100
    assert all(is_right(key, value) for key, value in d.items())
    staging = Path(d.filename, "tmp")
    for path in staging.rglob("*"):
        os.utime(path, (0, 0))
    report = repair(open_store(d.filename))
    assert report.set_aside == []
    assert os.listdir(staging) == []
    print(f"{kills} kills, {reads} reads, 0 wrong, 0 invalid, {report.swept} left-overs swept")
