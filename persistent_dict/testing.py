"""For people's own tests: an empty cache for the time of a test, and what every store must do.

    with temporary_cache():
        ...                              # no dictionary sees or changes what is in the user's cache

    class TestMyStore(StoreContract):
        def make_store(self):
            return MyStore(...)          # empty, and a new one each time

pytest finds the methods, and has a fixture `temporary_cache` where this package is installed; nothing here needs it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from contextlib import contextmanager

from persistent_dict._placed import displace_all
from persistent_dict.stores.base import Entry, Part, TakenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistent_dict.stores.base import Digest, MutableStore, Store

_MANY = 300  # entries; more than one shard of a sharded store gets
_THREADS = 8
_LARGE = 3 * 1024 * 1024 + 17  # bytes; more than a store may read at once, and no round number


@contextmanager
def temporary_cache() -> Iterator[str]:
    """Give every dictionary that was given no place a new, empty directory; yield its path, and remove it at the end.

    That goes for dictionaries and memoized functions of this process, made before or inside, and for those of processes
    that are started inside. A `container_dir` or `store` that was given stays. What was in memory is forgotten.
    """
    with tempfile.TemporaryDirectory(prefix="persistent_dict-") as directory:
        before = os.environ.get("PERSISTENT_DICT_DIR")
        os.environ["PERSISTENT_DICT_DIR"] = directory
        displace_all()
        try:
            yield directory
        finally:
            if before is None:
                del os.environ["PERSISTENT_DICT_DIR"]
            else:
                os.environ["PERSISTENT_DICT_DIR"] = before
            displace_all()


def make_digest(text: str) -> Digest:
    """Return a digest for a test."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def make_entry(
    value: bytes = b"value", *buffers: bytes | bytearray, key: bytes = b"key", seconds: float = 0.0
) -> Entry:
    """Return an entry for a test."""
    return Entry.new(key, value, buffers, seconds)


def contents(part: Part | None) -> tuple[bytes, list[bytes]] | None:
    """Return what a part holds, as bytes, or None where there is none."""
    return None if part is None else (bytes(part.stream), [bytes(buffer) for buffer in part.buffers])


class StoreContract:
    """The rules of a `Store`."""

    def make_store(self) -> Store:
        """Return a new, empty store."""
        raise NotImplementedError

    def test_what_was_added_is_got(self) -> None:
        store, entry = self.make_store(), make_entry(b"one", key=b"k", seconds=1.5)
        assert store.add(make_digest("a"), entry) is True
        got = store.get(make_digest("a"))
        assert got is not None
        assert contents(got.key) == (b"k", [])
        assert contents(got.value) == (b"one", [])
        assert got.value.seconds == 1.5
        assert got.value.stored_at == got.key.stored_at == entry.value.stored_at
        assert got.key.nonce == got.value.nonce

    def test_a_part_alone_is_what_the_entry_has(self) -> None:
        store = self.make_store()
        store.add(make_digest("a"), make_entry(b"one", key=b"k"))
        assert contents(store.get_key(make_digest("a"))) == (b"k", [])
        assert contents(store.get_value(make_digest("a"))) == (b"one", [])

    def test_a_miss_is_none(self) -> None:
        store = self.make_store()
        store.add(make_digest("a"), make_entry())
        absent = make_digest("b")
        assert store.get(absent) is None
        assert store.get_key(absent) is None
        assert store.get_value(absent) is None
        assert store.stat(absent) is None
        assert store.delete(absent) is False

    def test_an_empty_store_answers(self) -> None:
        store = self.make_store()
        assert store.get(make_digest("a")) is None
        assert store.stat(make_digest("a")) is None
        assert store.delete(make_digest("a")) is False
        assert list(store.scan()) == []
        assert len(store) == 0
        store.clear()

    def test_a_second_add_changes_nothing(self) -> None:
        store = self.make_store()
        store.add(make_digest("a"), make_entry(b"first"))
        assert store.add(make_digest("a"), make_entry(b"second")) is False
        assert contents(store.get_value(make_digest("a"))) == (b"first", [])

    def test_empty_and_odd_bytes_come_back(self) -> None:
        store = self.make_store()
        for i, value in enumerate((b"", b"\0", b"\0" * 200, bytes(range(256)) * 5, b"\x8fPDIC\r\n\x1a" * 30)):
            store.add(make_digest(str(i)), make_entry(value, key=value))
            assert contents(store.get_value(make_digest(str(i)))) == (value, [])
            assert contents(store.get_key(make_digest(str(i)))) == (value, [])

    def test_many_entries_are_added_at_once_or_not_at_all(self) -> None:
        store = self.make_store()
        a, b, c = map(make_digest, "abc")
        store.add(a, make_entry(b"first"))
        try:
            kept = store.add_all({a: make_entry(b"second"), b: make_entry(b"b", b"buffer")})
        except NotImplementedError:  # no store has to
            return
        assert kept == {a}
        assert contents(store.get_value(a)) == (b"first", [])
        assert contents(store.get_value(b)) == (b"b", [b"buffer"])
        taken: list[Digest] = []
        try:
            store.add_all({b: make_entry(b"third"), c: make_entry(b"c")}, new={b, c})
        except TakenError as error:
            taken += error.digests
        assert taken == [b]
        assert store.get(c) is None
        assert store.add_all({c: make_entry(b"c")}, new={c}) == frozenset()
        assert len(store) == 3

    def test_large_values_and_buffers_come_back(self) -> None:
        store = self.make_store()
        large = os.urandom(_LARGE)
        buffers: list[bytes | bytearray] = [bytearray(large), b"", b"x", os.urandom(64), large[:-1]]
        store.add(make_digest("stream"), make_entry(large))
        store.add(make_digest("buffers"), make_entry(b"s", *buffers))
        assert contents(store.get_value(make_digest("stream"))) == (large, [])
        assert contents(store.get_value(make_digest("buffers"))) == (b"s", [bytes(buffer) for buffer in buffers])

    def test_scan_yields_every_entry_once(self) -> None:
        store = self.make_store()
        digests = {make_digest(str(i)) for i in range(_MANY)}
        for digest in digests:
            store.add(digest, make_entry(digest.encode()))
        infos = list(store.scan())
        assert len(infos) == len(store) == _MANY
        assert {info.digest for info in infos} == digests
        assert all(info.nbytes >= len(make_digest("")) for info in infos)

    def test_delete_leaves_the_others_and_makes_room(self) -> None:
        store = self.make_store()
        for name in "ab":
            store.add(make_digest(name), make_entry(name.encode()))
        assert store.delete(make_digest("a")) is True
        assert store.get(make_digest("a")) is None
        assert contents(store.get_value(make_digest("b"))) == (b"b", [])
        assert store.add(make_digest("a"), make_entry(b"again")) is True
        assert contents(store.get_value(make_digest("a"))) == (b"again", [])

    def test_quarantine_makes_room(self) -> None:
        store = self.make_store()
        store.add(make_digest("a"), make_entry(b"unloadable"))
        store.quarantine(make_digest("a"), unloadable=True)
        assert store.get(make_digest("a")) is None
        assert store.add(make_digest("a"), make_entry(b"new")) is True
        store.quarantine(make_digest("absent"))

    def test_clear_removes_all(self) -> None:
        store = self.make_store()
        for i in range(20):
            store.add(make_digest(str(i)), make_entry())
        store.clear()
        assert list(store.scan()) == []
        assert store.add(make_digest("0"), make_entry(b"new")) is True
        assert contents(store.get_value(make_digest("0"))) == (b"new", [])

    def test_a_lock_has_one_holder(self) -> None:
        store = self.make_store()
        one, two, other = (store.lock(make_digest(name)) for name in "aab")
        if one is None or two is None or other is None:
            return  # a place without locks
        for first, second in ((one, two), (two, one)):
            assert first.acquire() is True
            assert second.acquire() is False
            assert isinstance(second.holder(), str)
            assert other.acquire() is True
            first.release()
            other.release()
        one.release()  # it is not held: nothing happens
        assert list(store.scan()) == []

    def test_place_tells_entries_apart(self) -> None:
        store = self.make_store()
        assert store.place(make_digest("a")) != store.place(make_digest("b"))
        assert isinstance(store.place(make_digest("a")), str)

    def test_of_many_threads_that_add_one_wins(self) -> None:
        store = self.make_store()
        for round_ in range(20):
            digest = make_digest(str(round_))
            won: list[int] = []

            def add(number: int, digest: Digest = digest, won: list[int] = won) -> None:
                if store.add(digest, make_entry(b"%d" % number)):
                    won.append(number)

            in_threads(add)
            assert len(won) == 1
            assert contents(store.get_value(digest)) == (b"%d" % won[0], [])

    def test_readers_see_all_of_an_entry_or_nothing(self) -> None:
        store, digest = self.make_store(), make_digest("a")
        value = (b"v" * 5000, [b"b" * 20_000])
        stop = threading.Event()

        def work(number: int) -> None:
            if number:
                while not stop.is_set():
                    seen = contents(store.get_value(digest))
                    assert seen in (None, value)
            else:
                try:
                    for _ in range(100):
                        store.add(digest, make_entry(value[0], *value[1]))
                        store.delete(digest)
                finally:
                    stop.set()

        in_threads(work)


class MutableStoreContract(StoreContract):
    """The rules of a `MutableStore`."""

    def make_store(self) -> MutableStore:
        raise NotImplementedError

    def test_set_adds_and_replaces(self) -> None:
        store, digest = self.make_store(), make_digest("a")
        store.set(digest, make_entry(b"one", b"buffer"))
        assert contents(store.get_value(digest)) == (b"one", [b"buffer"])
        store.set(digest, make_entry(b"two", seconds=2.0))
        got = store.get(digest)
        assert got is not None
        assert contents(got.value) == (b"two", [])
        assert got.value.seconds == 2.0
        assert got.key.nonce == got.value.nonce
        assert len(store) == 1

    def test_many_entries_are_replaced_at_once(self) -> None:
        store = self.make_store()
        digests = [make_digest(str(i)) for i in range(20)]
        for digest in digests[:10]:
            store.set(digest, make_entry(b"old", key=b"old"))
        entries = {digest: make_entry(b"new", key=b"new") for digest in digests}
        try:
            kept = store.add_all(entries, overwrite=set(digests[5:]))
        except NotImplementedError:  # no store has to
            return
        assert kept == set(digests[:5])
        for i, digest in enumerate(digests):
            got = store.get(digest)
            assert got is not None
            expected = b"old" if i < 5 else b"new"
            assert (contents(got.key), contents(got.value)) == ((expected, []), (expected, []))
            assert store.delete(digest)
            assert store.get(digest) is None
        assert list(store.scan()) == []

    def test_a_replaced_value_has_another_stamp(self) -> None:
        store, digest = self.make_store(), make_digest("a")
        store.set(digest, make_entry(b"one"))
        before = store.stat(digest)
        store.set(digest, make_entry(b"two, and longer"))
        after = store.stat(digest)
        assert before is not None
        assert after is not None
        assert before.stamp != after.stamp

    def test_a_key_that_is_not_the_same_is_replaced_too(self) -> None:
        store, digest = self.make_store(), make_digest("a")
        store.set(digest, make_entry(b"one", key=b"first"))
        store.set(digest, make_entry(b"two", key=b"second"), lambda part: bytes(part.stream) == b"second")
        got = store.get(digest)
        assert got is not None
        assert contents(got.key) == (b"second", [])
        assert contents(got.value) == (b"two", [])

    def test_readers_see_the_old_value_or_the_new_one(self) -> None:
        store, digest = self.make_store(), make_digest("a")
        values = {(letter * 3000, letter * 17_000) for letter in (b"x", b"y", b"z")}
        store.set(digest, make_entry(b"x" * 3000, b"x" * 17_000))
        stop = threading.Event()

        def work(number: int) -> None:
            if number > 1:
                while not stop.is_set():
                    part = store.get_value(digest)
                    assert part is not None
                    assert (bytes(part.stream), *map(bytes, part.buffers)) in values
                    entry = store.get(digest)
                    assert entry is not None
                    assert entry.key.nonce == entry.value.nonce
            else:
                try:
                    for stream, buffer in list(values) * 50:
                        store.set(digest, make_entry(stream, buffer))
                finally:
                    stop.set()

        in_threads(work)


def in_threads(work: Callable[[int], object], threads: int = _THREADS) -> None:
    """Call ``work(0)`` to ``work(threads - 1)`` at the same time; raise what the first that failed raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as failure:  # raised again below
            failures.append(failure)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
