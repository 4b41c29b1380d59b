"""From values to bytes and back: pickle with arrays out of band, JSON, raw bytes, and foreign codecs."""

from __future__ import annotations

import json
import marshal
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from persistent_dict import PersistentDict, WriteOncePersistentDict

ROOT = Path(__file__).resolve().parent.parent


def make(directory, **options):
    return WriteOncePersistentDict("d", container_dir=directory, in_mem_cache_size=0, **options)


def file_of(d, key, name="value"):
    return Path(d.entry_path(key), name)


# pickle


def test_files_are_plain_pickles_to_pickle_load(tmp_path):
    d = make(tmp_path)
    d[("k", 1)] = {"a": [1, 2]}
    for name, expected in (("key", ("k", 1)), ("value", {"a": [1, 2]})):
        with file_of(d, ("k", 1), name).open("rb") as file:
            assert pickle.load(file) == expected


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_arrays_come_back_writable_and_independent_of_the_file(order, mmap, tmp_path):
    np = pytest.importorskip("numpy")
    array = np.arange(60_000.0).reshape(200, 300)
    array = {"C": array, "F": np.asfortranarray(array), "strided": array[::2, ::3]}[order]
    d = make(tmp_path, mmap=mmap)
    d["k"] = {"large": array, "small": array[:2, :2].copy(), "twice": [array, array]}
    before = file_of(d, "k").read_bytes()
    got = d["k"]
    assert np.array_equal(got["large"], array)
    assert np.array_equal(got["small"], array[:2, :2])
    assert got["twice"][0] is got["twice"][1]
    got["large"][:] = -1
    got["small"][:] = -1
    assert file_of(d, "k").read_bytes() == before
    assert np.array_equal(d["k"]["large"], array)


def test_a_read_only_array_comes_back_read_only(tmp_path):
    np = pytest.importorskip("numpy")
    array = np.zeros(10_000)
    array.flags.writeable = False
    d = make(tmp_path)
    d["k"] = array
    assert not d["k"].flags.writeable


def test_buffers_stand_outside_the_stream_at_multiples_of_64(tmp_path):
    np = pytest.importorskip("numpy")
    arrays = [np.full(20_000 + i, i, "u1") for i in range(1, 5)]
    d = make(tmp_path)
    d["k"] = arrays
    file = file_of(d, "k").read_bytes()
    for i, array in enumerate(arrays, 1):
        at = file.index(array.tobytes())
        assert at % 64 == 0, i


def test_an_array_outlives_its_file_and_its_dictionary(tmp_path):
    np = pytest.importorskip("numpy")
    d = PersistentDict("d", container_dir=tmp_path)
    d["k"] = np.arange(300_000)
    got = d["k"]
    del d["k"], d
    assert got.sum() == sum(range(300_000))


MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
import numpy as np
import persistent_dict
d = persistent_dict.WriteOncePersistentDict("d", container_dir={directory!r}, in_mem_cache_size=0)
d.store_if_not_present("warm", np.zeros(100_000)); d["warm"]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if {store}:
    array = np.ones({size} // 8)
    before = peak()
    d["k"] = array
else:
    before = peak()
    assert d["k"].sum() == {size} // 8
print((peak() - before) / {size})
"""


def test_a_large_array_is_stored_and_read_without_a_second_copy(tmp_path):
    pytest.importorskip("numpy")
    grown = []
    for store in (True, False):
        script = MEMORY.format(root=str(ROOT), directory=str(tmp_path), store=store, size=80_000_000)
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        grown.append(float(done.stdout))
    assert grown[0] < 0.2  # the array itself was there before
    assert grown[1] < 1.2


def test_a_value_larger_than_one_read_comes_back(tmp_path):
    d = make(tmp_path)
    for size in (65_000, 65_535, 65_536, 66_000, 300_000, 3_000_000):
        d[size] = os.urandom(size // 2) * 2
        assert len(d[size]) == size // 2 * 2


# json and raw

JSON_VALUES = [
    None,
    True,
    1,
    -1.5,
    "ä\ud800",
    [],
    {},
    [1, [None, {"a": "b"}]],
    {"x": {"y": [1.5]}},
    2**70,
    float("inf"),
]


@pytest.mark.parametrize("value", JSON_VALUES, ids=repr)
def test_json_gives_back_what_it_took(value, tmp_path):
    d = make(tmp_path, format="json")
    d["k"] = value
    assert d["k"] == value
    assert json.loads(file_of(d, "k").read_bytes()[:-96]) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((1, 2), "value is a tuple"),
        ([1, {"a": (1,)}], r"value\[1\]\['a'\] is a tuple"),
        ({1: 2}, "value has the key 1"),
        ({"a": {True: 1}}, r"value\['a'\] has the key True"),
        (b"x", "value is a bytes"),
        ([{1}], r"value\[0\] is a set"),
        (type("MyInt", (int,), {})(1), "MyInt"),
    ],
)
def test_json_refuses_what_would_come_back_changed(value, words, tmp_path):
    d = make(tmp_path, format="json")
    with pytest.raises(TypeError, match=words):
        d["k"] = value
    assert "k" not in d


def test_raw_takes_bytes_and_nothing_else(tmp_path):
    d = make(tmp_path, format="raw")
    for value in (b"", b"x", bytes(range(256)) * 1000):
        d[value] = value
        assert d[value] == value
        assert type(d[value]) is bytes
        assert file_of(d, value).read_bytes().startswith(value)
    for value in ("x", bytearray(b"x"), None, memoryview(b"x")):
        with pytest.raises(TypeError, match="bytes and nothing else"):
            d["k"] = value


@pytest.mark.parametrize("name", ["json", "raw"])
def test_keys_come_back_without_pickle(name, tmp_path):
    d = make(tmp_path, format=name)
    keys = [None, True, 1, 1.5, "s", b"\xff", (), (1, ("2", b"3")), frozenset({1, "a", (2,)}), "ä\ud800"]
    for key in keys:
        d[key] = {"json": 1, "raw": b"1"}[name]
    assert list(d) == keys
    assert [type(key) for key in d] == [type(key) for key in keys]
    with pytest.raises(TypeError, match=r'without pickle.*format="pickle"'):
        d[(1, range(3))] = {"json": 1, "raw": b"1"}[name]


# Foreign codecs


class Shouting:
    """An object with dumps and loads, which writes text."""

    def dumps(self, value):
        return value.upper()

    def loads(self, text):
        return text + "!"


@pytest.mark.parametrize("name", ["msgpack", "orjson", "cloudpickle", "marshal", "json", "pickle"])
def test_modules_with_dumps_and_loads_are_formats(name, tmp_path):
    module = pytest.importorskip(name)
    d = make(tmp_path, format=module)
    value = {"a": [1, 2.5, None, "ä"]}
    d[("k", 1)] = value
    assert d[("k", 1)] == value
    assert make(tmp_path, format=module)[("k", 1)] == value  # one that has never written
    assert list(pickle.loads(pickle.dumps(d)).items()) == [(("k", 1), value)]


def test_marshal_itself_writes_the_stream(tmp_path):
    d = make(tmp_path, format=marshal)
    d["k"] = (1, 2)
    assert file_of(d, "k").read_bytes().startswith(marshal.dumps((1, 2)))


def test_an_object_with_dumps_and_loads_is_a_format_that_may_write_text(tmp_path):
    d = make(tmp_path, format=Shouting())
    d["k"] = "hello"
    assert d["k"] == "HELLO!"


def test_cloudpickle_takes_what_pickle_does_not(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    d = make(tmp_path, format=cloudpickle)
    d["k"] = lambda x: x + 1
    assert d["k"](1) == 2


def test_a_codec_that_returns_something_else_is_an_error_that_says_so(tmp_path):
    class Wrong:
        dumps, loads = staticmethod(lambda value: 5), staticmethod(str)

    with pytest.raises(TypeError, match="dumps returned a int"):
        make(tmp_path, format=Wrong())["k"] = 1
