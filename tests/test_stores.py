"""Every store keeps the rules that `persistent_dict.testing` states."""

from __future__ import annotations

import pytest

from persistent_dict.stores.disk import DiskStore
from persistent_dict.stores.memory import MemoryStore
from persistent_dict.testing import MutableStoreContract, make_entry


class TestMemoryStore(MutableStoreContract):
    def make_store(self) -> MemoryStore:
        return MemoryStore()


class TestDiskStore(MutableStoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.path, self.made = str(tmp_path), 0

    def make_store(self) -> DiskStore:
        self.made += 1
        return DiskStore(f"{self.path}/{self.made}", "pickle", "test")


class TestMappedDiskStore(TestDiskStore):
    def make_store(self) -> DiskStore:
        return DiskStore(f"{self.path}/mapped", "pickle", "test", mmap=True)


class TestDiskStoreWithSha256(TestDiskStore):
    def make_store(self) -> DiskStore:
        self.made += 1
        return DiskStore(f"{self.path}/{self.made}", "pickle", "test", checksum="sha256")

    def test_either_checksum_is_read(self):
        store = self.make_store()
        store.add("ab" * 20, make_entry(b"by sha256"))
        other = DiskStore(store.path, "pickle", "test")
        other.add("cd" * 20, make_entry(b"by crc32"))
        assert [bytes(s.get_value(digest).stream) for s in (store, other) for digest in ("ab" * 20, "cd" * 20)] == [
            b"by sha256",
            b"by crc32",
        ] * 2


@pytest.mark.parametrize("durability", ["writeout", "consistent", "durable"])
class TestDurableDiskStore(TestDiskStore):
    @pytest.fixture(autouse=True)
    def _durability(self, durability):
        self.durability = durability

    def make_store(self) -> DiskStore:
        self.made += 1
        return DiskStore(f"{self.path}/{self.made}", "pickle", "test", durability=self.durability)


class AtOncePacked(DiskStore):
    """Puts every entry into a pack as soon as it is stored."""

    def add(self, digest, entry):
        added = super().add(digest, entry)
        self.packing.pack(1 << 40, everything=False, progress=lambda done, total: None)
        return added

    def set(self, digest, entry, same_key=None):
        super().set(digest, entry, same_key)
        self.packing.pack(1 << 40, everything=True, progress=lambda done, total: None)


@pytest.mark.storm
class TestPackedDiskStore(TestDiskStore):
    def make_store(self) -> DiskStore:
        self.made += 1
        return AtOncePacked(f"{self.path}/{self.made}", "pickle", "test")
