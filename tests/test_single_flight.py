"""One computes, the others wait: over threads and processes, whoever fails, dies or cannot store."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from pathlib import Path

import pytest

from persistent_dict import (
    CacheWriteWarning,
    InvalidEntryError,
    PersistentDict,
    RecursiveComputationError,
    WriteOncePersistentDict,
    _fs,
)
from persistent_dict.maintenance import open_store, repair
from persistent_dict.stores.memory import MemoryStore
from persistent_dict.testing import in_threads

KINDS = [WriteOncePersistentDict, PersistentDict]
ROUNDS = 200


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def d(kind, tmp_path):
    return kind("d", container_dir=tmp_path)


class Counted:
    """A computation that counts how often it was called, in a file, over all processes."""

    def __init__(self, path, seconds=0.0):
        self.path = path
        self.seconds = seconds

    def __call__(self, value):
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{value}\n".encode())
        os.close(fd)
        time.sleep(self.seconds)
        return ("value", value)

    @property
    def calls(self):
        return Path(self.path).read_text().split()


def in_processes(work, count, *args):
    """Run ``work(number, *args)`` in forked processes at the same time; their exit codes are all 0."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(number, *args)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count


# The answer


def test_what_is_missing_is_computed_and_stored(d):
    calls = []
    for _ in range(3):
        assert d.get_or_compute(("a", 1), lambda: calls.append(1) or "value") == "value"
    assert len(calls) == 1
    assert d["a", 1] == "value"


def test_none_is_a_value(d):
    assert d.get_or_compute("k", lambda: None) is None
    assert d.get_or_compute("k", lambda: pytest.fail("computed again")) is None


def test_the_outcome_says_how_it_came_about(d):
    computed = d.resolve("k", lambda: time.sleep(0.02) or 5)
    assert (computed.value, computed.how) == (5, "computed")
    assert computed.seconds >= 0.02
    for _ in range(2):  # from the store, from memory
        found = d.resolve("k", lambda: 6)
        assert found == (5, "found", computed.seconds)


def test_the_seconds_are_in_the_footer(d):
    d.get_or_compute("k", lambda: time.sleep(0.02))
    part = d._store.get_value(d.key_builder("k"))
    assert part.seconds >= 0.02


def test_what_took_less_than_min_seconds_is_not_stored(d):
    assert d.get_or_compute("k", lambda: 1, min_seconds=5) == 1
    assert "k" not in d
    assert d.get_or_compute("k", lambda: time.sleep(0.02) or 2, min_seconds=0.01) == 2
    assert d["k"] == 2


@pytest.mark.parametrize(
    "error", [ValueError("v"), KeyError("k"), StopIteration("s"), KeyboardInterrupt(), SystemExit(3)]
)
def test_what_compute_raises_is_raised_and_nothing_is_stored(error, d):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        d.get_or_compute("k", fail)
    assert caught.value is error
    assert caught.value.__context__ is None
    assert d.get_or_compute("k", lambda: 7) == 7


def test_an_invalid_entry_is_an_error_or_is_computed_anew(kind, tmp_path):
    d = kind("d", container_dir=tmp_path, in_mem_cache_size=0)
    d["k"] = 1
    Path(d.entry_path("k"), "value").write_bytes(b"")
    with pytest.raises(InvalidEntryError):
        d.get_or_compute("k", lambda: 2)
    d = kind("d", container_dir=tmp_path, on_invalid="quarantine")
    with pytest.warns(match="moved to"):
        assert d.get_or_compute("k", lambda: 2) == 2
    assert d["k"] == 2


def test_a_key_that_cannot_be_stored_is_known_before_anything_is_computed(tmp_path):
    class Unpicklable:
        def update_persistent_hash(self, key_hash, key_builder):
            key_builder.rec(key_hash, "u")

        def __reduce__(self):
            raise TypeError("not to be pickled")

    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    with pytest.raises(TypeError, match="not to be pickled"):
        d.get_or_compute(Unpicklable(), lambda: pytest.fail("computed"))


def test_disabled_computes_and_touches_nothing(d, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    assert [d.get_or_compute("k", lambda: i) for i in range(2)] == [0, 1]
    assert os.listdir(tmp_path) == []


def test_the_winner_of_a_race_without_lock_is_what_all_return(d):
    def compute():
        d.store("k", "somebody else's")
        return "ours"

    assert d.get_or_compute("k", compute) == "somebody else's"


def test_no_lock_file_is_left(d):
    for i in range(20):
        d.get_or_compute(i, lambda i=i: i)
    assert os.listdir(Path(d.filename, "locks")) == []


def test_a_hit_takes_no_lock(d, monkeypatch):
    d["k"] = 1
    monkeypatch.setattr(_fs.DigestLock, "acquire", lambda *_: pytest.fail("locked"))
    assert d.get_or_compute("k", lambda: 2) == 1


# Threads


@pytest.mark.parametrize("size", [0, 256])
def test_of_64_threads_one_computes(size, kind, tmp_path):
    d = kind("d", container_dir=tmp_path, in_mem_cache_size=size)
    counted = Counted(tmp_path / "calls", 0.1)
    seen = []
    in_threads(lambda _: seen.append(d.resolve("k", lambda: counted(1))), 64)
    assert counted.calls == ["1"]
    assert {outcome.value for outcome in seen} == {("value", 1)}
    assert min(outcome.how for outcome in seen) == "computed"
    assert d.cache_info().waits >= 1


def test_two_objects_over_one_container_compute_once(kind, tmp_path):
    dictionaries = [kind("d", container_dir=tmp_path) for _ in range(8)]
    counted = Counted(tmp_path / "calls", 0.05)
    in_threads(lambda i: dictionaries[i].get_or_compute("k", lambda: counted(1)), 8)
    assert counted.calls == ["1"]


def test_two_stores_in_memory_have_nothing_to_do_with_each_other():
    dictionaries = [PersistentDict("d", store=MemoryStore()) for _ in range(2)]
    start, seen = threading.Barrier(2), {}

    def work(i):
        def compute():
            start.wait(10)  # both compute at the same time
            return i

        seen[i] = dictionaries[i].get_or_compute("k", compute)

    in_threads(work, 2)
    assert seen == {0: 0, 1: 1}


def test_different_keys_do_not_wait_for_each_other(d):
    all_compute = threading.Barrier(16)
    in_threads(lambda i: d.get_or_compute(("key", i), lambda: all_compute.wait(20)), 16)
    assert len(d) == 16


def test_a_holders_exception_goes_to_its_caller_alone_and_the_next_computes(d):
    begun, fail = threading.Event(), threading.Event()
    results = []

    def failing():
        begun.set()
        fail.wait(10)
        raise ValueError("the holder's own")

    def hold():
        with pytest.raises(ValueError, match="own"):
            d.get_or_compute("k", failing)

    def wait():
        begun.wait(10)
        results.append(d.get_or_compute("k", lambda: results.append("computed") or 5))

    threads = [threading.Thread(target=hold), *(threading.Thread(target=wait) for _ in range(5))]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    fail.set()
    for thread in threads:
        thread.join(10)
    assert sorted(map(str, results)) == ["5"] * 5 + ["computed"]


def test_threads_share_what_was_not_stored(d):
    calls = []
    in_threads(lambda _: d.get_or_compute("k", lambda: calls.append(1) or time.sleep(0.2) or 3, min_seconds=60), 8)
    assert len(calls) == 1
    assert "k" not in d


def test_a_waiter_goes_on_when_somebody_stores_the_entry(d):
    begun, end = threading.Event(), threading.Event()
    holder = threading.Thread(target=lambda: d.get_or_compute("k", lambda: begun.set() or (end.wait(20) and "late")))
    holder.start()
    begun.wait(10)
    threading.Timer(0.1, lambda: d.store("k", "stored")).start()
    assert d.get_or_compute("k", lambda: "not needed") == "stored"
    assert holder.is_alive()
    end.set()
    holder.join()
    assert d["k"] == "stored"


# Nested


def test_nested_and_recursive_calls_on_different_keys_work(d):
    def fibonacci(n):
        return (
            n
            if n < 2
            else d.get_or_compute(n - 1, lambda: fibonacci(n - 1)) + d.get_or_compute(n - 2, lambda: fibonacci(n - 2))
        )

    assert d.get_or_compute(40, lambda: fibonacci(40)) == 102334155
    assert len(d) == 41


def test_the_same_key_within_one_thread_is_an_error(kind, d, tmp_path):
    again = kind("d", container_dir=tmp_path)
    for inner in (d, again):
        with pytest.raises(RecursiveComputationError, match=r"\('a', 1\).*wait for itself"):
            d.get_or_compute(("a", 1), lambda inner=inner: inner.get_or_compute(("a", 1), lambda: 1))
    assert d.get_or_compute(("a", 1), lambda: 2) == 2


def test_the_same_key_may_be_asked_for_again_later(d):
    """What is computing is told by the context, which a thread keeps."""
    d.get_or_compute("k", lambda: 1, min_seconds=60)
    assert d.get_or_compute("k", lambda: 2) == 2


# Processes


def ask_in_rounds(number, directory, rounds, start):
    d = WriteOncePersistentDict("d", container_dir=directory, in_mem_cache_size=0)
    counted = Counted(f"{directory}/calls", 0.005)
    for i in range(rounds):
        start.wait(120)
        assert d.get_or_compute(("round", i), lambda i=i: counted(i)) == ("value", i)


@pytest.mark.parametrize("count", [8, 32])
def test_of_many_processes_one_computes(count, tmp_path):
    start = multiprocessing.get_context("fork").Barrier(count)
    in_processes(ask_in_rounds, count, str(tmp_path), ROUNDS, start)
    assert Counted(tmp_path / "calls").calls == [str(i) for i in range(ROUNDS)]
    assert os.listdir(tmp_path / f"d.{sys.implementation.cache_tag}" / "locks") == []


def ask_for_all(number, directory, keys, start):
    d = PersistentDict("d", container_dir=directory)
    counted = Counted(f"{directory}/calls", 0.001)
    start.wait(60)
    for key in random.Random(number).sample(range(keys), keys):
        assert d.get_or_compute(key, lambda key=key: counted(key)) == ("value", key)


def test_a_cold_start_computes_each_key_once(tmp_path):
    start = multiprocessing.get_context("fork").Barrier(8)
    in_processes(ask_for_all, 8, str(tmp_path), 500, start)
    assert sorted(map(int, Counted(tmp_path / "calls").calls)) == list(range(500))


COMPUTING = 0.03  # seconds


def ask_and_report(directory, round_, report):
    """Ask for the round's key, saying who computes; write the time at which the value was there."""

    def compute():
        Path(f"{directory}/holder.{round_}.{os.getpid()}").touch()
        time.sleep(COMPUTING)
        return ("value", round_)

    try:
        value = PersistentDict("d", container_dir=directory, in_mem_cache_size=0).get_or_compute(round_, compute)
        os.write(report, b"%d %d\n" % (time.monotonic_ns(), value == ("value", round_)))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def test_when_the_holder_is_killed_the_others_go_on_within_a_second(tmp_path):
    PersistentDict("d", container_dir=tmp_path)["made"] = True
    rng = random.Random(3)
    late, killed = [], 0
    for round_ in range(ROUNDS):
        read, write = os.pipe()
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                ask_and_report(str(tmp_path), round_, write)
            children.append(child)
        os.close(write)
        give_up = time.monotonic() + 30
        while not (holders := list(tmp_path.glob(f"holder.{round_}.*"))) and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(rng.random() * COMPUTING * 1.3)
        holder = int(holders[0].name.rpartition(".")[2])
        os.kill(holder, signal.SIGKILL)
        when = time.monotonic_ns()
        codes = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        with open(read) as file:
            reports = [line.split() for line in file.read().splitlines()]
        assert set(codes.values()) <= {0, -signal.SIGKILL}
        killed += codes[holder] == -signal.SIGKILL
        assert len(reports) >= 2
        assert all(right == "1" for _, right in reports)
        late += [(int(at) - when) / 1e9 - COMPUTING for at, _ in reports]
    assert killed > ROUNDS / 4
    assert max(late) < 1.0
    assert len(PersistentDict("d", container_dir=tmp_path)) == ROUNDS + 1
    locks = Path(PersistentDict("d", container_dir=tmp_path).filename, "locks")
    assert len(os.listdir(locks)) <= killed
    repair(open_store(str(locks.parent)))
    assert os.listdir(locks) == []


def hold(directory, ready, seconds):
    d = PersistentDict("d", container_dir=directory)
    d.get_or_compute("k", lambda: ready.set() or time.sleep(seconds) or "holder's")


@pytest.fixture
def holder(tmp_path):
    """Another process that computes the value of "k" for 20 seconds."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready, 20))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_after_the_timeout_it_is_computed_here_too_and_the_holder_named_once(holder, tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    with pytest.warns(
        CacheWriteWarning, match=rf"process {holder.pid} on {re.escape(os.uname().nodename)}.*'k'"
    ) as caught:
        for _ in range(2):
            begin = time.monotonic()
            assert d.get_or_compute("k", lambda: "ours", timeout=0.2, min_seconds=60) == "ours"
            assert time.monotonic() - begin < 5
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert holder.is_alive()


def test_a_timeout_of_zero_does_not_wait(holder, tmp_path):
    begin = time.monotonic()
    assert PersistentDict("d", container_dir=tmp_path).get_or_compute("k", lambda: "ours", timeout=0) == "ours"
    assert time.monotonic() - begin < 5


def test_threads_behind_another_process_wait_too(holder, tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    calls = []
    threading.Timer(0.3, holder.kill).start()
    in_threads(lambda _: d.get_or_compute("k", lambda: calls.append(1) or "ours", timeout=None), 8)
    assert len(calls) == 1


def test_a_thread_that_computes_is_named_too(d):
    begun, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: d.get_or_compute("k", lambda: begun.set() or end.wait(20)))
    thread.start()
    begun.wait(10)
    with pytest.warns(CacheWriteWarning, match="another thread of this process"):
        d.get_or_compute("k", lambda: 1, timeout=0.1)
    end.set()
    thread.join()


def test_a_signal_that_strikes_while_the_turn_is_left_lets_others_compute(d, monkeypatch):
    release = _fs.DigestLock.release

    def interrupted(lock):
        release(lock)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_fs.DigestLock, "release", interrupted)
        with pytest.raises(KeyboardInterrupt):
            d.get_or_compute("k", lambda: 1, min_seconds=60)
    begin = time.monotonic()
    assert d.get_or_compute("k", lambda: 2, timeout=20) == 2
    assert time.monotonic() - begin < 5


def test_a_computation_that_closes_all_descriptors_loses_no_value(tmp_path):
    script = f"""
        import os
        from persistent_dict import PersistentDict
        d = PersistentDict("d", container_dir={str(tmp_path)!r})
        assert d.get_or_compute("k", lambda: os.closerange(3, 200) or 5) == 5
        assert d["k"] == 5
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_what_was_not_stored_is_handed_over_however_late_the_waiter_looks(d, monkeypatch):
    from persistent_dict._single_flight import Turn

    begun, calls = threading.Event(), []
    holder = threading.Thread(
        target=lambda: d.get_or_compute(
            "k", lambda: begun.set() or time.sleep(0.2) or calls.append(1) or 1, min_seconds=60
        )
    )
    holder.start()
    begun.wait(10)
    take = Turn.take

    def late(turn):
        taken = take(turn)
        if not taken:
            holder.join()  # it has ended before the next look
            monkeypatch.setattr(Turn, "take", take)
        return taken

    monkeypatch.setattr(Turn, "take", late)
    assert d.get_or_compute("k", lambda: calls.append(2) or 2, min_seconds=60) == 1
    assert calls == [1]


@pytest.mark.parametrize("limits", [{"timeout": "1"}, {"min_seconds": "1"}, {"min_seconds": None}])
def test_limits_that_are_no_numbers_are_errors_before_anything_is_computed(limits, d):
    with pytest.raises(TypeError, match="is a number of seconds, not"):
        d.get_or_compute("k", lambda: pytest.fail("computed"), **limits)


def test_an_error_that_cannot_be_shown_hides_no_value(d):
    class Silent(Exception):
        def __str__(self):
            raise ValueError("no text")

    class Value:
        def __reduce__(self):
            raise Silent

    with pytest.warns(CacheWriteWarning, match="fails with Silent: "):
        assert isinstance(d.get_or_compute("k", Value), Value)


# fork


def test_fork_while_another_thread_computes_does_not_hang_the_child(d):
    begun, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: d.get_or_compute("k", lambda: begun.set() or (end.wait(30) and "late")))
    thread.start()
    begun.wait(10)
    child = os.fork()
    if not child:
        try:
            signal.alarm(20)
            warnings.simplefilter("ignore")
            other = d.get_or_compute("other", lambda: 1)
            same = d.get_or_compute("k", lambda: "child's", timeout=0.2)
            os._exit(0 if (other, same) == (1, "child's") else 1)
        except BaseException:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end.set()
    thread.join()
    assert code == 0
    assert d["k"] == "child's"


def test_what_another_thread_computed_during_a_fork_is_not_under_way_in_the_child():
    d = PersistentDict("d", store=MemoryStore())  # which has no locks: nothing but the table of this process counts
    begun, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: d.get_or_compute("k", lambda: begun.set() or end.wait(30)))
    thread.start()
    begun.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(d.get_or_compute("k", lambda: 7, timeout=None))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end.set()
    thread.join()
    assert code == 7


def test_a_child_that_computing_forked_does_not_keep_the_lock_of_a_dead_holder(tmp_path):
    """The lock belongs to the open file, which a child has, too."""
    script = textwrap.dedent(
        f"""
        import os, sys, time
        from persistent_dict import PersistentDict

        def compute():
            if not os.fork():
                time.sleep(30)
                os._exit(0)
            print("computing", flush=True)
            time.sleep(30)

        PersistentDict("d", container_dir={str(tmp_path)!r}).get_or_compute("k", compute)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"computing\n"
        process.kill()
        begin = time.monotonic()
        assert PersistentDict("d", container_dir=tmp_path).get_or_compute("k", lambda: "ours", timeout=20) == "ours"
        assert time.monotonic() - begin < 5
        os.killpg(process.pid, signal.SIGKILL)  # the grandchild


# Places that do not work


def test_without_locks_in_the_file_system_everybody_computes(d, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert d.get_or_compute("k", lambda: 1) == 1
    assert d["k"] == 1


def test_a_lock_directory_that_cannot_be_used_costs_the_lock_alone(d):
    d["made"] = True
    Path(d.filename, "locks").touch()
    assert d.get_or_compute("k", lambda: 1) == 1
    assert d["k"] == 1


def test_a_lock_directory_that_vanishes_costs_the_lock_alone(d):
    def compute():
        for path in Path(d.filename, "locks").iterdir():
            path.unlink()
        Path(d.filename, "locks").rmdir()
        return 1

    assert d.get_or_compute("k", compute) == 1
    assert d["k"] == 1
    assert d.get_or_compute("other", lambda: 2) == 2


def test_a_read_only_place_returns_what_was_computed_with_one_warning(kind, tmp_path):
    (tmp_path / "file").touch()
    d = kind("d", container_dir=tmp_path / "file" / "below")
    with pytest.warns(CacheWriteWarning, match="nothing is stored") as caught:
        assert [d.get_or_compute(i, lambda i=i: i) for i in range(5)] == list(range(5))
    assert len(caught) == 1


@pytest.mark.parametrize("durability", ["none", "durable"])
def test_a_full_disk_returns_what_was_computed_with_one_warning(durability, kind, tmp_path, monkeypatch):
    d = kind("d", container_dir=tmp_path, durability=durability)
    d["made"] = True

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_fs, "write_file", full)
    with pytest.warns(CacheWriteWarning, match=r"'k'|0.*cannot be stored in .*No space left") as caught:
        assert [d.get_or_compute(i, lambda i=i: i) for i in range(5)] == list(range(5))
    assert len(caught) == 1
    assert len(d) == 1


def test_a_value_that_cannot_be_encoded_is_returned_with_one_warning(d):
    with pytest.warns(
        CacheWriteWarning, match="computed, but cannot be stored: encoding it as pickle fails with"
    ) as caught:
        values = [d.get_or_compute(i, lambda: lambda: 5) for i in range(3)]
    assert [value() for value in values] == [5, 5, 5]
    assert len(caught) == 1


def test_a_real_full_disk_loses_no_value(kind, tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        d = kind("d", container_dir=mount, in_mem_cache_size=0)
        with pytest.warns(CacheWriteWarning, match="No space left"):
            for i in range(30):
                assert d.get_or_compute(i, lambda i=i: b"%d" % i * 50_000) == b"%d" % i * 50_000
        for key, value in d.items():
            assert value == b"%d" % key * 50_000
        assert len(d) < 30
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
