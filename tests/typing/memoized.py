"""What a type checker knows of memoized functions. mypy reads this file; nobody runs it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from typing_extensions import assert_type

from persistent_dict import FunctionInfo, Outcome, PersistentDict, WriteOncePersistentDict, file_checksum, memoize


@memoize
def bare(x: int, y: str = "", *, z: bool = False) -> list[float]:
    return [float(x)]


@memoize("results", version=2, ignore=("y",), key_by={"path": file_checksum}, min_seconds=0.1)
def called(x: int, y: str = "") -> dict[str, int]:
    return {y: x}


@memoize(PersistentDict("d"))
async def coroutine(x: int) -> bytes:
    return b""


class Model:
    @memoize
    def method(self, x: int) -> str:
        return ""

    @staticmethod
    @memoize
    def static_method(x: int) -> str:
        return ""


# Results have the function's types, and so do the methods that ask for one.
assert_type(bare(1, "y", z=True), "list[float]")
assert_type(bare.__wrapped__(1), "list[float]")
assert_type(bare.refresh(1), "list[float]")
assert_type(bare.cache_contains(1, y="y"), bool)
assert_type(bare.cache_delete(1), bool)
assert_type(bare.cache_info(), FunctionInfo)
assert_type(bare.cache_info().seconds_saved, float)
assert_type(called(1), "dict[str, int]")
assert_type(called.cache.get_or_compute(called.cache_key(1), dict), "dict[str, int]")
bare.cache_put([1.0], 1)
bare.cache_clear()

# Arguments and values of other types are errors.
bare("1")  # type: ignore[arg-type]
bare(1, w=2)  # type: ignore[call-arg]
bare.cache_key("1")  # type: ignore[arg-type]
bare.cache_put("no list", 1)  # type: ignore[arg-type]
called(y="y")  # type: ignore[call-arg]
memoize(versoin=2)  # type: ignore[call-overload]
memoize(1)  # type: ignore[call-overload]


async def main() -> None:
    computing: Coroutine[Any, Any, bytes] = coroutine(1)
    assert_type(await computing, bytes)
    assert_type(await coroutine(1), bytes)
    assert_type(await coroutine.refresh(1), bytes)
    coroutine.cache_put(b"", 1)
    coroutine.cache_put("no bytes", 1)  # type: ignore[arg-type]
    await coroutine("1")  # type: ignore[arg-type]


# Methods know their object.
assert_type(Model().method(1), str)
assert_type(Model().method.cache_info(), FunctionInfo)
assert_type(Model.method(Model(), 1), str)
assert_type(Model.method.cache_contains(Model(), 1), bool)
assert_type(Model.static_method(1), str)
Model().method("1")  # type: ignore[arg-type]

# Dictionaries.
numbers: PersistentDict[str, int] = PersistentDict("numbers")
once: WriteOncePersistentDict[str, int] = WriteOncePersistentDict("numbers")
assert_type(numbers.get_or_compute("k", lambda: 1), int)
assert_type(once.resolve("k", lambda: 1, timeout=None), Outcome[int])
assert_type(once.resolve("k", lambda: 1).value, int)
numbers.get_or_compute("k", lambda: "1")  # type: ignore[arg-type, return-value]
numbers.get_or_compute(1, lambda: 1)  # type: ignore[arg-type]
