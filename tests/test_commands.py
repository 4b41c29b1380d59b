"""The commands that look after a container, as people and programs run them: by a terminal and by a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persistent_dict import (
    InvalidEntryError,
    PersistentDict,
    UnloadableEntryError,
    UntrustedContainerError,
    memoize,
    open_readonly,
)

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "persistent_dict"]
ALL = ["stats", "ls", "show", "report", "path", "verify", "repair", "rm", "clear", "prune", "pack", "export", "import"]
needs_rich = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import rich, argcomplete"], check=False, capture_output=True).returncode,
    reason="needs the extra cli",
)


@pytest.fixture
def d(tmp_path, monkeypatch):
    """A dictionary in the default place with ten entries and two calls."""
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path / "caches"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    made = PersistentDict("my results", in_mem_cache_size=0)
    for i in range(10):
        made["kernel", i] = "x" * 100 * i

    @memoize(made)
    def simulate(steps):
        return steps * 2

    simulate(3)
    simulate(4)
    return made


def run(*arguments, **options):
    options = {"capture_output": True, "text": True, "check": False, "timeout": 60, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], **options)


def parsed(*arguments):
    done = run(*arguments, "--json")
    return json.loads(done.stdout)


def on_terminal(*arguments, answers=b"", environment=()):
    """Run a command on a terminal of its own. Return its exit code and what it shows."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "200"} | dict(environment))
        os.execv(sys.executable, [*COMMAND, *map(str, arguments)])
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:  # it has ended
                break
            if not data:
                break
            shown += data
            if answers and b"[y/N]" in shown:
                os.write(fd, answers)
                answers = b""
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def damage(d, key):
    Path(d.entry_path(key), "value").write_bytes(b"")


# What they print


def test_help_and_exit_codes_are_there_for_every_command(d):
    everything = run("--help").stdout
    for command in ALL:
        assert command in everything
        done = run(command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "exit codes:\n" in done.stdout
        assert "--json" in done.stdout
    assert run("ls", "no such thing").returncode == 1
    assert run("ls").returncode == 2
    assert run("prune", "my results", "--max-bytes", "many").returncode == 2


def test_a_container_is_named_by_identifier_or_path(d, tmp_path):
    assert run("path", "my results").stdout.strip() == d.filename
    assert run("path").stdout.strip() == str(tmp_path / "caches")
    for name in ("my results", d.filename, Path(d.filename).name, os.path.relpath(d.filename)):
        assert parsed("stats", name)["entries"] == 12, name
    done = run("stats", "another")
    assert done.returncode == 1
    assert "my results" in done.stderr
    shutil.copytree(d.filename, d.filename.replace("cpython-3", "cpython-9"))
    assert run("path", "my results").stdout.strip() == d.filename
    assert run("stats").returncode == 0
    Path(d.filename, "FORMAT").unlink()
    done = run("stats")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)


@pytest.mark.parametrize("identifier", ["a/b 'c' ü", "json", "x" * 200, "my.data"])
def test_every_identifier_names_its_container(identifier, d):
    made = PersistentDict(identifier, format="json")
    made["k"] = 1
    assert run("path", identifier).stdout.strip() == made.filename
    if identifier == "my.data":
        assert run("path", "my").returncode == 1


def test_what_is_no_container_is_no_reason_to_remove_it(tmp_path):
    (tmp_path / "precious").touch()
    done = run("stats", tmp_path)
    assert done.returncode == 1
    assert "This is no container" in done.stderr
    assert "rm " not in done.stderr


def test_stats(d):
    found = parsed("stats", "my results")
    assert (found["identifier"], found["entries"], found["loose"], found["packed"]) == ("my results", 12, 12, 0)
    assert found["functions"][0]["entries"] == 2
    text = run("stats", "my results").stdout
    assert "12 (12 loose, 0 in 0 packs)" in text
    assert "simulate" in text
    (line,) = [line for line in run("stats").stdout.splitlines() if "my results" in line]
    assert "12" in line
    assert [one["identifier"] for one in parsed("stats")] == ["my results"]


def test_ls_sorts_and_filters(d):
    sizes = [entry["nbytes"] for entry in parsed("ls", "my results", "--sort", "size")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 12
    assert len(parsed("ls", "my results", "--key", "'kernel', 3")) == 1
    assert [entry["key"] for entry in parsed("ls", "my results", "--key", "'kernel', 3")] == ["('kernel', 3)"]
    assert len(parsed("ls", "my results", "--function", "simulate")) == 2
    assert len(parsed("ls", "my results", "--larger", "1k")) == 2
    assert parsed("ls", "my results", "--older", "1h") == parsed("ls", "my results", "--unused", "2d") == []
    keys = [entry["key"] for entry in parsed("ls", "my results", "--sort", "stored", "--reverse", "--limit", "2")]
    assert keys == ["('kernel', 0)", "('kernel', 1)"]
    lines = run("ls", "my results").stdout.splitlines()
    assert len(lines) == 13
    assert lines[0].split()[0] == "digest"


def test_a_key_cannot_change_what_a_terminal_shows(d):
    d["\x1b[2Jhidden\n\r\x07"] = 1
    for code, text in (
        (0, run("ls", "my results").stdout),
        on_terminal("ls", "my results", environment={"NO_COLOR": "1"}),
    ):
        assert code == 0
        assert "\x1b[2J" not in text
        assert "hidden" in text


def test_show(d):
    text = run("show", "my results", "'kernel', 3").stdout
    for what in ("('kernel', 3)", "intact", "str", "computing"):
        assert what in text
    found = parsed("show", "my results", "'kernel', 3")
    assert (found["facts"]["key"], found["value_type"], found["value"]) == ("('kernel', 3)", "str", "")
    assert parsed("show", "my results", found["facts"]["digest"][:8]) == found
    assert "loaded" in run("show", "my results", "'kernel', 1)", "--load").stdout
    damage(d, ("kernel", 3))
    done = run("show", "my results", "'kernel', 3")
    assert done.returncode == 1
    assert "empty, as a power cut leaves a file" in done.stdout
    assert run("show", "my results", "kernel").returncode == 1


def test_verify_and_repair(d):
    assert run("verify", "my results").returncode == 0
    damage(d, ("kernel", 3))
    done = run("verify", "my results")
    assert done.returncode == 1
    assert d.entry_path(("kernel", 3)) in done.stdout
    assert "1 damaged" in done.stderr
    (problem,) = parsed("verify", "my results")["problems"]
    assert problem["type"] == "InvalidValueFileError"
    command = done.stderr.strip().splitlines()[-1].partition(":  ")[2]
    mended = subprocess.run(["sh", "-c", command + " --json"], check=False, capture_output=True, text=True)
    assert (mended.returncode, len(json.loads(mended.stdout)["set_aside"])) == (1, 1)
    assert run("repair", "my results").returncode == 0
    assert run("verify", "my results").returncode == 0
    assert len(d) == 11


def test_rm_removes_what_is_named(d):
    assert run("rm", "my results").returncode == 2
    done = run("rm", "my results", "'kernel', 3")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    done = run("rm", "my results", "'kernel', 3", "'kernel', 4", "--dry-run")
    assert "2 entries would be removed" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert len(parsed("rm", "my results", "--key", "kernel", "--dry-run")["would_remove"]) == 10
    assert len(d) == 12
    assert parsed("rm", "my results", "'kernel', 3", "'kernel', 4", "--yes") == {"removed": 2}
    assert parsed("rm", "my results", "--function", "simulate", "--yes") == {"removed": 2}
    assert run("rm", "my results", "--key", "nothing like it").returncode == 0
    assert sorted(d) == [("kernel", i) for i in (0, 1, 2, 5, 6, 7, 8, 9)]
    run("pack", "my results")
    assert parsed("rm", "my results", "--larger", "700", "--yes") == {"removed": 5}
    assert len(d) == 3


def test_rm_does_not_take_a_number_for_a_digest(d):
    short = d._digest(("kernel", 5))[0][:4]
    d[f"in a key, {short}"] = 1
    done = run("rm", "my results", short, "--yes")
    assert done.returncode == 1
    assert "2 keys or digests" in done.stderr
    assert len(d) == 13
    for empty in ([""], ["--key", ""], ["--function", ""]):
        assert run("rm", "my results", *empty, "--yes").returncode == 2
    assert len(d) == 13
    _, shown = on_terminal("rm", "my results", d._digest(("kernel", 5))[0][:12], answers=b"y\n")
    assert "('kernel', 5)" in shown
    assert ("kernel", 5) not in d
    assert run("prune", "my results", "--max-bytes", "9" * 400).returncode == 2


def test_clear_and_prune(d):
    done = run("prune", "my results", "--max-entries", "5", "--dry-run")
    assert "7 entries" in done.stderr
    assert len(done.stdout.splitlines()) == 8
    assert done.stdout.count("kernel") == 7
    assert len(d) == 12
    assert run("prune", "my results", "--max-entries", "5").returncode == 2
    assert parsed("prune", "my results", "--max-entries", "5", "--yes")["left"] == 5
    assert parsed("prune", "my results")["removed"] == []
    assert len(d) == 5
    assert run("clear", "my results").returncode == 2
    assert parsed("clear", "my results", "--yes") == {"removed": 5}
    assert len(d) == 0


def test_pack_export_import(d, tmp_path, monkeypatch):
    assert parsed("pack", "my results") == {"packed": 12, "were_loose": 12, "damaged": [], "lost": []}
    assert "nothing to pack" in run("pack", "my results").stderr
    pack = tmp_path / "warm.pack"
    assert parsed("export", "my results", pack)["entries"] == 12
    assert run("export", "my results", pack).returncode == 1
    assert run("export", "my results", pack, "--force").returncode == 0
    for command in ("stats", "ls", "verify"):
        assert run(command, pack).returncode == 0
    assert parsed("show", pack, "'kernel', 3")["checks"] == "intact"
    for command in (["rm", pack, "kernel", "--yes"], ["pack", pack], ["clear", pack, "--yes"], ["prune", pack]):
        done = run(*command)
        assert done.returncode == 1
        assert "only read" in done.stderr
    assert parsed("import", pack)["kept"] == 12
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path / "elsewhere"))
    assert parsed("import", pack)["added"] == 12
    assert PersistentDict("my results")["kernel", 9] == "x" * 900
    assert run("import", tmp_path / "absent").returncode == 1


def test_what_pack_and_export_leave_out_is_told(d, tmp_path):
    damage(d, ("kernel", 3))
    digest = d._digest(("kernel", 3))[0]
    done = run("pack", "my results")
    assert (done.returncode, done.stdout) == (1, f"{digest}: damaged, and left where it is\n")
    assert "11 entries" in done.stderr
    assert "verify" in done.stderr
    for source in ("my results", damaged_pack(tmp_path, d)):
        pack = tmp_path / f"{source == 'my results'}.pack"
        done = run("export", source, pack)
        assert (done.returncode, done.stdout.count("damaged, and left out")) == (1, 1)
        assert "verify" in done.stderr
        report = parsed("export", source, pack, "--force")
        assert (report["entries"], len(report["damaged"])) == (11 if source == "my results" else 10, 1)
        assert run("verify", pack).returncode == 0
    done = run(
        "import", damaged_pack(tmp_path, d), PersistentDict("my results", container_dir=tmp_path / "new").filename
    )
    assert (done.returncode, done.stdout.count("damaged, and left out")) == (1, 1)


def damaged_pack(directory, d):
    """Return the path of an exported pack, one of whose eleven entries is damaged."""
    path = directory / "damaged.pack"
    if not path.exists():
        run("export", "my results", path)
        data = path.read_bytes()
        path.write_bytes(data.replace(b"x" * 900, b"x" * 899 + b"y"))
    return path


# On a terminal


def test_a_deletion_is_asked_for(d):
    code, shown = on_terminal("clear", "my results", answers=b"n\n")
    assert (code, len(d)) == (1, 12)
    assert "Remove all 12 entries" in shown
    assert "Nothing was removed" in shown
    code, _ = on_terminal("rm", "my results", "'kernel', 3", answers=b"\n")
    assert (code, len(d)) == (1, 12)
    code, shown = on_terminal("prune", "my results", "--max-entries", "10", answers=b"y\n")
    assert (code, len(d)) == (0, 10)
    code, shown = on_terminal("clear", "my results", answers=b"yes\n")
    assert (code, len(d)) == (0, 0)


@needs_rich
def test_a_terminal_gets_tables_and_no_color_means_none(d):
    code, shown = on_terminal("ls", "my results")
    assert code == 0
    assert "\x1b[1m" in shown  # the heads
    d["a long key" * 20] = 1
    _, narrow = on_terminal("ls", "my results", environment={"COLUMNS": "80", "NO_COLOR": "1"})
    assert len(narrow.splitlines()) == 14
    assert "…" in narrow
    _, whole = on_terminal("show", "my results", "a long key", environment={"COLUMNS": "80", "NO_COLOR": "1"})
    assert d.entry_path("a long key" * 20) in whole
    del d["a long key" * 20]
    _, plain = on_terminal("stats", "my results", environment={"NO_COLOR": "1", "TERM": "dumb"})
    assert "\x1b[" not in plain
    assert "12 (12 loose" in plain


def test_without_rich_a_terminal_gets_plain_text(d, tmp_path):
    blocked = tmp_path / "blocked"
    for name in ("rich", "argcomplete"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('blocked')")
    path = f"{blocked}{os.pathsep}{ROOT}"
    code, shown = on_terminal("ls", "my results", environment={"PYTHONPATH": path})
    assert (code, "\x1b[" in shown) == (0, False)
    assert "('kernel', 3)" in shown
    code, _ = on_terminal("verify", "my results", environment={"PYTHONPATH": path})
    assert code == 0
    done = run("completion", env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    assert "pip install 'persistent_dict[cli]'" in done.stderr


@needs_rich
@pytest.mark.parametrize("command", [["verify"], ["pack"], ["repair"], ["export"]])
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(command, d, tmp_path):
    for i in range(3000):
        d["more", i] = i
    rest = [tmp_path / "x.pack"] if command == ["export"] else []
    code, shown = on_terminal(*command, "my results", *rest)
    assert code == 0
    assert re.search(r"\d+/3012", shown)
    done = run(*command, "my results", *rest, *(["--force"] if rest else []))
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1


# Ending early


def test_a_closed_pipe_ends_quietly(d):
    for i in range(2000):
        d["more", i] = i
    script = f"{' '.join(COMMAND)} ls 'my results' | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (len(lines), lines[-1]) == (3, "141")
    assert done.stderr == ""


def hear_interrupts():
    """What is started in the background ignores them, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_cleanly(d, tmp_path):
    for i in range(2000):
        d["more", i] = "x" * 3000
    interrupted = 0
    for attempt in range(10):  # one or the other may come too late
        copy = tmp_path / str(attempt) / Path(d.filename).name
        shutil.copytree(d.filename, copy)
        process = subprocess.Popen(
            [*COMMAND, "pack", copy], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=hear_interrupts,
        )  # fmt: skip
        end = time.monotonic() + 30
        while not any((copy / "tmp").iterdir()) and time.monotonic() < end:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, talk = process.communicate(timeout=30)
        if process.returncode != 0:
            assert (process.returncode, out, talk.strip()) == (130, "", "interrupted")
            interrupted += 1
        assert parsed("verify", copy)["checked"] >= 2012
        assert parsed("stats", copy)["entries"] == 2012
        if interrupted:
            return
    pytest.fail("every interrupt came too late")


# What the errors recommend


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_every_command_that_an_error_recommends_mends(packed, number, d):
    if packed:
        run("pack", "my results")
        (pack,) = Path(d.filename, "packs").glob("*.pack")
        good = pack.read_bytes()
        pack.write_bytes(good.replace(b"x" * 900, b"x" * 899 + b"y"))
    else:
        damage(d, ("kernel", 9))
    reader = PersistentDict("my results", in_mem_cache_size=0)
    with pytest.raises(InvalidEntryError) as caught:
        reader["kernel", 9]
    commands = [line.partition(":  ")[2] for line in str(caught.value).splitlines() if ":  " in line]
    assert len(commands) == (1 if packed else 2)
    command = commands[min(number, len(commands) - 1)]
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert reader.get(("kernel", 9)) is None
    assert reader["kernel", 8] == "x" * 800
    reader["kernel", 9] = "healed"
    assert reader["kernel", 9] == "healed"


class Moved:
    """A class that a later version of a program no longer has."""


@pytest.mark.parametrize("packed", [False, True])
def test_what_does_not_decode_is_removed_by_the_command_of_the_error(packed, d, monkeypatch, tmp_path):
    d["kernel", 9] = Moved()
    run("export", "my results", tmp_path / "x.pack")
    if packed:
        run("pack", "my results")
    monkeypatch.delitem(globals(), "Moved")
    reader = PersistentDict("my results", in_mem_cache_size=0)
    with pytest.raises(UnloadableEntryError) as caught:
        reader["kernel", 9]
    command = str(caught.value).splitlines()[-1].partition(":  ")[2]
    subprocess.run(["sh", "-c", f"{command}{' --yes' if packed else ''}"], check=True, capture_output=True)
    assert reader.get(("kernel", 9)) is None
    assert len(reader) == 11
    with pytest.raises(UnloadableEntryError) as caught:
        open_readonly(tmp_path / "x.pack")["kernel", 9]
    assert "to remove" not in str(caught.value)


def test_the_command_for_an_untrusted_place_mends_it(d):
    os.chmod(d.filename, 0o777)
    with pytest.raises(UntrustedContainerError) as caught:
        PersistentDict("my results")["kernel", 1]
    done = run("verify", "my results")
    assert done.returncode == 1
    assert caught.value.command in done.stderr
    assert run("verify", "my results", "--trusted").returncode == 0
    subprocess.run(["sh", "-c", caught.value.command], check=True)
    assert run("verify", "my results").returncode == 0


# Completion


@needs_rich
@pytest.mark.parametrize(
    ("line", "expected"),
    [("persistent-dict ver", {"verify "}), ("persistent-dict stats my", {"my results "}),
     ("persistent-dict ls x --so", {"--sort "})],
)  # fmt: skip
def test_shells_complete_commands_options_and_identifiers(line, expected, d, tmp_path):
    out = tmp_path / "out"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
    }  # fmt: skip
    run(env=environment)
    found = {word.replace("\\", "") for word in out.read_text().splitlines()}
    assert {word.strip() for word in expected} <= {word.strip() for word in found}


@needs_rich
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_what_the_shell_reads(shell, d):
    done = run("completion", shell)
    assert done.returncode == 0
    assert "persistent-dict" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
