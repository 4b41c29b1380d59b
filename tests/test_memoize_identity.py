"""Two calls share a result only if nothing that the function is given tells them apart. Each was an accident."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import functools
import importlib
import inspect
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from persistent_dict import PersistentDict, UnkeyableError, memoize

pytestmark = pytest.mark.usefixtures("temporary_cache")


def times(k):
    """A decorator with an argument."""

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs) * k

        return wrapper

    return decorate


EDITED = "from persistent_dict import memoize\ndef make():\n  @memoize\n  def f(x):\n    return x + 1\n  return f\n"


# Programs


@pytest.mark.parametrize("decorator", ["timed", "bare", ""])
def test_a_decorator_of_a_module_does_not_hide_the_program(decorator, tmp_path):
    (tmp_path / "deco.py").write_text(
        textwrap.dedent(
            """
            import functools

            def timed(f):
                @functools.wraps(f)
                def w(*a, **k):
                    return f(*a, **k)
                return w

            def bare(f):
                def w(x):
                    return f(x)
                return w
            """
        )
    )
    seen = []
    for rate in (2, 5):
        path = tmp_path / f"s{rate}.py"
        lines = f"""
            from persistent_dict import memoize
            from deco import timed, bare
            RATE = {rate}

            @memoize
            {f"@{decorator}" if decorator else ""}
            def f(x):
                return x * RATE

            print(f(3))
            """
        path.write_text(textwrap.dedent(lines))
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
        seen.append(done.stdout)
    assert seen == ["6\n", "15\n"]


def test_the_code_that_runs_counts_and_not_the_file_that_was_edited_since(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = EDITED
    path = tmp_path / "edited_while_running.py"
    path.write_text(text)
    module = importlib.import_module("edited_while_running")
    path.write_text(text.replace("x + 1", "x * 100"))
    os.utime(path, (1e9, 1e9))
    assert module.make()(3) == 4
    del sys.modules["edited_while_running"]
    importlib.invalidate_caches()
    assert importlib.import_module("edited_while_running").make()(3) == 300


# Functions and decorators


def test_the_code_of_enclosed_functions_counts():
    def make(one):
        if one:

            def g(x):
                return x + 1

        else:

            def g(x):
                return x * 100

        @memoize
        def f(x):
            return g(x)

        return f

    assert [make(True)(3), make(False)(3)] == [4, 300]


def test_the_code_of_functions_and_lambdas_that_are_arguments_counts():
    @memoize
    def apply(function, x):
        return function(x)

    n = 7
    functions = [lambda x: x + 1, lambda x: x + 2, lambda x, y=3: x + y, lambda x, y=4: x + y, lambda x: x + n]
    assert [apply(function, 1) for function in functions] == [2, 3, 4, 5, 8]
    n = 8
    assert apply(functions[-1], 1) == 9


def test_a_decorator_without_wraps_is_no_cover():
    def bare(function):
        def wrapper(x):
            return function(x)

        return wrapper

    def make(body):
        names = {"memoize": memoize, "bare": bare, "__name__": "typed_in"}
        exec(f"@memoize\n@bare\ndef f(x):\n    return {body}", names)
        return names["f"]

    assert [make("x * 2")(3), make("x * 7")(3)] == [6, 21]


def test_defaults_of_decorators_count():
    def scale(k):
        def decorate(function):
            @functools.wraps(function)
            def wrapper(x, _k=k):
                return function(x) * _k

            return wrapper

        return decorate

    def make(k):
        @memoize
        @scale(k)
        def f(x):
            return x

        return f

    assert [make(2)(3), make(5)(3)] == [6, 15]


class Scale:
    def __init__(self, function, k):
        functools.update_wrapper(self, function)
        self.function = function
        self.k = k

    def __call__(self, *args):
        return self.function(*args) * self.k


@dataclasses.dataclass
class KeyableScale:
    k: int

    def of(self, function):
        functools.update_wrapper(self, function)
        return self

    def __call__(self, *args):
        return self.__wrapped__(*args) * self.k


def test_decorators_that_are_objects_count_or_are_errors():
    def f(x):
        return x

    with pytest.raises(UnkeyableError, match=r"f, Scale .*ignore=\('Scale',\)"):
        memoize(Scale(f, 2))(3)
    assert memoize(ignore=("Scale",))(Scale(f, 2))(3) == 6
    assert [memoize(KeyableScale(k).of(f))(3) for k in (2, 5)] == [6, 15]


def test_partials_with_a_name_count():
    def base(x, k=1):
        return x * k

    def partial_of(k):
        return functools.update_wrapper(functools.partial(base, k=k), base)

    assert [memoize(partial_of(2))(3), memoize(partial_of(5))(3)] == [6, 15]


def test_a_cached_function_below_is_no_obstacle():
    @memoize
    @functools.lru_cache
    def f(x):
        return x + 1

    assert [f(1), f(1)] == [2, 2]
    assert f.cache_info().hits == 1


def test_what_is_called_says_what_its_arguments_mean():
    def ten(function):
        @functools.wraps(function)
        def wrapper(x=10):
            return function(x)

        return wrapper

    @memoize
    @ten
    def f(x=1):
        return x

    assert [f(), f(1), f(10)] == [10, 1, 10]
    assert f.cache_info().misses == 2


def test_what_a_decorator_that_passes_all_on_makes_of_the_arguments_is_not_guessed():
    def injecting(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            kwargs.setdefault("z", 10)
            return function("connection", *args, **kwargs)

        return wrapper

    @memoize
    @injecting
    def f(connection, x=1, y=2, z=0):
        return (x, y, z)

    assert [f(5), f(5, 1), f(5), f(5, z=0)] == [(5, 2, 10), (5, 1, 10), (5, 2, 10), (5, 2, 0)]
    assert f.cache_info().misses == 3


def test_under_such_a_decorator_keywords_can_be_ignored():
    @memoize(ignore=("verbose",))
    @times(2)
    def f(x, verbose=False):
        return x

    assert [f(3), f(3, verbose=True)] == [6, 6]
    assert f.cache_info().misses == 1


def test_a_decorator_over_a_memoized_function_counts():
    @memoize
    def apply(function, x):
        return function(x)

    @memoize
    def base(x):
        return x

    def make(k):
        h = times(k)(base)

        @memoize
        def outer(x):
            return h(x)

        @times(k)
        @memoize
        def recursive(n):
            return 1 if n == 0 else recursive(n - 1) + 1

        return apply(h, 3), outer(3), recursive(3)

    assert [make(2), make(5)] == [(6, 6, 30), (15, 15, 780)]


def test_memoized_twice():
    @memoize("first")
    @memoize("second")
    def f(x):
        return x + 1

    assert [f(1), f(x=1), f(2)] == [2, 2, 3]


def test_defaults_of_what_a_decorator_calls_count():
    def one(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x)

        return wrapper

    def make(k):
        @memoize
        @one
        def f(x, _k=k):
            return x * _k

        return f

    assert [make(2)(3), make(5)(3)] == [6, 15]


def test_a_decorator_may_know_the_function():
    def decorate(fallback):
        def inner(function):
            @functools.wraps(function)
            def wrapper(x):
                return function(x) if fallback is None else -function(x)

            return wrapper

        return inner

    def f(x):
        return x

    assert [memoize(decorate(None)(f))(3), memoize(decorate(f)(f))(3)] == [3, -3]


def test_a_name_around_that_is_also_a_parameters_is_told_from_it():
    def decorate(x):
        def inner(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args) * x

            return wrapper

        return inner

    def make(k):
        @memoize(ignore=("x",))
        @decorate(k)
        def f(x):
            return x

        return f

    def direct(k):
        x = k

        def f(x=1):
            return x

        @memoize(ignore=("y",))
        def g(y=0):
            return x + f()

        return g

    assert [direct(2)(), direct(4)()] == [3, 5]
    with pytest.raises(TypeError, match="has no such parameter. It has: args, function, x"):
        memoize(ignore=("z",))(decorate(2)(direct))
    assert make(2)(3) == 6


def test_a_program_that_is_a_directory_is_told_from_others(tmp_path):
    seen = []
    for rate in (2, 5):
        (tmp_path / f"app{rate}").mkdir()
        (tmp_path / f"app{rate}" / "__main__.py").write_text(
            f"from persistent_dict import memoize\nR = {rate}\n@memoize\ndef f(x):\n    return x * R\nprint(f(3))\n"
        )
        command = [sys.executable, str(tmp_path / f"app{rate}")]
        seen.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert seen == ["6\n", "15\n"]


def test_a_function_with_many_branches_is_memoized(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["from persistent_dict import memoize", "@memoize", "def f(x):", "    if x == 0: return 0"]
    lines += [f"    elif x == {i}: return {i}" for i in range(1, 600)]
    (tmp_path / "many_branches.py").write_text("\n".join(lines))
    assert importlib.import_module("many_branches").f(3) == 3


def test_a_file_that_is_being_edited_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = EDITED
    (tmp_path / "half_edited.py").write_text(text)
    module = importlib.import_module("half_edited")
    for broken in ("(x + 1", '"""x + 1'):
        (tmp_path / "half_edited.py").write_text(text.replace("x + 1", broken))
        assert module.make()(3) == 4


def test_a_decorator_may_take_arguments_of_its_own():
    def scaled(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args) * kwargs.pop("scale", 1)

        return wrapper

    @memoize
    @scaled
    def f(x):
        return x

    assert [f(3), f(3, scale=2), f(3, scale=5), f(3, scale=2)] == [3, 6, 15, 6]
    assert f.cache_info().misses == 3


def test_a_function_that_seems_to_be_itself():
    def make(k):
        def f(x):
            return x

        g = times(k)(f)

        @memoize
        @functools.wraps(f)
        def h(x):
            return g(x)

        return h

    assert [make(2)(3), make(5)(3)] == [6, 15]


def test_enclosing_names_count_beside_a_key_too():
    def make(k):
        @memoize(key=lambda x: x)
        def f(x):
            return x * k

        return f

    assert [make(2)(3), make(5)(3)] == [6, 15]


def test_functions_that_refer_to_themselves_and_names_that_come_later_are_keyed():
    @memoize
    def apply(function, x):
        return function(x)

    def make(step):
        def countdown(n):
            return 0 if n <= 0 else step + countdown(n - 1)

        def even(n):
            return True if n == 0 else odd(n - 1)

        def odd(n):
            return False if n == 0 else even(n - 1)

        def early(x):
            return later if x > 5 else x

        results = [apply(countdown, 3), apply(even, 4), apply(odd, 4), apply(early, 3)]
        later = step
        return [*results, apply(early, 9)]

    assert [make(1), make(2)] == [[3, True, False, 3, 1], [6, True, False, 3, 2]]

    def helper(n):
        return n and memoized(n - 1)

    @memoize
    def memoized(n):
        return n and helper(n)

    assert memoized(5) == 0


def test_a_memoized_function_is_a_key_of_a_dictionary_like_other_functions(tmp_path):
    connection = object()

    @memoize(ignore=("connection",))
    def f(x, sizes=[1, 2]):
        return (connection, x, sizes)

    d = PersistentDict("d", container_dir=tmp_path)
    assert d.key_builder(f) == d.key_builder(f)
    assert len(d.key_builder((f, 1))) == 40


def test_functions_of_libraries_are_keyed():
    import operator
    import re

    numpy = pytest.importorskip("numpy")

    @memoize
    def apply(function, *arguments):
        return function(*arguments)

    @functools.lru_cache
    def cached(x):
        return x + 1

    calls = [
        (numpy.sin, 0.0), (numpy.cos, 0.0), (numpy.sum, [1, 2]),
        (numpy.add.reduce, [1, 3]), (numpy.multiply.reduce, [2, 3]),
        (str.upper, "a"), (str.lower, "A"), (int.__neg__, 1), ((3).__add__, 1), ((4).__add__, 1),
        (operator.itemgetter(0), "ab"), (operator.itemgetter(1), "ab"), (operator.methodcaller("upper"), "x"),
        (re.compile("a").fullmatch, "b"), (cached, 1), (math.gcd, 4, 6),
    ]  # fmt: skip
    for _ in range(2):
        got = [apply(*call) for call in calls]
        assert got == [0.0, 1.0, 3, 4, 6, "A", "a", -1, 4, 5, "a", "b", "X", None, 2, 2]
    assert apply.cache_info()[:2] == (len(calls), len(calls))


def test_functions_that_differ_in_how_they_take_arguments_are_told_apart():
    @memoize
    def kind(function):
        return type(function()).__name__

    assert [kind(lambda *a: a), kind(lambda **a: a)] == ["tuple", "dict"]


def test_modules_are_keyed_by_name():
    import json
    import pickle

    def make(module):
        @memoize
        def f(x):
            return module.__name__ + x

        return f

    assert [make(json)("x"), make(pickle)("x")] == ["jsonx", "picklex"]


# Values


@dataclasses.dataclass
class Point:
    x: int


class Weighted(Point):
    def __init__(self, x, k):
        super().__init__(x)
        self.k = k


@dataclasses.dataclass
class Derived:
    x: int
    seed: dataclasses.InitVar[int]

    def __post_init__(self, seed):
        self.k = seed

    @functools.cached_property
    def slow(self):
        return self.k


class Named(collections.namedtuple("Named", "x")):
    pass


@dataclasses.dataclass(init=False)
class Bag(list):
    name: str = "x"


class Slotted(Point):
    __slots__ = ("k",)

    def __init__(self, x, k):
        super().__init__(x)
        self.k = k


class Kernel:
    def __init__(self, name):
        self.name = name

    def update_persistent_hash(self, key_hash, key_builder):
        key_builder.rec(key_hash, self.name)


class FastKernel(Kernel):
    pass


class MyPath(type(pathlib.Path())):
    pass


@memoize
def product(thing):
    return thing.x * thing.k


def test_attributes_beside_the_fields_of_a_record_count():
    named = [Named(3), Named(3)]
    named[0].k, named[1].k = 2, 5
    for pair in (
        [Weighted(3, 2), Weighted(3, 5)],
        [Slotted(3, 2), Slotted(3, 5)],
        [Derived(3, 2), Derived(3, 5)],
        named,
    ):
        assert [product(thing) for thing in pair] == [6, 15]
    thing = Derived(3, 2)
    key = product.cache_key(thing)
    assert thing.slow == 2
    assert product.cache_key(thing) == key


def test_a_record_that_is_a_list_too_is_refused():
    with pytest.raises(UnkeyableError, match="Bag, which is a record and a container at once"):
        product(Bag())


def test_the_class_of_an_object_with_a_hook_counts():
    @memoize
    def kind(kernel):
        return type(kernel).__name__

    assert [kind(Kernel("a")), kind(FastKernel("a"))] == ["Kernel", "FastKernel"]


def test_ranges_and_values_that_equal_nothing():
    @memoize
    def stop(values):
        return values.stop

    assert [stop(range(0, 3, 2)), stop(range(0, 4, 2))] == [3, 4]

    @memoize
    def f(x):
        return 1

    assert [f(float("nan")), f(float("nan"))] == [1, 1]
    assert f.cache_info().hits == 1


def test_a_builder_that_returns_no_text_is_an_error_that_says_so():
    with pytest.raises(TypeError, match="key_builder= returned .* for x, and not a str"):
        memoize(key_builder=hash)(lambda_free)(5)


def lambda_free(x):
    return x


def test_a_path_of_a_class_of_ones_own_is_told_from_others():
    @memoize
    def kind(path):
        return type(path).__name__

    assert [kind(MyPath("/x")), kind(pathlib.PurePosixPath("/x"))] == ["MyPath", "PurePosixPath"]


def test_classes_that_a_function_makes_are_refused():
    def make(k):
        class Local:
            K = k

            @classmethod
            @memoize
            def m(cls, x):
                return cls.K * x

        return Local

    def make_enum(v):
        class Color(enum.Enum):
            A = v

        return Color

    with pytest.raises(UnkeyableError, match="made inside a function: its name does not tell"):
        make(2).m(3)

    @memoize
    def f(x):
        return x.value

    @dataclasses.dataclass
    class Local:
        x: int

    for key in (make_enum(1).A, [make_enum(2).A], Local(1)):
        with pytest.raises(UnkeyableError, match="made inside a function"):
            f(key)


def test_numbers_of_numpy_are_told_from_pythons():
    numpy = pytest.importorskip("numpy")

    @memoize
    def kind(values):
        return type(values[0]).__name__

    assert [kind([numpy.float64(0)]), kind([0.0]), kind([numpy.int64(0)]), kind([0])] == [
        "float64",
        "float",
        "int64",
        "int",
    ]


def test_a_builder_of_ones_own_is_asked_for_every_value():
    @memoize(key_builder=lambda value: repr(round(value, 2)))
    def f(x):
        return x

    assert [f(1.001), f(1.002), f(1.1)] == [1.001, 1.001, 1.1]


# Coroutines


def test_arguments_that_change_before_a_coroutine_runs_do_not_spoil_the_cache():
    @memoize
    async def total(numbers):
        return sum(numbers)

    async def main():
        numbers = [1, 2]
        task = asyncio.create_task(total(numbers))
        await asyncio.sleep(0)
        numbers.append(100)
        return await task, await total([1, 2])

    assert asyncio.run(main()) == (103, 3)


def test_enclosing_names_that_change_before_a_coroutine_runs_do_not_spoil_the_cache():
    def make():
        k = 0

        @memoize
        async def f(x):
            return x * k

        async def main():
            nonlocal k
            k = 5
            task = asyncio.create_task(f(1))
            await asyncio.sleep(0)
            k = 7
            await task
            k = 5
            return await f(1)

        return main

    assert asyncio.run(make()()) == 5


def test_what_is_called_says_whether_it_is_a_coroutine():
    def run(function):
        @functools.wraps(function)
        def wrapper(*args):
            return asyncio.run(function(*args))

        return wrapper

    def in_a_coroutine(function):
        @functools.wraps(function)
        async def wrapper(*args):
            return function(*args)

        return wrapper

    @memoize
    @run
    async def f(x):
        return x + 1

    @memoize
    @in_a_coroutine
    def g(x):
        return x + 2

    assert [f(1), f(1), f.cache_info().hits] == [2, 2, 1]
    assert inspect.iscoroutinefunction(g)
    assert [asyncio.run(g(1)), asyncio.run(g(1)), g.cache_info().hits] == [3, 3, 1]


def test_a_generator_that_is_made_a_list_is_memoized_and_one_that_is_not_refused():
    def listed(function):
        @functools.wraps(function)
        def wrapper(*args):
            return list(function(*args))

        return wrapper

    @memoize
    @listed
    def f(n):
        yield from range(n)

    assert [f(3), f(3)] == [[0, 1, 2]] * 2
    assert f.cache_info().hits == 1

    async def hidden(x):
        return x

    @memoize
    def iterates(n):
        return (i for i in range(n))

    with pytest.raises(TypeError, match="returned a generator, .*a list"):
        iterates(1)

    def passed_on(function):
        return functools.wraps(function)(lambda *args: function(*args))

    with pytest.raises(TypeError, match="returned a coroutine, .*directly over the async def"):
        memoize(passed_on(hidden))(1)
