"""Stats, listing, verifying, repairing, pruning: right figures, nothing run, nothing lost that should stay."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from storms import context, run_all

import persistent_dict
from persistent_dict import (
    InvalidEntryError,
    InvalidKeyFileError,
    InvalidValueFileError,
    PersistentDict,
    WriteOncePersistentDict,
    memoize,
    open_readonly,
)
from persistent_dict.inspection import describe, entries, find_digest, open_store, verify
from persistent_dict.maintenance import clear, export, import_pack, pack, prune, remove, repair
from persistent_dict.stores.limits import Limits
from persistent_dict.survey import stats

HOUR = 3600.0


def make(directory, **options):
    return PersistentDict("d", container_dir=directory, in_mem_cache_size=0, **options)


def used(d, key, seconds_ago):
    """Let an entry have been used some time ago, and not since."""
    then = time.time() - seconds_ago
    os.utime(Path(d.entry_path(key), "value"), (then, then))


class Evil:
    """Leaves a trace when it is unpickled."""

    trace = ""

    def __reduce__(self):
        return (os.mkdir, (self.trace,))


# Stats


@pytest.mark.parametrize("packed", [False, True, "half"])
def test_stats_are_exact(packed, tmp_path):
    d = make(tmp_path)
    for i in range(40):
        d.store(("k", i), b"x" * (100 if i % 2 else 30_000), seconds=float(i))
        if i == 19 and packed == "half":
            pack(open_store(d.filename))
    d.store(("k", 3), b"x" * 100, seconds=3.0)  # overwritten in the pack, or not
    if packed is True:
        pack(open_store(d.filename))
    found = stats(open_store(d.filename))
    assert (found.identifier, found.format, found.entries) == ("d", "pickle", 40)
    assert found.loose == {False: 40, True: 0, "half": 21}[packed]
    assert found.packed == 40 - found.loose
    assert found.nbytes == d.nbytes() == sum(facts.nbytes for facts in entries(open_store(d.filename)))
    assert found.seconds == sum(range(40))
    assert found.ages["within an hour"] == 40
    assert found.sizes == {"under 1 KiB": 20, "under 16 KiB": 0, "under 256 KiB": 20, "under 4 MiB": 0,
                           "under 64 MiB": 0, "larger": 0}  # fmt: skip
    assert time.time() - 60 < found.oldest <= found.newest <= time.time()
    on_disk = sum(path.lstat().st_blocks * 512 for path in Path(d.filename).rglob("*") if path.is_file())
    assert found.nbytes <= found.disk_bytes
    assert abs(found.disk_bytes - on_disk) < 0.35 * on_disk + 4096 * found.loose
    files = [path for part in ("entries", "packs") for path in Path(d.filename, part).rglob("*")]
    assert found.inodes == len([path for path in files if path.suffix != ".used"])


def test_stats_tell_which_functions_fill_the_cache(tmp_path):
    cache = PersistentDict("calls", container_dir=tmp_path)

    @memoize(cache, code=None)
    def small(i):
        return i

    @memoize(cache, code=None)
    def large(i, kind="x"):
        return kind * 5000

    for i in range(10):
        small(i)
        large(i)
    cache["plain"] = "x"
    for _ in range(2):
        found = stats(open_store(cache.filename))
        assert [(f.name.rpartition(".")[2], f.entries) for f in found.functions] == [("large", 10), ("small", 10)]
        assert found.functions[0].nbytes > 50_000
        assert found.sampled == found.entries == 21
        pack(open_store(cache.filename))


def test_functions_are_counted_beside_what_was_removed(tmp_path):
    cache = PersistentDict("calls", container_dir=tmp_path)

    @memoize(cache, code=None)
    def large(i):
        return "x" * 60_000

    for i in range(100):
        large(i)
    pack(open_store(cache.filename))
    for key in list(cache)[:20]:
        del cache[key]
    found = stats(open_store(cache.filename))
    assert (found.entries, found.sampled, found.functions[0].entries) == (80, 80, 80)
    assert found.functions[0].nbytes == found.nbytes
    assert repair(open_store(cache.filename)).checked == 80


def test_stats_of_an_empty_container(tmp_path):
    d = make(tmp_path)
    d["k"] = 1
    clear(open_store(d.filename))
    found = stats(open_store(d.filename))
    assert (found.entries, found.nbytes, found.oldest, found.functions) == (0, 0, 0.0, [])
    pack(open_store(d.filename))
    assert stats(open_store(d.filename)).packs == 0


# Looking


def test_nothing_is_run_by_looking(tmp_path):
    Evil.trace = str(tmp_path / "trace")
    d = WriteOncePersistentDict("d", lambda key: "ab" * 20, tmp_path)
    d[("a key", Evil())] = Evil()
    d.clear_in_mem_cache()
    for place in (d.filename, str(tmp_path / "x.pack")):
        store = open_store(d.filename)
        if not os.path.exists(place):
            export(store, place)
        store = open_store(place)
        stats(store)
        verify(store)
        (facts,) = entries(store)
        assert "mkdir" in facts.key
        found = describe(store, facts.digest)
        assert (found.checks, found.value_type.rpartition(".")[2]) == ("intact", "mkdir")
        assert not os.path.exists(Evil.trace)
    repair(open_store(d.filename))
    pack(open_store(d.filename))
    assert not os.path.exists(Evil.trace)
    describe(open_store(d.filename), facts.digest, load=True)
    assert os.path.exists(Evil.trace)


def test_looking_is_no_use(tmp_path):
    d = make(tmp_path)
    for i in range(4):
        d[i] = "x" * (30_000 * i)
        used(d, i, 50 * HOUR)
    store = open_store(d.filename)
    verify(store)
    stats(store)
    list(entries(store))
    for facts in entries(store):
        describe(store, facts.digest)
    export(store, str(tmp_path / "x.pack"))
    repair(store)
    assert all(time.time() - facts.used_at > 40 * HOUR for facts in entries(store))
    pack(store)
    verify(store)
    assert all(time.time() - facts.used_at > 40 * HOUR for facts in entries(store))


@pytest.mark.parametrize("memory", [0, 256])
def test_a_hit_is_noted_at_most_once_an_hour(memory, tmp_path, monkeypatch):
    d = PersistentDict("d", container_dir=tmp_path, in_mem_cache_size=memory)
    for key, value in (("small", 1), ("large", b"x" * 200_000)):
        d[key] = value
        path = Path(d.entry_path(key), "value")
        used(d, key, 2 * HOUR)
        written = path.stat().st_mtime_ns
        d[key]
        assert time.time() - path.stat().st_atime < 60
        assert path.stat().st_mtime_ns == written
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", lambda *args, **kwargs: pytest.fail("noted again"))
            d.clear_in_mem_cache()
            d[key]


def test_a_hit_in_a_pack_is_noted(tmp_path):
    d = make(tmp_path)
    for i in range(10):
        d[i] = i
        used(d, i, 50 * HOUR)
    pack(open_store(d.filename))
    d[3]
    recent = [facts.key for facts in entries(open_store(d.filename)) if time.time() - facts.used_at < 2 * HOUR]
    assert recent == ["3"]
    d["another"] = 1
    pack(open_store(d.filename), everything=True)
    recent = [facts.key for facts in entries(open_store(d.filename)) if time.time() - facts.used_at < 2 * HOUR]
    assert sorted(recent) == ["'another'", "3"]


def test_a_pack_in_a_read_only_place_is_read_without_noting(tmp_path):
    d = make(tmp_path)
    d["k"] = 1
    export(open_store(d.filename), str(tmp_path / "x.pack"))
    open_readonly(tmp_path / "x.pack")["k"]
    assert sorted(os.listdir(tmp_path)) == [Path(d.filename).name, "x.pack"]


def test_an_entry_is_found_by_digest_or_by_a_part_of_its_key(tmp_path):
    d = make(tmp_path)
    for i in range(30):
        d["kernel", i] = i
    store = open_store(d.filename)
    digest = Path(d.entry_path(("kernel", 7))).parent.name + Path(d.entry_path(("kernel", 7))).name
    assert find_digest(store, digest) == find_digest(store, digest[:12]) == find_digest(store, "'kernel', 7)") == digest
    for text, problem in (("kernel", "in 30 keys"), ("nothing", "no digest begins with")):
        with pytest.raises(persistent_dict.ContainerError, match=problem):
            find_digest(store, text)


def test_verify_names_what_is_wrong_by_its_type(tmp_path):
    d = make(tmp_path)
    for i in range(6):
        d[i] = "x" * 100
    Path(d.entry_path(0), "value").write_bytes(b"")
    Path(d.entry_path(1), "key").write_bytes(b"x")
    Path(d.entry_path(2), "value").unlink()
    shutil.copy(Path(d.entry_path(3), "value"), Path(d.entry_path(4), "value"))
    shutil.rmtree(d.entry_path(5))
    Path(d.entry_path(5)).touch()
    calls = []
    found = verify(open_store(d.filename), lambda done, total: calls.append((done, total)))
    kinds = {Path(problem.entry).name: type(problem) for problem in found.problems}
    expected = [InvalidValueFileError, InvalidKeyFileError, InvalidEntryError, None, InvalidValueFileError,
                InvalidEntryError]  # fmt: skip
    assert [kinds.get(Path(d.entry_path(i)).name) for i in range(6)] == expected
    assert found.checked == 6
    assert calls[-1] == (6, 6)
    assert len(repair(open_store(d.filename)).set_aside) == 5
    assert verify(open_store(d.filename)).problems == []


def test_an_entry_that_comes_back_while_it_is_checked_is_no_damage(tmp_path, monkeypatch):
    d = make(tmp_path)
    d["k"] = 1
    store = open_store(d.filename)
    real = store.loose.check

    def check(digest):
        del d["k"]
        found = real(digest)
        d["k"] = 2
        return found

    monkeypatch.setattr(store.loose, "check", check)
    assert verify(store).problems == []


# Pruning


@pytest.mark.parametrize("packed", [False, True, "half"])
def test_pruning_removes_what_was_used_least_recently(packed, tmp_path):
    d = make(tmp_path)
    order = random.Random(1).sample(range(20), 20)
    for i in range(20):
        d[i] = b"x" * 1000
    for age, i in enumerate(order, 1):
        used(d, i, age * 3 * HOUR)
    if packed:
        pack(open_store(d.filename), max_entry=0 if packed == "half" else 1 << 20)
    if packed == "half":
        for i in order[::2]:
            remove(open_store(d.filename), [find_digest_of(d, i)])
            d[i] = b"x" * 1000
            used(d, i, (order.index(i) + 1) * 3 * HOUR)
    store = open_store(d.filename)
    plan = prune(store, Limits(max_entries=12), dry_run=True)
    assert len(d) == 20
    assert (len(plan.removed), plan.left) == (8, 12)
    assert [info.digest for info in prune(store, Limits(max_entries=12)).removed] == [i.digest for i in plan.removed]
    assert set(d) == set(order[:12])
    prune(store, Limits(max_age=9.5 * HOUR))
    assert set(d) == set(order[:3])
    assert prune(store, Limits(max_age=9.5 * HOUR)).removed == []
    assert prune(store, Limits(max_bytes=1)).left == 0
    assert len(d) == 0


def find_digest_of(d, key):
    return d._digest(key)[0]


def test_what_was_just_imported_is_not_old(tmp_path):
    source, d = make(tmp_path / "source"), make(tmp_path)
    source["old"] = 1
    used(source, "old", 1000 * HOUR)
    export(open_store(source.filename), str(tmp_path / "x.pack"))
    import_pack(str(tmp_path / "x.pack"), d.filename)
    assert prune(open_store(d.filename), Limits(max_age=10 * HOUR)).removed == []
    assert dict(d) == {"old": 1}


def test_pruning_leaves_what_was_stored_meanwhile(tmp_path):
    d = make(tmp_path)
    for i in range(3):
        d[i] = "old"
    store = open_store(d.filename)
    surplus = Limits(max_entries=0).surplus(list(store.scan()))
    d[1] = "new"
    assert store.delete_unused(surplus) == 2
    assert dict(d) == {1: "new"}


def test_pruning_by_bytes_frees_what_it_says(tmp_path):
    d = make(tmp_path)
    for i in range(50):
        d[i] = b"x" * 10_000
        used(d, i, (100 - i) * HOUR)
    before = stats(open_store(d.filename)).disk_bytes
    report = prune(open_store(d.filename), Limits(max_bytes=before // 2))
    after = stats(open_store(d.filename)).disk_bytes
    assert before - after == report.freed
    assert before // 2 - 20_480 <= after <= before // 2
    assert sorted(d) == list(range(50 - len(d), 50))


def test_pruning_sweeps_what_others_left(tmp_path):
    d = make(tmp_path)
    d["k"] = 1
    Path(d.filename, "tmp", "old").mkdir()
    os.utime(Path(d.filename, "tmp", "old"), (0, 0))
    Path(d.entry_path("k"), "value").write_bytes(b"")
    repair(open_store(d.filename))
    locks = Path(d.filename, "locks")
    locks.mkdir(exist_ok=True)
    (locks / "abc.lock").touch()
    report = prune(open_store(d.filename), Limits(), dry_run=True)
    assert (report.removed, report.quarantined) == ([], 0)
    report = prune(open_store(d.filename), Limits(), quarantine_age=-1)
    assert report.quarantined == 1
    assert [os.listdir(Path(d.filename, name)) for name in ("tmp", "quarantine", "locks")] == [[], [], []]


@pytest.mark.parametrize("limits", [{"max_entries": 20}, {"max_bytes": 20 * 20_480}])
def test_a_dictionary_with_limits_keeps_within_them_about(limits, tmp_path):
    d = PersistentDict("d", container_dir=tmp_path, in_mem_cache_size=0, **limits)
    for i in range(100):
        d[i] = b"x" * 10_000
        assert len(d) <= 24
    assert len(d) >= 15
    assert d[99] == b"x" * 10_000


def test_limits_of_age_are_looked_at_once_an_hour(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path, max_age=10 * HOUR)
    d["a"] = 1
    used(d, "a", 20 * HOUR)
    d["b"] = 1
    assert len(d) == 2  # somebody has looked just now
    other = PersistentDict("d", container_dir=tmp_path, max_age=10 * HOUR)
    other["c"] = 1
    assert len(d) == 3
    os.utime(Path(d.filename, "locks", "pruned"), (0, 0))
    other = PersistentDict("d", container_dir=tmp_path, max_age=10 * HOUR)
    other["d"] = 1
    assert sorted(d) == ["b", "c", "d"]


def test_without_limits_nothing_is_ever_removed_and_reading_never_prunes(tmp_path):
    d = make(tmp_path)
    for i in range(30):
        d[i] = i
        used(d, i, 10_000 * HOUR)
    limited = PersistentDict("d", container_dir=tmp_path, in_mem_cache_size=0, max_entries=1, max_age=1)
    assert [limited[i] for i in range(30)] == list(range(30))
    assert len(d) == 30
    assert not Path(d.filename, "locks", "pruned").exists()
    for wrong in ({"max_bytes": -1}, {"max_age": -0.5}):
        with pytest.raises(ValueError, match="a limit is a number"):
            PersistentDict("d", container_dir=tmp_path, **wrong)


def test_what_goes_wrong_with_pruning_is_nothing_for_the_writer(tmp_path, monkeypatch):
    d = PersistentDict("d", container_dir=tmp_path, max_entries=1)
    Path(tmp_path, Path(d.filename).name)
    d["a"] = 1
    shutil.rmtree(Path(d.filename, "locks"))
    Path(d.filename, "locks").touch()
    for i in range(5):
        d[i] = i
    assert d[4] == 4


# All at once, by processes


def storm_reader(directory, stop, told, rules):
    """Read all that there is, in every way. What is never removed may not be missed."""
    reads, strict = 0, rules["strict"]
    while not stop.is_set():
        d = PersistentDict("d", container_dir=directory, in_mem_cache_size=0)
        for _ in range(30):
            for i in range(80):
                found = d.get(("fixed", i))
                assert found == b"%d" % i * i or (found is None and not strict), (i, found)
                number = i % 8
                before = rules["acknowledged"][number]
                counted = d.get(("counter", number))
                if strict or counted is not None:
                    assert counted[:2] == (number, "x" * (counted[2] % 3000))
                    assert counted[2] >= before, "an old value came back"
                reads += 1
        keys = list(d)
        assert len(keys) == len(set(keys))
        if strict:
            assert {("fixed", i) for i in range(80)} | {("counter", i) for i in range(8)} <= set(keys)
            assert 88 <= len(d) <= 88 + 50
    told.put(reads)


def storm_writer(directory, stop, told, rules, number):
    d = PersistentDict("d", container_dir=directory, in_mem_cache_size=0)
    count = 0
    while not stop.is_set():
        count += 1
        for i in range(number, 8, 2):
            d["counter", i] = (i, "x" * (count % 3000), count)
            rules["acknowledged"][i] = count
        d.store_if_not_present(("once", number, count % 25), count)
        assert d.get(("once", number, count % 25), count) == count
        d.pop(("once", number, count % 25), None)
    told.put(count)


def storm_upkeep(directory, stop, told, rules, what):
    store = open_store(PersistentDict("d", container_dir=directory).filename)
    exported, own = str(directory / "x.pack"), str(directory / f"{os.getpid()}.pack")
    rounds = 0
    while not stop.is_set():
        for work in what:
            if work == "pack":
                assert pack(store).damaged == []
            elif work == "pack all":
                assert pack(store, everything=True).damaged == []
            elif work == "import":
                assert import_pack(exported, store.path).damaged == []
            elif work == "export":
                assert export(store, own, overwrite=True).damaged == []
                assert verify(open_store(own)).problems == []
            elif work == "look":
                stats(store)
                listed = list(entries(store))
                assert [facts.problem for facts in listed if facts.problem] == []
                assert len(listed) >= 88 * rules["strict"]
                assert verify(store).problems == []
            elif work == "repair":
                assert repair(store).set_aside == []
            elif work == "prune":
                prune(store, Limits(max_entries=120))
            elif work == "clear":
                clear(store)
                time.sleep(0.05)
        rounds += 1
    told.put(rounds)


@pytest.mark.storm
@pytest.mark.parametrize("what", [["pack", "import", "pack all"], ["pack", "look", "repair", "import", "export"],
                                  ["pack", "prune", "import", "repair", "look", "clear"]])  # fmt: skip
def test_readers_and_writers_run_through_upkeep(what, tmp_path):
    source = PersistentDict("d", container_dir=tmp_path / "source")
    for i in range(80):
        source["fixed", i] = b"%d" % i * i
    exported = str(tmp_path / "x.pack")
    export(open_store(source.filename), exported)
    d = make(tmp_path)
    import_pack(exported, d.filename)
    for i in range(8):
        d["counter", i] = (i, "", 0)
    rules = {"strict": "clear" not in what, "acknowledged": context.Array("q", 8)}
    run_all(tmp_path, [
        *[(storm_reader, rules)] * 2,
        *[(storm_writer, rules, number) for number in (0, 1)],
        (storm_upkeep, rules, what),
        (storm_upkeep, rules, what[::-1]),
    ])  # fmt: skip
    for i in range(8) if rules["strict"] else ():
        assert make(tmp_path)["counter", i][2] == rules["acknowledged"][i]
    assert verify(open_store(d.filename)).problems == []
    assert os.listdir(Path(d.filename, "tmp")) == []
    import_pack(exported, d.filename)
    assert all(make(tmp_path)["fixed", i] == b"%d" % i * i for i in range(80))
