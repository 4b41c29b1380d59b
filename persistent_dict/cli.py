"""The command line: arguments, printing, exit codes.

Exit codes: 0 done, and nothing was wrong; 1 something was found damaged, or the command failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys

from persistent_dict import __version__, demo
from persistent_dict.errors import PersistentDictError
from persistent_dict.maintenance import repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (PersistentDictError, OSError) as error:
        print(f"persistent-dict: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="persistent-dict", description="A write-once persistent dictionary cache.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "demo",
        help="cache a real job: compile Python's standard library, twice, with several processes",
        description="Compile every module of the running Python's standard library with several processes over one "
        "dictionary; then do it again, and compare.",
    )
    command.add_argument("--dir", help="the directory for the dictionary (default: a new temporary one)")
    command.add_argument("--jobs", type=_positive, default=0, help="processes (default: one a core, at least two)")
    command.add_argument("--keep", action="store_true", help="keep the temporary directory")
    command.set_defaults(run=lambda options: demo.run(options.dir, options.jobs, options.keep))

    command = commands.add_parser(
        "repair",
        help="check every entry of a container, and set the damaged ones aside",
        description="Read every byte of every entry; move what is damaged to the container's quarantine/, and remove "
        "what killed writers left behind over an hour ago. Nothing is unpickled. Safe while others use the container.",
    )
    command.add_argument("container", help="the dictionary's directory, as the error message names it")
    command.add_argument("--trusted", action="store_true", help="even if others may write to the container")
    command.set_defaults(run=_repair)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _repair(options: argparse.Namespace) -> int:
    report = repair(options.container, trusted=options.trusted)
    for error, aside in report.set_aside:
        print(f"{error.path}: {error.reason}\n  moved to {aside}")
    print(
        f"{report.checked} entries checked, {len(report.set_aside)} set aside, "
        f"{report.swept} left-overs of killed writers removed"
    )
    return 1 if report.set_aside else 0
