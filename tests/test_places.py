"""Where containers are, whose they are, and what happens where nothing can be written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from persistent_dict import (
    CacheWriteWarning,
    ContainerError,
    InvalidEntryError,
    NoSuchEntryError,
    PersistentDict,
    UntrustedContainerError,
    WriteOncePersistentDict,
)

BOTH = pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
NOBODY = 65534
ROOT = Path(__file__).resolve().parent.parent


class Tripwire:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


def make(directory, value=1, kind=WriteOncePersistentDict, **options):
    d = kind("d", container_dir=directory, in_mem_cache_size=0, **options)
    d["k"] = value
    return d


def again(d, **options):
    return type(d)("d", container_dir=d.container_dir, in_mem_cache_size=0, **options)


def as_nobody(script, **environment):
    """Run a script as a user without rights; return what it printed."""
    code = f"import os, sys, warnings\nsys.path.insert(0, {str(ROOT)!r})\nimport persistent_dict as pd\n"
    if os.geteuid() == 0:  # libraries are loaded before, since this user may not read them
        code += f"import filelock, platformdirs, pickle\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    done = subprocess.run(
        [sys.executable, "-c", code + script],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def open_path(tmp_path):
    """A directory that other users can get to."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


# Owners and modes


def test_directories_and_files_are_for_the_owner_alone_whatever_the_umask(tmp_path):
    for umask in (0o000, 0o022, 0o077):
        before = os.umask(umask)
        try:
            d = make(tmp_path / f"{umask:o}")
        finally:
            os.umask(before)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in Path(d.filename).rglob("*") if path.is_dir()}
        assert modes | {stat.S_IMODE(os.stat(d.filename).st_mode)} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in Path(d.filename).rglob("*") if path.is_file()} == {0o600}


def test_a_mode_for_the_group_holds_whatever_the_umask(tmp_path):
    for umask in (0o000, 0o077):
        before = os.umask(umask)
        try:
            d = make(tmp_path / f"{umask:o}", mode=0o770, kind=PersistentDict)
            d["k"] = "overwritten"
            d["large"] = b"x" * 2_000_000
        finally:
            os.umask(before)
        paths = [Path(d.filename), *Path(d.filename).rglob("*")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o770}
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o660}
        assert again(d, mode=0o770)["k"] == "overwritten"


@BOTH
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702])
def test_a_container_that_others_may_write_to_is_refused_before_anything_is_unpickled(kind, mode, tmp_path):
    mark = tmp_path / "mark"
    d = make(tmp_path / "with space", Tripwire(mark), kind)
    os.chmod(d.filename, mode)
    for use in (
        lambda d: d["k"],
        lambda d: list(d),
        lambda d: d.store("new", 1),
        lambda d: "k" in d,
        lambda d: d.clear(),
    ):
        with pytest.raises(UntrustedContainerError, match="may write to it") as caught:
            use(again(d))
    assert not mark.exists()
    text = str(caught.value)
    for words in ("trusted=True", "mode=0o770", "chmod -R go-w"):
        assert words in text
    subprocess.run(["sh", "-c", caught.value.command], check=True)
    again(d)["k"]
    assert mark.exists()


def test_trusted_and_a_group_mode_open_it(tmp_path):
    d = make(tmp_path)
    os.chmod(d.filename, 0o770)
    assert again(d, trusted=True)["k"] == 1
    assert again(d, mode=0o770)["k"] == 1
    os.chmod(d.filename, 0o777)
    assert again(d, trusted=True)["k"] == 1
    with pytest.raises(UntrustedContainerError, match="everybody"):
        again(d, mode=0o770)["k"]


@NEEDS_ROOT
def test_another_users_container_is_refused(tmp_path):
    mark = tmp_path / "mark"
    d = make(tmp_path, Tripwire(mark))
    os.chown(d.filename, NOBODY, NOBODY)
    with pytest.raises(UntrustedContainerError, match=f"belongs to the user {NOBODY}") as caught:
        again(d)["k"]
    assert not mark.exists()
    subprocess.run(["sh", "-c", caught.value.command], check=True)
    again(d)["k"]
    assert mark.exists()


@NEEDS_ROOT
def test_root_takes_the_files_of_who_called_sudo_for_its_own(tmp_path, monkeypatch):
    d = make(tmp_path)
    for path in (Path(d.filename), *Path(d.filename).rglob("*")):
        os.chown(path, 1234, 1234)
    monkeypatch.setenv("SUDO_UID", "1234")
    assert again(d)["k"] == 1


@NEEDS_ROOT
def test_a_file_of_another_user_in_an_entry_is_refused(tmp_path):
    mark = tmp_path / "mark"
    d = make(tmp_path, Tripwire(mark))
    os.chown(os.path.join(d.entry_path("k"), "value"), NOBODY, NOBODY)
    with pytest.raises(InvalidEntryError, match=f"belongs to the user {NOBODY}"):
        again(d)["k"]
    assert not mark.exists()


@NEEDS_ROOT
def test_a_link_planted_in_place_of_an_entry_does_not_lead_to_anothers_files(tmp_path):
    mark = tmp_path / "mark"
    d = make(tmp_path, Tripwire(mark))
    entry = Path(d.entry_path("k"))
    planted = tmp_path / "planted"
    entry.rename(planted)
    for path in (planted, planted / "key", planted / "value"):
        os.chown(path, NOBODY, NOBODY)
    entry.symlink_to(planted)
    with pytest.raises(InvalidEntryError, match="link stands where its directory belongs"):
        again(d)["k"]
    with pytest.raises(InvalidEntryError, match="link stands where its directory belongs"):
        again(d)["k"] = 2
    assert not mark.exists()
    assert (planted / "value").exists()


@pytest.mark.parametrize("name", ["tmp", "entries"])
def test_a_link_planted_in_place_of_a_directory_of_the_container_is_refused(name, tmp_path):
    d = make(tmp_path)
    inside, outside = Path(d.filename, name), tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    for use in (lambda d: d["k"], lambda d: d.store("new", 1)):
        with pytest.raises(UntrustedContainerError, match=f"{name} in it is a link"):
            use(again(d))


@NEEDS_ROOT
def test_the_directories_above_count(tmp_path):
    above = tmp_path / "above"
    d = make(above)
    for mode in (0o1777, 0o775, 0o755):
        above.chmod(mode)
        assert again(d)["k"] == 1
    above.chmod(0o777)
    with pytest.raises(UntrustedContainerError, match="everybody may write to .*above it"):
        again(d)["k"]
    above.chmod(0o755)
    os.chown(above, NOBODY, NOBODY)
    with pytest.raises(UntrustedContainerError, match="above it belongs to the user"):
        again(d)["k"]


def test_a_link_of_ones_own_to_a_container_is_followed(tmp_path):
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert make(tmp_path / "other")
    assert WriteOncePersistentDict("d", container_dir=tmp_path / "link")["k"] == 1


@NEEDS_ROOT
def test_a_link_of_another_user_on_the_way_is_refused(tmp_path):
    make(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UntrustedContainerError, match="link .* on the way"):
        WriteOncePersistentDict("d", container_dir=link)["k"]


# Places that cannot be written to


@NEEDS_ROOT
def test_a_read_only_container_is_read_and_warned_of_once(open_path):
    d = make(open_path)
    for path in (Path(d.filename), *Path(d.filename).rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    out = as_nobody(
        f"""
d = pd.WriteOncePersistentDict("d", container_dir={str(open_path)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    d["new"] = 1
    print(d.store_if_not_present("newer", 1), d.setdefault("newest", 5))
print([w.category.__name__ for w in caught], "cannot be written to" in str(caught[0].message), caught[0].filename)
print(d["k"], d.get("new"), list(d), d.cache_info().stores)
try:
    pd.WriteOncePersistentDict("d", container_dir={str(open_path)!r}, safe_sync=True)["new"] = 1
except PermissionError as error:
    print("safe_sync raises")
"""
    )
    assert out.splitlines() == [
        "False 5",
        "['CacheWriteWarning'] True <string>",
        "1 None ['k'] 0",
        "safe_sync raises",
    ]


@NEEDS_ROOT
def test_a_read_only_mount_is_read_and_warned_of(tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        d = make(mount, kind=PersistentDict)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        d = again(d)
        with pytest.warns(CacheWriteWarning):
            d["new"] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            d["k"] = 2
        assert d["k"] == 1
        with pytest.raises(OSError, match="Read-only"):
            del d["k"]
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("home", ["/nonexistent/home", "/dev/null", "/proc"])
def test_a_missing_home_costs_the_cache_and_nothing_else(home):
    out = as_nobody(
        """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    d = pd.WriteOncePersistentDict("d")
    d["k"] = 1
    d["l"] = 1
print([w.category.__name__ for w in caught], d.get("k"), d.setdefault("k", 7), len(d))
""",
        HOME=home,
        XDG_CACHE_HOME="",
        PERSISTENT_DICT_DIR="",
    )
    assert out == "['CacheWriteWarning'] None 7 0\n"


# The environment


def test_disable_turns_all_off(tmp_path, monkeypatch):
    d = make(tmp_path / "there")
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")
    for kind in (WriteOncePersistentDict, PersistentDict):
        for directory in ("there", "absent"):
            off = kind("d", container_dir=tmp_path / directory)
            off["new"] = 1
            assert off.store_if_not_present("k", 2) is False
            assert off.setdefault("k", 3) == 3
            assert (off.get("k"), "k" in off, len(off), list(off), off.nbytes()) == (None, False, 0, [], 0)
            off.clear()
    with pytest.raises(NoSuchEntryError):
        PersistentDict("d", container_dir=tmp_path / "there").remove("k")
    assert not (tmp_path / "absent").exists()
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "0")
    assert list(d.items()) == [("k", 1)]


def test_disable_is_read_at_use_and_makes_no_system_call(tmp_path, monkeypatch):
    d = make(tmp_path)
    monkeypatch.setenv("PERSISTENT_DICT_DISABLE", "1")

    def forbidden(*args, **kwargs):
        raise AssertionError(f"called with {args}")

    with monkeypatch.context() as patch:
        for name in ("open", "mkdir", "listdir", "stat", "lstat", "rename"):
            patch.setattr(os, name, forbidden)
        assert d.get("k") is None
        d["new"] = 1
    monkeypatch.delenv("PERSISTENT_DICT_DISABLE")
    assert d["k"] == 1
    assert "new" not in d


def test_the_default_directory_is_read_at_use(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path / name))
        d = WriteOncePersistentDict("d")
        d["k"] = name
        assert Path(d.filename).parent == tmp_path / name
    monkeypatch.delenv("PERSISTENT_DICT_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert WriteOncePersistentDict("d").container_dir == str(tmp_path / "xdg" / "persistent_dict")


# Names


@pytest.mark.parametrize(
    "identifier",
    [
        "a/b",
        "..",
        ".",
        ".hidden",
        "../../escape",
        "new\nline",
        "nul\0",
        "ümläut",
        "\ud800",
        "CON",
        "a b'c\"d",
        "x" * 300,
        "%41",
        "A",
    ],
)
def test_any_identifier_makes_one_safe_name_in_the_directory(identifier, tmp_path):
    d = WriteOncePersistentDict(identifier, container_dir=tmp_path)
    d["k"] = 1
    (made,) = tmp_path.iterdir()
    assert str(made) == d.filename
    assert len(made.name) <= 64 + len(".cpython-311")
    assert not made.name.startswith(".")
    assert all(character.isascii() and (character.isalnum() or character in "_-.%") for character in made.name)
    assert WriteOncePersistentDict(identifier, container_dir=tmp_path)["k"] == 1


def test_identifiers_that_differ_at_their_ends_have_containers_of_their_own(tmp_path):
    names = ["x" * 200 + end for end in "ab"] + ["a/b", "a%2Fb", "a", "%61"]
    places = {WriteOncePersistentDict(name, container_dir=tmp_path).filename for name in names}
    assert len(places) == len(names)


def test_an_empty_identifier_is_an_error(tmp_path):
    for identifier in ("", 5, None):
        with pytest.raises(ValueError, match="identifier"):
            WriteOncePersistentDict(identifier, container_dir=tmp_path)


def test_a_container_of_another_identifier_is_refused(tmp_path):
    """As where a file system takes upper and lower case for the same."""
    d = make(tmp_path)
    os.rename(d.filename, d.filename.replace("/d.", "/D."))
    with pytest.raises(ContainerError, match="identifier 'd'.*'D'"):
        WriteOncePersistentDict("D", container_dir=tmp_path)["k"]


def test_a_long_path_works(tmp_path):
    directory = tmp_path / ("a" * 100) / ("b" * 100) / ("c" * 100)
    d = make(directory)
    assert again(d)["k"] == 1
    assert len(d.filename) > 300


def test_a_relative_directory_is_meant_from_where_the_dictionary_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = WriteOncePersistentDict("d", container_dir="here")
    monkeypatch.chdir("/")
    d["k"] = 1
    assert (tmp_path / "here").is_dir()
    assert d["k"] == 1


# FORMAT


def test_another_format_is_an_error_that_names_both(tmp_path):
    class Codec:
        dumps, loads = staticmethod(repr), staticmethod(eval)

    make(tmp_path)
    with pytest.raises(ContainerError, match="format 'pickle'.*Codec.*rm -rf"):
        WriteOncePersistentDict("d", container_dir=tmp_path, format=Codec())["k"]
    WriteOncePersistentDict("j", container_dir=tmp_path, format="json")["k"] = 1
    with pytest.raises(ContainerError, match="'json'.*'raw'"):
        WriteOncePersistentDict("j", container_dir=tmp_path, format="raw")["k"] = b"1"


def test_containers_of_portable_formats_have_no_python_version_in_their_names(tmp_path):
    tag = sys.implementation.cache_tag
    assert WriteOncePersistentDict("d", container_dir=tmp_path).filename.endswith(f"/d.{tag}")
    for portable in ("json", "raw"):
        assert WriteOncePersistentDict("d", container_dir=tmp_path, format=portable).filename.endswith("/d")


@pytest.mark.parametrize("text", ["layout: 99\nformat: pickle\nidentifier: d\n", "", "\0\1\2garbage", None])
def test_an_unknown_or_damaged_layout_says_what_to_do(text, tmp_path):
    d = make(tmp_path)
    file = Path(d.filename, "FORMAT")
    file.unlink() if text is None else file.write_text(text)
    for use in (lambda d: d["k"], lambda d: d.store("k", 1), lambda d: list(d)):
        with pytest.raises(ContainerError, match="rm -rf|printf"):
            use(again(d))


def test_a_file_in_place_of_the_container_is_an_error(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    Path(d.filename).touch()
    with pytest.raises(ContainerError, match="a file stands"):
        d["k"]
    with pytest.raises(ContainerError, match="a file stands"):
        d["k"] = 1


def test_a_container_is_a_tagged_cache(tmp_path):
    d = make(tmp_path)
    assert Path(d.filename, "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert Path(d.filename, ".gitignore").read_text() == "*\n"
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(d.filename)]


@pytest.mark.parametrize("name", ["json", "raw"])
def test_formats_without_pickle_never_import_it(name, tmp_path):
    value = {"json": "[1, 'two']", "raw": "b'bytes'"}[name]
    script = f"""
import sys
class Forbid:
    def find_spec(self, name, *rest):
        assert name not in ("pickle", "_pickle"), name
sys.meta_path.insert(0, Forbid())
for module in ("pickle", "_pickle"):
    sys.modules.pop(module, None)
sys.path.insert(0, {str(ROOT)!r})
import persistent_dict
d = persistent_dict.PersistentDict("d", container_dir={str(tmp_path)!r}, format={name!r}, in_mem_cache_size=0)
d[("k", 1)] = {value}
d[("k", 1)] = {value}
assert d[("k", 1)] == {value}
assert list(d.items()) == [(("k", 1), {value})]
del d[("k", 1)]
assert not any("pickle" in module for module in sys.modules)
"""
    done = subprocess.run([sys.executable, "-S", "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
