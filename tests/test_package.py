"""The package as a whole: what importing it costs, what it exports, and that the README tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import persistent_dict

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

# Each of these costs a millisecond or more, or is optional.
HEAVY = {
    "argparse",
    "concurrent.futures",
    "dataclasses",
    "filelock",
    "inspect",
    "json",
    "logging",
    "multiprocessing",
    "numpy",
    "pathlib",
    "pickle",
    "platformdirs",
    "re",
    "shutil",
    "tempfile",
    "threading",
    "typing",
}


def test_the_import_loads_nothing_heavy():
    script = "import sys; before = set(sys.modules); import persistent_dict; print(*(set(sys.modules) - before))"
    # -I -S: without what a site's .pth files load.
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert "persistent_dict.dicts" in loaded
    assert not loaded & HEAVY


def test_everything_exported_exists():
    assert all(hasattr(persistent_dict, name) for name in persistent_dict.__all__)


@pytest.mark.parametrize("name", [name for name in persistent_dict.__all__ if name.endswith("Error")])
def test_every_exception_has_the_one_root(name):
    assert issubclass(getattr(persistent_dict, name), persistent_dict.PersistentDictError)


def test_the_first_examples_of_the_readme_run(temporary_cache):
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[:2]
    calls = []

    def generate(*arguments):
        calls.append(arguments)
        return f"code for {arguments}"

    for _ in range(2):  # as two programs would
        names = {"generate": generate, "__name__": "example"}
        exec(first, names)
        assert names["generated"]("axpy", 3, "float32") == "code for ('axpy', 3, 'float32')"
        exec(second, names)
        assert names["code"] == "code for ('axpy', 1000, 'float32')"
    assert len(calls) == 2


def test_the_readme_has_no_gap():
    assert not re.search(r"@[A-Z]+@|TODO|XXX", README.read_text())
