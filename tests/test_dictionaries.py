"""What the two dictionaries do for one process."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings

import pytest

import persistent_dict as pd
from persistent_dict import (
    CollisionWarning,
    ContentKeyBuilder,
    KeyBuilder,
    NanKeyWarning,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    PersistentDict,
    ReadOnlyEntryError,
    WriteOncePersistentDict,
)
from persistent_dict.stores.memory import MemoryStore

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])


class Keyed:
    """A key whose digest comes from one number, and whose equality looks at another."""

    def __init__(self, number, digest_of):
        self.number, self.digest_of = number, digest_of

    def __eq__(self, other):
        return isinstance(other, Keyed) and self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def __repr__(self):
        return f"Keyed({self.number})"

    def update_persistent_hash(self, key_hash, key_builder):
        key_builder.rec(key_hash, self.digest_of)


# Storing and fetching


@BOTH
def test_what_was_stored_is_fetched(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    pairs = [
        (1, "one"),
        ("1", b"one"),
        ((1, ("2", None)), [1]),
        (1.0, None),
        (True, {"x": 1}),
        (frozenset({1}), object),
    ]
    for key, value in pairs:
        d[key] = value
    for _ in range(2):
        assert [d[key] for key, _ in pairs] == [value for _, value in pairs]
    assert len(d) == len(pairs)


@BOTH
def test_a_missing_key_is_a_key_error_that_names_it(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    with pytest.raises(NoSuchEntryError, match="absent") as caught:
        d.fetch("absent")
    assert isinstance(caught.value, KeyError)
    assert d.get("absent") is None
    assert d.get("absent", 3) == 3
    assert "absent" not in d


@BOTH
def test_nothing_is_made_before_the_first_store(kind, tmp_path):
    d = kind("d", container_dir=tmp_path / "deep" / "down")
    assert d.get(1) is None
    assert (len(d), list(d), d.nbytes(), 1 in d) == (0, [], 0, False)
    d.clear()
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_none_is_a_value(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    d["k"] = None
    assert "k" in d
    assert d["k"] is None
    assert d["k"] is None
    assert d.setdefault("k", 1) is None


@BOTH
def test_store_if_not_present_tells_whether_it_stored(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    assert d.store_if_not_present("k", 1) is True
    assert d.store_if_not_present("k", 2) is False
    assert d["k"] == 1


@BOTH
def test_setdefault_stores_once(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    assert d.setdefault("k", 1) == 1
    assert d.setdefault("k", 2) == 1
    assert d.setdefault("n") is None


@BOTH
def test_iteration_is_in_the_order_of_storing(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    keys = [(i * 7919) % 1000 for i in range(200)]
    for key in keys:
        d[key] = str(key)
    again = kind("d", container_dir=tmp_path)
    assert list(again) == list(again.keys()) == keys
    assert list(again.values()) == [str(key) for key in keys]
    assert list(again.items()) == [(key, str(key)) for key in keys]
    assert next(again.keys()) == keys[0]
    assert len(again) == 200


@BOTH
def test_clear_removes_all_for_everybody(kind, tmp_path):
    d, other = (kind("d", container_dir=tmp_path) for _ in range(2))
    for i in range(20):
        d[i] = i
    assert d[3] == 3
    other.clear()
    other.clear()
    d.clear_in_mem_cache()
    assert len(d) == 0
    with pytest.raises(NoSuchEntryError):
        d[3]
    d[3] = 4
    assert d[3] == 4


@BOTH
def test_nbytes_is_what_the_files_have(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    d["a"] = "x" * 5000
    files = [os.path.join(d.entry_path("a"), name) for name in ("key", "value")]
    assert d.nbytes() == sum(os.path.getsize(file) for file in files) > 5000


@BOTH
def test_attributes_and_repr(kind, tmp_path):
    builder = KeyBuilder()
    d = kind("some name", builder, str(tmp_path))
    assert (d.identifier, d.key_builder, d.container_dir) == ("some name", builder, str(tmp_path))
    assert os.path.dirname(d.filename) == str(tmp_path)
    assert repr(d).startswith(f"{kind.__name__}('some name', ")
    d["k"] = 1
    assert d.entry_path("k").startswith(d.filename)
    assert sorted(os.listdir(d.entry_path("k"))) == ["key", "value"]


@BOTH
def test_cache_info_counts(kind, tmp_path):
    d = kind("d", container_dir=tmp_path)
    d["k"] = 1
    age(d, "k")
    for _ in range(3):
        d["k"]
    d.get("absent")
    assert d.cache_info() == (2, 1, 1, 1, 1, 0)
    assert d.cache_info().memory_hits == 2


@BOTH
def test_with_and_close_forget_memory_and_leave_it_usable(kind, tmp_path):
    with kind("d", container_dir=tmp_path) as d:
        d["k"] = [1]
        age(d, "k")
        d["k"]
    assert d.cache_info().in_memory == 0
    assert d["k"] == [1]


@BOTH
def test_dictionaries_pickle_and_reopen_by_path(kind, tmp_path):
    d = kind("d", ContentKeyBuilder(), tmp_path, in_mem_cache_size=3, on_invalid="quarantine", safe_sync=True)
    d[["k"]] = 1
    other = pickle.loads(pickle.dumps(d))
    assert type(other) is kind
    assert other[["k"]] == 1
    assert other.filename == d.filename
    assert copy.copy(d)[["k"]] == 1


@BOTH
@pytest.mark.parametrize("safe_sync", [None, False, True])
def test_safe_sync_and_enable_wal_say_nothing(kind, safe_sync, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = kind("d", container_dir=tmp_path, safe_sync=safe_sync, enable_wal=True)
        d["k"] = 1
        assert not d.store_if_not_present("k", 2)
        assert d["k"] == 1


@BOTH
def test_wrong_options_are_errors_that_name_the_right_ones(kind, tmp_path):
    for options, words in [
        ({"on_invalid": "ignore"}, "quarantine"),
        ({"durability": "much"}, "writeout"),
        ({"format": "xml"}, "json"),
        ({"format": object()}, "dumps"),
        ({"safe_sync": True, "durability": "none"}, "safe_sync"),
        ({"mode": 0o007}, "0o700"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            kind("d", container_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="on_conflict"):
        WriteOncePersistentDict("d", container_dir=tmp_path, on_conflict="x")


@BOTH
def test_a_store_of_ones_own(kind):
    store = MemoryStore()
    d = kind("d", store=store)
    d["k"] = [1]
    assert d["k"] == [1]
    assert kind("other", store=store)["k"] == [1]
    assert (d.filename, d.container_dir) == ("", "")
    assert list(d.items()) == [("k", [1])]


@BOTH
@pytest.mark.parametrize(
    "option",
    [
        {"durability": "none"},
        {"mmap": True},
        {"trusted": True},
        {"mode": 0o700},
        {"safe_sync": True},
        {"container_dir": "x"},
    ],
)
def test_options_of_a_container_beside_a_store_are_an_error(kind, option):
    with pytest.raises(TypeError, match="store="):
        kind("d", store=MemoryStore(), **option)


@BOTH
def test_errors_of_a_users_pickle_come_through(kind, tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("my own error")

    d = kind("d", container_dir=tmp_path)
    with pytest.raises(RuntimeError, match="my own error"):
        d["k"] = Unpicklable()
    assert "k" not in d
    d["k"] = 1
    assert d["k"] == 1


def age(d, key):
    """Make an entry old enough for a PersistentDict to keep its value in memory."""
    long_ago = time.time() - 60
    os.utime(os.path.join(d.entry_path(key), "value"), (long_ago, long_ago))


# Write once


def test_storing_again_is_an_error(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d["k"] = 1
    for _ in range(2):
        with pytest.raises(ReadOnlyEntryError, match="'k'.*store_if_not_present") as caught:
            d["k"] = 1
    assert isinstance(caught.value, KeyError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert d["k"] == 1


def test_on_conflict_keep_keeps_the_first(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, on_conflict="keep")
    d["k"] = 1
    d["k"] = 2
    assert d["k"] == 1


def test_on_conflict_verify_compares(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, on_conflict="verify")
    d["k"] = [1]
    d["k"] = [1]
    with pytest.raises(ReadOnlyEntryError, match="different value"):
        d["k"] = [2]
    assert d["k"] == [1]


def test_on_conflict_verify_compares_arrays(tmp_path):
    np = pytest.importorskip("numpy")
    d = WriteOncePersistentDict("d", container_dir=tmp_path, on_conflict="verify")
    d["k"] = np.arange(5000.0)
    d["k"] = np.arange(5000.0)
    with pytest.raises(ReadOnlyEntryError):
        d["k"] = np.arange(5000.0) + 1


def test_memory_keeps_the_least_recently_used_out(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, in_mem_cache_size=2)
    for key in ("a", "b", "c"):
        d[key] = [key]
    a = d["a"]
    assert d["a"] is a
    d["b"]
    assert d["a"] is a
    d["c"]
    assert d["a"] is a
    d["b"]
    d["c"]
    assert d["a"] is not a
    assert d.cache_info().in_memory == 2


@pytest.mark.parametrize(("size", "same"), [(0, False), (1, True), (None, True)])
def test_the_size_of_the_memory(size, same, tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, in_mem_cache_size=size)
    for key in ("k", ("k", 1)):
        d[key] = [1]
        assert (d[key] is d[key]) is same


def test_storing_does_not_put_the_callers_object_into_memory(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    value = [1]
    d["k"] = value
    value.append(2)
    assert d["k"] == [1]


def test_keys_of_other_types_are_not_found_in_memory(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d[1] = "int"
    d["a"] = "str"
    d[b"a"] = "bytes"
    assert [d[1], d["a"], d[b"a"]] == ["int", "str", "bytes"]
    for key in (True, 1.0, 1 + 0j):
        with pytest.raises(NoSuchEntryError):
            d[key]
    digest = KeyBuilder()("a")
    with pytest.raises(NoSuchEntryError):
        d[digest]
    with pytest.raises(NoSuchEntryError):
        d[(digest,)]


def test_a_builder_that_folds_keys_is_heeded_in_memory(tmp_path):
    class Folding(KeyBuilder):
        def update_for_str(self, key_hash, key):
            key_hash.update(key.lower().encode())

    d = WriteOncePersistentDict("d", Folding(), tmp_path)
    d["KEY"] = 1
    assert d["KEY"] == 1
    with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        d["key"]


# Overwriting


def test_overwriting_and_removing(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    d["k"] = 1
    d["k"] = 2
    assert d["k"] == 2
    assert len(d) == 1
    del d["k"]
    with pytest.raises(NoSuchEntryError):
        d.remove("k")
    with pytest.raises(NoSuchEntryError):
        d["k"]
    d.update({"a": 1, "b": 2})
    assert d.pop("a") == 1
    assert dict(d) == {"b": 2}


def test_an_overwritten_entry_keeps_its_place_in_the_order(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    for key in "abc":
        d[key] = key
    d["a"] = "new"
    assert list(d.items()) == [("a", "new"), ("b", "b"), ("c", "c")]


def test_memory_is_never_stale_even_within_a_tick_of_the_clock(tmp_path):
    d, other = (PersistentDict("d", container_dir=tmp_path) for _ in range(2))
    for i in range(300):
        other["k"] = i % 10
        assert d["k"] == i % 10
        other.remove("k")
        assert d.get("k") is None
        other["k"] = (i + 1) % 10  # the same size, and perhaps the same inode
        assert d["k"] == (i + 1) % 10


def test_memory_is_used_once_an_entry_is_old(tmp_path):
    d, other = (PersistentDict("d", container_dir=tmp_path) for _ in range(2))
    d["k"] = [1]
    age(d, "k")
    assert d["k"] is d["k"]
    other["k"] = [2]
    assert d["k"] == [2]
    other.remove("k")
    assert d.get("k") is None


def test_memory_of_another_handle_is_forgotten_with_clear(tmp_path):
    d, other = (PersistentDict("d", container_dir=tmp_path) for _ in range(2))
    d["k"] = 1
    age(d, "k")
    assert d["k"] == 1
    other.clear()
    assert d.get("k") is None


# Keys with one digest


@BOTH
@pytest.mark.parametrize("memory", [0, 256])
def test_an_unequal_key_with_the_same_digest_is_a_collision(kind, memory, tmp_path):
    d = kind("d", container_dir=tmp_path, in_mem_cache_size=memory)
    one, two = Keyed(1, 0), Keyed(2, 0)
    d[one] = "one"
    age(d, one)
    for _ in range(2):
        assert d[one] == "one"
        with pytest.warns(CollisionWarning, match=r"Keyed\(2\)"), pytest.raises(NoSuchEntryCollisionError):
            d[two]
        assert one in d
        assert two not in d
    assert d.store_if_not_present(two, "two") is False
    with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        d.setdefault(two, "two")
    assert d[one] == "one"


def test_a_collision_does_not_overwrite_once_written(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d[Keyed(1, 0)] = "one"
    with pytest.raises(ReadOnlyEntryError):
        d[Keyed(2, 0)] = "two"


def test_overwriting_never_gives_one_key_the_others_value(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    one, two = Keyed(1, 0), Keyed(2, 0)
    d[one] = "one"
    assert d[one] == "one"
    d[two] = "two"
    assert d[two] == "two"
    with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        d[one]
    with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        del d[one]
    assert list(d) == [two]


@BOTH
def test_a_nan_key_is_not_found_again_unless_by_content(kind, tmp_path):
    nan = float("nan")
    d, by_content = kind("d", container_dir=tmp_path), kind("c", ContentKeyBuilder(), tmp_path)
    with pytest.warns(NanKeyWarning):
        d[nan] = by_content[nan] = 1
    with pytest.warns(NanKeyWarning), pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        d[nan]
    with pytest.warns(NanKeyWarning):
        assert by_content[nan] == 1


@BOTH
def test_keys_with_arrays_and_hooks_are_compared(kind, tmp_path):
    np = pytest.importorskip("numpy")
    d = kind("d", ContentKeyBuilder(), tmp_path)
    d[(np.arange(3), Keyed(1, 0))] = 1
    assert d[(np.arange(3), Keyed(1, 0))] == 1


# Foreign key builders


@BOTH
@pytest.mark.parametrize("text", ["{}", "sixteen-{:>08}", "ä\udc80{}", "{:040x}", "{:040X}"])
def test_any_callable_to_a_string_is_a_key_builder(kind, text, tmp_path):
    d = kind("d", lambda key: text.format(key), tmp_path)
    for i in range(5):
        d[i] = i
    assert [d[i] for i in range(5)] == list(range(5))
    assert 7 not in d
    assert all(re.fullmatch(r"[0-9a-f]{38}", os.path.basename(d.entry_path(i))) for i in range(5))


def test_a_digest_of_forty_hex_characters_is_used_as_it_is(tmp_path):
    d = WriteOncePersistentDict("d", lambda key: "ab" + "0" * 38, tmp_path)
    d[1] = 1
    assert d.entry_path(1).endswith("/ab/" + "0" * 38)
    with pytest.warns(CollisionWarning), pytest.raises(NoSuchEntryCollisionError):
        d[2]


def test_a_foreign_digest_cannot_leave_the_container(tmp_path):
    d = WriteOncePersistentDict("d", lambda key: "../../../../" + "x" * 28, tmp_path)
    d[1] = 1
    assert os.path.realpath(d.entry_path(1)).startswith(d.filename)
    assert d[1] == 1


# How little it does


def system_calls(
    script: str,
    directory,
    follow: str = "openat,open,read,pread64,fstat,newfstatat,stat,lstat,close,"
    "mkdir,rename,unlink,write,writev,getdents64",
) -> list[str]:
    """Return the system calls on `directory` between two marks, without their arguments."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    code = (
        "import os, sys, persistent_dict as pd\n"
        f"d = pd.WriteOncePersistentDict('d', container_dir={str(directory)!r}, in_mem_cache_size=0)\n"
        "d.store_if_not_present(('k', 1), 'v' * 900); d[('k', 1)]\n"
        "mark = lambda: os.path.lexists('/the-mark')\n"
        f"mark()\n{script}\nmark()\n"
    )
    trace = subprocess.run(
        [strace, "-f", "-o", "/dev/stdout", "-e", f"trace={follow}", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in trace.stderr.lower():
        pytest.skip(f"strace does not work here: {trace.stderr.strip()}")
    between = trace.stdout.split("/the-mark")[1].splitlines()[1:-1]
    return [re.sub(r"^\d+ +(\w+)\(.*", r"\1", line) for line in between]


def test_a_loose_hit_is_open_fstat_read_close(tmp_path):
    calls = system_calls("d[('k', 1)]", tmp_path)
    assert calls in (["openat", "fstat", "read", "close"], ["openat", "newfstatat", "read", "close"])


def test_a_miss_is_one_open_and_a_look_for_packs(tmp_path):
    assert system_calls("d.get(('absent',))", tmp_path) == ["openat", "newfstatat"]


def test_store_if_not_present_on_a_present_key_opens_nothing(tmp_path):
    calls = system_calls("assert d.store_if_not_present(('k', 1), 0) is False", tmp_path)
    assert calls in (["lstat"], ["newfstatat"])


def test_asking_whether_a_key_is_there_opens_nothing(tmp_path):
    assert system_calls("assert ('k', 1) in d", tmp_path) in (["lstat"], ["newfstatat"])


def test_exceptions_have_pytools_bases():
    assert issubclass(pd.NoSuchEntryCollisionError, pd.NoSuchEntryError)
    for name in ("NoSuchEntryError", "ReadOnlyEntryError"):
        assert issubclass(getattr(pd, name), KeyError)
    for name in ("InvalidKeyFileError", "InvalidValueFileError", "UnloadableEntryError"):
        assert issubclass(getattr(pd, name), pd.InvalidEntryError)
    assert not issubclass(pd.InvalidEntryError, KeyError)
    for name in ("CollisionWarning", "NanKeyWarning", "CacheWriteWarning", "CorruptEntryWarning"):
        assert issubclass(getattr(pd, name), UserWarning)


def test_a_warning_points_at_the_callers_line(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d[Keyed(1, 0)] = 1
    with pytest.warns(CollisionWarning) as caught, pytest.raises(KeyError):
        d[Keyed(2, 0)]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        ("none", ["mkdir", "write", "close", "write", "close", "rename"]),
        ("writeout", ["mkdir", "write", "fadvise", "close", "write", "fadvise", "close", "rename"]),
        ("consistent", ["mkdir", "write", "fsync", "close", "write", "fsync", "close", "fsync", "close", "rename"]),
        (
            "durable",
            ["mkdir", "write", "fsync", "close", "write", "fsync", "close", "fsync", "close", "rename", "fsync",
             "close"],
        ),
    ],
)  # fmt: skip
def test_a_store_does_what_its_durability_says_in_this_order(durability, expected, tmp_path, monkeypatch):
    d = WriteOncePersistentDict("d", lambda key: "ab" + f"{key:038x}", tmp_path, durability=durability)
    d[1] = 1  # makes the container and the shard
    seen = []

    def note(name, word):
        real = getattr(os, name)

        def noted(*args, **kwargs):
            seen.append(word)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, noted)

    for name, word in [("mkdir", "mkdir"), ("writev", "write"), ("posix_fadvise", "fadvise"), ("fsync", "fsync"),
                       ("close", "close"), ("rename", "rename")]:  # fmt: skip
        note(name, word)
    d[2] = 2
    assert seen == expected


def test_the_loser_of_a_race_and_the_user_of_anothers_container_sync_too(tmp_path, monkeypatch):
    WriteOncePersistentDict("d", container_dir=tmp_path)["k"] = 1
    d = WriteOncePersistentDict("d", container_dir=tmp_path, safe_sync=True)
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    assert d.store_if_not_present("k", 2) is False
    entry = d.entry_path("k")
    shard = os.path.dirname(entry)
    must = {d.filename, str(tmp_path), f"{entry}/key", f"{entry}/value", entry, shard, os.path.dirname(shard)}
    assert must <= set(synced)
