"""What the command line prints: data on stdout, talk on stderr; tables and bars where somebody looks at a terminal."""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Any, TextIO

    Row = Sequence[object]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEPS = ((60.0, "s"), (60.0, "min"), (24.0, "h"), (365.25, "days"))


def is_looked_at(stream: TextIO) -> bool:
    """Whether a stream is a terminal."""
    try:
        return stream.isatty()
    except (ValueError, AttributeError):  # closed
        return False


def _rich_console(stream: TextIO) -> Any:
    """Return rich's console for a stream, None where it is no terminal or rich is not there."""
    if not is_looked_at(stream) or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False)  # minds NO_COLOR


def say(text: str) -> None:
    """Tell the user something that is no data."""
    print(text, file=sys.stderr)


def print_json(thing: object) -> None:
    """Print data for a program to read."""
    print(json.dumps(thing, indent=2, default=str))


def print_json_items(items: Iterable[object]) -> None:
    """Print a list for a program to read, item by item."""
    begin = "["
    for item in items:
        print(f"{begin}\n{json.dumps(item, default=str)}", end="")
        begin = ","
    print("[]" if begin == "[" else "\n]")


def print_table(heads: Sequence[str], rows: Iterable[Row], *, right: str = "") -> None:
    """Print a table; `right` has a letter "r" at the place of each column of numbers."""
    is_right = [at < len(right) and right[at] == "r" for at in range(len(heads))]
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    console = _rich_console(sys.stdout)
    if console is not None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for head, right_side in zip(heads, is_right, strict=True):
            table.add_column(head, justify="right" if right_side else "left", overflow="fold")
        room = max(console.width - sum(widths[:-1]) - 2 * len(widths[:-1]), 20)
        for row in texts:
            cells = [Text(cell) for cell in row]
            cells[-1].truncate(room, overflow="ellipsis")  # piped, or as JSON, it is whole
            table.add_row(*cells)
        console.print(table)
        return
    for row in [list(heads), *texts]:
        aligned = [
            cell.rjust(width) if right_side else cell.ljust(width)
            for cell, width, right_side in zip(row, widths, is_right, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def print_facts(facts: dict[str, object]) -> None:
    """Print names and what they are, a line each."""
    console = _rich_console(sys.stdout)
    width = max(map(len, facts), default=0)
    for name, fact in facts.items():
        if console is None:
            print(f"{name.ljust(width)}  {printable(str(fact))}")
        else:
            from rich.text import Text

            line = Text.assemble((name.ljust(width), "bold"), "  ", printable(str(fact)))
            console.print(line, soft_wrap=True)  # the terminal wraps it, so that a path can be copied


class Progress:
    """A bar on stderr, for the time of a ``with``, where somebody looks at it and rich is there. Called with how many
    are done, of how many."""

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._told_at = 0.0
        console = None if quiet else _rich_console(sys.stderr)
        if console is not None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Bar(*columns, console=console, transient=True)

    def __enter__(self) -> Callable[[int, int], None]:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self._tell

    def _tell(self, done: int, total: int) -> None:
        if self._bar is not None and (done == total or time.monotonic() - self._told_at > 0.05):
            self._told_at = time.monotonic()
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def is_confirmed(question: str) -> bool | None:
    """Ask somebody at a terminal. None: there is nobody to ask."""
    if not (is_looked_at(sys.stdin) and is_looked_at(sys.stderr)):
        return None
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def printable(text: str) -> str:
    """Return a text that cannot change what a terminal shows around it: a key may contain anything."""
    return "".join(_visible(text))


def _visible(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else character.encode("unicode_escape").decode()


def as_size(nbytes: float) -> str:
    """Return a number of bytes for a person to read."""
    unit = 0
    while nbytes >= 1023.5 and unit < len(_UNITS) - 1:
        nbytes, unit = nbytes / 1024, unit + 1
    return f"{nbytes:.0f} {_UNITS[unit]}" if unit == 0 or nbytes >= 99.5 else f"{nbytes:.1f} {_UNITS[unit]}"


def as_duration(seconds: float) -> str:
    """Return a time span for a person to read."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds else "0 s"
    for step, unit in _STEPS:
        if seconds < step:
            return f"{seconds:.3g} {unit}"
        seconds /= step
    return f"{seconds:.3g} years"


def as_age(then: float) -> str:
    """Return how long ago something was."""
    if not then:
        return "unknown"
    age = time.time() - then
    return f"{as_duration(age)} ago" if age >= 1 else "now"
