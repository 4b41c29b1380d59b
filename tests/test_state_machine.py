"""Both dictionaries against a plain dict: random operations over two handles on one container."""

from __future__ import annotations

import pickle
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from persistent_dict import NoSuchEntryError, PersistentDict, ReadOnlyEntryError, WriteOncePersistentDict

KEYS = st.sampled_from([0, 1, True, 1.0, "1", b"1", (), (1,), (1.0,), ("a", ("b", None)), frozenset({1}), None, -0.0])
VALUES = st.integers(0, 3) | st.sampled_from(["", b"x" * 70_000, None, [1, [2]]])
HANDLES = st.integers(0, 1)


def exact(key):
    """A stand-in for a key that a plain dict tells apart as the dictionaries do."""
    return repr(key)


class Machine(RuleBasedStateMachine):
    kind: type

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="persistent_dict-test-")
        self.model: dict[str, tuple[object, object]] = {}
        self.handles = [self.open(256), self.open(2)]

    def open(self, memory):
        return self.kind("d", container_dir=self.directory, in_mem_cache_size=memory)

    def teardown(self):
        shutil.rmtree(self.directory)

    @rule(handle=HANDLES, key=KEYS, value=VALUES)
    def store(self, handle, key, value):
        if self.kind is WriteOncePersistentDict and exact(key) in self.model:
            with pytest.raises(ReadOnlyEntryError):
                self.handles[handle][key] = value
        else:
            self.handles[handle][key] = value
            self.model[exact(key)] = (key, value)

    @rule(handle=HANDLES, key=KEYS, value=VALUES)
    def store_if_not_present(self, handle, key, value):
        assert self.handles[handle].store_if_not_present(key, value) == (exact(key) not in self.model)
        self.model.setdefault(exact(key), (key, value))

    @rule(handle=HANDLES, key=KEYS, value=VALUES)
    def setdefault(self, handle, key, value):
        assert self.handles[handle].setdefault(key, value) == self.model.setdefault(exact(key), (key, value))[1]

    @rule(handle=HANDLES, key=KEYS)
    def fetch(self, handle, key):
        if exact(key) in self.model:
            assert self.handles[handle][key] == self.model[exact(key)][1]
            assert key in self.handles[handle]
        else:
            with pytest.raises(NoSuchEntryError):
                self.handles[handle][key]
            assert key not in self.handles[handle]

    @precondition(lambda self: self.kind is PersistentDict)
    @rule(handle=HANDLES, key=KEYS)
    def remove(self, handle, key):
        if self.model.pop(exact(key), None) is not None:
            del self.handles[handle][key]
        else:
            with pytest.raises(NoSuchEntryError):
                del self.handles[handle][key]

    @rule(handle=HANDLES)
    def clear(self, handle):
        self.handles[handle].clear()
        self.model.clear()
        self.handles[1 - handle].clear_in_mem_cache()  # write-once values in memory outlive another handle's clear

    @rule(handle=HANDLES)
    def forget(self, handle):
        self.handles[handle].clear_in_mem_cache()

    @rule(handle=HANDLES, memory=st.sampled_from([0, 1, 256, None]))
    def reopen(self, handle, memory):
        self.handles[handle] = self.open(memory)

    @rule(handle=HANDLES)
    def pickle_and_back(self, handle):
        self.handles[handle] = pickle.loads(pickle.dumps(self.handles[handle]))

    @invariant()
    def both_show_what_the_model_has_in_the_order_of_storing(self):
        for handle in self.handles:
            assert [(exact(key), value) for key, value in handle.items()] == [
                (name, value) for name, (_, value) in self.model.items()
            ]
            assert len(handle) == len(self.model)


class WriteOnceMachine(Machine):
    kind = WriteOncePersistentDict


class MutableMachine(Machine):
    kind = PersistentDict


TestWriteOnce = WriteOnceMachine.TestCase
TestMutable = MutableMachine.TestCase
TestWriteOnce.settings = TestMutable.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
