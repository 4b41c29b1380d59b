"""What a dictionary does can be seen: the log, explanations; and a test can have a cache of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from persistent_dict import Explanation, KeyBuilder, PersistentDict, WriteOncePersistentDict, memoize
from persistent_dict.testing import temporary_cache

KINDS = [WriteOncePersistentDict, PersistentDict]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def d(kind, tmp_path):
    return kind("name", container_dir=tmp_path)


# The log


def test_hits_misses_waits_and_stores_are_told_at_debug(d, caplog):
    caplog.set_level(logging.DEBUG, logger="persistent_dict")
    d.get("k")
    d.get_or_compute(("k", 1), lambda: 1)
    d.store("s", 2)
    assert d["s"] == 2
    told = [record.getMessage() for record in caplog.records if record.name == "persistent_dict"]
    assert told == [
        "name: miss: 'k'",
        "name: miss: ('k', 1)",
        "name: store: ('k', 1)",
        "name: store: 's'",
        "name: hit in the store: 's'",
    ]


def test_a_hit_in_memory_is_told(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="persistent_dict")
    d = WriteOncePersistentDict("name", container_dir=tmp_path)
    d["k"] = 1
    assert [d["k"], d["k"]] == [1, 1]
    assert caplog.messages[-2:] == ["name: hit in the store: 'k'", "name: hit in memory: 'k'"]


def test_a_wait_is_told(d, caplog):
    begun, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: d.get_or_compute("k", lambda: begun.set() or end.wait(20)))
    thread.start()
    begun.wait(10)
    caplog.set_level(logging.DEBUG, logger="persistent_dict")
    threading.Timer(0.1, end.set).start()
    assert d.get_or_compute("k", lambda: 1) is True
    thread.join()
    assert "name: wait: 'k'" in caplog.messages


def test_without_a_listener_nothing_is_said_and_logging_is_not_imported(tmp_path):
    script = f"""
        import sys
        from persistent_dict import WriteOncePersistentDict
        d = WriteOncePersistentDict("d", container_dir={str(tmp_path)!r})
        d["k"] = 1
        assert d["k"] == d["k"] == 1
        assert "logging" not in sys.modules
        import logging
        logging.basicConfig(level=logging.INFO)
        d.clear_in_mem_cache()
        assert d["k"] == 1
        logging.getLogger().setLevel(logging.DEBUG)
        d.clear_in_mem_cache()
        d["k"]
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "DEBUG:persistent_dict:d: hit in the store: 'k'\n")


# Explanations


def test_what_is_there_is_explained(d):
    d.store("k", 1, seconds=1.5)
    verdict, detail = d.explain("k")
    assert verdict == "present"
    assert d.entry_path("k") in detail
    assert "computed in 1.5 s" in detail


def test_what_is_absent_is_explained(d):
    expected = Explanation("absent", f"there is no entry at {d.entry_path('k')}")
    assert d.explain("k") == expected
    assert str(expected) == f"absent: {expected.detail}"
    d["other"] = 1
    assert d.explain("k") == expected


def test_what_is_invalid_is_explained_and_stays(kind, tmp_path):
    d = kind("name", container_dir=tmp_path, on_invalid="quarantine")
    d["k"] = 1
    Path(d.entry_path("k"), "value").write_bytes(b"")
    verdict, detail = d.explain("k")
    assert verdict == "invalid"
    assert "the entry of 'k' is invalid" in detail
    assert "rm -rf" in detail
    assert Path(d.entry_path("k"), "value").exists()


def test_disabled_is_explained(d, monkeypatch):
    d["k"] = 1
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    assert d.explain("k").verdict == "disabled"


def test_the_entry_of_another_python_is_explained(d):
    d["k"] = 1
    here = Path(d.filename)
    there = here.with_name("name.cpython-27")
    here.rename(there)
    for other in ("name.other.cpython-27", "names.cpython-27"):
        here.with_name(other).mkdir()
    again = type(d)("name", container_dir=here.parent)
    verdict, detail = again.explain("k")
    assert verdict == "other version"
    assert str(there) in detail
    assert again.explain("not there").verdict == "absent"


def test_a_collision_is_explained(tmp_path):
    class OneDigest(KeyBuilder):
        def update_for_str(self, key_hash, key):
            key_hash.update(b"the same for all")

    d = PersistentDict("name", OneDigest(), container_dir=tmp_path)
    d["k"] = 1
    assert d.explain("k").verdict == "present"
    assert d.explain("other").verdict == "collision"


def test_explaining_counts_nothing(d):
    d["k"] = 1
    before = d.cache_info()
    for key in ("k", "absent"):
        d.explain(key)
    assert d.cache_info() == before


def test_other_versions_of_a_function_are_explained(tmp_path):
    d = PersistentDict("name", container_dir=tmp_path)

    def make(**options):
        @memoize(d, **options)
        def f(x):
            return x

        return f

    make(version=1)(5)
    assert make(version=1).explain(5).verdict == "present"
    assert make(version=1).explain(6).verdict == "absent"
    verdict, detail = make(version=2).explain(5)
    assert verdict == "other version"
    assert "with version 1 and not 2" in detail
    verdict, detail = make(version=1, code=None).explain(5)
    assert verdict == "other version"
    assert "with other code" in detail


# A cache for a test


def test_a_temporary_cache_is_empty_and_leaves_nothing():
    before = os.environ["PERSISTENT_DICT_DIR"]
    d = PersistentDict("temporary", on_invalid="quarantine")
    d["k"] = "outside"

    @memoize
    def f(x):
        return x

    f(1)
    outside = d.filename
    with temporary_cache() as directory:
        assert os.listdir(directory) == []
        assert "k" not in d
        assert not f.cache_contains(1)
        d["k"] = "inside"
        inside = PersistentDict("temporary")
        assert inside["k"] == "inside"
        assert os.path.dirname(d.filename) == directory
        with temporary_cache():
            assert "k" not in inside
        assert inside["k"] == "inside"
        script = "from persistent_dict import PersistentDict; print(PersistentDict('temporary')['k'])"
        assert (
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
            == "inside\n"
        )
    assert not os.path.exists(directory)
    assert os.environ["PERSISTENT_DICT_DIR"] == before
    assert d.filename == outside
    assert d["k"] == inside["k"] == "outside"
    assert f.cache_contains(1)
    assert not os.path.exists(directory)


def test_a_place_that_was_given_stays(tmp_path):
    d = PersistentDict("given", container_dir=tmp_path)
    d["k"] = 1
    with temporary_cache():
        assert d["k"] == 1


def test_the_default_place_is_found_at_the_first_use(tmp_path, monkeypatch):
    d = PersistentDict("late")
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path / "later"))
    d["k"] = 1
    assert os.listdir(tmp_path / "later") == [f"late.{sys.implementation.cache_tag}"]
    assert d.container_dir == str(tmp_path / "later")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        d.nothing


def test_the_fixture(temporary_cache):
    PersistentDict("in the fixture")["k"] = 1
    assert len(os.listdir(temporary_cache)) == 1


def test_the_fixture_is_there_for_others(pytester_like_project):
    """Another project's tests, with nothing but this package installed."""
    assert pytester_like_project.returncode == 0, pytester_like_project.stdout


@pytest.fixture
def pytester_like_project(tmp_path):
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            """
            import os
            from persistent_dict import memoize

            @memoize
            def f(x):
                return x + 1

            def test_empty(temporary_cache):
                assert f(1) == 2
                assert f.cache_info().misses == 1
                assert len(os.listdir(temporary_cache)) == 1

            def test_empty_again(temporary_cache):
                assert f(1) == 2
                assert f.cache_info().misses == 2
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
