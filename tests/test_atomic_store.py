"""One value in one file: replaced as a whole or not at all, with nothing lost between those who lock it."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from crash.explorer import Recorder, explore
from faults import Injector

from persistent_dict import PersistentDictError, StaleStoreError, UnreadableStoreError, atomic_store

ROOT = str(Path(__file__).resolve().parent.parent)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spawn(source):
    return subprocess.Popen([sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": ROOT})


# What the package of that name does


def readme_of(package):
    """Return the examples of an installed package's README."""
    return re.findall(r"```python3?\n(.*?)```", importlib.metadata.metadata(package).get_payload(), flags=re.DOTALL)


LEFT = [
    {"runs.json": 1, "mystate.json": "before"},
    {"gathered.json": {"state": "done", "thought": "I do so like Green eggs and ham!"}, "mystate.json": "before"},
    {"mystate.json": "before"},
    {"mystate.json": "inner"},
    {"mystate.json": "inner"},  # what the inner block has made of it, written by the outer one
]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", ["atomic_store", "persistent_dict.atomic_store"])
def test_every_example_of_its_readme_works(number, name, monkeypatch):
    pytest.importorskip("atomic_store")
    examples = readme_of("atomic_store")
    assert len(examples) == 5
    module = pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, "atomic_store", module)
    Path("mystate.json").write_text('"before"')
    exec(examples[number], {"MY_FORMAT": pickle, "atomic_store": module})
    left = {path: json.loads(Path(path).read_text()) for path in os.listdir() if path.endswith(".json")}
    if "runs.json" in left:
        left["runs.json"] = len(left["runs.json"])
    assert left == LEFT[number]


def test_inner_exits_write_unless_they_are_ignored():
    for ignored in (False, True):
        store = atomic_store.open("a.json", ignore_inner_exits=ignored)
        with store as outer:
            outer.value = "outer"
            with store as inner:
                assert inner is outer
                inner.value = "inner"
                assert not os.path.exists("a.json")
            assert os.path.exists("a.json") is not ignored
        assert json.loads(Path("a.json").read_text()) == "inner"
        os.unlink("a.json")


def test_the_default_is_used_where_there_is_no_file_and_stays_as_it_is():
    default = []
    for i in range(3):
        with atomic_store.open("a.json", default) as store:
            assert store.value == list(range(i))
            store.value.append(i)
    assert default == []
    assert atomic_store.open("b.json").value is None
    store = atomic_store.open("b.json", [1])
    store.value.append(2)
    store.reload()
    assert store.value == [1]
    assert not os.path.exists("b.json")


class Rot13:
    def dumps(self, obj, shift=13):
        return repr((obj, shift)).encode()

    def loads(self, data, shift=13):
        value, used = eval(data.decode())
        assert used == shift
        return value


class Lines(atomic_store.AbstractFormatFile):
    def dump(self, obj, fp, end="\n"):
        fp.writelines(f"{line}{end}" for line in obj)

    def load(self, fp):
        return fp.read().splitlines()


class Bytes(atomic_store.AbstractFormatBstr):
    def dumps(self, obj):
        return obj

    def loads(self, binary_string):
        return binary_string


@pytest.mark.parametrize(
    ("kind", "value", "options"),
    [
        (None, {"a": [1, 2.5, None, "ü"]}, {}),
        ("json", [1], {"dump_kwargs": {"separators": (",", ":")}, "load_kwargs": {"parse_int": int}}),
        (json, [1], {"dump_kwargs": {"indent": 2}}),
        ("pickle", {1, (2, 3)}, {"dump_kwargs": {"protocol": 4}}),
        (pickle, b"x", {}),
        ("bson", {"a": [1, "x"]}, {}),
        ("toml", {"a": {"b": [1, 2]}, "c": "ü"}, {}),
        (Rot13(), "x", {"dump_kwargs": {"shift": 3}, "load_kwargs": {"shift": 3}}),
        (Lines(), ["a", "b"], {"is_binary": False, "dump_kwargs": {"end": "\r\n"}}),
        (Bytes(), b"\x00\xff", {}),
    ],
    ids=["default", "json", "the json module", "pickle", "the pickle module", "bson", "toml", "dumps", "text", "bytes"],
)
def test_every_format_comes_back(kind, value, options):
    if kind in ("bson", "toml"):
        pytest.importorskip({"bson": "bson", "toml": "tomli_w"}[kind])
    store = atomic_store.open("file", format=kind, **options)
    store.value = value
    store.commit()
    assert atomic_store.open(Path("file"), format=kind, **options).value == value
    if kind == "json":
        assert Path("file").read_bytes() == b"[1]"


def test_formats_that_do_not_fit_say_so():
    for wrong in ("yaml", object(), 5):
        with pytest.raises(ValueError, match="unknown format"):
            atomic_store.open("file", format=wrong)
    store = atomic_store.open("file", 5, format="toml")
    with pytest.raises(TypeError, match="must be a dict"):
        store.commit()
    with pytest.raises(TypeError, match="is_binary=False"):
        atomic_store.open("file", 5, format=_Text()).commit()
    for abstract in (atomic_store.AbstractFormatBstr(), atomic_store.AbstractFormatFile()):
        with pytest.raises(NotImplementedError):
            atomic_store.open("file", 5, format=abstract).commit()
    assert os.listdir() == []


class _Text:
    def dumps(self, obj):
        return str(obj)

    loads = int


def test_a_missing_package_is_named(monkeypatch):
    for name, module in (("bson", "bson"), ("toml", "tomli_w")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'persistent_dict\[{name}\]'"):
            atomic_store.open("file", {}, format=name).commit()


# What it does not do


def test_an_exception_leaves_the_file_as_it_is():
    with atomic_store.open("a.json", [1]):
        pass
    store = atomic_store.open("a.json")
    with pytest.raises(ZeroDivisionError), store:
        store.value.append(2)
        1 / 0
    assert Path("a.json").read_text() == "[1]"
    with pytest.raises(ZeroDivisionError), store, store:
        1 / 0
    assert Path("a.json").read_text() == "[1]"
    store.reload()
    assert store.value == [1]
    with pytest.raises(ZeroDivisionError), atomic_store.open("a.json", commit_on_error=True) as other:
        other.value.append(3)
        1 / 0
    assert Path("a.json").read_text() == "[1, 3]"


@pytest.mark.parametrize("lock", [False, True])
def test_what_cannot_be_encoded_leaves_no_trace(lock):
    with atomic_store.open("a.json", [1], lock=lock) as store:
        pass
    store.value = [1, object()]
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.commit()
    with pytest.raises(TypeError, match="not JSON serializable"), store:
        store.value = object()
    assert Path("a.json").read_text() == "[1]"
    assert os.listdir() == ["a.json"]


def test_a_file_that_cannot_be_read_is_never_replaced_by_the_default():
    for data in (b"", b"[1,", b"\xff\xfe", b"nonsense"):
        Path("a b.json").write_bytes(data)
        with pytest.raises(UnreadableStoreError) as caught:
            atomic_store.open("a b.json", default=[])
        assert isinstance(caught.value, (ValueError, PersistentDictError))
        assert caught.value.__cause__ is not None
        assert pickle.loads(pickle.dumps(caught.value)).path == caught.value.path
        assert Path("a b.json").read_bytes() == data
    (command,) = commands_of(caught.value)
    subprocess.run(["sh", "-c", command], check=True)
    assert atomic_store.open("a b.json", default=[]).value == []


def test_the_backup_is_the_version_before_and_the_error_names_it():
    with atomic_store.open("a.json", 1, backup=True) as store:
        assert not os.path.exists("a.json.bak")
    for i in (2, 3):
        store.value = i
        store.commit()
        assert Path("a.json.bak").read_text() == str(i - 1)
    Path("a.json").write_text("[")
    with pytest.raises(UnreadableStoreError) as caught:
        atomic_store.open("a.json")
    subprocess.run(["sh", "-c", commands_of(caught.value)[0]], check=True)
    assert atomic_store.open("a.json").value == 2
    assert sorted(os.listdir()) == ["a.json", "a.json.bak"]


def commands_of(error):
    return [line.partition(":  ")[2] for line in str(error).splitlines() if ":  " in line]


def test_a_backup_that_is_the_file_itself_leaves_nothing_behind():
    Path("a.json").write_text("1")
    os.link("a.json", "a.json.bak")  # as a crash before the last step does
    with atomic_store.open("a.json", backup=True) as store:
        store.value = 2
    assert sorted(os.listdir()) == ["a.json", "a.json.bak"]
    assert (Path("a.json").read_text(), Path("a.json.bak").read_text()) == ("2", "1")


def test_a_backup_where_there_are_no_links(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    for i in range(3):
        with atomic_store.open("a.json", backup=True) as store:
            store.value = i
    assert (Path("a.json").read_text(), Path("a.json.bak").read_text()) == ("2", "1")


def test_what_is_no_file_is_an_error_and_no_hang():
    os.mkfifo("fifo")
    os.mkdir("directory")
    os.symlink("loop", "loop")
    for name in ("fifo", "directory", "loop", "directory/deeper/file/\0"):
        with pytest.raises((OSError, ValueError)):
            atomic_store.open(name)
    Path("file").touch()
    with pytest.raises(NotADirectoryError):
        atomic_store.open("file/x")
    store = atomic_store.open("nowhere/x", 1)
    with pytest.raises(FileNotFoundError, match=r"no such directory.*nowhere'"):
        store.commit()
    if os.geteuid() != 0:
        Path("secret").touch(0)
        with pytest.raises(PermissionError):
            atomic_store.open("secret", 1)


def test_turning_caches_off_does_not_turn_it_off(monkeypatch):
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    with atomic_store.open("a.json", 5):
        pass
    assert atomic_store.open("a.json").value == 5


# What is kept


def test_permissions_are_kept_and_new_files_have_those_of_any_other():
    before = os.umask(0o027)
    try:
        with atomic_store.open("new.json", 1):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("new.json").st_mode) == 0o640
    for mode in (0o600, 0o644, 0o664, 0o660):
        os.chmod("new.json", mode)
        with atomic_store.open("new.json", 1) as store:
            store.value = mode
        assert stat.S_IMODE(os.stat("new.json").st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_the_owner_is_kept_where_that_is_allowed():
    Path("a.json").write_text("1")
    os.chown("a.json", 1234, 5678)
    with atomic_store.open("a.json") as store:
        store.value = 2
    status = os.stat("a.json")
    assert (status.st_uid, status.st_gid, Path("a.json").read_text()) == (1234, 5678, "2")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_group_member_may_commit_to_a_file_of_another(tmp_path):
    Path("a.json").write_text("1")
    os.chown("a.json", 1234, 5678)
    os.chmod("a.json", 0o660)
    os.chmod(tmp_path, 0o777)
    for above in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
        os.chmod(above, os.stat(above).st_mode | 0o711)
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(5678)
            os.setuid(4321)
            with atomic_store.open("a.json") as store:
                store.value = 2
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    status = os.stat("a.json")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4321, 5678, 0o660)
    assert Path("a.json").read_text() == "2"


def test_extended_attributes_are_kept():
    Path("a.json").write_text("1")
    try:
        os.setxattr("a.json", "user.note", b"mine")
    except OSError:
        pytest.skip("no extended attributes here")
    with atomic_store.open("a.json") as store:
        store.value = 2
    assert os.getxattr("a.json", "user.note") == b"mine"


def test_a_link_is_followed_and_stays_one():
    os.mkdir("elsewhere")
    for there in (True, False):
        target = Path("elsewhere", f"real {there}.json")
        if there:
            target.write_text("1")
        os.symlink(target, f"link {there}.json")
        with atomic_store.open(f"link {there}.json") as store:
            store.value = 2
        assert os.path.islink(f"link {there}.json")
        assert target.read_text() == "2"


def test_the_path_is_that_of_the_time_of_opening(tmp_path, monkeypatch):
    store = atomic_store.open("a.json", 5)
    os.mkdir("elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.commit()
    assert (tmp_path / "a.json").read_text() == "5"


# Others


def test_a_change_by_somebody_else_is_reported():
    mine = atomic_store.open("a.json", 1)
    atomic_store.open("a.json", 2).commit()
    mine.value = 3
    for attempt in (mine.commit, lambda: mine.__enter__().__exit__(None, None, None)):
        with pytest.raises(StaleStoreError, match=r"reload\(\)") as caught:
            attempt()
        assert pickle.loads(pickle.dumps(caught.value)).path == caught.value.path
    assert Path("a.json").read_text() == "2"
    mine.reload()
    assert mine.value == 2
    mine.value = 4
    mine.commit()
    mine.commit()
    atomic_store.open("a.json", overwrite=True).commit()
    os.utime("a.json", (1, 1))  # the same bytes
    mine.commit()
    Path("a.json").write_text("5")
    with pytest.raises(StaleStoreError):
        mine.commit()
    mine.commit(overwrite=True)
    assert Path("a.json").read_text() == "4"
    os.unlink("a.json")
    with pytest.raises(StaleStoreError):
        mine.commit()
    Path("a.json").write_text("6")
    overwriting = atomic_store.open("a.json", overwrite=True)
    Path("a.json").write_text("7")
    overwriting.commit()
    assert Path("a.json").read_text() == "6"


def test_a_change_that_leaves_no_trace_in_the_status_is_seen():
    Path("a.json").write_text("1")
    mine = atomic_store.open("a.json")
    status = os.stat("a.json")
    with open("a.json", "r+b") as file:
        file.write(b"2")
    os.utime("a.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StaleStoreError):
        mine.commit()


def test_with_a_lock_entering_reads_anew():
    mine, theirs = (atomic_store.open("a.json", 0, lock=True) for _ in range(2))
    for _ in range(3):
        for store in (mine, theirs):
            with store:
                store.value += 1
                with store:  # deeper, nothing is read
                    store.value += 1
    assert json.loads(Path("a.json").read_text()) == 12
    with mine:
        Path("a.json").write_text("100")  # by somebody who does not ask for the lock
    assert json.loads(Path("a.json").read_text()) == 12
    mine.value = 1
    Path("a.json").write_text("100")
    with pytest.raises(StaleStoreError):  # not inside of a block
        mine.commit()
    assert os.listdir() == ["a.json"]


COUNT = """
from persistent_dict import atomic_store
for _ in range({rounds}):
    with atomic_store.open({path!r}, 0, lock=True, safe_sync=False) as store:
        store.value += 1
"""


@pytest.mark.storm
def test_eight_processes_that_count_lose_nothing(tmp_path):
    path = str(tmp_path / "counter.json")
    processes = [spawn(COUNT.format(rounds=1000, path=path)) for _ in range(8)]
    assert [process.wait(300) for process in processes] == [0] * 8
    assert json.loads(Path(path).read_text()) == 8000
    assert os.listdir(tmp_path) == ["counter.json"]


def test_threads_that_share_a_locked_store_take_turns():
    shared = atomic_store.open("a.json", 0, lock=True, safe_sync=False)

    def count(store):
        for _ in range(50):
            with store or atomic_store.open("a.json", 0, lock=True, safe_sync=False) as mine:
                mine.value += 1

    threads = [threading.Thread(target=count, args=(store,)) for store in (shared, shared, None, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(Path("a.json").read_text()) == 200


def test_a_commit_of_another_thread_writes_what_is_there_when_its_turn_comes():
    shared = atomic_store.open("a.json", 1, lock=True)
    with shared:
        thread = threading.Thread(target=shared.commit)
        thread.start()
        time.sleep(0.1)
        shared.value = 2
    thread.join()
    assert Path("a.json").read_text() == "2"


def test_a_thread_that_would_wait_for_itself_is_told():
    with atomic_store.open("a.json", 1, lock=True), pytest.raises(RuntimeError, match="would wait for itself"):
        atomic_store.open("a.json", 1, lock=True).__enter__()
    with atomic_store.open("a.json", 1, lock=True):
        pass


def test_a_forked_child_that_leaves_the_block_commits_nothing():
    with atomic_store.open("a.json", 1, lock=True) as store:
        if not os.fork():
            try:
                store.value = 777
                store.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.wait()
        assert os.path.exists("a.json.lock")
        assert not os.path.exists("a.json")
        store.value = 2
    assert Path("a.json").read_text() == "2"


def test_an_error_after_the_rename_is_no_change_by_somebody_else(monkeypatch):
    store = atomic_store.open("a.json", 1)
    with monkeypatch.context() as patch:
        patch.setattr(atomic_store._fs, "sync_directory", lambda path: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            store.commit()
    store.value = 2
    store.commit()
    assert Path("a.json").read_text() == "2"


def test_long_names_and_places_without_attributes_are_no_obstacle(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOTSUP, "none here")

    monkeypatch.setattr(os, "listxattr", refuse, raising=False)
    for _ in range(2):
        with atomic_store.open("\u3042" * 80 + ".json", 1):
            pass
    assert len(os.listdir()) == 1


def test_mistaken_arguments_are_no_reason_to_move_the_file_away():
    Path("a.json").write_text("1")
    with pytest.raises(TypeError):
        atomic_store.open("a.json", load_kwargs={"no_such": 1})


def test_who_waits_too_long_for_the_lock_is_told_by_whom(tmp_path):
    path = str(tmp_path / "a.json")
    holder = spawn(f"""
import time
from persistent_dict import atomic_store
with atomic_store.open({path!r}, 1, lock=True) as store:
    store.commit()
    time.sleep(60)
""")
    try:
        while not os.path.exists(path):
            time.sleep(0.01)
        store = atomic_store.open(path, lock=0.2)
        for attempt in (store.commit, store.__enter__):
            with pytest.raises(TimeoutError, match=f"process {holder.pid} on"):
                attempt()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with store:  # freed by the kernel
        store.value = 2
    assert json.loads(Path(path).read_text()) == 2
    assert os.listdir(tmp_path) == ["a.json"]


def test_without_a_lock_two_cannot_both_count(tmp_path):
    """That is what the lock is for: the slower one is told, and nothing is overwritten."""
    stores = [atomic_store.open("a.json", 0) for _ in range(2)]
    for store in stores:
        store.value += 1
    stores[0].commit()
    with pytest.raises(StaleStoreError):
        stores[1].commit()
    assert json.loads(Path("a.json").read_text()) == 1


# Accidents


COMMITTING = """
import json, os
from persistent_dict import atomic_store
store = atomic_store.open({path!r}, safe_sync={sync}, backup=True, overwrite=True)
number = 0
while True:
    number += 1
    store.value = [number, "x" * (number * 997 % 20_000), number]
    store.commit()
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.storm
def test_a_kill_while_committing_leaves_the_old_value_or_the_new_one(tmp_path):
    path = str(tmp_path / "a.json")
    rounds = int(os.environ.get("PERSISTENT_DICT_KILLS", "500"))
    for number in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMITTING.format(path=path, sync=number % 2 == 0)],
            env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.PIPE,
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(number % 20 * 0.0007)
        process.kill()
        acknowledged = [b"1\n", *process.stdout.read().splitlines(keepends=True)]
        process.wait()
        process.stdout.close()
        last = max(int(line) for line in acknowledged if line.endswith(b"\n"))
        for name in (path, f"{path}.bak") if os.path.exists(f"{path}.bak") else (path,):
            first, _, second = atomic_store.open(name).value
            assert first == second
        first = atomic_store.open(path).value[0]
        assert last <= first <= last + 1
    left = [name for name in os.listdir(tmp_path) if name not in ("a.json", "a.json.bak")]
    for name in left:
        os.utime(tmp_path / name, (0, 0))
    atomic_store.open(path, overwrite=True).commit()
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.json.bak"]


def test_what_killed_processes_left_is_removed_after_an_hour_and_nothing_else():
    others = [".a.json.notes.tmpx", ".a.json.notes.tmp", ".b.json.0123456789abcdef.tmp", "a.json.0123456789abcdef.tmp",
              ".a.json.0123456789ABCDEF.tmp"]  # fmt: skip
    os.mkdir(".a.json.00000000deadbeef.tmp")
    for name in [*others, ".a.json.0123456789abcdef.tmp", ".a.json.fedcba9876543210.tmp"]:
        Path(name).touch()
    for name in os.listdir():
        if name != ".a.json.fedcba9876543210.tmp":
            os.utime(name, (0, 0))
    atomic_store.open("a.json", 1).commit()
    left = [*others, "a.json", ".a.json.fedcba9876543210.tmp", ".a.json.00000000deadbeef.tmp"]
    assert sorted(os.listdir()) == sorted(left)


@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_an_error_at_any_call_leaves_the_old_value_or_the_new_one(code, tmp_path, monkeypatch):
    injector = Injector(monkeypatch, tmp_path)
    failures = 0
    for at in range(1, 100):
        injector.start(-1, None)
        path = tmp_path / f"{at}.json"
        path.write_text("1")
        store = atomic_store.open(path, backup=True)
        store.value = [2] * 100
        injector.start(at, OSError(getattr(errno, code), os.strerror(getattr(errno, code))))
        try:
            store.commit()
        except OSError:
            failures += 1
        is_over = injector.count < at
        injector.start(-1, None)
        assert atomic_store.open(path).value in (1, [2] * 100)
        if is_over:
            break
    assert failures >= 5
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_full_disk_leaves_the_old_value(small_disk):
    path = small_disk / "a.json"
    store = atomic_store.open(path, "small")
    store.commit()
    store.value = "x" * 20_000_000
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    assert atomic_store.open(path).value == "small"
    assert sorted(name for name in os.listdir(small_disk) if name != "lost+found") == ["a.json"]
    store.value = "other"
    store.commit()
    assert atomic_store.open(path).value == "other"


def states_of_a_commit(tmp_path, check, there, **options):
    """Return how many states a power cut may leave of a commit, all of which are checked."""
    root = tmp_path / "root"
    root.mkdir()
    if there:
        (root / "a.json").write_text(json.dumps(OLD))
    with Recorder(root) as recorder:
        store = atomic_store.open(root / "a.json", OLD, **options)
        store.value = NEW
        store.commit()
        recorder.mark("committed")
    return explore(recorder, tmp_path, check)


OLD, NEW = {"old": list(range(50))}, {"new": "x" * 300}


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_power_cut_leaves_the_old_value_or_the_new_one(there, backup, tmp_path):
    def check(place, promised):
        found = atomic_store.open(place / "a.json", OLD).value
        assert found == NEW or (found == OLD and not promised)

    assert states_of_a_commit(tmp_path, check, there, backup=backup) >= 9


def test_without_syncing_a_power_cut_may_leave_less_but_nothing_that_looks_right(tmp_path):
    """As the docstring says; and so that it is known that these states are found."""
    found = set()

    def check(place, promised):
        try:
            value = atomic_store.open(place / "a.json", OLD).value
            assert value in (OLD, NEW)
            found.add("lost" if promised and value == OLD else "right")
        except UnreadableStoreError:
            found.add("damaged")

    states_of_a_commit(tmp_path, check, there=True, safe_sync=False)
    assert found == {"lost", "damaged", "right"}


def test_reading_text_is_like_opening_a_file():
    Path("a.json").write_bytes('{"ü":\r\n1}'.encode())
    assert atomic_store.open("a.json").value == {"ü": 1}
    store = atomic_store.open("b.txt", "", format=_Plain(), is_binary=False)
    Path("b.txt").write_bytes(b"a\r\nb")
    store.reload()
    assert store.value == "a\nb"


class _Plain:
    def dump(self, obj, fp):
        assert isinstance(fp, io.StringIO)
        fp.write(obj)

    def load(self, fp):
        return fp.read()


def test_the_lock_file_is_no_more_open_than_the_file():
    for mode in (0o600, 0o660, 0o644):
        Path("a.json").write_text("1")
        os.chmod("a.json", mode)
        with atomic_store.open("a.json", lock=True):
            assert stat.S_IMODE(os.stat("a.json.lock").st_mode) == mode
