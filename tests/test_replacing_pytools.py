"""Programs that use `pytools.persistent_dict` run unchanged on this package."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import persistent_dict

HERE = Path(__file__).resolve().parent


def run(library, directory):
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "PERSISTENT_DICT_DIR": str(directory / "caches"),
        "XDG_CACHE_HOME": str(directory / "xdg"),
        "HOME": str(directory),
    }
    command = [sys.executable, str(HERE / "dropin_child.py"), library]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def need(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install 'persistent_dict[dropin]')")


@pytest.mark.parametrize("library", ["loopy", "pyopencl"])
def test_a_real_program_runs_on_it_and_its_second_run_hits(library, tmp_path):
    need("pytools", library)
    first, second = run(library, tmp_path), run(library, tmp_path)
    assert first["result"] == second["result"]
    stored = {name for name, (_, stores) in first["counts"].items() if stores}
    hit = {name for name, (hits, _) in second["counts"].items() if hits}
    assert stored
    assert hit
    assert not any(stores for _, stores in second["counts"].values()), "nothing is computed and stored twice"


def test_everything_of_pytools_has_its_counterpart():
    pytest.importorskip("pytools")
    from pytools import persistent_dict as theirs

    for name in ("KeyBuilder", "PersistentDict", "WriteOncePersistentDict"):
        ours = getattr(persistent_dict, name)
        for member in vars(getattr(theirs, name)):
            if not member.startswith("_"):
                assert hasattr(ours, member), f"{name}.{member}"
    for name in (
        "NoSuchEntryError",
        "NoSuchEntryCollisionError",
        "ReadOnlyEntryError",
        "CollisionWarning",
        "NanKeyWarning",
    ):
        assert issubclass(getattr(persistent_dict, name), getattr(theirs, name).__bases__[-1].__mro__[-3])


@pytest.mark.parametrize("name", ["PersistentDict", "WriteOncePersistentDict"])
def test_the_constructors_take_what_pytools_take(name):
    pytest.importorskip("pytools")
    from pytools import persistent_dict as theirs

    def parameters(kind):
        found = list(inspect.signature(kind).parameters.values())
        return {p.name for p in found}, [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]

    their_names, their_order = parameters(getattr(theirs, name))
    our_names, our_order = parameters(getattr(persistent_dict, name))
    assert their_names <= our_names
    assert our_order[: len(their_order)] == their_order


def test_pytools_own_key_builder_serves(tmp_path):
    pytest.importorskip("pytools")
    from pytools.persistent_dict import KeyBuilder

    d = persistent_dict.WriteOncePersistentDict("d", KeyBuilder(), tmp_path)
    keys = [1, "a", (1, ("b", None)), frozenset({1, 2})]
    for key in keys:
        d[key] = key
    assert [d[key] for key in keys] == keys
    assert list(persistent_dict.WriteOncePersistentDict("d", KeyBuilder(), tmp_path)) == keys
