"""What the benchmarks share: where they work, what they print."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import warnings
from importlib.metadata import version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "persistent_dict"


def run(name: str, description: str | None, packages: tuple[str, ...], ask_in: Callable[[str, str, int], None]) -> int:
    """Call ``ask_in(directory, file system, rounds)`` in every place that the command line names. Return the rounds.

    The directories are new, and are removed at the end only.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--dir", action="append", help="where to work; again for another file system")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rounds = 3 if options.quick else 11
    print(f"{machine(*packages)}; {rounds} rounds")
    made = []
    try:
        for place in options.dir or [tempfile.gettempdir(), "/dev/shm"]:
            made.append(tempfile.mkdtemp(prefix="persistent_dict-benchmark-", dir=place))
            ask_in(made[-1], file_system(place), rounds)
    finally:
        for directory in made:
            shutil.rmtree(directory)
    return rounds


def print_table(title: str, figures: dict[tuple[str, str], list[float]]) -> None:
    """Print the medians and quartiles of the figures, question by question."""
    print(f"\n{title}\n\n| question | library | median | quartiles | times ours |\n|---|---|---:|---:|---:|")
    for (question, library), values in sorted(figures.items(), key=lambda item: item[0][0]):
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        ours = statistics.median(figures[question, OURS])
        ratio = f"{middle / ours:.1f}" if ours else ""
        print(f"| {question} | {library} | {middle:.2f} | {low:.2f} to {high:.2f} | {ratio} |")


def machine(*packages: str) -> str:
    """Return what the figures depend on."""
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}, "
        f"{os.cpu_count()} cores; {', '.join(f'{name} {version(name)}' for name in packages)}"
    )


def file_system(path: str) -> str:
    """Return the type of the file system that a directory is on."""
    found = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False)
    return found.stdout.strip().replace("ext2/ext3", "ext4") or path
