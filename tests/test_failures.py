"""Full disks, I/O errors, interrupts and kills at every step: nothing half is visible, the dictionary stays usable."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from faults import CALLS, KILLED, Injector, descriptors, make_old

from persistent_dict import CacheWriteWarning, NoSuchEntryError, PersistentDict, WriteOncePersistentDict

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])


def scenarios(kind):
    """Name -> what is done to a dictionary that has "old" -> 1 and not "new"."""
    found = {
        "store": lambda d: d.store("new", 2),
        "store_if_not_present": lambda d: d.store_if_not_present("new", 2),
        "store_if_not_present of a present key": lambda d: d.store_if_not_present("old", 2),
        "fetch": lambda d: d.fetch("old"),
        "iterate": lambda d: list(d.items()),
        "clear": lambda d: d.clear(),
    }
    if kind is PersistentDict:
        found["overwrite"] = lambda d: d.store("old", 2)
        found["remove"] = lambda d: d.remove("old")
    return found


def run_all(kind, name, tmp_path, monkeypatch, error, after, durability):
    """Fail each call of a scenario in turn; yield a label and the dictionary after each failure."""
    injector = Injector(monkeypatch, tmp_path)
    for at in range(1, 200):
        directory = tmp_path / str(at)
        d = kind("d", container_dir=directory, in_mem_cache_size=0, durability=durability)
        d["old"] = 1
        before = descriptors()
        injector.start(at, error, after)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CacheWriteWarning)
                scenarios(kind)[name](d)
        except (OSError, KeyboardInterrupt) as caught:
            assert caught is error or isinstance(caught, OSError)  # noqa: PT017  # most runs raise, not all
        finally:
            failed, done = injector.failed, injector.count < at
            injector.start(-1, None)
        assert descriptors() <= before, f"a descriptor leaked when {failed} failed at call {at}"
        if done:
            assert at > 3 or name == "store_if_not_present of a present key"
            return
        yield f"{name}: {failed} at call {at}", d


def check_sane(label, d, name):
    """Assert that every read is right or a miss, and that both keys can be stored."""
    allowed = {
        "old": {1, None} if name in ("clear", "remove") else {1, 2} if name == "overwrite" else {1},
        "new": {2, None} if name in ("store", "store_if_not_present") else {None},
    }
    for key, values in allowed.items():
        assert d.get(key) in values, label
    assert set(dict(d)) <= {"old", "new"}, label
    d.store_if_not_present("old", 3)
    d.store_if_not_present("new", 3)
    assert len(list(d.items())) == 2, label


@BOTH
@pytest.mark.parametrize("durability", ["none", "durable"])
@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EMFILE", "EACCES"])
def test_an_error_at_any_call_leaves_nothing_half(kind, code, durability, tmp_path, monkeypatch):
    for name in scenarios(kind):
        error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        for label, d in run_all(kind, name, tmp_path / name, monkeypatch, error, False, durability):
            check_sane(label, d, name)
            staged = os.listdir(os.path.join(d.filename, "tmp"))
            if not any(word in label for word in ("unlink", "rmdir", "listdir", "lstat")):  # the cleaning itself failed
                assert staged == [], label
        monkeypatch.undo()


@BOTH
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_at_any_call_leaves_nothing_half(kind, after, tmp_path, monkeypatch):
    for name in scenarios(kind):
        for label, d in run_all(kind, name, tmp_path / name, monkeypatch, KeyboardInterrupt(), after, "none"):
            check_sane(label, d, name)
        monkeypatch.undo()


def test_a_cleaning_that_fails_does_not_hide_the_error(tmp_path, monkeypatch):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d["old"] = 1

    def failing(number):
        def call(*args, **kwargs):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "rename", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "unlink", failing(errno.EIO))
    with pytest.raises(OSError, match="No space left"):
        d["new"] = 2
    monkeypatch.undo()
    assert "new" not in d
    make_old(Path(d.filename, "tmp"))
    assert d._store.sweep() == 1


def test_a_failed_fsync_is_final(tmp_path, monkeypatch):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, safe_sync=True)
    d["old"] = 1
    calls = []

    def fsync(fd):
        calls.append(fd)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="injected"):
        d["new"] = 2
    assert len(calls) == 1
    monkeypatch.undo()
    assert "new" not in d
    assert os.listdir(os.path.join(d.filename, "tmp")) == []


@pytest.mark.parametrize("code", ["EIO", "EACCES", "EMFILE", "ESTALE", "ENFILE"])
def test_an_error_while_reading_is_no_miss(code, tmp_path, monkeypatch):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, in_mem_cache_size=0)
    d["k"] = 1
    real = os.open

    def failing(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)) or path in ("key", "value"):
            raise OSError(getattr(errno, code), "injected")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    for read in (lambda: d["k"], lambda: d.get("k"), lambda: list(d)):
        with pytest.raises(OSError, match="injected"):
            read()
    monkeypatch.undo()
    assert d["k"] == 1


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_short_writes_are_continued(limit, tmp_path, monkeypatch):
    np = pytest.importorskip("numpy")
    real_write, real_writev = os.write, os.writev
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:limit])))
    monkeypatch.setattr(os, "writev", lambda fd, chunks: real_writev(fd, [b"".join(map(bytes, chunks))[:limit]]))
    d = WriteOncePersistentDict("d", container_dir=tmp_path, in_mem_cache_size=0)
    array = np.arange(2500.0)
    d["k"] = [array, "x" * 50]
    assert np.array_equal(d["k"][0], array)


def test_a_pickle_that_fails_half_way_touches_no_disk(tmp_path):
    class HalfWay:
        def __reduce__(self):
            raise ZeroDivisionError("half way")

    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    with pytest.raises(ZeroDivisionError):
        d["k"] = [b"x" * 100_000, HalfWay()]
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_an_error_and_leaves_nothing(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d["small"] = 1
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            try:
                d["large"] = b"x" * 100_000
            except OSError as error:
                d["another"] = 2
                code = 0 if error.errno == errno.EFBIG else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "large" not in d
    assert (d["small"], d["another"]) == (1, 2)
    assert os.listdir(os.path.join(d.filename, "tmp")) == []


# A full disk


@BOTH
def test_a_full_disk_is_an_error_nothing_is_half_and_deleting_works(kind, small_disk):
    d = kind("d", container_dir=small_disk, in_mem_cache_size=0)
    stored = []
    with pytest.raises(OSError, match="No space left") as caught:
        for i in range(10_000):
            d[i] = b"%d" % i * 20_000
            stored.append(i)
    assert caught.value.errno == errno.ENOSPC
    assert len(stored) > 3
    assert os.listdir(os.path.join(d.filename, "tmp")) == []
    assert list(d) == stored
    assert all(d[i] == b"%d" % i * 20_000 for i in stored)
    with pytest.raises(OSError, match="No space left"):
        d.store_if_not_present("more", b"x" * (9 << 20))
    if kind is PersistentDict:
        with pytest.raises(OSError, match="No space left"):
            d[0] = b"y" * (9 << 20)
        assert d[0] == b"0" * 20_000
        for i in stored[:5]:
            del d[i]
    else:
        d.clear()
    d["small"] = 1
    assert d["small"] == 1


# Kills


@pytest.mark.parametrize("durability", ["none", "durable"])
@pytest.mark.parametrize(
    ("action", "old", "new"),
    [("d['new'] = 2", {1}, {2, None}), ("d['old'] = 2", {1, 2}, {None}), ("del d['old']", {1, None}, {None}),
     ("d.clear()", {1, None}, {None})],
    ids=["store", "overwrite", "remove", "clear"],
)  # fmt: skip
def test_a_kill_at_any_call_leaves_all_or_nothing(action, old, new, durability, tmp_path):
    root = str(Path(__file__).resolve().parent.parent)
    calls = [name for name in CALLS if name not in ("fstat", "lstat", "listdir", "read", "pread", "preadv")]
    for at in range(1, 60):
        directory = str(tmp_path / str(at))
        d = PersistentDict("d", container_dir=directory, in_mem_cache_size=0)
        d["old"] = 1
        script = KILLED.format(
            root=root, directory=directory, at=at, after=at % 2 == 0, calls=calls, action=action, durability=durability
        )
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert d.get("old") in old
        assert d.get("new") in new
        for key in ("old", "new"):
            d.store_if_not_present(key, 3)
        assert len(list(d.items())) == 2
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            break
        make_old(Path(d.filename, "tmp"))
        d._store.sweep()
        assert os.listdir(os.path.join(d.filename, "tmp")) == []
    else:
        pytest.fail("the action never came to its end")
    assert at > 4


def test_a_dictionary_goes_on_after_its_container_was_deleted(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path, in_mem_cache_size=0)
    d["k"] = 1
    shutil.rmtree(d.filename)
    with pytest.raises(NoSuchEntryError):
        d["k"]
    d["k"] = 2
    assert d["k"] == 2
    for name in ("tmp", "entries"):
        shutil.rmtree(os.path.join(d.filename, name))
        d[name] = 3
        assert d[name] == 3
