"""Packing, importing, exporting, removing and repairing that fail or are killed at any step: nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import CALLS, KILLED, Injector, descriptors, make_old

from persistent_dict import PersistentDict, open_readonly
from persistent_dict.inspection import open_store, verify
from persistent_dict.maintenance import export, import_pack, pack, prune, repair
from persistent_dict.stores.limits import Limits

SCENARIO = """
from persistent_dict.inspection import open_store
from persistent_dict.maintenance import clear, export, import_pack, pack, prune, remove, repair
from persistent_dict.stores.limits import Limits
"""
# What is done to a container with the entries 0 to 5 packed, 6 and 7 loose, and 1 overwritten; the values that may be
# found afterwards, where they are not those from before; the keys that may be missing.
ACTIONS = {
    "pack": ("pack(store)", {}, ()),
    "pack all": ("pack(store, everything=True)", {}, ()),
    "import": ("import_pack(exported, store.path)", {8: "imported", 9: "imported"}, (8, 9)),
    "export": ("export(store, exported + '2')", {}, ()),
    "remove": ("d.remove(2)", {}, (2,)),
    "overwrite": ("d.store(3, 'new')", {3: "new"}, ()),
    "prune": ("prune(store, Limits(max_entries=4))", {}, range(8)),
    "clear": ("clear(store)", {}, range(8)),
    "repair": ("repair(store)", {}, ()),
}


def prepared(directory):
    """Return a dictionary, and what is in it."""
    d = PersistentDict("d", container_dir=directory, in_mem_cache_size=0)
    for i in range(6):
        d[i] = "packed" * i
    pack(open_store(d.filename))
    d[1], d[6], d[7] = "overwritten", "loose", "loose"
    return d, {i: d[i] for i in range(8)}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A directory with a container to be copied, and an exported pack that overlaps with it."""
    place = tmp_path_factory.mktemp("origin")
    other = PersistentDict("d", container_dir=place / "other")
    for i in (0, 8, 9):
        other[i] = "imported"
    export(open_store(other.filename), str(place / "x.pack"))
    prepared(place / "container")
    return place


def copied(origin, directory):
    shutil.copytree(origin, directory)
    d = PersistentDict("d", container_dir=directory / "container", in_mem_cache_size=0)
    return d, {0: "", 1: "overwritten", **{i: "packed" * i for i in range(2, 6)}, 6: "loose", 7: "loose"}


def check(label, d, before, action):
    """Assert that what is found is right, that repair leaves nothing to do, and that the dictionary is usable."""
    _, changed, missing = ACTIONS[action]
    for look in range(3):
        if look == 1:
            make_old(Path(d.filename, "tmp"))
            assert repair(open_store(d.filename)).set_aside == [], label
            assert os.listdir(Path(d.filename, "tmp")) == [], label
        if look == 2:
            pack(open_store(d.filename), everything=True)
        for reader in (d, PersistentDict("d", container_dir=os.path.dirname(d.filename), in_mem_cache_size=0)):
            found = dict(reader.items())
            for key in {*before, *changed, *missing, *found}:
                allowed = {before.get(key), changed.get(key, before.get(key))} | ({None} if key in missing else set())
                assert found.get(key) in allowed, (label, look, key)
                assert reader.get(key) == found.get(key), (label, look, key)
            assert len(reader) == len(found), (label, look)
    assert verify(open_store(d.filename)).problems == [], label
    d["after"] = 1
    assert d["after"] == 1


def run(action, d, exported):
    names = {**globals(), "d": d, "store": open_store(d.filename), "exported": exported}
    exec(f"{SCENARIO}\n{ACTIONS[action][0]}", names)


@pytest.mark.storm
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_an_error_at_any_call_loses_nothing(code, action, origin, tmp_path, monkeypatch):
    injector = Injector(monkeypatch, tmp_path)
    step = 1 if action in ("import", "overwrite") else 3
    for at in range(1, 2000, step):
        injector.start(-1, None)
        directory = tmp_path / str(at)
        d, before = copied(origin, directory)
        assert d[2] == before[2]
        there = descriptors()
        injector.start(at, OSError(getattr(errno, code), os.strerror(getattr(errno, code))))
        with contextlib.suppress(OSError):
            run(action, d, str(directory / "x.pack"))
        injector.error = None
        done = injector.count < at
        label = f"{action}: {injector.failed} at call {at}"
        injector.start(-1, None)
        check(label, d, before, action)
        del d
        assert len(descriptors()) <= len(there) + 2, label
        shutil.rmtree(directory)
        if done:
            assert at > 20
            return
    pytest.fail("the action never came to its end")


@pytest.mark.storm
@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_call_loses_nothing(action, origin, tmp_path):
    root = str(Path(__file__).resolve().parent.parent)
    calls = [*(name for name in CALLS if name not in ("fstat", "lstat", "listdir", "read", "pread", "preadv", "close")),
             "pwrite", "ftruncate", "link"]  # fmt: skip
    for at in range(1, 400):
        directory = tmp_path / str(at)
        d, before = copied(origin, directory)
        exported = str(directory / "x.pack")
        script = f"{SCENARIO}store, exported = open_store(d.filename), {exported!r}\n{ACTIONS[action][0]}"
        source = KILLED.format(
            root=root, directory=str(directory / "container"), at=at, after=at % 2 == 0, calls=calls, action=script,
            durability="none",
        )  # fmt: skip
        done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True)
        check(f"{action} at call {at}", d, before, action)
        assert len(open_readonly(exported)) == 3
        shutil.rmtree(directory)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            assert at > 4
            return
    pytest.fail("the action never came to its end")


def test_a_full_disk_stops_packing_and_loses_nothing_and_pruning_works(small_disk):
    d = PersistentDict("d", container_dir=small_disk, in_mem_cache_size=0)
    stored = {}
    with pytest.raises(OSError, match="No space left"):
        for i in range(10_000):
            d[i] = b"%d" % i * 10_000
            stored[i] = b"%d" % i * 10_000
    store = open_store(d.filename)
    for work in (
        lambda: pack(store),
        lambda: export(store, str(small_disk / "x.pack")),
    ):
        with contextlib.suppress(OSError):
            work()
        assert dict(d.items()) == stored
        assert os.listdir(Path(d.filename, "tmp")) == []
    prune(store, Limits(max_entries=len(stored) // 3))
    left = dict(d.items())
    assert len(left) == len(stored) // 3
    assert pack(store).packed == len(left) or len(list(Path(d.filename, "packs").glob("*.pack"))) == 1
    assert dict(d.items()) == left
    with pytest.raises(OSError, match="No space left"):
        for i in range(10_000):
            d["more", i] = b"x" * 10_000
    with pytest.raises(OSError, match="No space left"):
        import_pack(exported_elsewhere(small_disk.parent, 3000), d.filename)
    assert {key: found for key, found in d.items() if key in left} == left
    for key in list(left):
        del d[key]
        assert key not in d
    d.clear()
    d["small"] = 1
    assert d["small"] == 1


def exported_elsewhere(directory, count):
    other = PersistentDict("d", container_dir=directory / "elsewhere")
    for i in range(count):
        other["other", i] = b"y" * 3000
    export(open_store(other.filename), str(directory / "large.pack"))
    return str(directory / "large.pack")
