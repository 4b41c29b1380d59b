"""@memoize: what is keyed by what, what is refused, what the wrapper offers, and where it works."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import importlib.util
import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import memoized_module
import pytest

import persistent_dict
from persistent_dict import (
    CacheWriteWarning,
    CorruptEntryWarning,
    InvalidEntryError,
    PersistentDict,
    RecursiveComputationError,
    UnkeyableError,
    WriteOncePersistentDict,
    file_checksum,
    memoize,
)
from persistent_dict.testing import in_threads

pytestmark = pytest.mark.usefixtures("temporary_cache")


# What a call is keyed by


def test_bare_and_called():
    calls = []

    @memoize(ignore="calls")
    def f(x):
        calls.append(x)
        return x + 1

    assert [f(1), f(1), f(2)] == [2, 2, 3]
    assert calls == [1, 2]

    @memoize
    def g(x):
        return x + 2

    @memoize()
    def h(x):
        return x + 3

    assert [g(1), g(1), h(1), h(1)] == [3, 3, 4, 4]


def test_calls_that_mean_the_same_are_one():
    @memoize
    def f(x, y=2, *, z=3):
        return (x, y, z)

    assert {f(1), f(1, 2), f(1, y=2), f(x=1, y=2), f(y=2, x=1, z=3), f(1, z=3)} == {(1, 2, 3)}
    assert f.cache_info().misses == 1
    assert f(1, 2, z=4) == (1, 2, 4)
    assert f(2, 1) == (2, 1, 3)
    assert f.cache_info().misses == 3


def test_all_kinds_of_parameters_are_bound():
    @memoize
    def f(a, /, b, *args, c=1, **kwargs):
        return (a, b, args, c, kwargs)

    assert f(1, 2, 3, 4, c=5, d=6, e=7) == f(1, 2, 3, 4, e=7, d=6, c=5) == (1, 2, (3, 4), 5, {"d": 6, "e": 7})
    assert f.cache_info().misses == 1
    assert f(1, b=2) == f(1, 2, c=1) == (1, 2, (), 1, {})
    assert f.cache_info().misses == 2
    assert f(1, 2, self=3, function=4, args=5) == (1, 2, (), 1, {"self": 3, "function": 4, "args": 5})


def test_a_parameter_may_have_any_name():
    @memoize
    def f(self, function, key, args, kwargs=0, value=1):
        return (self, function, key, args, kwargs, value)

    arguments = {"self": 1, "function": 2, "key": 3, "args": 4, "value": 5}
    assert f(**arguments) == (1, 2, 3, 4, 0, 5)
    assert f.cache_contains(**arguments)
    assert f.cache_key(**arguments) == f.cache_key(1, 2, 3, 4, 0, 5)
    f.cache_put("put", **{name: value for name, value in arguments.items() if name != "value"})
    assert f(1, 2, 3, 4) == "put"


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [((), {}, "'x'"), ((1, 2, 3), {}, "too many"), ((1,), {"x": 1}, "multiple values"), ((1,), {"w": 1}, "'w'")],
)
def test_a_wrong_call_is_a_type_error_that_names_the_function(args, kwargs, words):
    @memoize
    def some_function(x, y=1):
        pytest.fail("called")

    with pytest.raises(TypeError, match=rf"some_function\(\) .*{words}"):
        some_function(*args, **kwargs)


def test_types_tell_results_apart():
    @memoize
    def f(x):
        return type(x).__name__

    values = (1, 1.0, True, "1", b"1", None, (1,), (1.0,), [1], {1: 1}, {1}, ("digest", "x"), 1j, "x" * 1000, (("1",),))
    assert [f(value) for value in values * 2] == [type(value).__name__ for value in values] * 2
    assert f.cache_info().misses == len(values)


def test_a_text_that_looks_like_a_digest_is_told_from_it():
    @memoize
    def f(x):
        return x

    digest = f.cache_key([1, 2])[4]
    for value in ([1, 2], digest, digest.decode(), (digest,), str(digest)):
        assert f(value) == value


def test_contents_count():
    @memoize
    def total(numbers, weights):
        return sum(numbers) + sum(weights.values())

    numbers = [1, 2]
    assert total(numbers, {"a": 1, "b": 2}) == 6
    assert total([1, 2], {"b": 2, "a": 1}) == 6
    assert total.cache_info().misses == 1
    numbers.append(3)
    assert total(numbers, {"a": 1, "b": 2}) == 9


def test_arrays_count_by_content_and_leave_no_copy_in_the_key():
    numpy = pytest.importorskip("numpy")

    @memoize
    def total(array):
        return float(array.sum())

    array = numpy.arange(1e6)
    assert total(array) == total(array.copy()) == total(array[::1])
    assert total.cache_info().misses == 1
    assert total(array.astype("f4")) is not None
    assert total.cache_info().misses == 2
    assert Path(total.cache.entry_path(total.cache_key(array)), "key").stat().st_size < 2000


def test_what_has_no_encoding_is_an_error_that_names_the_argument_and_the_ways_out():
    class Model:
        @memoize
        def run(self, x):
            return x

        @memoize(ignore=("self",))
        def run_anyway(self, x):
            return x

    with pytest.raises(UnkeyableError, match=r"Model\.run, self .*no encoding.*ignore=\('self',\).*key_by=\{'self'"):
        Model().run(1)
    assert Model().run_anyway(1) == 1

    @memoize
    def f(options):
        return 1

    with pytest.raises(UnkeyableError, match=r"f, options\[.*'a'.*\].*Model"):
        f({"a": [Model()]})


def test_an_argument_that_changes_while_the_function_runs_is_keyed_as_it_was():
    @memoize
    def pop(numbers):
        return numbers.pop()

    assert pop([1, 2, 3]) == 3
    assert pop([1, 2, 3]) == 3
    assert pop.cache_contains([1, 2, 3])
    assert not pop.cache_contains([1, 2])


# Methods


@dataclasses.dataclass(frozen=True)
class Scale:
    factor: int

    @memoize
    def times(self, x):
        return (self.factor * x, time.perf_counter())

    @classmethod
    @memoize
    def made_by(cls, x):
        return (cls.__name__, x, time.perf_counter())

    @staticmethod
    @memoize
    def plain(x):
        return (x, time.perf_counter())

    @memoize
    @staticmethod
    def plain_inside(x):
        return (x, time.perf_counter())

    @memoize
    @classmethod
    def made_by_inside(cls, x):
        return (cls.__name__, x, time.perf_counter())


class Larger(Scale):
    pass


def test_self_is_keyed_by_content():
    assert Scale(2).times(3) == Scale(2).times(x=3)
    assert Scale(2).times(3)[0] == 6
    assert Scale(3).times(3)[0] == 9
    assert Larger(2).times(3) != Scale(2).times(3)
    assert Scale.times.cache_contains(Scale(2), 3)
    assert Scale(2).times.cache_info().hits >= 2


@pytest.mark.parametrize("name", ["made_by", "made_by_inside"])
def test_class_methods_are_keyed_by_the_class(name):
    assert getattr(Scale, name)(1) == getattr(Scale(1), name)(1)
    assert getattr(Scale, name)(1)[0] == "Scale"
    assert getattr(Larger, name)(1)[0] == "Larger"


@pytest.mark.parametrize("name", ["plain", "plain_inside"])
def test_static_methods(name):
    assert getattr(Scale, name)(1) == getattr(Scale(5), name)(1) == getattr(Larger, name)(1)
    assert getattr(Scale, name).cache_contains(1)


# Names from an enclosing function


def test_enclosing_names_count():
    def make(n, unused_here=0):
        @memoize
        def f(x):
            return x * n

        return f

    assert [make(2)(10), make(3)(10), make(2)(10)] == [20, 30, 20]
    assert make(2).cache_contains(10)
    assert not make(4).cache_contains(10)


def test_enclosing_names_count_as_they_are_at_the_call():
    n = 1

    @memoize
    def f(x):
        return x * n

    assert f(10) == 10
    n = 2
    assert f(10) == 20


def test_enclosing_names_of_a_decorator_below_count():
    def scaled(factor):
        def decorate(function):
            @functools.wraps(function)
            def wrapper(x):
                return factor * function(x)

            return wrapper

        return decorate

    def make(factor):
        @memoize
        @scaled(factor)
        def f(x):
            return x

        return f

    assert [make(2)(5), make(3)(5)] == [10, 15]


def test_the_code_of_a_decorator_below_counts():
    def doubled(function):
        @functools.wraps(function)
        def wrapper(x):
            return 2 * function(x)

        return wrapper

    def tripled(function):
        @functools.wraps(function)
        def wrapper(x):
            return 3 * function(x)

        return wrapper

    def f(x):
        return x

    assert [memoize(decorate(f))(5) for decorate in (doubled, tripled)] == [10, 15]


def test_every_call_returns_an_object_of_its_own():
    @memoize
    def f():
        return [1]

    for _ in range(3):
        result = f()
        assert result == [1]
        result.append("a caller's")


def test_an_enclosing_name_without_encoding_is_an_error_or_ignored():
    connection = object()

    @memoize
    def f(x):
        return (x, connection)

    with pytest.raises(UnkeyableError, match="f, connection .*ignore"):
        f(1)

    @memoize(ignore=["connection"])
    def g(x):
        return (x, bool(connection))

    assert g(1) == (1, True)


def test_recursion():
    calls = []

    @memoize(ignore="calls")
    def fibonacci(n):
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(60) == 1548008755920
    assert len(calls) == 61

    @memoize
    def endless(n):
        return endless(n)

    with pytest.raises(RecursiveComputationError):
        endless(1)


def test_deep_recursion():
    @memoize
    def depth(n):
        return 0 if n == 0 else 1 + depth(n - 1)

    assert depth(150) == 150


def test_a_memoized_function_is_an_argument_like_others():
    @memoize
    def inner(x):
        return x

    @memoize
    def outer(function, x):
        return function(x) + 1

    def make(n, m):
        @memoize
        def local(x, y=m):
            return x * n + y

        return local

    assert outer(inner, 1) == 2
    assert outer.cache_contains(inner, 1)
    assert [outer(make(2, 0), 5), outer(make(3, 0), 5), outer(make(3, 7), 5)] == [11, 16, 23]

    def helper(x):
        return inner(x)

    assert outer(helper, 1) == 2


# Version and code


def load(path, text):
    path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("edited_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.f


SOURCE = """
    from persistent_dict import memoize

    @memoize(code={code!r})
    def f(x):
        return {body}
    """
EDITS = {  # name: (the text, whether its meaning is another one)
    "comment": (SOURCE.replace("return", "# a comment\n        return"), False),
    "formatting": (SOURCE.replace("{body}", "(\n            {body}\n        )"), False),
    "docstring": (SOURCE.replace("return", '"""What it does."""\n        return'), False),
    "moved": ("\n\nimport os\n" + textwrap.dedent(SOURCE), False),
    "decorated": (SOURCE.replace("(code={code!r})", "(code={code!r}, min_seconds=0.0)"), False),
    "default": (SOURCE.replace("f(x)", "f(x, y=1)"), True),
    "statement": (SOURCE.replace("return", "x += 0\n        return"), True),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_counts_if_it_changes_the_meaning(name, tmp_path):
    text, is_another = EDITS[name]
    assert load(tmp_path / "m.py", SOURCE.format(code="ast", body="x + 1"))(1) == 2
    edited = load(tmp_path / "m.py", text.format(code="ast", body="x + 1"))
    assert edited.cache_contains(1) is not is_another


def test_a_revert_hits_the_old_results(tmp_path):
    old, new = (SOURCE.format(code="ast", body=body) for body in ("x + 1", "x + 2"))
    assert [load(tmp_path / "m.py", text)(1) for text in (old, new)] == [2, 3]
    assert load(tmp_path / "m.py", old).cache_contains(1)
    assert load(tmp_path / "m.py", old)(1) == 2
    assert len(load(tmp_path / "m.py", old).cache) == 2


def test_with_source_every_edit_counts_and_with_none_no_edit(tmp_path):
    for code, expected in (("source", False), (None, True)):
        load(tmp_path / "m.py", SOURCE.format(code=code, body="x + 1"))(1)
        edited = load(tmp_path / "m.py", SOURCE.format(code=code, body="x + 1  # one"))
        assert edited.cache_contains(1) is expected


def test_a_file_that_is_edited_while_the_program_runs_does_not_count_for_the_running_function(tmp_path):
    path = tmp_path / "m.py"
    old = load(path, SOURCE.format(code="ast", body="x + 1"))
    path.write_text(textwrap.dedent(SOURCE.format(code="ast", body="x + 2")))
    assert old(1) == 2  # stored under the code that ran
    assert load(path, SOURCE.format(code="ast", body="x + 2"))(1) == 3


def test_a_function_without_source_is_keyed_by_its_bytecode():
    def compiled(body):
        names = {"memoize": memoize, "__name__": "typed_in"}
        exec(f"@memoize\ndef f(x):\n    return {body}", names)
        return names["f"]

    assert compiled("x + 1")(1) == 2
    assert compiled("x + 1").cache_contains(1)
    assert compiled("x + 2")(1) == 3
    assert compiled("[i + 1 for i in [x]]")(1) == [2]
    assert compiled("[i + 2 for i in [x]]")(1) == [3]


def test_versions_are_kept_apart_and_come_back():
    def make(version):
        @memoize("v", version=version, ignore=("version",))
        def f(x):
            return (version, x)

        return f

    assert [make(version)(1) for version in (1, "1", (1, 2), [3], 1)] == [
        (1, 1),
        ("1", 1),
        ((1, 2), 1),
        ([3], 1),
        (1, 1),
    ]
    assert len(make(1).cache) == 4


# Options


def test_ignored_arguments_do_not_count():
    @memoize(ignore=("verbose",))
    def f(x, verbose=False):
        return x

    assert [f(1), f(1, True), f(1, verbose="very")] == [1, 1, 1]
    assert f.cache_info().misses == 1


def test_key_says_all_that_counts():
    @memoize(key=lambda path, **_: os.path.basename(path))
    def f(path, verbose=False):
        return path

    assert f("/a/x") == f("/b/x", verbose=True) == "/a/x"
    assert f("/a/y") == "/a/y"
    assert f.cache_info().misses == 2


def test_key_by_replaces_one_argument(tmp_path):
    @memoize(key_by={"path": file_checksum})
    def words(path, n):
        return len(Path(path).read_text().split()) * n

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a b c")
    two.write_text("a b c")
    assert words(one, 2) == 6
    assert words.cache_contains(str(two), n=2)
    one.write_text("a b")
    assert words(one, 2) == 4
    assert words(two, 2) == 6


def test_cheap_results_are_not_stored():
    @memoize(min_seconds=0.02)
    def f(seconds):
        time.sleep(seconds)
        return seconds

    assert [f(0), f(0.03)] == [0, 0.03]
    assert [f.cache_contains(0), f.cache_contains(0.03)] == [False, True]


def test_none_is_kept_and_exceptions_are_not():
    calls = []

    @memoize(ignore="calls")
    def f(x):
        calls.append(x)
        if x:
            raise ValueError(x)

    assert [f(0), f(0)] == [None, None]
    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            f(1)
    assert calls == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"code": "tree"}, ValueError, "code='tree': use one of 'ast', 'source', None"),
        ({"ignore": ("z",)}, TypeError, "ignore= names z, and .*f has no such parameter. It has: x, y"),
        ({"key_by": {"z": str}}, TypeError, "key_by= names z"),
        ({"key": str, "ignore": ("x",)}, TypeError, "ignore= names x, .* It has: key"),
        ({"key": str, "key_by": {"x": str}}, TypeError, "key= says all"),
        ({"versoin": 1}, TypeError, r"memoize\(\) got an unexpected keyword argument 'versoin'"),
        ({"on_invalid": "ignore"}, ValueError, "on_invalid='ignore'"),
    ],
)
def test_wrong_options_are_errors_that_say_what_is_right(options, error, words):
    def f(x, y):
        pass

    with pytest.raises(error, match=words):
        memoize(**options)(f)


def generator():
    yield 1


async def async_generator():
    yield 1


class Callable:
    def __call__(self, x):
        return x

    def method(self):
        return 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (generator, "generator is a generator, .*return a list"),
        (async_generator, "is a generator"),
        (lambda x: x, "lambda.*define it with def"),
        (functools.partial(print, 1), "has no name"),
        (Callable, "Callable is a class"),
        (Callable(), "has no name"),
        (Callable().method, "decorate it in the class"),
        (property(lambda self: 1), "is no function"),
        (7, "7 is no function"),
    ],
)
def test_what_cannot_be_memoized_is_refused_and_the_way_out_said(function, words):
    with pytest.raises(TypeError, match=f"memoize: .*{words}"):
        memoize(function)


def test_a_builtin_function_works():
    import math

    assert memoize(math.gcd)(12, 18) == memoize(math.gcd)(12, 18) == 6


# The dictionary


def test_several_functions_share_a_dictionary(tmp_path):
    d = PersistentDict("shared", container_dir=tmp_path)

    @memoize(d)
    def f(x):
        return x + 1

    @memoize(d)
    def g(x):
        return x + 2

    assert [f(1), g(1), f(2)] == [2, 3, 3]
    assert f.cache is g.cache is d
    assert len(d) == 3
    f.cache_clear()
    assert [f.cache_contains(1), f.cache_contains(2), g.cache_contains(1)] == [False, False, True]


def test_an_identifier_names_the_dictionary(temporary_cache):
    @memoize("my results")
    def f(x):
        return x

    f(1)
    assert os.listdir(temporary_cache) == [f"my%20results.{sys.implementation.cache_tag}"]
    assert f.cache.identifier == "my results"


def test_by_default_it_is_named_after_the_function(temporary_cache):
    memoized_module.square(3)
    assert os.listdir(temporary_cache) == [f"memoized_module.square.{sys.implementation.cache_tag}"]


def test_over_a_write_once_dictionary_nothing_is_removed(tmp_path):
    @memoize(WriteOncePersistentDict("w", container_dir=tmp_path))
    def f(x):
        return x

    assert [f(1), f(1)] == [1, 1]
    f.cache_put(5, 2)
    assert f(2) == 5
    for forbidden in (f.cache_clear, lambda: f.cache_delete(1), lambda: f.refresh(1)):
        with pytest.raises(TypeError, match="memoize with a PersistentDict"):
            forbidden()
    assert f(1) == 1


def test_json_without_pickle(tmp_path):
    @memoize(PersistentDict("j", container_dir=tmp_path, format="json"))
    def f(x, y):
        return {"sum": x + sum(y)}

    assert f(1, [2]) == f(1, [2]) == {"sum": 3}
    assert json.loads(Path(f.cache.entry_path(f.cache_key(1, [2])), "value").read_bytes()[:9]) == {"sum": 3}


def test_a_damaged_entry_is_computed_anew(temporary_cache):
    @memoize
    def f(x):
        return x

    @memoize(on_invalid="raise")
    def strict(x):
        return x

    for function in (f, strict):
        function.cache.clear_in_mem_cache()
        function(1)
        Path(function.cache.entry_path(function.cache_key(1)), "value").write_bytes(b"junk")
        function.cache.clear_in_mem_cache()
    with pytest.warns(CorruptEntryWarning, match="moved to"):
        assert f(1) == 1
    assert f.cache_info().misses == 2
    with pytest.raises(InvalidEntryError):
        strict(1)


def test_a_dictionary_brings_its_own_on_invalid(tmp_path):
    with pytest.raises(TypeError, match="brings its own"):
        memoize(PersistentDict("d", container_dir=tmp_path), on_invalid="raise")


# What the wrapper offers


def test_it_looks_like_the_function():
    @memoize
    def f(x: int) -> int:
        """Say what it does."""
        return x

    assert (f.__name__, f.__doc__, f.__module__) == ("f", "Say what it does.", __name__)
    assert f.__qualname__.endswith("<locals>.f")
    assert f.__wrapped__(3) == 3
    assert f.cache_info() == (0, 0, 0, 0.0)
    assert f.__annotations__ == {"x": "int", "return": "int"}


def test_cache_info_counts_and_sums_what_was_saved():
    @memoize
    def f(x):
        time.sleep(0.02)
        return x

    for _ in range(4):
        f(1)
    info = f.cache_info()
    assert (info.hits, info.misses, info.waits) == (3, 1, 0)
    assert 0.06 <= info.seconds_saved < 3


def test_one_result_can_be_asked_for_put_deleted_and_refreshed():
    calls = []

    @memoize(ignore="calls")
    def f(x, y=0):
        calls.append(x)
        return len(calls)

    assert not f.cache_contains(1)
    assert f(1) == 1
    assert f.cache_contains(x=1, y=0)
    assert f.cache[f.cache_key(1)] == 1
    assert f.refresh(1) == 2
    assert f(1, y=0) == 2
    f.cache_put("put", 1)
    assert f(1) == "put"
    assert [f.cache_delete(1), f.cache_delete(1)] == [True, False]
    assert f(1) == 3
    f.cache_clear()
    assert f.cache_info() == (0, 0, 0, 0.0)
    assert len(f.cache) == 0


def test_clearing_goes_over_all_versions_of_this_function_and_no_other_keys(tmp_path):
    d = PersistentDict("shared", container_dir=tmp_path)
    d["somebody's key"] = d["a", "b", "c", "d", "e"] = 1

    def make(version):
        @memoize(d, version=version)
        def f(x):
            return x

        return f

    for version in (1, 2):
        make(version)(1)
    make(1).cache_clear()
    assert sorted(map(str, d)) == ["('a', 'b', 'c', 'd', 'e')", "somebody's key"]


def test_a_refresh_that_cannot_be_stored_loses_nothing():
    results = [1]

    @memoize(ignore="results")
    def f():
        return results[0]

    assert f() == 1
    results[0] = lambda: 2
    with pytest.warns(CacheWriteWarning, match="the old one stays"):
        assert f.refresh()() == 2
    assert f() == 1

    results[0] = ValueError

    @memoize(ignore="results")
    def g():
        if results[0] is ValueError:
            raise ValueError("no result")
        return 1

    with pytest.raises(ValueError, match="no result"):
        g.refresh()


def test_disabled_it_is_the_function(monkeypatch, temporary_cache):
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")

    @memoize
    def f(x):
        return x

    assert [f(1), f(1)] == [1, 1]
    assert f.cache_info().misses == 2
    assert os.listdir(temporary_cache) == []


# Threads, processes, programs


def test_threads_compute_once():
    calls = []

    @memoize(ignore="calls")
    def f(x):
        calls.append(x)
        time.sleep(0.1)
        return x

    in_threads(lambda _: f(1), 64)
    assert calls == [1]
    assert f.cache_info().hits == 63
    assert f.cache_info().waits >= 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    calls = tmp_path / "calls"
    with multiprocessing.get_context(method).Pool(4) as pool:
        numbers = list(range(10))
        assert pool.starmap(memoized_module.squares, [(numbers, str(calls))] * 8) == [[x * x for x in numbers]] * 8
        assert pool.map(memoized_module.square, numbers) == [x * x for x in numbers]  # it pickles by its name
    assert len(calls.read_text().split("\n")) == 10 + 1


def test_it_pickles_by_name():
    assert pickle.loads(pickle.dumps(memoized_module.square)) is memoized_module.square


def test_an_executor(tmp_path):
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        assert list(pool.map(memoized_module.square, range(4))) == [0, 1, 4, 9]


PROGRAM = """
    import functools, sys
    from persistent_dict import memoize

    FACTOR = {factor}

    @memoize
    def f(x):
        with open({calls!r}, "a") as file:
            print(__file__, x, file=file)
        return x * {factor}

    {job}
    """


def run_program(path, job, factor=2, runner=(), python=sys.executable):
    calls = path.parent / "calls"
    text = textwrap.dedent(PROGRAM).replace("{job}", textwrap.dedent(job))
    path.write_text(text.format(factor=factor, calls=str(calls)))
    command = [python, *runner] if runner else [python, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), calls.read_text().split("\n")[:-1]


def test_a_program_hits_what_it_computed_before(tmp_path):
    for _ in range(2):
        printed, calls = run_program(tmp_path / "program.py", "print(f(3))")
        assert printed == ["6"]
        assert len(calls) == 1


def test_programs_of_one_name_in_two_directories_do_not_share(tmp_path):
    """Nothing but a global tells their functions apart."""
    seen = []
    for name in "ab":
        (tmp_path / name).mkdir()
        body = PROGRAM.replace("x * {factor}", "x * FACTOR")
        path = tmp_path / name / "program.py"
        path.write_text(
            textwrap.dedent(body).replace("{job}", "print(f(3))").format(factor=ord(name), calls=os.devnull)
        )
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
        seen.append(int(done.stdout))
    assert seen == [3 * ord("a"), 3 * ord("b")]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_function_of_the_main_program_in_its_worker_processes(method, tmp_path):
    job = f"""
    if __name__ == "__main__":
        import multiprocessing
        print(f(3))
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            print(*pool.map(f, [3] * 4))
    """
    printed, calls = run_program(tmp_path / "program.py", job)
    assert printed == ["6"] * 5
    assert len(calls) == 1


def test_a_module_that_runs_as_main_shares_with_itself(tmp_path):
    path = tmp_path / "program.py"
    run_program(path, "print(f(3))", runner=("-m", "program"))
    printed, calls = run_program(path, "", runner=("-c", "import program; print(program.f(3))"))
    assert printed == ["6"]
    assert len(calls) == 1


def test_typed_into_a_shell(tmp_path):
    script = "from persistent_dict import memoize\n@memoize\ndef f(x):\n    return x + 1\n\n"
    script += "print(f(1), f.cache_info()[:2])\n"
    options = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    seen = [subprocess.run([sys.executable, "-i"], input=script, **options).stdout for _ in range(2)]
    assert seen == ["2 (0, 1)\n", "2 (1, 0)\n"]


@pytest.mark.parametrize("library", ["cloudpickle", "loky"])
def test_functions_that_are_sent_by_value(library, tmp_path):
    pytest.importorskip(library)
    job = {
        "cloudpickle": """
        import cloudpickle
        print(f(3))
        g = cloudpickle.loads(cloudpickle.dumps(f))
        print(g(3), g(4))
        """,
        "loky": """
        if __name__ == "__main__":
            from loky import get_reusable_executor
            print(f(3))
            with get_reusable_executor(2) as pool:
                print(*pool.map(f, [3, 3, 4]))
        """,
    }[library]
    printed, calls = run_program(tmp_path / "program.py", job)
    assert printed == (["6", "6", "8"] if library == "cloudpickle" else ["6", "6", "6", "8"])
    assert len(calls) == 2


def test_a_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "from persistent_dict import memoize\n@memoize\ndef f(x):\n    return x + 1",
        "print(f(1), f.cache_info()[:2])",
        "@memoize\ndef f(x):\n    return x + 2  # edited",
        "print(f(1), f.cache_info()[:2])",
    ]
    seen = []
    for _ in range(2):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        client.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
        seen.append([output.text for cell in notebook.cells for output in cell.outputs])
    assert seen == [["2 (0, 1)\n", "3 (0, 1)\n"], ["2 (1, 0)\n", "3 (1, 0)\n"]]


# Coroutines


def test_1000_coroutines_compute_once():
    calls = []

    @memoize(ignore="calls")
    async def f(x):
        calls.append(x)
        await asyncio.sleep(0.05)
        return x

    async def main():
        return await asyncio.gather(*(f(1) for _ in range(1000)))

    assert asyncio.run(main()) == [1] * 1000
    assert calls == [1]
    assert f.cache_info().hits == f.cache_info().waits == 999
    assert asyncio.run(main()) == [1] * 1000  # another loop, from the store
    assert calls == [1]
    assert inspect.iscoroutinefunction(f)


def test_coroutines_with_other_keys_do_not_wait():
    @memoize(ignore=("together",))
    async def f(x):
        together.append(x)
        while len(together) < 50:
            await asyncio.sleep(0.001)
        return x

    together = []

    async def main():
        return await asyncio.wait_for(asyncio.gather(*map(f, range(50))), 60)

    assert asyncio.run(main()) == list(range(50))


def test_cancelling_one_waiter_does_not_cancel_the_others():
    calls = []

    @memoize(ignore="calls")
    async def f(x):
        calls.append(x)
        await asyncio.sleep(0.2)
        return x

    async def main():
        tasks = [asyncio.create_task(f(1)) for _ in range(4)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()  # the one that began
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results] == [asyncio.CancelledError, int, asyncio.CancelledError, int]
    assert calls == [1]


def test_when_all_are_cancelled_the_computation_is_too_and_another_can_begin():
    log = []

    @memoize(ignore="log")
    async def f(x):
        log.append("begin")
        try:
            await asyncio.sleep(30 if len(log) == 1 else 0)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        return x

    async def main():
        task = asyncio.create_task(f(1))
        while not log:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.wait_for(f(1), 20)

    assert asyncio.run(main()) == 1
    assert log == ["begin", "cancelled", "begin"]


def test_a_coroutines_exception_goes_to_its_caller_alone():
    calls = []

    @memoize(ignore="calls")
    async def f(x):
        calls.append(x)
        await asyncio.sleep(0.05)
        if len(calls) == 1:
            raise ValueError("the first one's")
        return x

    async def main():
        return await asyncio.gather(*(f(1) for _ in range(10)), return_exceptions=True)

    results = asyncio.run(main())
    assert isinstance(results[0], ValueError)
    assert results[1:] == [1] * 9
    assert len(calls) == 2


def test_a_coroutine_that_asks_for_itself_is_an_error():
    @memoize
    async def f(x):
        return await f(x)

    @memoize
    async def g(x):
        return (await asyncio.gather(g(x), asyncio.sleep(0)))[0]

    @memoize
    async def down(x):
        return x and 1 + await down(x - 1)

    for endless in (f, g):
        with pytest.raises(RecursiveComputationError):
            asyncio.run(asyncio.wait_for(endless(1), 20))
    assert asyncio.run(down(20)) == 20


def test_file_work_happens_off_the_loop(monkeypatch):
    import threading

    seen = set()
    real = persistent_dict.stores.disk.DiskStore.get_value
    monkeypatch.setattr(
        persistent_dict.stores.disk.DiskStore,
        "get_value",
        lambda store, digest: seen.add(threading.current_thread()) or real(store, digest),
    )

    @memoize(key_by={"x": lambda x: seen.add(threading.current_thread())})
    async def f(x):
        return x

    assert asyncio.run(f(1)) == asyncio.run(f(1)) == 1
    assert seen
    assert threading.main_thread() not in seen


def test_a_coroutine_waits_for_another_process_without_blocking_the_loop(tmp_path, temporary_cache):
    """More keys than the executor has threads are held by another process."""
    keys = 60
    script = textwrap.dedent(
        f"""
        import asyncio, glob
        from persistent_dict import PersistentDict
        d = PersistentDict("d", container_dir={str(tmp_path)!r})

        async def slow():
            await asyncio.sleep(1.0)
            return "theirs"

        async def main():
            asked = [asyncio.ensure_future(d.resolve_async(i, slow)) for i in range({keys})]
            while len(glob.glob(d.filename + "/locks/*")) < {keys}:
                await asyncio.sleep(0.01)
            print("all held", flush=True)
            await asyncio.gather(*asked)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"all held\n"
        d = PersistentDict("d", container_dir=tmp_path)

        async def ours():
            return "ours"

        async def main():
            waiting = [asyncio.ensure_future(d.resolve_async(i, ours)) for i in range(keys)]
            begin = time.monotonic()
            assert (await d.resolve_async("free", ours)).value == "ours"
            free_after = time.monotonic() - begin
            values = {outcome.value for outcome in await asyncio.gather(*waiting)}
            return values, free_after, time.monotonic() - begin

        values, free_after, all_after = asyncio.run(main())
    assert values == {"theirs"}
    assert free_after < all_after


def test_refresh_of_a_coroutine():
    calls = []

    @memoize(ignore="calls")
    async def f(x):
        calls.append(x)
        return len(calls)

    assert [asyncio.run(f(1)), asyncio.run(f.refresh(1)), asyncio.run(f(1))] == [1, 2, 2]


def test_a_thread_and_a_coroutine_compute_once(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)
    calls = []

    def slow():
        calls.append("thread")
        time.sleep(0.3)
        return 1

    async def compute():
        calls.append("coroutine")
        return 2

    async def main():
        thread = asyncio.create_task(asyncio.to_thread(d.get_or_compute, "k", slow))
        while not calls:
            await asyncio.sleep(0.01)
        outcome = await d.resolve_async("k", compute)
        await thread
        return outcome

    assert asyncio.run(main())[:2] == (1, "waited")
    assert calls == ["thread"]


def test_a_coroutine_waits_no_longer_than_its_own_timeout(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)

    async def main():
        end = asyncio.Event()

        async def held():
            await end.wait()
            return "late"

        async def quick():
            return "quick"

        holders = [asyncio.ensure_future(d.resolve_async(key, held, timeout=None)) for key in "ab"]
        await asyncio.sleep(0.1)
        at_once = await d.resolve_async("a", quick, timeout=0)
        with pytest.warns(CacheWriteWarning, match="another coroutine"):
            soon = await d.resolve_async("b", quick, timeout=0.1)
        assert not any(holder.done() for holder in holders)
        end.set()
        return at_once, soon, [(await holder).value for holder in holders]

    at_once, soon, values = asyncio.run(asyncio.wait_for(main(), 60))
    assert at_once[:2] == soon[:2] == ("quick", "computed")
    assert values == ["quick", "quick"]  # what was stored first


def test_coroutines_that_wait_for_each_other_end_at_their_timeout(tmp_path):
    d = PersistentDict("d", container_dir=tmp_path)

    async def a():
        await asyncio.sleep(0.1)
        return (await d.resolve_async("b", b, timeout=0.3)).value

    async def b():
        await asyncio.sleep(0.1)
        return (await d.resolve_async("a", a, timeout=0.3)).value

    async def main():
        return await asyncio.gather(*(d.resolve_async(k, f) for k, f in (("a", a), ("b", b))), return_exceptions=True)

    with pytest.warns(CacheWriteWarning):
        results = asyncio.run(asyncio.wait_for(main(), 30))
    assert any(isinstance(result, RecursiveComputationError) for result in results)


def test_cancelling_twice_while_a_file_is_written_leaves_nothing_behind(tmp_path):
    class Slow:
        name = "slow"
        loads = staticmethod(pickle.loads)

        @staticmethod
        def dumps(value):
            time.sleep(0.5)
            return pickle.dumps(value)

    d = PersistentDict("d", container_dir=tmp_path, format=Slow)

    async def compute():
        return 5

    async def main():
        task = asyncio.ensure_future(d.resolve_async("k", compute))
        await asyncio.sleep(0.2)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # which cancels what is left once more
    assert os.listdir(Path(d.filename, "locks")) == []
    assert d.get_or_compute("k", lambda: 5, timeout=20) == 5


@pytest.mark.parametrize("limits", [{"timeout": "1"}, {"min_seconds": None}])
def test_limits_that_are_no_numbers_are_errors_at_the_decoration(limits):
    with pytest.raises(TypeError, match="is a number of seconds"):
        memoize(**limits)


def test_coroutines_that_share_a_computation_have_objects_of_their_own():
    @memoize
    async def f(x):
        await asyncio.sleep(0.05)
        return [x]

    async def user(number):
        result = await f(1)
        result.append(number)
        return result

    async def main():
        return await asyncio.gather(user(1), user(2), user(3))

    assert asyncio.run(main()) == [[1, 1], [1, 2], [1, 3]]
    assert asyncio.run(main()) == [[1, 1], [1, 2], [1, 3]]


def test_threads_of_the_loop_that_wait_for_coroutines_starve_nobody(tmp_path):
    @memoize(timeout=30)
    async def f(x):
        await asyncio.sleep(0.05)
        return x

    async def main():
        loop = asyncio.get_running_loop()

        def ask(i):
            return asyncio.run_coroutine_threadsafe(f(i), loop).result()

        return await asyncio.wait_for(asyncio.gather(*[asyncio.to_thread(ask, i) for i in range(40)]), 60)

    assert asyncio.run(main()) == list(range(40))
