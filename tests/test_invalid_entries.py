"""Whatever is damaged: the right exception, never a wrong value, never code run from a file that fails its checks."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from persistent_dict import (
    CorruptEntryWarning,
    InvalidEntryError,
    InvalidKeyFileError,
    InvalidValueFileError,
    KeyBuilder,
    NoSuchEntryError,
    PersistentDict,
    UnloadableEntryError,
    WriteOncePersistentDict,
)
from persistent_dict.stores import framing

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])
KEY = ("key", 1)
LARGE = 80_000  # bytes; more than is read at once


class Tripwire:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark, size=0):
        self.mark, self.filling = str(mark), b"f" * size

    def __reduce__(self):
        return (trip, (self.mark, self.filling))


def trip(mark, filling):
    Path(mark).touch()
    return "tripped"


class ReadsItsKeys(KeyBuilder):
    """A builder whose digests prove nothing, so that every lookup reads the key file, too."""

    def update_for_tuple(self, key_hash, key):
        super().update_for_tuple(key_hash, key)


def make(kind, directory, value, **options):
    d = kind("d", container_dir=directory, in_mem_cache_size=0, **options)
    d[KEY] = value
    entry = Path(d.entry_path(KEY))
    return d, entry / "key", entry / "value"


def stored_large(array_module=None):
    return bytes(range(256)) * (LARGE // 256)


# Bytes


@BOTH
def test_every_flipped_byte_of_a_value_file_is_found(kind, tmp_path):
    mark = tmp_path / "mark"
    d, _, value = make(kind, tmp_path, Tripwire(mark))
    good = value.read_bytes()
    for i in range(len(good)):
        for bit in (0x01, 0x80):
            value.write_bytes(good[:i] + bytes([good[i] ^ bit]) + good[i + 1 :])
            with pytest.raises(InvalidValueFileError):
                d[KEY]
    assert not mark.exists()
    value.write_bytes(good)
    assert d[KEY] == "tripped"
    assert mark.exists()


@BOTH
def test_every_flipped_byte_of_a_key_file_is_found_by_who_reads_it(kind, tmp_path):
    d, key, _ = make(kind, tmp_path, 1, key_builder=ReadsItsKeys())
    good = key.read_bytes()
    for i in range(len(good)):
        key.write_bytes(good[:i] + bytes([good[i] ^ 0x10]) + good[i + 1 :])
        with pytest.raises(InvalidEntryError) as caught:
            d[KEY]
        # The nonce of a key file is only wrong beside its value file's, and its footer's CRC is then wrong, too.
        assert isinstance(caught.value, InvalidKeyFileError)
        with pytest.raises(InvalidKeyFileError):
            list(d.keys())
    key.write_bytes(good)
    assert d[KEY] == 1


@BOTH
@pytest.mark.parametrize("which", ["key", "value"])
def test_every_truncation_is_found(kind, which, tmp_path):
    mark = tmp_path / "mark"
    d, key, value = make(kind, tmp_path, Tripwire(mark), key_builder=ReadsItsKeys())
    path = {"key": key, "value": value}[which]
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises({"key": InvalidKeyFileError, "value": InvalidValueFileError}[which]):
            d[KEY]
    for more in (b"\0", b"x" * 96, good):
        path.write_bytes(good + more)
        with pytest.raises(InvalidEntryError):
            d[KEY]
    assert not mark.exists()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("how", ["stream", "buffers"])
def test_damage_in_a_large_file_is_found(how, mmap, tmp_path):
    np = pytest.importorskip("numpy")
    large = stored_large()
    value = large if how == "stream" else [np.frombuffer(large, "u1"), np.frombuffer(large[:-9], "u1")]
    d, _, path = make(WriteOncePersistentDict, tmp_path, value, mmap=mmap)
    good = path.read_bytes()
    step = 997
    for i in [*range(0, len(good), step), *range(len(good) - 200, len(good))]:
        path.write_bytes(good[:i] + bytes([good[i] ^ 0x04]) + good[i + 1 :])
        with pytest.raises(InvalidValueFileError):
            d[KEY]
    for length in range(0, len(good), step):
        path.write_bytes(good[:length])
        with pytest.raises(InvalidValueFileError):
            d[KEY]
    path.write_bytes(good)
    assert np.array_equal(d[KEY][0], value[0])


def test_every_byte_of_a_file_with_buffers_counts(tmp_path):
    """Also the padding between the buffers, and the table."""
    part = framing.Part(b"stream", [b"one" * 30, b"", b"two" * 5], b"nonce678", 1.0, 2.0)
    digest = "ab" * 20
    good = b"".join(bytes(chunk) for chunk in framing.frame(part, digest, framing.VALUE))
    back = framing.unframe(good, digest, framing.VALUE)
    assert [bytes(buffer) for buffer in back.buffers] == part.buffers
    for i in range(len(good)):
        with pytest.raises(framing.Damage):
            framing.unframe(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :], digest, framing.VALUE)


def test_a_checksum_by_sha256_is_kept_too():
    part, digest = framing.Part(b"stream", [b"x" * 100], b"nonce678"), "ab" * 20
    good = b"".join(bytes(chunk) for chunk in framing.frame(part, digest, framing.KEY, framing.ALGORITHMS["sha256"]))
    assert bytes(framing.unframe(good, digest, framing.KEY).stream) == b"stream"
    for i in range(len(good)):
        with pytest.raises(framing.Damage):
            framing.unframe(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :], digest, framing.KEY)


@BOTH
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda good: b"", "empty"),
        (lambda good: bytes(len(good)), "zeros"),
        (lambda good: good[:50] + bytes(len(good) - 50), "zeros"),
        (lambda good: good[:20], "cut off"),
        (lambda good: b"#!/bin/sh\necho foreign\n" * 20, "does not end as"),
        (lambda good: good.replace(b"\r\n", b"\n"), "does not end as"),
        (lambda good: good + good, "were written"),
    ],
)
def test_the_message_says_what_is_wrong(kind, damage, words, tmp_path):
    d, _, value = make(kind, tmp_path, "v" * 300)
    value.write_bytes(damage(value.read_bytes()))
    with pytest.raises(InvalidValueFileError, match=words):
        d[KEY]


def with_footer(good, offset, data):
    """Return a file with changed bytes in its footer, and the footer's CRC made right again."""
    footer = bytearray(good[-framing.FOOTER_SIZE :])
    footer[offset : offset + len(data)] = data
    footer[84:88] = zlib.crc32(bytes(footer[:84])).to_bytes(4, "little")
    return good[: -framing.FOOTER_SIZE] + bytes(footer)


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0, b"\xff" * 8, "were written"),
        (8, b"\xff" * 8, "lengths do not fit"),
        (8, b"\1" + b"\0" * 7, "checksum"),
        (40, b"\xaa" * 20, "another entry"),
        (60, b"\0" * 16, "checksum"),
        (76, b"\x63", "newer version"),
        (77, b"K", "is a key where a value belongs"),
        (78, b"\2", "file format 2.*upgrade"),
        (79, b"\1", "newer version"),
        (80, b"\xff\xff\xff\xff", "lengths do not fit"),
    ],
)
def test_each_field_of_the_footer_is_checked(offset, data, words, tmp_path):
    mark = tmp_path / "mark"
    d, _, value = make(WriteOncePersistentDict, tmp_path, Tripwire(mark, 50))
    value.write_bytes(with_footer(value.read_bytes(), offset, data))
    with pytest.raises(InvalidValueFileError, match=words):
        d[KEY]
    assert not mark.exists()


@BOTH
def test_key_and_value_exchanged(kind, tmp_path):
    d, key, value = make(kind, tmp_path, 1)
    key_bytes, value_bytes = key.read_bytes(), value.read_bytes()
    key.write_bytes(value_bytes)
    value.write_bytes(key_bytes)
    with pytest.raises(InvalidValueFileError, match="is a key where a value belongs"):
        d[KEY]
    with pytest.raises(InvalidKeyFileError, match="is a value where a key belongs"):
        list(d)


@BOTH
def test_an_entry_in_anothers_place(kind, tmp_path):
    d, _, value = make(kind, tmp_path, "first")
    d["other"] = "second"
    shutil.rmtree(value.parent)
    shutil.copytree(d.entry_path("other"), value.parent)
    with pytest.raises(InvalidValueFileError, match="another entry"):
        d[KEY]
    assert d["other"] == "second"


@BOTH
def test_key_and_value_of_different_stores(kind, tmp_path):
    d, _, value = make(kind, tmp_path / "a", 1, key_builder=ReadsItsKeys())
    _, _, other = make(kind, tmp_path / "b", 2, key_builder=ReadsItsKeys())
    shutil.copy(other, value)
    with pytest.raises(InvalidEntryError, match="different stores"):
        d[KEY]


# Things that are no regular files


def replace(path, how):
    path.unlink()
    how(path)


@BOTH
@pytest.mark.parametrize(
    "how",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink(path.parent / "key", path),
        lambda path: os.symlink("/nowhere/at/all", path),
        lambda path: os.symlink("/dev/zero", path),
    ],
    ids=["fifo", "directory", "link", "dangling link", "link to a device"],
)
def test_something_else_than_a_file_is_refused_and_nobody_waits(kind, how, tmp_path):
    d, _, value = make(kind, tmp_path, 1)
    replace(value, how)
    with pytest.raises(InvalidValueFileError, match="no regular file"):
        d[KEY]


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
def test_a_device_in_place_of_a_value_is_refused(tmp_path):
    d, _, value = make(WriteOncePersistentDict, tmp_path, 1)
    try:
        replace(value, lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)))
    except PermissionError:
        pytest.skip("devices cannot be made here")
    with pytest.raises(InvalidValueFileError, match="no regular file"):
        d[KEY]


@BOTH
def test_a_huge_sparse_file_takes_no_memory(kind, tmp_path):
    d, _, value = make(kind, tmp_path, 1)
    try:
        os.truncate(value, 1 << 40)
    except OSError:
        pytest.skip("no such large files here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidValueFileError, match="zeros"):
        d[KEY]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@BOTH
@pytest.mark.parametrize("how", [Path.touch, lambda path: path.symlink_to("/nowhere")], ids=["file", "dangling link"])
def test_something_else_in_place_of_an_entrys_directory(kind, how, tmp_path):
    d, _, value = make(kind, tmp_path, 1)
    entry = value.parent
    shutil.rmtree(entry)
    how(entry)
    if entry.is_symlink():
        assert d.get(KEY) is None  # it leads nowhere: a miss
    else:
        with pytest.raises(InvalidEntryError, match="stands where its directory belongs"):
            d[KEY]
    with pytest.raises(InvalidEntryError, match="stands where its directory belongs") as caught:
        d[KEY] = 2
    shell(commands(caught.value.for_key(KEY))[0])
    d[KEY] = 2
    assert d[KEY] == 2


@BOTH
def test_a_missing_value_file_is_a_miss_that_heals(kind, tmp_path):
    d, _, value = make(kind, tmp_path, 1)
    value.unlink()
    with pytest.raises(NoSuchEntryError):
        d[KEY]
    assert KEY not in d
    assert d.store_if_not_present(KEY, 2) is True
    assert d[KEY] == 2
    assert list(d.items()) == [(KEY, 2)]


def test_overwriting_heals_whatever_is_wrong(tmp_path):
    for i, damage in enumerate(
        [
            lambda key, value: key.unlink(),
            lambda key, value: value.unlink(),
            lambda key, value: key.write_bytes(b""),
            lambda key, value: value.write_bytes(b"x" * 200),
        ]
    ):
        d, key, value = make(PersistentDict, tmp_path / str(i), 1)
        damage(key, value)
        d[KEY] = 2
        assert d[KEY] == 2
        assert list(d.items()) == [(KEY, 2)]


def test_removing_takes_damaged_entries_too(tmp_path):
    d, key, value = make(PersistentDict, tmp_path, 1, key_builder=ReadsItsKeys())
    key.write_bytes(b"")
    value.write_bytes(b"")
    del d[KEY]
    assert KEY not in d
    assert not key.parent.exists()


@BOTH
def test_a_missing_key_file_is_told_by_who_needs_it(kind, tmp_path):
    d, key, _ = make(kind, tmp_path, 1)
    key.unlink()
    assert d[KEY] == 1  # the digest in the value file proves the key
    with pytest.raises(InvalidKeyFileError, match="missing"):
        list(d)


# Intact bytes that do not decode


class Moved:
    pass


class Stubborn:
    def __setstate__(self, state):
        raise RuntimeError("cannot be restored")

    def __getstate__(self):
        return {"x": 1}


@BOTH
def test_a_class_that_vanished_is_an_error_of_its_own(kind, tmp_path, monkeypatch):
    d, _, _ = make(kind, tmp_path, Moved())
    monkeypatch.delattr(sys.modules[__name__], "Moved")
    with pytest.raises(UnloadableEntryError, match="intact, but decoding them fails with AttributeError") as caught:
        d[KEY]
    assert "rm -rf" in str(caught.value)
    assert "repair" not in str(caught.value)
    assert isinstance(caught.value.__cause__, AttributeError)


@BOTH
def test_a_setstate_that_raises_is_told(kind, tmp_path):
    d, _, _ = make(kind, tmp_path, Stubborn())
    with pytest.raises(UnloadableEntryError, match="RuntimeError: cannot be restored"):
        d[KEY]


# What the error says, and does


def commands(error):
    return [line.split(":  ", 1)[1] for line in str(error).splitlines() if re.search(r"(remove|find) .*:  ", line)]


def shell(command):
    return subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)


def test_the_error_names_key_file_and_reason_and_survives_pickling(tmp_path):
    d, _, value = make(WriteOncePersistentDict, tmp_path, 1)
    value.write_bytes(b"")
    with pytest.raises(InvalidEntryError) as caught:
        d[KEY]
    error = caught.value
    assert not isinstance(error, KeyError)
    assert (error.path, error.entry, error.container) == (str(value), str(value.parent), d.filename)
    assert "('key', 1)" in str(error)
    assert str(value) in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)


@pytest.mark.parametrize("which", [0, 1], ids=["rm", "repair"])
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with space",
        "it's",
        'double"quote',
        "dollar $HOME `id`",
        "ümläut",
        "back\\slash",
        "semi;colon & more",
        "-dash",
    ],
)
def test_the_commands_of_the_message_mend_it(name, which, tmp_path):
    mark = tmp_path / "mark"
    d, _, value = make(WriteOncePersistentDict, tmp_path / name, Tripwire(mark))
    d["other"] = "stays"
    value.write_bytes(value.read_bytes()[:-1])
    with pytest.raises(InvalidEntryError) as caught:
        d[KEY]
    assert len(commands(caught.value)) == 2
    done = shell(commands(caught.value)[which])
    assert done.returncode == which, done.stderr  # repair tells by its exit code that something was wrong
    with pytest.raises(NoSuchEntryError):
        d[KEY]
    d[KEY] = "healed"
    assert d[KEY] == "healed"
    assert d["other"] == "stays"
    assert not mark.exists()


# Setting aside


@BOTH
def test_quarantine_moves_the_entry_warns_once_and_heals(kind, tmp_path):
    d, _, value = make(kind, tmp_path, 1, on_invalid="quarantine")
    value.write_bytes(b"")
    with pytest.warns(CorruptEntryWarning, match="empty") as caught, pytest.raises(NoSuchEntryError):
        d[KEY]
    assert len(caught) == 1
    assert len(list(Path(d.filename, "quarantine").iterdir())) == 1
    assert d.get(KEY) is None
    d[KEY] = 2
    assert d[KEY] == 2


@BOTH
def test_quarantine_takes_what_does_not_decode(kind, tmp_path):
    d, _, _ = make(kind, tmp_path, Stubborn(), on_invalid="quarantine")
    with pytest.warns(CorruptEntryWarning, match="RuntimeError"):
        assert d.get(KEY) is None
    d[KEY] = 2
    assert d[KEY] == 2


@BOTH
def test_iteration_passes_over_what_was_set_aside(kind, tmp_path):
    d, key, _ = make(kind, tmp_path, 1, on_invalid="quarantine")
    d["b"] = 2
    d["c"] = 3
    key.write_bytes(b"")
    Path(d.entry_path("c"), "value").write_bytes(b"")
    with pytest.warns(CorruptEntryWarning):
        assert list(d.items()) == [("b", 2)]
    assert len(d) == 1


def test_quarantine_leaves_alone_what_a_writer_has_healed(tmp_path):
    d, _, _ = make(WriteOncePersistentDict, tmp_path, 1)
    assert d._store.quarantine(d.key_builder(KEY)) == ""
    assert d[KEY] == 1


def test_readers_go_on_while_one_entry_is_damaged_set_aside_and_healed(tmp_path):
    d, _, value = make(WriteOncePersistentDict, tmp_path, "right", on_invalid="quarantine")
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            found = d.get(KEY)
            if found not in (None, "right"):
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    with pytest.warns(CorruptEntryWarning):
        for reader in readers:
            reader.start()
        for _ in range(50):
            try:
                value.write_bytes(b"damaged")
            except FileNotFoundError:
                pass
            d.get(KEY)
            d.store_if_not_present(KEY, "right")
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong
    d.get(KEY)
    d.store_if_not_present(KEY, "right")
    assert d[KEY] == "right"


def test_an_open_file_is_read_to_its_end_though_the_entry_was_set_aside(tmp_path):
    d, _, value = make(WriteOncePersistentDict, tmp_path, 1)
    with value.open("rb") as reader:
        good = value.read_bytes()
        d._store.quarantine(d.key_builder(KEY), unloadable=True)
        assert not value.exists()
        assert reader.read() == good


# repair


def repair(container):
    return subprocess.run(
        [sys.executable, "-m", "persistent_dict", "repair", container], check=False, capture_output=True, text=True
    )


def test_repair_sets_aside_just_what_is_damaged(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    for i in range(30):
        d[i] = "v" * 100
    for i in (3, 4):
        Path(d.entry_path(i), "value").write_bytes(b"")
    Path(d.entry_path(5), "key").write_bytes(b"x")
    Path(d.entry_path(6), "value").unlink()
    done = repair(d.filename)
    assert done.returncode == 1
    assert "30 entries checked, 4 set aside" in done.stderr
    assert all(d.entry_path(i) in done.stdout for i in (3, 4, 5, 6))
    again = repair(d.filename)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.split(",")[0:2] == ["26 entries checked", " 0 set aside"]
    assert sorted(d) == [i for i in range(30) if i not in (3, 4, 5, 6)]


def test_repair_leaves_what_does_not_decode(tmp_path):
    d, _, _ = make(WriteOncePersistentDict, tmp_path, Stubborn())
    assert repair(d.filename).returncode == 0
    assert KEY in d


def test_repair_sweeps_old_staging_and_leaves_the_young(tmp_path):
    d, _, _ = make(WriteOncePersistentDict, tmp_path, 1)
    staging = Path(d.filename, "tmp")
    for name in ("old", "young", "old with young file"):
        (staging / name).mkdir()
        (staging / name / "value").touch()
    (staging / "old file").touch()
    hours_ago = os.stat(staging).st_mtime - 7200
    for path in ("old/value", "old", "old file", "old with young file"):
        os.utime(staging / path, (hours_ago, hours_ago))
    assert "2 left-overs" in repair(d.filename).stderr
    assert sorted(os.listdir(staging)) == ["old with young file", "young"]
