"""The demonstration: the code objects of the standard library, compiled once by several processes."""

from __future__ import annotations

import hashlib
import marshal
import os
import random
import sys
import sysconfig
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from persistent_dict.dicts import WriteOncePersistentDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_IDENTIFIER = "demo-compiled-standard-library"
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})


def run(directory: str | None, jobs: int, keep: bool) -> int:
    """Compile the standard library twice over one dictionary, and print what happened. Return the exit code."""
    jobs = jobs or max(2, os.cpu_count() or 2)
    with ExitStack() as stack:
        if directory is not None:
            place, fate = directory, ""
        elif keep:
            place = tempfile.mkdtemp(prefix="persistent_dict-demo-")
            fate = f"remove it with:  rm -rf {place}"
        else:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="persistent_dict-demo-"))
            fate = "it is removed now; --keep or --dir DIR keeps it"
        modules = sorted(_modules())
        print(f"{len(modules)} modules of the standard library of Python {sys.version.split()[0]}, {jobs} processes")
        first, second = (_one_run(name, modules, jobs, place) for name in ("first run ", "second run"))
        same = first == second
        print(f"results byte-identical in both runs: {'yes' if same else 'NO'}  (checksum {first[:16]})")
        _show(open_cache(place), modules[0])
        if fate:
            print(fate)
    return 0 if same else 1


def open_cache(directory: str) -> WriteOncePersistentDict[tuple[object, ...], bytes]:
    """Return the demonstration's dictionary. Its values are bytes: nothing is unpickled to read them."""
    return WriteOncePersistentDict(_IDENTIFIER, container_dir=directory, format="raw", in_mem_cache_size=0)


def _modules() -> Iterable[str]:
    for parent, directories, files in os.walk(sysconfig.get_path("stdlib")):
        directories[:] = [name for name in directories if name not in _LEFT_OUT]
        yield from (os.path.join(parent, name) for name in files if name.endswith(".py"))


def _one_run(name: str, modules: list[str], jobs: int, directory: str) -> str:
    """Let every process ask for every module, each in an order of its own. Return a checksum of all results."""
    begin = time.perf_counter()
    orders = [random.Random(i).sample(modules, len(modules)) for i in range(jobs)]  # noqa: S311  # no secret
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        reports = list(pool.map(partial(_ask_for_all, directory), orders))
    seconds = time.perf_counter() - begin
    times = [second for report in reports for second in report[0]]
    waits = sum(report[1] for report in reports)
    checksums = {report[2] for report in reports}
    if len(checksums) > 1:
        raise RuntimeError("the processes were given different results")
    print(
        f"{name}: {len(times):5} compiled, {jobs * len(modules) - len(times):5} read from the cache "
        f"({waits} after a wait), {seconds:6.2f} s ({sum(times):.2f} s compiling)"
    )
    return checksums.pop()


def _ask_for_all(directory: str, modules: list[str]) -> tuple[list[float], int, str]:
    """Return the seconds that each compilation took, how often another process was waited for, and a checksum of all
    results."""
    cache = open_cache(directory)
    times: list[float] = []
    codes = {}
    for path in modules:
        key, source = key_of(path)
        codes[path] = cache.get_or_compute(key, partial(_compile, path, source, times))
    return times, cache.cache_info().waits, _checksum(codes)


def key_of(path: str) -> tuple[tuple[object, ...], bytes]:
    """Return the key of a module, which holds all that its code depends on, and the module's source."""
    source = Path(path).read_bytes()
    flags = (sys.flags.optimize, sys.implementation.cache_tag, sys.version)
    return ("compile", os.path.basename(path), hashlib.sha256(source).digest(), flags), source


def _compile(path: str, source: bytes, times: list[float]) -> bytes:
    """Return a module's code object as bytes; none for a file that is wrong on purpose, for Python's own tests."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own SyntaxWarnings
            code = compile(source, os.path.basename(path), "exec", dont_inherit=True)
        return marshal.dumps(code, 2)  # version 2 has no references, so that equal code gives equal bytes
    except (SyntaxError, ValueError):
        return b""
    finally:
        times.append(time.perf_counter() - begin)


def _checksum(codes: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for path in sorted(codes):
        total.update(hashlib.sha256(codes[path]).digest())
    return total.hexdigest()


def _show(cache: WriteOncePersistentDict[tuple[object, ...], bytes], path: str) -> None:
    key, _ = key_of(path)
    print(f"the cache: {cache.filename}  ({len(cache)} entries, {cache.nbytes() / 1e6:.1f} MB)")
    print(f"one entry, {os.path.basename(path)}:  ls -l {cache.entry_path(key)!r}")
    print("the same from Python:")
    print("  from persistent_dict.demo import key_of, open_cache")
    print(f"  open_cache({os.path.dirname(cache.filename)!r})[key_of({path!r})[0]][:20]  # {cache[key][:20]!r}")
