"""`python -m persistent_dict`, as a person types it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import persistent_dict
from persistent_dict import WriteOncePersistentDict

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "persistent_dict", *arguments],
        env=environment, check=False, capture_output=True, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    return directory, run("demo", "--dir", str(directory), "--jobs", "2")


def test_the_demonstration_computes_once_and_then_reads(demo):
    _, done = demo
    assert done.returncode == 0, done.stderr
    first, second = re.findall(r"run *: +(\d+) compiled, +(\d+) read", done.stdout)
    modules = int(re.match(r"(\d+) modules", done.stdout).group(1))
    assert modules > 400
    assert int(first[0]) + int(first[1]) == int(second[1]) == 2 * modules
    assert second[0] == "0"
    entries = int(re.search(r"\((\d+) entries", done.stdout).group(1))
    assert int(first[0]) == entries  # nothing was compiled twice
    assert "byte-identical in both runs: yes" in done.stdout


def test_what_the_demonstration_prints_can_be_pasted(demo):
    _, done = demo
    command = re.search(r":  (ls -l .*)", done.stdout).group(1)
    listed = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
    assert listed.count(" key\n") == listed.count(" value\n") == 1
    lines = re.findall(r"^  (from .*|open_cache.*)$", done.stdout, re.MULTILINE)
    expression, _, shown = lines[1].partition("  # ")
    script = f"{lines[0]}\nprint({expression})"
    seen = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert seen.strip() == shown


def test_the_demonstration_over_a_warm_cache_computes_nothing(demo):
    directory, _ = demo
    done = run("demo", "--dir", str(directory), "--jobs", "1")
    assert re.findall(r"run *: +(\d+) compiled", done.stdout) == ["0", "0"]


def test_an_interrupt_ends_the_demonstration_soon_and_leaves_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "persistent_dict", "demo", "--jobs", "2", "--dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while not list(tmp_path.glob("*/entries/*/*")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    for _ in range(200):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process was left")


def test_version_and_help():
    assert run("--version").stdout.strip() == persistent_dict.__version__
    assert "demo" in run("--help").stdout
    for command in ("demo", "repair"):
        assert "usage" in run(command, "--help").stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--jobs", "0"], ["demo", "--jobs", "x"], ["repair"]])
def test_wrong_arguments_exit_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize("what", ["absent", "no container", "a file"])
def test_repairing_what_is_no_container_is_an_error(what, tmp_path):
    place = tmp_path / "place"
    if what == "no container":
        place.mkdir()
        (place / "precious").touch()
    elif what == "a file":
        place.touch()
    done = run("repair", str(place))
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert "Traceback" not in done.stderr


def test_repairing_an_untrusted_container_is_refused_unless_told(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    d["k"] = 1
    os.chmod(d.filename, 0o777)
    assert run("repair", d.filename).returncode == 1
    assert run("repair", "--trusted", d.filename).returncode == 0


def test_a_closed_pipe_is_no_traceback(tmp_path):
    d = WriteOncePersistentDict("d", container_dir=tmp_path)
    for i in range(200):
        d[i] = i
        Path(d.entry_path(i), "value").write_bytes(b"")
    command = f"{sys.executable} -m persistent_dict repair {d.filename} | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
