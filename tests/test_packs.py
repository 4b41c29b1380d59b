"""Packs: what is in them is found as it was, whatever happens to the file or while it is made."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from struct import Struct

import pytest

from persistent_dict import (
    ContainerError,
    InvalidEntryError,
    NoSuchEntryError,
    PersistentDict,
    UntrustedContainerError,
    WriteOncePersistentDict,
    _fs,
    open_readonly,
    transaction,
)
from persistent_dict.inspection import open_store, verify
from persistent_dict.maintenance import export, import_pack, pack, repair
from persistent_dict.stores.pack_writer import packed, write_pack
from persistent_dict.stores.packs import COLUMNS, FOOTER, HEADER_SIZE, PACK_MAGIC, Pack
from persistent_dict.survey import stats

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])


def make(kind, directory, **options):
    return kind("d", container_dir=directory, in_mem_cache_size=0, **options)


def pack_up(d, **options):
    report = pack(open_store(d.filename), **options)
    assert report.damaged == []
    return report.packed, report.were_loose


def packs_of(d):
    return sorted(Path(d.filename, "packs").glob("*.pack"))


def loose_files(d):
    return [path for path in Path(d.filename, "entries").rglob("*") if path.is_file()]


def value(i):
    return b"%d" % i * (i * 7 % 400)


def filled(kind, directory, count, **options):
    d = make(kind, directory, **options)
    for i in range(count):
        d["key", i] = value(i)
    return d


# Packing


@BOTH
def test_packing_keeps_every_entry_and_their_order(kind, tmp_path):
    d = filled(kind, tmp_path, 300)
    net = d.nbytes()
    assert pack_up(d) == (300, 300)
    assert loose_files(d) == []
    assert os.listdir(Path(d.filename, "entries")) == []
    assert os.listdir(Path(d.filename, "tmp")) == []
    for reader in (d, make(kind, tmp_path)):
        assert list(reader.items()) == [(("key", i), value(i)) for i in range(300)]
        assert len(reader) == 300
        assert reader.nbytes() == net
        assert ("key", 5) in reader
        assert ("key", 300) not in reader
        assert reader.get(("key", 300)) is None
    assert pack_up(d) == (0, 0)


def test_arrays_come_out_of_a_pack_in_memory_of_their_own(tmp_path):
    numpy = pytest.importorskip("numpy")
    for options in ({}, {"mmap": True}):
        d = make(WriteOncePersistentDict, tmp_path / str(options), **options)
        arrays = {i: numpy.arange(i * 10_000, dtype="f8") for i in range(6)}
        for i, array in arrays.items():
            d[i] = {"array": array}
        pack_up(d)
        assert loose_files(d) == []
        for i, array in arrays.items():
            found = d[i]["array"]
            assert (found == array).all()
            found += 1
            assert (d[i]["array"] == array).all()


@BOTH
def test_those_who_have_it_open_miss_nothing_when_it_is_packed(kind, tmp_path):
    d, other = filled(kind, tmp_path, 20), make(kind, tmp_path)
    assert other["key", 3] == value(3)
    pack_up(d)
    assert all(other["key", i] == value(i) for i in range(20))
    d["more"] = 1
    assert other["more"] == 1
    assert d.store_if_not_present(("key", 3), "another") is False
    assert other.store_if_not_present(("key", 3), "another") is False
    assert loose_files(d) != []
    pack_up(d)
    assert other["more"] == 1


def test_an_overwritten_entry_is_seen_by_all_at_once(tmp_path):
    d = filled(PersistentDict, tmp_path, 20)
    readers = [make(PersistentDict, tmp_path), PersistentDict("d", container_dir=tmp_path)]
    pack_up(d)
    for new in ("second", "third", "fourth"):
        assert [reader["key", 7] for reader in readers] == [d["key", 7]] * 2
        d["key", 7] = new
        assert [reader["key", 7] for reader in readers] == [new, new]
        assert [reader["key", 8] for reader in readers] == [value(8)] * 2
        assert len(d) == 20
        if new == "second":
            assert pack_up(d) == (20, 1)
            assert len(packs_of(d)) == 1


@pytest.mark.parametrize("by", ["hand", "quarantine", "repair"])
def test_what_was_overwritten_never_comes_back(by, tmp_path):
    d = filled(PersistentDict, tmp_path, 3)
    pack_up(d)
    d["key", 2] = "new"
    entry = Path(d.filename, "entries", *Path(d.entry_path(("key", 2))).parts[-2:])
    if by == "hand":
        shutil.rmtree(entry)
    else:
        (entry / "value").write_bytes(b"")
        with pytest.raises(InvalidEntryError):
            d["key", 2]
        if by == "quarantine":
            with pytest.warns(UserWarning, match="It was moved to"):
                assert make(PersistentDict, tmp_path, on_invalid="quarantine").get(("key", 2)) is None
        else:
            assert len(repair(open_store(d.filename)).set_aside) == 1
    for reader in (d, make(PersistentDict, tmp_path)):
        assert reader.get(("key", 2)) is None
        assert ("key", 2) not in reader
        assert (len(reader), len(list(reader))) == (2, 2)
    assert pack_up(d) == (2, 0)
    assert verify(open_store(d.filename)).problems == []
    assert d.store_if_not_present(("key", 2), "newest")
    assert d["key", 2] == "newest"


def test_a_removed_entry_is_gone_for_all_at_once(tmp_path):
    d = filled(PersistentDict, tmp_path, 20)
    readers = [make(PersistentDict, tmp_path), PersistentDict("d", container_dir=tmp_path)]
    pack_up(d)
    assert [reader["key", 7] for reader in readers] == [value(7)] * 2
    del d["key", 7]
    for reader in readers:
        with pytest.raises(NoSuchEntryError):
            reader["key", 7]
        assert reader["key", 8] == value(8)
    with pytest.raises(NoSuchEntryError):
        del d["key", 7]
    assert readers[0].store_if_not_present(("key", 7), "new")
    assert readers[1]["key", 7] == d["key", 7] == "new"
    d["key", 9] = "loose"
    del d["key", 9]
    assert ("key", 9) not in readers[1]
    assert len(d) == 19


@BOTH
def test_clearing_removes_packs_too(kind, tmp_path):
    d, other = filled(kind, tmp_path, 20), make(kind, tmp_path)
    pack_up(d)
    assert other["key", 1] == value(1)
    d["more"] = 1
    d.clear()
    assert len(d) == len(other) == 0
    assert other.get(("key", 1)) is None
    other["key", 1] = "new"
    assert d["key", 1] == "new"


def test_a_container_that_was_deleted_under_a_reader_is_noticed(tmp_path):
    d, reader = filled(PersistentDict, tmp_path, 20), make(PersistentDict, tmp_path)
    pack_up(d)
    assert reader["key", 1] == value(1)
    shutil.rmtree(d.filename)
    time.sleep(0.02)
    assert reader.get(("key", 1)) is None
    d["key", 1] = "new"
    assert reader["key", 1] == "new"


def test_the_number_of_packs_grows_slowly(tmp_path):
    d = make(WriteOncePersistentDict, tmp_path)
    for i in range(40):
        for j in range(10):
            d[i, j] = value(i + j)
        pack_up(d)
        assert len(packs_of(d)) <= 7
    assert all(d[i, j] == value(i + j) for i in range(40) for j in range(10))
    d["one more"] = 1
    assert pack_up(d, everything=True) == (401, 1)
    assert len(packs_of(d)) == 1
    assert len(d) == 401


def test_large_entries_stay_loose_unless_asked(tmp_path):
    d = filled(PersistentDict, tmp_path, 5)
    d["large"] = b"x" * 2_000_000
    assert pack_up(d) == (5, 5)
    assert len(loose_files(d)) == 2
    d["key", 1] = b"y" * 2_000_000  # overwrites one in the pack
    assert pack_up(d) == (4, 0)
    assert (d["key", 1], d["key", 2]) == (b"y" * 2_000_000, value(2))
    assert pack_up(d, max_entry=1 << 30) == (6, 2)
    assert loose_files(d) == []
    assert d["large"] == b"x" * 2_000_000


def test_keys_that_no_digest_proves_are_compared_in_packs_too(tmp_path):
    d = PersistentDict("d", lambda key: key[0], container_dir=tmp_path, in_mem_cache_size=0)
    d["abc"] = 1
    pack_up(d)
    assert d["abc"] == 1
    with pytest.warns(UserWarning, match="has the digest of another key"), pytest.raises(KeyError):
        d["axe"]
    d["axe"] = 2  # replaces the other
    assert d["axe"] == 2
    with pytest.warns(UserWarning, match="has the digest of another key"), pytest.raises(KeyError):
        d["abc"]


def test_a_dictionary_over_packs_pickles(tmp_path):
    d = filled(WriteOncePersistentDict, tmp_path, 5)
    pack_up(d)
    assert d["key", 1] == value(1)
    assert pickle.loads(pickle.dumps(d))["key", 1] == value(1)


def test_a_forked_child_reads_packs(tmp_path):
    d = filled(WriteOncePersistentDict, tmp_path, 50)
    pack_up(d)
    assert d["key", 1] == value(1)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(d["key", i] == value(i) for i in range(50)) else 1)
    assert all(d["key", i] == value(i) for i in range(50))
    assert os.waitpid(pid, 0)[1] == 0


# Damage


def small_pack(directory):
    """A dictionary with a pack of some kilobytes, and the bytes of that."""
    d = make(PersistentDict, directory)
    expected = {}
    for i in range(3):
        expected["k", i] = d["k", i] = b"%d" % i * (20 + i * 30)
    pack_up(d)
    (path,) = packs_of(d)
    return d, path, path.read_bytes(), expected


def outcomes(d, expected):
    """Return how each key's lookup ends; fail on a wrong value or a silent miss."""
    ends = {}
    for key, right in expected.items():
        try:
            assert d[key] == right
            ends[key] = "right"
        except InvalidEntryError as caught:
            error = caught
            ends[key] = "invalid"
        else:
            continue
        assert "persistent_dict repair" in str(error)
        assert error.container == d.filename
    return ends


def test_every_flipped_byte_is_found_and_hides_one_entry_at_most(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        ends = list(outcomes(make(PersistentDict, tmp_path), expected).values())
        assert ends.count("invalid") <= 1, at
        assert verify(open_store(d.filename)).problems, at
    path.write_bytes(good)
    assert verify(open_store(d.filename)).problems == []


def test_every_truncation_is_found_and_never_a_miss(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    seen = set()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        ends = tuple(outcomes(make(PersistentDict, tmp_path), expected).values())
        assert verify(open_store(d.filename)).problems, size
        seen.add(ends.count("right"))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["zeros", "doubled", "appended", "swapped", "other pack"])
def test_other_damage_is_found(kind, tmp_path):
    _, path, good, expected = small_pack(tmp_path / "one")
    _, _, other, _ = small_pack(tmp_path / "two")
    half = len(good) // 2
    bad = {
        "zeros": [good[:at] + bytes(100) + good[at + 100 :] for at in range(0, len(good) - 100, 64)],
        "doubled": [good + good],
        "appended": [good + os.urandom(5000)],
        "swapped": [good[half:] + good[:half]],
        "other pack": [other[:half] + good[half:], good[:half] + other[half:]],
    }[kind]
    for damaged in bad:
        path.write_bytes(damaged)
        outcomes(make(PersistentDict, tmp_path / "one"), expected)


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "empty", "zeros", "text", "device"])
def test_what_is_no_pack_is_an_error_and_no_hang(what, tmp_path):
    d, path, good, _ = small_pack(tmp_path)
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        (tmp_path / "elsewhere").write_bytes(good)
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes({"empty": b"", "zeros": bytes(5000), "text": b"hello\n" * 100}[what])
    reader = make(PersistentDict, tmp_path)
    with pytest.raises(InvalidEntryError, match="lost in a damaged pack"):
        reader["k", 1]
    reader["k", 1] = "new"
    assert reader["k", 1] == "new"
    assert len(verify(open_store(d.filename)).problems) == 1
    assert len(repair(open_store(d.filename)).set_aside) == 1
    assert reader["k", 1] == "new"
    assert reader.get(("k", 2)) is None
    assert verify(open_store(d.filename)).problems == []


def test_repair_of_every_kind_of_damage_leaves_what_was_intact(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    places = [5, HEADER_SIZE + 3, len(good) // 2, len(good) - 400, len(good) - 30]
    for number, at in enumerate(places):
        for stale in packs_of(d):
            stale.unlink()
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        before = outcomes(make(PersistentDict, tmp_path), expected)
        report = repair(open_store(d.filename))
        assert report.set_aside, number
        assert all(os.path.exists(aside) for _, aside in report.set_aside)
        after = make(PersistentDict, tmp_path)
        assert verify(open_store(d.filename)).problems == []
        for key, end in before.items():
            assert after.get(key) == (expected[key] if end == "right" else None)
            after.store_if_not_present(key, "healed")
        assert repair(open_store(d.filename)).set_aside == []


def test_quarantining_takes_a_damaged_entry_out_of_its_pack(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    at = good.index(expected["k", 1])
    path.write_bytes(good[:at] + b"X" + good[at + 1 :])
    healing = make(PersistentDict, tmp_path, on_invalid="quarantine")
    with pytest.warns(UserWarning, match="It was moved to") as caught:
        assert healing.get(("k", 1)) is None
    aside = Path(str(caught[0].message).partition("It was moved to ")[2].partition(",")[0])
    assert sorted(os.listdir(aside)) == ["key", "value"]
    assert healing.get_or_compute(("k", 1), lambda: "new") == "new"
    assert (d["k", 0], d["k", 1], d["k", 2]) == (expected["k", 0], "new", expected["k", 2])
    path = packs_of(d)[0]
    path.write_bytes(path.read_bytes()[:-500])
    healing = make(PersistentDict, tmp_path, on_invalid="quarantine")
    with pytest.warns(UserWarning, match="It was moved to"):
        assert healing.get("absent") is None
    assert healing.get("absent") is None
    assert healing["k", 1] == "new"


def test_a_loose_copy_that_a_crash_left_stands_in_for_a_damaged_one(tmp_path):
    d = filled(PersistentDict, tmp_path, 3)
    shutil.copytree(Path(d.filename, "entries"), tmp_path / "copy")
    pack_up(d)
    shutil.copytree(tmp_path / "copy", Path(d.filename, "entries"), dirs_exist_ok=True)
    assert len(d) == 3
    (path,) = packs_of(d)
    good = path.read_bytes()
    at = good.index(value(2))
    path.write_bytes(good[:at] + b"X" + good[at + 1 :])
    assert make(PersistentDict, tmp_path)["key", 2] == value(2)
    path.write_bytes(good)
    assert repair(open_store(d.filename)).swept == 3
    assert loose_files(d) == []


def test_no_entry_is_taken_from_inside_of_a_value(tmp_path):
    inner = make(PersistentDict, tmp_path / "inner", format="raw")
    inner["secret"] = b"a ghost"
    pack_up(inner)
    image = packs_of(inner)[0].read_bytes()
    outer = make(PersistentDict, tmp_path / "outer", format="raw")
    outer["image"] = image
    outer["another"] = b"1" * 100
    pack_up(outer)
    (path,) = packs_of(outer)
    good = path.read_bytes()
    begin = good.index(image)
    for at in (len(good) - 30, begin + len(image) + 10):  # the index, and then the footer of the value with the image
        bad = bytearray(good)
        bad[at] ^= 1
        bad[-30] ^= 1
        path.write_bytes(bad)
        reader = make(PersistentDict, tmp_path / "outer", format="raw")
        try:
            assert reader.get("secret") is None
        except InvalidEntryError:
            pass
        assert reader["another"] == b"1" * 100


def test_a_pack_of_a_newer_version_is_an_error_that_says_so(tmp_path):
    from zlib import crc32

    _, path, good, _ = small_pack(tmp_path)
    tail = good[-16:-12] + b""
    body = good[:-16] + (2).to_bytes(4, "little")
    path.write_bytes(body + crc32(body[12 - FOOTER.size :]).to_bytes(4, "little") + good[-8:])
    assert tail == (1).to_bytes(4, "little")
    assert "format 2" in verify(open_store(str(path.parent.parent))).problems[-1].reason


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_another_users_pack_is_not_read(tmp_path):
    d, path, _, _ = small_pack(tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(InvalidEntryError, match="belongs to the user 12345"):
        make(PersistentDict, tmp_path)["k", 1]
    os.chown(path, 0, 0)
    shutil.move(path.parent, tmp_path / "moved")
    os.symlink(tmp_path / "moved", path.parent)
    with pytest.raises(UntrustedContainerError, match="packs in it is a link"):
        make(PersistentDict, tmp_path)["k", 1]
    assert d is not None


def test_a_removed_entry_stays_away_when_its_pack_is_written_anew(tmp_path):
    d = filled(PersistentDict, tmp_path, 5)
    pack_up(d)
    d["key", 1] = "new"
    del d["key", 1]
    del d["key", 2]
    for _ in range(2):
        assert (d.get(("key", 1)), d.get(("key", 2)), len(d)) == (None, None, 3)
        assert stats(open_store(d.filename)).entries == 3
        d["more"] = 1
        pack_up(d, everything=True)
        del d["more"]


def test_a_reader_notices_that_a_pack_was_repaired(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    reader = make(PersistentDict, tmp_path)
    assert reader["k", 1] == expected["k", 1]
    path.write_bytes(good[:-300] + bytes([good[-300] ^ 1]) + good[-299:])
    assert repair(open_store(d.filename)).set_aside
    d["k", 1] = "new"
    del d["k", 2]
    assert reader["k", 1] == "new"
    assert reader.get(("k", 2)) is None


def test_a_directory_without_a_value_hides_and_loses_nothing(tmp_path):
    d = filled(PersistentDict, tmp_path, 4)
    pack_up(d)
    empty = Path(d.filename, "entries", *Path(d._store.loose.place(d._digest(("key", 1))[0])).parts[-2:])
    empty.mkdir(parents=True)
    d["key", 2] = "new"  # so that loose ones come first
    for work in (lambda: None, lambda: pack_up(d), lambda: d.pop(("key", 3)), lambda: repair(open_store(d.filename))):
        work()
        assert d["key", 1] == value(1)
        assert d["key", 2] == "new"


def test_a_zeroed_block_is_damage_and_no_removal(tmp_path):
    d, path, good, expected = small_pack(tmp_path)
    at = good.index(expected["k", 1])
    path.write_bytes(good[:at] + bytes(400) + good[at + 400 :])
    assert verify(open_store(d.filename)).problems
    other = make(PersistentDict, tmp_path)
    with pytest.raises(InvalidEntryError):
        other["k", 1]
    other["more"] = 1
    assert repair(open_store(d.filename)).set_aside
    assert verify(open_store(d.filename)).problems == []


def test_a_program_whose_descriptors_were_closed_reads_on_and_destroys_nothing(tmp_path):
    d = filled(PersistentDict, tmp_path, 20)
    pack_up(d)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            reader = make(PersistentDict, tmp_path, on_invalid="quarantine")
            assert reader["key", 1] == value(1)
            os.closerange(3, 256)
            for _ in range(10):
                os.open("/etc/passwd", os.O_RDONLY)
            assert all(reader["key", i] == value(i) for i in range(20))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert all(d["key", i] == value(i) for i in range(20))


def test_nothing_is_missed_by_iterating_while_others_pack_and_overwrite(tmp_path):
    d, stop, failures = filled(PersistentDict, tmp_path, 60), threading.Event(), []

    def keep(work):
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    def churn():
        for i in range(0, 60, 7):
            d["key", i] = value(i)
        pack_up(d)

    def look():
        mine = make(PersistentDict, tmp_path)
        assert sorted(mine) == sorted(("key", i) for i in range(60))
        assert len(mine) == 60
        assert export(open_store(d.filename), str(tmp_path / "x.pack"), overwrite=True).entries == 60

    threads = [threading.Thread(target=keep, args=(work,)) for work in (churn, look)]
    for thread in threads:
        thread.start()
    stop.wait(3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_writers_do_not_keep_a_packer_waiting(tmp_path):
    d, stop = filled(PersistentDict, tmp_path, 50), threading.Event()

    def write(number):
        mine = make(PersistentDict, tmp_path)
        while not stop.is_set():
            mine["writer", number] = b"x" * 300

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert pack_up(d)[0] >= 50
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_pack_of_a_shared_container_is_the_groups(tmp_path):
    d = make(PersistentDict, tmp_path, mode=0o770)
    d["k"] = 1
    umask = os.umask(0o022)
    try:
        pack(open_store(d.filename, trusted=True))
        assert make(PersistentDict, tmp_path, mode=0o770)["k"] == 1
    finally:
        os.umask(umask)
    assert {oct(path.stat().st_mode & 0o777) for path in Path(d.filename, "packs").iterdir()} == {"0o660"}


def test_what_is_removed_from_many_packs_is_counted_and_listed_right(tmp_path):
    d = make(PersistentDict, tmp_path)
    expected = {}
    for number, size in enumerate((60_000, 20_000, 300)):  # each too large to be joined with the next
        for i in range(20):
            d[number, i] = expected[number, i] = (number, i, "x" * size)
        pack_up(d)
    assert len(packs_of(d)) == 3
    for number in range(3):
        for i in range(0, 20, 7):
            del d[number, i], expected[number, i]
        for i in range(3, 20, 5):
            d[number, i] = expected[number, i] = "new"
        assert len(packs_of(d)) == 3
        for reader in (d, make(PersistentDict, tmp_path)):
            assert len(reader) == len(expected)
            assert dict(reader.items()) == expected
    assert stats(open_store(d.filename)).entries == len(expected)
    assert export(open_store(d.filename), str(tmp_path / "x.pack")).entries == len(expected)


LOOKING = [list, len, lambda d: dict(d.items()), lambda d: export(d._store, f"{d.filename}.x", overwrite=True).entries]


@pytest.mark.parametrize("look", LOOKING)
def test_what_moves_out_of_a_pack_meanwhile_is_not_missed(look, tmp_path):
    """Another process overwrites one, and removes one, which writes the pack anew, after loose ones were listed."""
    d, reader = filled(PersistentDict, tmp_path, 3), make(PersistentDict, tmp_path)
    pack_up(d)
    assert reader["key", 0] == value(0)
    real, moved = reader._store.loose.digests, []

    def digests():
        yield from list(real())
        if not moved:
            moved.append(True)
            d["key", 1] = "new"
            del d["key", 2]

    reader._store.loose.digests = digests
    found = look(reader)
    assert (found if isinstance(found, int) else len(found)) == 2


def test_an_interrupt_keeps_no_lock_from_the_next_one(tmp_path):
    d = filled(PersistentDict, tmp_path, 3)
    lock = _fs.DirectoryLock(d.filename, f"{d.filename}/FORMAT")
    lock.__enter__()  # and the interrupt comes before __exit__
    d["more"] = 1
    thread = threading.Thread(target=pack_up, args=(d,))
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    with _fs.DirectoryLock(d.filename, f"{d.filename}/FORMAT", alone=True, timeout=0.1):
        pass


def test_a_flipped_bit_in_the_header_brings_nothing_back(tmp_path):
    d = filled(PersistentDict, tmp_path, 100)
    for i in range(100):
        d["key", i] = (i, "x" * 50_000)  # too large to be written anew at each removal
    pack_up(d)
    for i in range(10):
        del d["key", i]
    (path,) = packs_of(d)
    good = path.read_bytes()
    for at in range(0, HEADER_SIZE, 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        reader = make(PersistentDict, tmp_path)
        assert len(reader) == 90, at
        assert not any(("key", i) in reader for i in range(10)), at
        assert verify(open_store(d.filename)).problems != []
    repair(open_store(d.filename))
    assert len(make(PersistentDict, tmp_path)) == 90
    assert verify(open_store(d.filename)).problems == []


@pytest.mark.parametrize("how", ["value", "header"])
def test_damage_of_what_overwrote_an_entry_in_a_pack_does_not_bring_that_back(how, tmp_path, monkeypatch):
    """Where the process was killed before it had marked the entry as dead."""
    d = make(PersistentDict, tmp_path)
    for i in range(3):
        d[i] = "old" * 100
    pack_up(d)
    real = Pack.shadow
    monkeypatch.setattr(Pack, "shadow", lambda self, *_args, **_options: real(self))
    with transaction(d) as txn:
        txn[0] = "new" * 100
    monkeypatch.undo()
    (path,) = (path for path in packs_of(d) if b"new" * 100 in path.read_bytes())
    data = path.read_bytes()
    if how == "value":
        path.write_bytes(data.replace(b"newnew", b"newnew".upper(), 1))
        with pytest.raises(InvalidEntryError):
            make(PersistentDict, tmp_path)[0]
        repair(open_store(d.filename))
        assert make(PersistentDict, tmp_path).get(0) is None
    else:
        path.write_bytes(data[:50] + b"\xff\xff" + data[52:])
        assert make(PersistentDict, tmp_path)[0] == "new" * 100


def test_looking_at_packs_does_not_move_a_stranger_s_file(tmp_path):
    script = f"""
import os
from persistent_dict import PersistentDict
d = PersistentDict("d", container_dir={str(tmp_path)!r}, in_mem_cache_size=0)
d["k"]
os.closerange(3, 100)
files = [os.open({str(tmp_path / "lines")!r}, os.O_RDWR) for _ in range(20)]
assert d["k"] == "v" and d["l"] == "v" and len(d) == 2 and d.get("no") is None
d["k"] = "new"
assert d["k"] == "new" and d["l"] == "v"
del d
assert all(os.lseek(file, 0, os.SEEK_CUR) == 0 for file in files)
"""
    d = make(PersistentDict, tmp_path)
    d["k"] = d["l"] = "v"
    for key in "kl":
        os.utime(Path(d.entry_path(key), "value"), (0, 0))  # so that the next hit is noted
    pack_up(d)
    (tmp_path / "lines").write_text("line\n" * 100)
    root = str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": root})
    assert (tmp_path / "lines").read_text() == "line\n" * 100


def test_packing_works_where_no_thread_can_be_started(tmp_path, monkeypatch):
    d = filled(PersistentDict, tmp_path, 30)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pack_up(d) == (30, 30)
    assert loose_files(d) == []
    assert os.listdir(Path(d.filename, "tmp")) == []


def test_the_stage_of_a_killed_writer_does_not_keep_its_entry_out(tmp_path):
    source, d = filled(PersistentDict, tmp_path / "source", 3), make(PersistentDict, tmp_path)
    export(open_store(source.filename), str(tmp_path / "x.pack"))
    d["other"] = 1
    stage = Path(d.filename, "tmp", f"{d._digest(('key', 1))[0]}-0123456789abcdef")
    stage.mkdir()
    report = import_pack(str(tmp_path / "x.pack"), d.filename)
    assert (report.added, report.kept) == (2, 0)
    os.utime(stage, (0, 0))
    report = import_pack(str(tmp_path / "x.pack"), d.filename)
    assert (report.added, report.kept) == (1, 2)
    assert len(d) == 4


def test_what_is_lost_of_a_pack_is_told(tmp_path):
    d = filled(PersistentDict, tmp_path, 10)
    exported = tmp_path / "x.pack"
    export(open_store(d.filename), str(exported))
    pack_up(d)
    for path in (*packs_of(d), exported):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    report = export(open_store(d.filename), str(tmp_path / "y.pack"))
    assert len(report.lost) == 1
    assert report.entries < 10
    assert len(pack(open_store(d.filename)).lost) == 1
    assert len(export(open_store(str(exported)), str(tmp_path / "z.pack")).lost) == 1


def test_scratches_behind_entries_of_an_exported_pack_are_mended(tmp_path):
    d = filled(PersistentDict, tmp_path, 5)
    path = tmp_path / "x.pack"
    export(open_store(d.filename), str(path))
    store = open_store(str(path))
    data = bytearray(path.read_bytes())
    data[store.pack._mark_at(2) + 1] ^= 1
    path.write_bytes(data)
    assert len(verify(open_store(str(path))).problems) == 1
    assert len(repair(open_store(str(path))).set_aside) == 1
    assert verify(open_store(str(path))).problems == []
    assert len(open_readonly(path)) == 5


def test_the_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path):
    d = filled(PersistentDict, tmp_path, 3)
    holder = os.fork()
    if not holder:
        with _fs.DirectoryLock(d.filename, f"{d.filename}/FORMAT", alone=True):
            if not os.fork():
                time.sleep(20)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    with _fs.DirectoryLock(d.filename, f"{d.filename}/FORMAT", alone=True, timeout=5):
        pass


# Exported packs


@pytest.fixture
def exported(tmp_path):
    """The path of an exported pack of ten entries, some of which were loose."""
    d = filled(WriteOncePersistentDict, tmp_path / "source", 6)
    pack_up(d)
    for i in range(6, 10):
        d["key", i] = value(i)
    path = str(tmp_path / "warm.pack")
    assert export(open_store(d.filename), path).entries == 10
    return path


def test_an_exported_pack_is_read_in_place(exported):
    r = open_readonly(exported)
    assert dict(r.items()) == {("key", i): value(i) for i in range(10)}
    assert (len(r), ("key", 3) in r, ("key", 10) in r, r.identifier, r.filename) == (10, True, False, "d", exported)
    assert pickle.loads(pickle.dumps(r))["key", 3] == value(3)
    with pytest.warns(UserWarning, match="only read"):
        assert r.get_or_compute("new", lambda: 5) == 5
    assert "new" not in r
    with pytest.raises(OSError, match="only read"):
        r.clear()


def test_a_dictionary_lies_over_read_only_ones(exported, tmp_path):
    before = Path(exported).read_bytes()
    for below in (exported, [open_readonly(exported)]):
        d = WriteOncePersistentDict("d", container_dir=tmp_path / str(type(below)), over=below)
        assert d.get_or_compute(("key", 3), lambda: "never") == value(3)
        assert not os.path.exists(d.filename)
        assert d.store_if_not_present(("key", 3), 0) is False
        d["new"] = 1
        assert len(d) == 11
        assert dict(d.items())["new"] == 1
        assert d.entry_path(("key", 3)).startswith(exported)
        assert d.explain(("key", 3)).verdict == "present"
        assert pickle.loads(pickle.dumps(d))["key", 4] == value(4)
        d.clear()
        assert len(d) == 10
    p = PersistentDict("d", container_dir=tmp_path / "p", over=exported)
    p["key", 3] = "mine"
    assert p["key", 3] == "mine"
    assert len(p) == 10
    with pytest.raises(ContainerError, match="only read"):
        del p["key", 3]
    assert p["key", 3] == "mine"
    p["own"] = 1
    del p["own"]
    assert Path(exported).read_bytes() == before


def test_what_is_damaged_below_is_computed_and_kept_above(exported, tmp_path):
    good = Path(exported).read_bytes()
    at = good.index(value(7))
    Path(exported).write_bytes(good[:at] + b"X" + good[at + 1 :])
    with pytest.raises(InvalidEntryError, match=f"persistent_dict repair {exported}"):
        open_readonly(exported)["key", 7]
    d = make(WriteOncePersistentDict, tmp_path, over=exported, on_invalid="quarantine")
    assert d.get_or_compute(("key", 7), lambda: "new") == "new"
    assert d["key", 7] == "new"
    store = open_store(exported)
    assert len(verify(store).problems) == 1
    assert len(repair(store).set_aside) == 1
    assert len(open_readonly(exported)) == 9
    assert [path.read_bytes() for path in tmp_path.glob("warm.pack.damaged-*")] == [good[:at] + b"X" + good[at + 1 :]]


def test_importing_adds_what_is_not_there_and_keeps_the_rest(exported, tmp_path):
    target = PersistentDict("d", container_dir=tmp_path / "target", in_mem_cache_size=0)
    target["key", 3] = "mine"
    reader = PersistentDict("d", container_dir=tmp_path / "target", in_mem_cache_size=0)
    assert reader.get(("key", 4)) is None
    report = import_pack(exported, target.filename)
    assert (report.added, report.kept, report.damaged) == (9, 1, [])
    assert (reader["key", 3], reader["key", 4], len(reader)) == ("mine", value(4), 10)
    again = import_pack(exported, target.filename)
    assert (again.added, again.kept) == (0, 10)
    assert len(packs_of(target)) == 1


def test_importing_makes_the_container_where_the_dictionary_looks(exported, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path / "default"))
    report = import_pack(exported)
    assert WriteOncePersistentDict("d")["key", 4] == value(4)
    assert report.container == WriteOncePersistentDict("d").filename


@pytest.mark.parametrize("what", ["format", "identifier"])
def test_a_pack_of_another_dictionary_is_refused(what, exported, tmp_path):
    name, form = ("d", "json") if what == "format" else ("other", "pickle")
    d = WriteOncePersistentDict(name, container_dir=tmp_path, format=form)
    d["k"] = 1
    with pytest.raises(ContainerError, match=f"with the {what}"):
        import_pack(exported, d.filename)
    with pytest.raises(ContainerError, match=f"with the {what}"):
        WriteOncePersistentDict(name, container_dir=tmp_path, format=form, over=exported)["k"]


def test_a_pack_of_another_python_is_refused_but_can_be_looked_at(exported):
    store = open_store(exported)
    other = store.pack.about.replace(sys.implementation.cache_tag, "cpython-27")
    write_pack(exported, [packed(store.pack, i) for i in range(10)], other)
    with pytest.raises(ContainerError, match="may not load"):
        open_readonly(exported)
    assert len(open_store(exported)) == 10


def test_a_pack_that_has_forgotten_what_it_is_is_refused_but_can_be_imported(exported, tmp_path):
    good = Path(exported).read_bytes()
    Path(exported).write_bytes(good.replace(b"identifier: d", b"identifier: e"))
    with pytest.raises(ContainerError, match="is lost"):
        open_readonly(exported)
    assert repair(open_store(exported)).set_aside
    with pytest.raises(ContainerError, match="is lost"):
        open_readonly(exported)
    d = make(WriteOncePersistentDict, tmp_path)
    d["own"] = 1
    with pytest.raises(ContainerError, match="is lost"):
        import_pack(exported)
    assert import_pack(exported, d.filename).added == 10
    assert len(d) == 11


def crafted(path, **fields):
    """Give a pack an index with wrong figures and right checksums."""
    from zlib import crc32

    blob = bytearray(path.read_bytes())
    count, columns_at, about_size, *checksums = FOOTER.unpack(blob[-FOOTER.size :])[:-1]
    at, names = columns_at, list(COLUMNS)
    for number, (name, code) in enumerate(COLUMNS.items()):
        size = 4 * 256 if name == "fanout" else Struct(f"<{code}").size * count
        if name in fields:
            blob[at : at + size] = Struct(f"<{code}").pack(fields[name]) * (256 if name == "fanout" else count)
            checksums[number] = crc32(blob[at : at + size])
        at += size
    assert len(names) == 9
    head = fields.get("count", count), fields.get("columns_at", columns_at), fields.get("about_size", about_size)
    body = FOOTER.pack(*head, *checksums[:-1], 0, PACK_MAGIC)[:-12]
    path.write_bytes(bytes(blob[: -FOOTER.size]) + body + crc32(body).to_bytes(4, "little") + PACK_MAGIC)


@pytest.mark.parametrize(
    "fields",
    [{"value_sizes": 1 << 50}, {"value_sizes": (1 << 64) - 1}, {"begins": (1 << 64) - 64}, {"begins": 3}, {"begins": 0},
     {"key_sizes": 1 << 40}, {"fanout": 1 << 31}, {"fanout": 0}, {"count": 1 << 40}, {"count": 0},
     {"columns_at": 1 << 62}, {"about_size": 1 << 31}, {"checksums": 5}, {"stored_at": float("nan")}],
)  # fmt: skip
def test_a_crafted_index_is_damage_and_no_hang(fields, tmp_path):
    d, path, _, expected = small_pack(tmp_path)
    crafted(path, **fields)
    begin = time.monotonic()
    outcomes(make(PersistentDict, tmp_path), expected)
    verify(open_store(d.filename))
    stats(open_store(d.filename))
    repair(open_store(d.filename))
    assert verify(open_store(d.filename)).problems == []
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_pack_that_others_may_write_to_is_refused(mode, exported):
    os.chmod(exported, mode)
    with pytest.raises(UntrustedContainerError, match="chmod (-R )?go-w") as caught:
        open_readonly(exported)
    assert exported in str(caught.value)
    assert open_readonly(exported, trusted=True)["key", 1] == value(1)
    with pytest.raises(UntrustedContainerError):
        import_pack(exported)
    subprocess.run(["sh", "-c", caught.value.command], check=True)
    assert open_readonly(exported)["key", 1] == value(1)


@pytest.mark.parametrize("what", [b"", b"no pack at all", bytes(1000)])
def test_what_is_no_pack_is_refused(what, tmp_path):
    path = tmp_path / "x.pack"
    path.write_bytes(what)
    with pytest.raises(ContainerError, match="no pack that can be read"):
        open_readonly(path)
    with pytest.raises(FileNotFoundError):
        open_readonly(tmp_path / "absent")


def test_exporting_over_something_must_be_asked_for(exported, tmp_path):
    d = filled(WriteOncePersistentDict, tmp_path / "other", 3)
    with pytest.raises(FileExistsError):
        export(open_store(d.filename), exported)
    old = open_readonly(exported)
    assert export(open_store(d.filename), exported, overwrite=True).entries == 3
    assert len(open_readonly(exported)) == 3
    assert len(old) == 10
    assert old["key", 9] == value(9)


def test_a_containers_own_pack_gives_nothing_that_was_overwritten(tmp_path):
    d = filled(PersistentDict, tmp_path, 5)
    pack_up(d)
    d["key", 1] = "new"
    path = shutil.copy(packs_of(d)[0], tmp_path / "taken.pack")
    taken = open_readonly(path)
    assert (taken.get(("key", 1)), taken["key", 2], len(taken), len(list(taken))) == (None, value(2), 4, 4)
    other = make(PersistentDict, tmp_path / "other")
    other["own"] = 1
    assert import_pack(str(path), other.filename).added == 4
    assert other.get(("key", 1)) is None


def test_a_json_pack_is_for_every_python_and_needs_no_pickle(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, format="json")
    d["a"] = [1, {"b": 2}]
    export(open_store(d.filename), str(tmp_path / "j.pack"))
    script = (
        "import sys; sys.modules['pickle'] = None\nfrom persistent_dict import open_readonly\n"
        f"print(open_readonly({str(tmp_path / 'j.pack')!r})['a'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, {'b': 2}]"


# At the same time


def test_threads_read_on_while_others_pack_overwrite_and_remove(tmp_path):
    d = filled(PersistentDict, tmp_path, 60)
    stop, failures = threading.Event(), []
    low = dict.fromkeys(range(60), 0)  # what has been acknowledged; values only grow

    def run(work):
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    def read():
        mine = make(PersistentDict, tmp_path)
        for _ in range(20):
            for i in range(60):
                at_least = low[i]
                found = mine.get(("n", i))
                assert (found or 0) >= at_least, (i, found, at_least)
                assert mine["key", i] == value(i)

    def write(first):
        for i in range(first, 60, 2):
            d["n", i] = low[i] + 1
            low[i] += 1

    def do_pack():
        pack_up(d)
        pack_up(d, everything=True)

    def other():
        d["gone"] = 1
        pack_up(d)
        del d["gone"]
        assert make(PersistentDict, tmp_path).get("gone") is None

    work = [read, read, lambda: write(0), lambda: write(1), do_pack, other]
    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    stop.wait(4)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert max(low.values()) > 3
    assert verify(open_store(d.filename)).problems == []
