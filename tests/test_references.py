"""Objects stored by reference: found under their names, shared on loading, never half there."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash.explorer import Recorder, explore

from persistent_dict import (
    CorruptEntryWarning,
    CyclicReferenceError,
    InvalidEntryError,
    MissingReferenceError,
    NameTakenError,
    PersistentDict,
    ReadOnlyEntryError,
    References,
    UnloadableEntryError,
    WriteOncePersistentDict,
    open_readonly,
    transaction,
)
from persistent_dict.inspection import describe, entries, open_store, verify
from persistent_dict.maintenance import export, pack
from persistent_dict.stores.base import MutableStore
from persistent_dict.stores.memory import MemoryStore

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])
FORMATS = pytest.mark.parametrize("form", ["pickle", "json"])


class Node:
    """Something with a name, or without, and parts."""

    def __init__(self, name, *parts, data=0):
        self.name, self.parts, self.data = name, list(parts), data

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None


class Incomparable(Node):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def name_of(thing):
    return thing.name if isinstance(thing, Node) else None


def to_json(node):
    if type(node) is tuple:
        return {"#type": "tuple", "parts": list(node)}
    return {"#type": "node", "name": node.name, "parts": node.parts, "data": node.data}


def from_json(found):
    if found.get("#type") == "tuple":
        return tuple(found["parts"])
    return Node(found["name"], *found["parts"], data=found["data"]) if found.get("#type") == "node" else found


def make(kind, place, form="pickle", **options):
    where = {"container_dir": place} if isinstance(place, (str, Path)) else {"store": place}
    names = name_of if form == "pickle" else References(name_of, to_json=to_json, from_json=from_json)
    return kind("d", **where, format=form, references=names, **options)


def nested():
    leaf = Node("leaf", data=[1, 2])
    left = Node("left", leaf)
    right = Node("right", leaf, left, Node(None, leaf))
    return Node("top", left, right, leaf)


@BOTH
@FORMATS
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_what_has_a_name_is_an_entry_of_its_own_and_shared_again(kind, form, place, tmp_path):
    place = tmp_path if place == "disk" else MemoryStore()
    d = make(kind, place, form)
    d["top"] = nested()
    for reader in (d, make(kind, place, form)):
        top = reader["top"]
        assert top == nested()
        left, right, leaf = top.parts
        assert right.parts[1] is left
        assert leaf is left.parts[0] is right.parts[0] is right.parts[2].parts[0]
        assert sorted(reader) == ["leaf", "left", "right", "top"]
        assert reader["leaf"] == Node("leaf", data=[1, 2])
    assert d.cache_info().stores == 4


@BOTH
@FORMATS
def test_a_value_under_another_key_than_its_name_is_a_reference_to_it(kind, form, tmp_path):
    d = make(kind, tmp_path, form)
    leaf = Node("leaf")
    d["alias"] = leaf
    d["list"] = [leaf, {"leaf": leaf}]
    reader = make(kind, tmp_path, form)
    assert reader["alias"] == reader["leaf"] == leaf
    first, second = reader["list"]
    assert first is second["leaf"]
    assert len(reader) == 3


@BOTH
@FORMATS
def test_equal_objects_share_a_name_and_different_ones_are_refused_before_anything_is_written(kind, form, tmp_path):
    d = make(kind, tmp_path, form)
    d["a"] = Node("a", Node("leaf", data=1))
    d["b"] = Node("b", Node("leaf", data=1))
    before = sorted(d)
    for value in (Node("c", Node("new"), Node("leaf", data=2)), [Node("twice", data=1), Node("twice", data=2)]):
        for store in (d.__setitem__, d.store_if_not_present, d.setdefault):
            with pytest.raises(NameTakenError) as caught:
                store("c", value)
            assert caught.value.name in ("leaf", "twice")
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert sorted(make(kind, tmp_path, form)) == before
    d["c"] = [Node("twice", data=1), Node("twice", data=1)]
    with pytest.warns(UserWarning, match="the name 'leaf' is taken"):
        assert d.get_or_compute("computed", lambda: Node("c2", Node("leaf", data=2))).name == "c2"
    assert "computed" not in d


def test_objects_that_do_not_compare_are_compared_by_their_bytes(tmp_path):
    d = make(PersistentDict, tmp_path)
    d["a"] = [Incomparable("x", data=["ab", "ab"])]
    d["b"] = [Incomparable("x", data=["ab", "ab"])]
    with pytest.raises(NameTakenError):
        d["c"] = [Incomparable("x", data=["ab", "ac"])]
    array = pytest.importorskip("numpy").arange(50_000)
    d["array"] = [Node("numbers", data=array)]
    d["again"] = [Node("numbers", data=array.copy())]
    with pytest.raises(NameTakenError):
        d["other"] = [Node("numbers", data=array + 1)]
    assert (make(PersistentDict, tmp_path)["again"][0].data == array).all()


@BOTH
@FORMATS
def test_objects_that_are_parts_of_each_other_are_refused(kind, form, tmp_path):
    d = make(kind, tmp_path, form)
    first = Node("first")
    second = Node("second", first)
    third = Node("third", second)
    first.parts.append(third)
    for key in ("first", "alias"):
        with pytest.raises(CyclicReferenceError) as caught:
            d[key] = first
        assert set(caught.value.names) == {"first", "second", "third"}
        assert re.search(r"'\w+' contains '\w+' contains", str(caught.value))
    assert len(d) == 0


@FORMATS
def test_parts_of_equal_bytes_that_stand_for_different_objects_are_told_apart(form, tmp_path):
    d = make(PersistentDict, tmp_path, form)
    with pytest.raises(NameTakenError):
        d["top"] = [Node("x", Node("leaf", data=1)), Node("x", Node("leaf", data=2))]
    assert len(d) == 0


@dataclasses.dataclass
class Record:
    name: str
    data: object
    note: str


def test_equal_parts_are_found_equal_whatever_their_parts_share(tmp_path):
    numpy = pytest.importorskip("numpy")
    for form in ("pickle", "json"):
        names = References(
            lambda thing: thing.name if isinstance(thing, (Node, Record)) else None,
            to_json=lambda record: {"name": record.name, "data": list(map(int, record.data)), "note": record.note},
        )
        d = PersistentDict("d", container_dir=tmp_path, format=form, references=names)
        text = "a note"
        d["a"] = [Record("r", numpy.arange(5), text)]
        d["b"] = [Record("r", numpy.arange(5), bytes(text, "ascii").decode())]
        with pytest.raises(NameTakenError):
            d["c"] = [Record("r", numpy.arange(6), text)]
    d = PersistentDict("e", container_dir=tmp_path, references=name_of)
    d["p"] = Incomparable("p", data={"data": "data"})
    d["again"] = d["p"]  # what was loaded shares names with attributes
    assert len(d) == 2


def test_an_error_of_the_place_is_no_damage_of_what_refers_to_it(tmp_path, monkeypatch):
    d = make(PersistentDict, tmp_path, on_invalid="quarantine")
    d["leaf"] = Node("leaf", data=[1, 2])
    d["top"] = nested()
    real = d._store.get

    def get(digest):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(d._store, "get", get)
    with pytest.raises(OSError, match="Too many"):
        d["top"]
    monkeypatch.setattr(d._store, "get", real)
    assert d["top"] == nested()


def test_explaining_sets_nothing_aside(tmp_path):
    d = make(PersistentDict, tmp_path, on_invalid="quarantine")
    d["leaf"] = Node("leaf", data=[1, 2])
    d["top"] = nested()
    Path(d.entry_path("leaf"), "value").write_bytes(b"")
    assert d.explain("top").verdict == "invalid"
    assert "leaf" in d
    assert not os.path.exists(Path(d.filename, "quarantine"))


def test_what_is_off_compares_nothing(tmp_path, monkeypatch):
    d = make(PersistentDict, tmp_path)
    d["a"] = Node("a", Node("leaf", data=1))
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    d["b"] = Node("b", Node("leaf", data=2))
    monkeypatch.delenv("PERSISTENT_DICT_DISABLE")
    assert "b" not in d


class Loose(Node):
    """Equal to whatever has its name."""

    def __eq__(self, other):
        return other.name == self.name

    __hash__ = None


def test_cycles_that_come_about_otherwise_are_found_on_loading(tmp_path):
    d = make(PersistentDict, tmp_path)
    d["b"] = Loose("b", Loose("a"))
    d["a"] = Loose("a", Loose("b"))  # the b that is stored is equal, and has this one as a part
    with pytest.raises(UnloadableEntryError, match="CyclicReferenceError: 'b' contains 'a' contains 'b'"):
        make(PersistentDict, tmp_path)["a"]


def test_a_chain_that_could_not_be_loaded_is_refused(tmp_path):
    for form in ("pickle", "json"):
        d = make(PersistentDict, tmp_path, form)
        node = Node("0")
        for i in range(1, 100):
            node = Node(str(i), node)
        d["99"] = node
        assert make(PersistentDict, tmp_path, form)["99"].parts[0].name == "98"
        with pytest.raises(RecursionError, match="a chain of more than 100 references"):
            d["100"] = Node("100", node)
        assert len(d) == 100


@FORMATS
def test_too_deep_a_stack_is_no_reason_to_set_an_entry_aside(form, tmp_path):
    d = make(PersistentDict, tmp_path, form, on_invalid="quarantine")
    node = Node("0")
    for i in range(1, 90):
        node = Node(str(i), node)
    d["top"] = node

    def deep(depth):
        return d["top"] if not depth else deep(depth - 1)

    with pytest.raises(RecursionError):
        deep(sys.getrecursionlimit() - 150)
    assert d["top"] == node


# Damage


@FORMATS
def test_a_missing_part_is_named_with_the_way_to_it(form, tmp_path):
    d = make(PersistentDict, tmp_path, form)
    d["top"] = nested()
    del d["leaf"]
    reader = make(PersistentDict, tmp_path, form)
    with pytest.raises(MissingReferenceError, match="it refers to 'leaf', by way of 'left', and there is no") as caught:
        reader["top"]
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert "the entry of 'top' is invalid" in str(error)
    assert error.path == d.entry_path("leaf")
    command = str(error).splitlines()[-1].partition(":  ")[2]
    subprocess.run(["sh", "-c", f"{command} --yes"], check=True, capture_output=True)
    assert reader.get("top") is None
    d["top"] = nested()
    assert reader["top"] == nested()


@BOTH
@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_what_lacks_a_part_is_computed_again_where_damage_is_set_aside(kind, how, tmp_path):
    d = make(kind, tmp_path, on_invalid="quarantine")
    d["top"] = nested()
    store = open_store(d.filename)
    digest = d._digest("leaf")[0]
    if how == "removed":
        store.delete(digest)
    else:
        pack_file = next(Path(d.filename, "packs").glob("*.pack"))
        place, i, _ = store.packs.find(digest)
        with pack_file.open("r+b") as file:
            file.seek(place._begins[i] + 5)
            file.write(b"\xff" * 20)
    reader = make(kind, tmp_path, on_invalid="quarantine")
    with pytest.warns(CorruptEntryWarning):
        assert reader.get_or_compute("top", nested) == nested()
    again = make(kind, tmp_path)
    assert again["top"] == nested()
    assert sorted(again) == ["leaf", "left", "right", "top"]
    assert verify(open_store(d.filename)).problems == []


def test_a_damaged_part_is_reported_as_itself(tmp_path):
    d = make(PersistentDict, tmp_path)
    d["leaf"] = Node("leaf", data=[1, 2])
    d["top"] = nested()
    Path(d.entry_path("leaf"), "value").write_bytes(b"")
    with pytest.raises(InvalidEntryError, match="empty") as caught:
        make(PersistentDict, tmp_path)["top"]
    assert caught.value.path == str(Path(d.entry_path("leaf"), "value"))
    assert str(d.entry_path("leaf")) in str(caught.value)


def test_a_dictionary_that_knows_no_references_says_what_it_found(tmp_path):
    make(PersistentDict, tmp_path)["top"] = nested()
    with pytest.raises(UnloadableEntryError, match="persistent"):
        PersistentDict("d", container_dir=tmp_path)["top"]


# Changing, and in a transaction


@FORMATS
def test_a_part_that_is_replaced_is_replaced_for_all_that_refer_to_it(form, tmp_path):
    d, other = make(PersistentDict, tmp_path, form), make(PersistentDict, tmp_path, form)
    d["top"] = nested()
    assert other["top"] == nested()
    d["leaf"] = Node("leaf", data="new")
    for reader in (d, other):
        assert reader["top"].parts[2].data == "new"
        assert reader["left"].parts[0].data == "new"
    with pytest.raises(NameTakenError):
        d["top"] = nested()
    d["top"] = Node("top", Node("leaf", data="new"), data="new")
    assert other["top"].data == "new"


@BOTH
def test_a_part_that_is_also_a_key_of_the_transaction_is_compared_at_its_end(kind, tmp_path):
    d = make(kind, tmp_path)
    part = Node("x", data=1)
    with pytest.raises(NameTakenError), transaction(d) as txn:
        txn.store_if_not_present("x", part)
        txn["y"] = Node("y", part)
        make(kind, tmp_path)["x"] = Node("x", data=2)
    assert "y" not in d


@FORMATS
def test_a_transaction_reads_its_own_parts_within_what_is_stored(form, tmp_path):
    d = make(PersistentDict, tmp_path, form)
    d["a"] = Node("a", Node("leaf", data=9))
    with transaction(d) as txn:
        txn["leaf"] = Node("leaf", data=10)
        assert txn["a"].parts[0].data == 10
        with pytest.raises(KeyError):
            txn["absent"]
    assert d["a"].parts[0].data == 10


@BOTH
@FORMATS
def test_a_transaction_stores_parts_once_and_reads_them(kind, form, tmp_path):
    d = make(kind, tmp_path, form)
    with transaction(d) as txn:
        txn["a"] = Node("a", Node("leaf", data=1))
        txn["b"] = Node("b", Node("leaf", data=1))
        assert txn["b"].parts[0] == txn["leaf"] == Node("leaf", data=1)
        with pytest.raises(NameTakenError):
            txn["c"] = Node("c", Node("leaf", data=2))
        assert "c" not in txn
        assert len(d) == 0
    assert set(txn.result.stored) == {"a", "b", "leaf"}
    assert make(kind, tmp_path, form)["b"].parts[0].data == 1
    with pytest.raises(NameTakenError), transaction(d) as txn:  # somebody else is faster, with another one
        txn["x"] = Node("x", Node("late", data=1))
        make(kind, tmp_path, form)["late"] = Node("late", data=2)
    assert "x" not in d
    with transaction(d) as txn:  # with an equal one
        txn["y"] = Node("y", Node("later", data=1))
        make(kind, tmp_path, form)["later"] = Node("later", data=1)
    assert txn.result == (("y",), ("later",))
    assert d["y"].parts[0].data == 1


def test_a_part_that_somebody_else_stores_at_the_same_time_is_compared_again(tmp_path):
    d, other = (make(WriteOncePersistentDict, tmp_path) for _ in range(2))
    real = d._store.add_all
    for value, is_fine in ((1, True), (2, False)):
        name = f"leaf {value}"

        def add_all(entries, name=name, value=value, **options):
            other.store_if_not_present(name, Node(name, data=value))
            return real(entries, **options)

        d._store.add_all = add_all
        if is_fine:
            d["a"] = Node("a", Node(name, data=1))
            assert other["a"].parts[0].data == 1
        else:
            with pytest.raises(NameTakenError):
                d["b"] = Node("b", Node(name, data=1))
            assert "b" not in other
    d._store.add_all = real
    with pytest.raises(ReadOnlyEntryError):
        d["a"] = Node("a", Node("leaf 1", data=1), Node("unwritten"))
    assert "unwritten" not in other


# Elsewhere


@FORMATS
def test_packs_exports_and_pickled_dictionaries_keep_references(form, tmp_path):
    d = make(PersistentDict, tmp_path, form)
    d["top"] = nested()
    assert pickle.loads(pickle.dumps(d))["top"] == nested()
    pack(open_store(d.filename), everything=True)
    assert make(PersistentDict, tmp_path, form)["top"] == nested()
    export(open_store(d.filename), str(tmp_path / "x.pack"))
    below = open_readonly(tmp_path / "x.pack", references=d._references)
    assert below["top"] == nested()
    shutil.rmtree(d.filename)
    above = PersistentDict("d", container_dir=tmp_path, format=form, references=d._references, over=below)
    assert above["top"] == nested()
    above["more"] = Node("more", Node("leaf", data=[1, 2]))
    assert above["more"].parts[0] == Node("leaf", data=[1, 2])
    with pytest.raises(NameTakenError):
        above["bad"] = Node("bad", Node("leaf", data=3))
    assert len(above) == 5


def test_looking_at_references_runs_nothing(tmp_path):
    d = make(PersistentDict, tmp_path)
    d["top"] = nested()
    store = open_store(d.filename)
    assert {facts.key for facts in entries(store)} == {"'leaf'", "'left'", "'right'", "'top'"}
    assert describe(store, d._digest("top")[0]).value_type.endswith("Node")


def test_what_json_cannot_keep_is_refused(tmp_path):
    d = make(PersistentDict, tmp_path, "json")
    with pytest.raises(ValueError, match="would be read as a reference"):
        d["k"] = {"#type": "reference"}
    d["tuple name"] = [Node(("a", 1))]
    assert make(PersistentDict, tmp_path, "json")["tuple name"][0].name == ("a", 1)
    plain = PersistentDict("e", container_dir=tmp_path, format="json", references=name_of)
    with pytest.raises(TypeError, match="is a Node"):
        plain["k"] = [Node(None)]
    for form in ("raw", pickle):
        with pytest.raises(ValueError, match='needs format="pickle" or format="json"'):
            PersistentDict("f", container_dir=tmp_path, format=form, references=name_of)


def test_a_store_that_cannot_do_it_says_so(tmp_path):
    class Plain(MutableStore):
        add_all = MutableStore.add_all

        def __init__(self):
            self.inner = MemoryStore()

        def __getattribute__(self, name):
            if name in ("add", "set", "get", "stat", "scan", "place", "delete"):
                return getattr(self.inner, name)
            return super().__getattribute__(name)

    with pytest.raises(NotImplementedError, match="cannot store many entries at once"):
        make(PersistentDict, Plain())["top"] = nested()


@pytest.mark.parametrize(("name", "expected"), [("pulses", "entries: echo load rabi readout"), ("modules", "by ref")])
def test_the_examples_run(name, expected, tmp_path):
    command = [sys.executable, "-m", f"persistent_dict.examples.{name}"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    assert expected in done.stdout
    if name == "modules":
        whole, shared = (int(line.split()[-2]) for line in done.stdout.splitlines())
        assert shared < whole / 10


def test_what_was_stored_before_without_syncing_outlives_a_power_cut_with_what_refers_to_it(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with Recorder(root) as recorder:
        d = make(PersistentDict, root)
        d["leaf"] = Node("leaf")
        d["top"] = Node("top", Node("leaf"))
        with transaction(d) as txn:
            txn.store_if_not_present("other", 1)
            txn["leaf"]
        recorder.mark("stored")

    def check(place, promised):
        if promised:
            found = make(PersistentDict, place)
            assert found["top"].parts == [found["leaf"]]
            assert found["other"] == 1

    assert explore(recorder, tmp_path, check, limit=30) > 20
