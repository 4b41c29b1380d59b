"""Digests: pinned, the same everywhere, injective; pytools' hooks; errors that say where."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
import typing
from collections import namedtuple
from pathlib import Path

import golden_keys
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistent_dict import ContentKeyBuilder, KeyBuilder, NanKeyWarning, UnkeyableError

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_keys.json").read_text())
digest, by_content = KeyBuilder(), ContentKeyBuilder()
UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # the machine may be busy


def interpreters() -> list[str]:
    """Return every other Python from 3.10 on that is here."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {str(path) for path in versions.glob("3.1[0-9].*/bin/python")}
    return sorted(found) or [sys.executable]


# The same everywhere


@pytest.mark.parametrize("expression", golden_keys.EXPRESSIONS + golden_keys.CONTENT_EXPRESSIONS)
def test_a_digest_is_the_pinned_one(expression):
    assert golden_keys.digests()[expression] == GOLDEN[expression]


def test_every_pinned_digest_is_another():
    assert len(set(GOLDEN.values())) == len(GOLDEN) == len(golden_keys.EXPRESSIONS + golden_keys.CONTENT_EXPRESSIONS)
    assert all(len(text) == 40 and set(text) <= set("0123456789abcdef") for text in GOLDEN.values())


@pytest.mark.parametrize("seed", ["0", "1", "4294967295"])
def test_the_hash_seed_does_not_matter(seed):
    assert run_golden(sys.executable, seed) == GOLDEN


@pytest.mark.interpreters
@pytest.mark.parametrize("python", interpreters())
def test_the_python_version_does_not_matter(python):
    assert run_golden(python, "7") == GOLDEN


def run_golden(python: str, seed: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [python, HERE / "golden_keys.py"], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_content_builder_agrees_on_what_both_take():
    names = dict(golden_keys.NAMES)
    assert [by_content(eval(text, names)) for text in golden_keys.EXPRESSIONS] == [
        digest(eval(text, names)) for text in golden_keys.EXPRESSIONS
    ]


# Injective


def is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


atoms = (
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(), max_size=6)
    | st.binary(max_size=6)
    | st.just(...)
)
keys = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4)
        | st.frozensets(inner.filter(is_hashable), max_size=3)
        | st.dictionaries(inner.filter(is_hashable), inner, max_size=3)
    ),
    max_leaves=10,
)


def identity(key: object) -> object:
    """Return what is the same for two keys if, and only if, they are alike in type and value all the way down."""
    if isinstance(key, float):
        return ("float", struct.pack("<d", key))
    if isinstance(key, complex):
        return ("complex", struct.pack("<dd", key.real, key.imag))
    if isinstance(key, (tuple, list)):
        return (type(key).__name__, [identity(part) for part in key])
    if isinstance(key, frozenset):
        return ("frozenset", sorted(repr(identity(part)) for part in key))
    if isinstance(key, dict):
        return ("dict", sorted(repr((identity(name), identity(part))) for name, part in key.items()))
    return (type(key).__name__, repr(key))


@settings(max_examples=600, **UNHURRIED)
@given(keys, keys)
def test_digests_are_equal_just_where_keys_are_alike(one, other):
    assert (by_content(one) == by_content(other)) == (repr(identity(one)) == repr(identity(other)))


@settings(max_examples=200, **UNHURRIED)
@given(keys)
def test_a_pickled_key_has_the_same_digest(key):
    assert by_content(pickle.loads(pickle.dumps(key))) == by_content(key)


@settings(max_examples=200, **UNHURRIED)
@given(st.lists(atoms, max_size=5).map(tuple))
def test_the_fast_path_writes_what_the_long_way_writes(key):
    class Slow(KeyBuilder):
        flat_types = frozenset()

    slow = Slow()
    assert slow(key) == digest(key)


def test_dicts_and_sets_are_canonical():
    assert by_content({"a": 1, "b": 2}) == by_content({"b": 2, "a": 1})
    assert by_content({8, 0, 16}) == by_content({16, 8, 0})


def test_types_that_look_alike_differ():
    class Here:
        pass

    here = Here
    Here = type("Here", (), {"__module__": "elsewhere", "__qualname__": Here.__qualname__})
    assert digest(here) != digest(Here)
    one = dataclasses.make_dataclass("Record", ["x"], frozen=True)
    two = namedtuple("Record", "x")
    assert digest(one(1)) != digest(two(1)) != digest((1,))


def test_attrs_objects_are_keyed_by_type_names_and_values():
    attrs = pytest.importorskip("attrs")
    one, other = attrs.make_class("One", ["x", "y"]), attrs.make_class("Other", ["x", "y"])
    assert digest(one(1, 2)) == digest(one(1, 2))
    assert len({digest(one(1, 2)), digest(one(2, 1)), digest(other(1, 2))}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "frozendict.frozendict",
        "immutabledict.immutabledict",
        "constantdict.constantdict",
        "immutables.Map",
        "pyrsistent.pmap",
    ],
)
def test_frozen_mappings_are_keyed_by_content_in_any_order(name):
    module, _, function = name.partition(".")
    make = getattr(pytest.importorskip(module), function)
    assert digest(make({"a": 1, "b": (2,)})) == digest(make({"b": (2,), "a": 1}))
    assert digest(make({"a": 1})) != digest(make({"a": 2})) != digest(make({"b": 1}))


# NumPy


def test_a_numpy_scalar_that_stands_for_a_python_one_keys_like_it():
    np = pytest.importorskip("numpy")
    twins = [
        (np.int64(1), 1),
        (np.float64(1.5), 1.5),
        (np.complex128(1j), 1j),
        (np.bool_(True), True),
        (np.str_("s"), "s"),
        (np.bytes_(b"s"), b"s"),
        (np.longlong(3), 3),
    ]
    for scalar, twin in twins:
        assert digest(scalar) == digest(twin)
        assert digest(("a", scalar)) == digest(("a", twin))


def test_other_numpy_scalars_are_themselves():
    np = pytest.importorskip("numpy")
    scalars = [
        1,
        1.0,
        np.int8(1),
        np.int32(1),
        np.uint8(1),
        np.uint64(1),
        np.float16(1),
        np.float32(1),
        np.longdouble(1),
        np.longdouble("1.1"),
        np.longdouble(1.1),
        np.complex64(1),
        np.datetime64(1, "s"),
        np.datetime64(1, "D"),
        np.timedelta64(1, "s"),
        np.float32,
        np.dtype("f4"),
        np.dtype("f8"),
        np.dtype(">f8"),
        np.dtype("U3"),
        np.array([(1, 2)], "i4,i4")[0],
        np.array([(1, 2)], "i4,i8")[0],
    ]
    assert len({digest(scalar) for scalar in scalars}) == len(scalars)
    assert digest(np.int32(1)) == digest(np.int32(1))


def test_dtypes_are_told_apart_by_all_they_have():
    np = pytest.importorskip("numpy")
    dtypes = [
        "f8",
        "f4",
        "i4,f8",
        np.dtype("i4,f8", align=True),
        [("a", "i4"), ("b", "f8")],
        ("i4", (2, 3)),
        [("a", "i4", (2,))],
        {"names": ["a"], "formats": ["i4"], "offsets": [4], "itemsize": 8},
    ]
    assert len({digest(np.dtype(dtype)) for dtype in dtypes}) == len(dtypes)


def test_arrays_are_keyed_by_dtype_shape_and_values_whatever_their_layout():
    np = pytest.importorskip("numpy")
    array = np.arange(12.0).reshape(3, 4)
    alike = [array.copy(), np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2], array[::-1][::-1]]
    assert {by_content(other) for other in alike} == {by_content(array)}
    different = [
        array,
        array.reshape(4, 3),
        array.ravel(),
        array.astype("f4"),
        array.astype(">f8"),
        array + 1,
        array.astype("i8"),
        array.tolist(),
        array.tobytes(),
        array.astype(object),
        np.array(1.0),
        np.array(1),
        np.array([]),
        np.array([], "i4"),
        np.zeros((0, 2)),
        array.astype("M8[s]"),
        array.astype("m8[s]"),
        array.astype(complex),
        array.astype(str),
        array > 3,
    ]
    assert len({by_content(other) for other in different}) == len(different)


def test_the_bytes_between_an_arrays_fields_do_not_count():
    np = pytest.importorskip("numpy")
    dtype = np.dtype({"names": ["a", "b"], "formats": ["u1", "u4"], "offsets": [0, 4], "itemsize": 8})
    one = np.frombuffer(b"\1\0\0\0\2\0\0\0", dtype)
    other = np.frombuffer(b"\1\7\7\7\2\0\0\0", dtype)
    assert by_content(one) == by_content(other) != by_content(np.frombuffer(b"\1\0\0\0\3\0\0\0", dtype))


def test_a_masked_array_is_not_taken_for_its_data():
    np = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="MaskedArray"):
        by_content(np.ma.masked_array([1, 2], [True, False]))


def test_a_large_array_is_not_copied():
    np = pytest.importorskip("numpy")
    array = np.zeros(4_000_000)
    by_content(array[:10])
    tracemalloc.start()
    by_content(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 10


def test_an_array_that_changes_has_another_digest():
    np = pytest.importorskip("numpy")
    array = np.zeros(3)
    before = by_content(("x", array))
    array[1] = 1
    assert by_content(("x", array)) != before


def test_pandas_frames_are_keyed_by_all_they_show():
    pd = pytest.importorskip("pandas")
    np = pytest.importorskip("numpy")
    things = [
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", "z"]}),
        pd.DataFrame({"b": ["x", "y"], "a": [1, 2]}),
        pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[1, 0]),
        pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
        pd.DataFrame({"a": [1.0, np.nan]}),
        pd.DataFrame({"a": pd.array([1, None], "Int64")}),
        pd.DataFrame({"a": pd.Categorical(["u", "v"])}),
        pd.DataFrame({"a": pd.Categorical(["u", "v"], ordered=True)}),
        pd.DataFrame({"a": pd.date_range("2020", periods=2)}),
        pd.DataFrame({"a": pd.date_range("2020", periods=2, tz="UTC")}),
        pd.Series([1, 2]),
        pd.Series([1, 2], name="a"),
        pd.Index([1, 2]),
        pd.Index([1, 2], name="a"),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "c")]),
    ]
    assert len({by_content(thing) for thing in things}) == len(things)
    assert [by_content(thing.copy()) for thing in things] == [by_content(thing) for thing in things]


def test_polars_frames_are_keyed_by_all_they_show():
    pl = pytest.importorskip("polars")
    things = [
        pl.DataFrame({"a": [1, 2]}),
        pl.DataFrame({"b": [1, 2]}),
        pl.DataFrame({"a": [1, None]}),
        pl.DataFrame({"a": [1.0, 2.0]}),
        pl.DataFrame({"a": ["1", "2"]}),
        pl.DataFrame({"a": [[1], [2]]}),
        pl.Series("a", [1, 2]),
        pl.Series("a", [1, 2], dtype=pl.Int8),
    ]
    assert len({by_content(thing) for thing in things}) == len(things)
    assert [by_content(thing.clone()) for thing in things] == [by_content(thing) for thing in things]


# What has no encoding


class Opaque:
    pass


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (Opaque(), "key is of type"),
        ((1, Opaque()), "key[1] is of type"),
        ((1, (2, (Opaque(),))), "key[1][1][0] is of type"),
        ({"a": [0, Opaque()]}, "key['a'][1] is of type"),
        ({1, Opaque()}, "key{…} is of type"),
        (golden_keys.Point(1, Opaque()), "key.y is of type"),
        (golden_keys.Pair(Opaque(), 1), "key.left is of type"),
        ((golden_keys.made_with([Opaque()]),), "key[0].__closure__[0][0] is of type"),
        (golden_keys.functools.partial(len, Opaque()), "key.args[0] is of type"),
    ],
)
def test_an_unknown_type_is_an_error_that_says_where_and_the_ways_out(key, place):
    with pytest.raises(TypeError) as caught:
        by_content(key)
    text = str(caught.value)
    assert text.startswith(place)
    for word in ("Opaque", "update_persistent_hash", "update_for_Opaque", "put something else"):
        assert word in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_a_mutable_key_is_pointed_to_the_content_builder():
    with pytest.raises(TypeError, match=r"key\[1\] is of type list.*ContentKeyBuilder"):
        digest((1, []))


def test_a_recursive_key_is_an_error_not_a_hang():
    loop: list[object] = [1]
    loop.append({"again": loop})
    with pytest.raises(UnkeyableError, match=r"key\[1\]\['again'\]\[1\].*recursive"):
        by_content(loop)


def test_a_key_nested_too_deeply_is_an_error():
    key: object = ()
    for _ in range(10_000):
        key = (key,)
    with pytest.raises(UnkeyableError, match="recursive, or"):
        digest(key)
    by_content_key: object = 1
    for _ in range(10_000):
        by_content_key = {"x": by_content_key}
    with pytest.raises(UnkeyableError, match="recursive, or"):
        by_content(by_content_key)


def test_a_key_nested_deeply_is_keyed():
    key: object = ()
    for _ in range(200):
        key = (key,)
    assert digest(key) != digest((key,))


def test_a_lambda_is_refused():
    with pytest.raises(TypeError, match="lambda"):
        digest(lambda: 0)


@pytest.mark.parametrize("key", [float("nan"), (1, float("nan")), complex(float("nan"), 0), (("x", -float("nan")),)])
@pytest.mark.parametrize("builder", [digest, by_content])
def test_a_nan_warns_and_all_nans_are_one(key, builder):
    with pytest.warns(NanKeyWarning):
        first = builder(key)
    odd_nan = struct.unpack("<d", b"\1\0\0\0\0\0\xf0\x7f")[0]
    with pytest.warns(NanKeyWarning):
        assert builder(float("nan")) == builder(odd_nan)
    assert len(first) == 40


def test_a_nan_does_not_prove_a_key_unless_by_content():
    with pytest.warns(NanKeyWarning):
        assert digest.digest((1, float("nan")))[1] is False
    with pytest.warns(NanKeyWarning):
        assert by_content.digest((1, float("nan")))[1] is True


def test_infinities_and_bytes_like_a_nans_do_not_warn():
    for key in (float("inf"), (-1, b"\xff\x7f", "\x7f", -float("inf"))):
        assert digest.digest(key)[1] is True


# pytools' hooks


class Keyed:
    def __init__(self, *parts):
        self.parts = parts

    def update_persistent_hash(self, key_hash, key_builder):
        for part in self.parts:
            key_builder.rec(key_hash, part)


def test_an_object_says_how_it_is_keyed():
    assert digest(Keyed(1, "a")) == digest(Keyed(1, "a")) != digest(Keyed(1, "b"))
    assert digest.digest((1, Keyed(1)))[1] is False


def test_what_a_hook_writes_does_not_run_into_its_neighbours():
    assert digest((Keyed("ab"), Keyed("c"))) != digest((Keyed("a"), Keyed("bc")))
    assert digest((Keyed(1, 2),)) != digest((Keyed(1), Keyed(2)))


def test_a_class_with_the_hook_is_keyed_as_a_class():
    assert digest(Keyed) != digest(Keyed())
    assert digest.digest(Keyed)[1] is True


def test_rec_writes_into_any_hash_object():
    one, other = hashlib.sha256(), hashlib.sha256()
    assert digest.rec(one, ("a", Keyed(1), (2, 3))) is one
    digest.rec(other, ("a", Keyed(1), (2, 4)))
    assert one.digest() not in (other.digest(), hashlib.sha256().digest())


def test_new_hash_is_called_on_the_class():
    assert KeyBuilder.new_hash().digest_size == 20
    assert KeyBuilder.new_hash(b"x").hexdigest() != KeyBuilder.new_hash().hexdigest()


def test_an_alias_adds_a_type():
    class WithLists(KeyBuilder):
        update_for_list = KeyBuilder.update_for_tuple
        update_for_dict = KeyBuilder.update_for_constantdict
        update_for_set = KeyBuilder.update_for_frozenset

    builder = WithLists()
    keys = [[1, 2], [2, 1], {"a": [1]}, {"a": [2]}, {1, 2}, {3}]
    assert len({builder(key) for key in keys}) == len(keys)
    assert builder({"a": 1, "b": 2}) == builder({"b": 2, "a": 1})
    assert builder.digest([1])[1] is False
    assert builder((1, "a")) == digest((1, "a"))


@pytest.mark.parametrize("kind", ["str", "int", "tuple", "NoneType", "bool"])
def test_an_override_of_a_built_in_type_is_heeded_everywhere(kind):
    def update(self, key_hash, key):
        key_hash.update(b"always the same")

    builder = type("Overriding", (KeyBuilder,), {f"update_for_{kind}": update})()
    one, other = {
        "str": ("a", "b"),
        "int": (1, 2),
        "tuple": ((1,), (2,)),
        "NoneType": (None, None),
        "bool": (True, False),
    }[kind]
    assert builder(one) == builder(other)
    assert builder((one, 1.5)) == builder((other, 1.5)) or kind == "tuple"
    assert builder.digest(one)[1] is False
    assert not builder.plain_types


def test_an_override_for_types_is_heeded():
    class Names(KeyBuilder):
        def update_for_type(self, key_hash, key):
            self.update_for_str(key_hash, key.__name__)

    assert Names()(Opaque) == Names()(type("Opaque", (), {}))
    assert Names()(Opaque) != Names()(Keyed)


def test_overriding_rec_is_heeded():
    class Lower(KeyBuilder):
        def rec(self, key_hash, key):
            return super().rec(key_hash, key.lower() if isinstance(key, str) else key)

    assert Lower()(("A",)) == Lower()(("a",))
    assert Lower()("A") == Lower()("a")


def test_overriding_the_hash_is_heeded():
    class Long(KeyBuilder):
        new_hash = staticmethod(hashlib.sha256)

    assert len(Long()((1, 2))) == 64


def test_an_enum_or_dataclass_may_have_a_hook_by_its_name():
    class ByName(KeyBuilder):
        def update_for_Point(self, key_hash, key):
            self.rec(key_hash, key.x)

    assert ByName()(golden_keys.Point(1, [])) == ByName()(golden_keys.Point(1, {}))


# Remembering


def test_a_digest_is_remembered_while_the_object_lives():
    calls = []

    class Counting:
        def update_persistent_hash(self, key_hash, key_builder):
            calls.append(1)
            key_builder.rec(key_hash, 1)

    thing = Counting()
    assert digest(thing) == digest((thing,)[0])
    assert len(calls) == 1
    remembered = len(KeyBuilder._remembered)
    del thing
    gc.collect()
    assert len(KeyBuilder._remembered) == remembered - 1


def test_a_digest_is_remembered_for_each_builder_class():
    class Other(KeyBuilder):
        def update_for_str(self, key_hash, key):
            key_hash.update(key.lower().encode())

    thing = golden_keys.Point(1, "A")
    assert digest(thing) != Other()(thing)
    assert Other()(thing) == Other()(golden_keys.Point(1, "a"))
    assert digest(thing) == digest(golden_keys.Point(1, "A"))


def test_a_copy_that_was_changed_has_its_own_digest():
    thing = Keyed(1)
    before = digest(thing)
    other = copy.copy(thing)
    other.parts = (2,)
    assert digest(other) == digest(Keyed(2)) != before


def test_a_remembered_digest_stays_out_of_the_pickle():
    thing, fresh = Keyed(1), Keyed(1)
    digest(thing)
    assert pickle.dumps(thing) == pickle.dumps(fresh)


class Carrying(Keyed):
    """Takes its digest along when it is pickled, as loopy's kernels do, and would have another one after."""

    def __getstate__(self):
        return (digest(self), self._pytools_persistent_hash_digest)

    def __setstate__(self, state):
        self.parts = ("unpickled",)
        object.__setattr__(self, "_pytools_persistent_hash_digest", state[1])


def test_an_object_that_carries_its_digest_in_its_pickle_keeps_it():
    thing = Carrying(1)
    assert digest(pickle.loads(pickle.dumps(thing))) == digest(thing) != digest(Carrying("unpickled"))


def test_a_carried_digest_counts_for_its_builder_class_alone():
    class Other(KeyBuilder):
        def update_for_str(self, key_hash, key):
            key_hash.update(b"x")

    again = pickle.loads(pickle.dumps(Carrying(1)))
    assert Other()(again) == Other()(Keyed("anything"))


def test_a_digest_left_on_another_object_is_not_believed():
    thing = Keyed(1)
    thing._pytools_persistent_hash_digest = b"x" * 28
    assert digest(thing) == digest(Keyed(1))


@dataclasses.dataclass
class Changeable:
    value: object


def test_a_dataclass_that_can_change_is_never_remembered():
    thing = Changeable(1)
    frozen = golden_keys.Point(1, thing)
    before = digest(thing), digest(frozen)
    thing.value = 2
    assert digest(thing) != before[0]
    assert digest(frozen) != before[1]


def test_the_content_builder_remembers_nothing():
    thing = golden_keys.Point(1, [1])
    before = by_content(thing)
    thing.y.append(2)
    assert by_content(thing) != before


def test_shared_parts_do_not_cost_exponential_time():
    key: object = golden_keys.Point(0)
    for i in range(60):
        key = golden_keys.Point(i, (key, key))
    assert len(digest(key)) == 40


def test_threads_agree():
    seen, things = [], [golden_keys.Point(i, (i, "x")) for i in range(200)]

    def work():
        seen.append([digest(thing) for thing in things])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(one == seen[0] for one in seen)


def test_builders_pickle():
    assert pickle.loads(pickle.dumps(by_content))([1]) == by_content([1])


class Typed(typing.NamedTuple):
    x: int


def test_typed_named_tuples_are_keyed_by_name():
    assert digest(Typed(1)) != digest((1,))


def test_methods_are_keyed_by_function_and_object():
    one, other = golden_keys.Pair(1, 2), golden_keys.Pair(3, 4)
    keys = [one.count, one.index, other.count, golden_keys.Point(1).__eq__, Keyed(1).update_persistent_hash, "a".upper]
    assert len({digest(key) for key in keys}) == len(keys)
    assert digest(golden_keys.Point(1).__eq__) == digest(golden_keys.Point(1).__eq__)


def test_nans_of_other_libraries_warn_too():
    np = pytest.importorskip("numpy")
    for key in (np.float32("nan"), (1, np.float16("nan")), golden_keys.decimal.Decimal("NaN")):
        with pytest.warns(NanKeyWarning):
            assert digest.digest(key)[1] is False


def test_a_zone_without_a_name_is_refused(tmp_path):
    import importlib.resources
    import zoneinfo

    if not zoneinfo.TZPATH and importlib.util.find_spec("tzdata") is None:
        pytest.skip("no time zones here")
    paths = [os.path.join(directory, "UTC") for directory in zoneinfo.TZPATH]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        pytest.skip("no time zone files here")
    with open(found[0], "rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(TypeError, match="without a key"):
        digest(zone)


def test_what_marshal_cannot_take_is_written_at_length(monkeypatch):
    """Two GiB and more, which the tests have no room for."""
    from persistent_dict import _key_encodings

    def refusing(key, version):
        if isinstance(key, (str, bytes)) or (isinstance(key, tuple) and any(isinstance(part, bytes) for part in key)):
            raise ValueError("unmarshallable object")
        return real(key, version)

    real = _key_encodings.dumps
    monkeypatch.setattr(_key_encodings, "dumps", refusing)
    assert len({digest(key) for key in ("a", b"a", "b", ("x", b"a"), ("x", b"b"), b"")}) == 6
