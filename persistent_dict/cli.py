"""The command line: arguments and exit codes. What is printed, and how, is `_terminal`'s.

Exit codes: 0 done, and nothing is wrong; 1 something is damaged, or the command failed; 2 wrong arguments, or nobody to
say yes; 130 interrupted; 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from persistent_dict import __version__, _commands, _fs, demo
from persistent_dict._terminal import say
from persistent_dict.errors import PersistentDictError
from persistent_dict.inspection import identifiers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_EPILOG = """\
exit codes:
    0  done, and nothing is wrong
    1  something is damaged, or the command failed
    2  wrong arguments, or nobody to say yes (--yes does)
  130  interrupted
  141  whoever read the output has gone
"""
_ENTRY = "the begin of its digest, or a part of its key that no other has"
_TRUSTED = "go on whoever owns it and may write to it"
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIME_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0, "y": 365.25 * 86400.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    options = parser.parse_args(arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # what the terminal lacks
        code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (PersistentDictError, OSError) as error:
        say(f"persistent-dict: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return code


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="persistent-dict",
        description="Look after the caches of persistent_dict.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_looking(commands)
    _add_mending(commands)
    _add_moving(commands)
    _add_others(commands)
    return parser


Commands = argparse._SubParsersAction


def _add(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    more: str = "",
    *,
    container: str = "CONTAINER",
    changes: bool = False,
) -> argparse.ArgumentParser:
    """Add a command. `container`: what its first argument is called; "": it has none; "[…]": it may be left out. One
    that `changes` a container takes no exported pack."""
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}", epilog=_EPILOG,
                                  formatter_class=_Formatter)  # fmt: skip
    if container:
        argument = command.add_argument(
            "container",
            metavar=container.strip("[]"),
            help=f"a dictionary's identifier, or the path of its directory{'' if changes else ' or of a pack'}",
            nargs="?" if container.startswith("[") else None,
        )
        argument.completer = _known_containers  # type: ignore[attr-defined]  # argcomplete's way
        command.add_argument("--trusted", action="store_true", help=_TRUSTED)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)
    return command


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves the epilog as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text == _EPILOG:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def _add_looking(commands: Commands[argparse.ArgumentParser]) -> None:
    _add(commands, "stats", _commands.stats, "show what fills a container",
         "Without CONTAINER, one line for each in the default place.", container="[CONTAINER]")  # fmt: skip
    command = _add(commands, "ls", _commands.ls, "list entries")
    command.add_argument(
        "--sort", choices=list(_commands.SORTS), default="stored", help="default: stored, the latest first"
    )
    command.add_argument("--reverse", action="store_true", help="turn the order round")
    command.add_argument("--limit", type=_positive, metavar="N", help="the first N only")
    _add_filters(command)
    command = _add(commands, "show", _commands.show, "show one entry: key, times, sizes, checks, what its value is",
                   "Nothing is unpickled unless --load is given.")  # fmt: skip
    command.add_argument("entry", type=_text, metavar="ENTRY", help=_ENTRY)
    command.add_argument("--load", action="store_true", help="decode the value and print it; this can run code")
    command = _add(
        commands,
        "report",
        _commands.report,
        "write a page (HTML) with what fills a container and what is wrong with it",
    )
    command.add_argument("-o", "--output", default="report.html", help="default: %(default)s")
    _add(commands, "path", _commands.path, "print where a container is",
         "Without CONTAINER, where containers are made by default.", container="[CONTAINER]")  # fmt: skip


def _add_mending(commands: Commands[argparse.ArgumentParser]) -> None:
    _add(commands, "verify", _commands.verify, "check every byte of every entry, and change nothing",
         "Exits with 1 if anything is damaged; repair mends it.")  # fmt: skip
    _add(commands, "repair", _commands.repair, "check every entry, and set the damaged ones aside",
         "They are moved to the container's quarantine/, and count as missing; what killed processes left is finished "
         "or removed. Nothing is unpickled. Safe while others use the container. Exits with 1 if anything was "
         "damaged.")  # fmt: skip
    command = _add(commands, "rm", _commands.rm, "remove entries", changes=True)
    command.add_argument("entries", nargs="*", type=_text, metavar="ENTRY", help=_ENTRY)
    _add_filters(command)
    command.add_argument("--dry-run", action="store_true", help="remove nothing, and list what would be")
    _add_yes(command)
    command = _add(commands, "clear", _commands.clear, "remove all entries", changes=True)
    _add_yes(command)
    command = _add(commands, "prune", _commands.prune, "remove what was used least recently, until the limits hold",
                   "And what killed processes left, and what was set aside over a month ago.",
                   changes=True)  # fmt: skip
    command.add_argument("--max-bytes", type=_size, metavar="SIZE", help="what entries may take on disk: 500M, 10G")
    command.add_argument("--max-entries", type=_count, metavar="N", help="how many there may be")
    command.add_argument("--max-age", type=_time, metavar="TIME", help="how long ago they may have been used: 12h, 30d")
    command.add_argument("--dry-run", action="store_true", help="remove nothing, and list what would be")
    _add_yes(command)


def _add_moving(commands: Commands[argparse.ArgumentParser]) -> None:
    command = _add(commands, "pack", _commands.pack, "move small entries into one file",
                   "It takes less room and is read faster. Safe while others use the container.",
                   changes=True)  # fmt: skip
    command.add_argument(
        "--max-entry", type=_size, default=1 << 20, metavar="SIZE", help="leave larger entries loose (default: 1M)"
    )
    command.add_argument("--all", action="store_true", help="join all packs with it, not only small ones")
    command = _add(commands, "export", _commands.export, "write all entries to a pack of their own",
                   "Damaged ones are left out, and named. To ship a warm cache: open_readonly(PACK) reads it in "
                   "place, import adds it to a container.")  # fmt: skip
    command.add_argument("pack", metavar="PACK", help="the file")
    command.add_argument("--force", action="store_true", help="replace what is there")
    command = _add(commands, "import", _commands.import_, "add the entries of an exported pack to a container",
                   "What is there stays. Without CONTAINER, to that of the same identifier in the default place; it is "
                   "made where there is none.", container="")  # fmt: skip
    command.add_argument("pack", metavar="PACK", help="the file")
    command.add_argument("container", metavar="CONTAINER", nargs="?", help="the path of a dictionary's directory")
    command.add_argument("--trusted", action="store_true", help=_TRUSTED)


def _add_others(commands: Commands[argparse.ArgumentParser]) -> None:
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
        "completion",
        help="print what makes your shell complete these commands",
        description='For bash or zsh:  eval "$(persistent-dict completion)"',
    )
    command.add_argument("shell", nargs="?", choices=["bash", "zsh", "fish"], default="bash")
    command.set_defaults(run=_completion)


def _add_filters(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("which entries (all that is given must hold)")
    group.add_argument("--key", type=_text, metavar="TEXT", help="the key contains this")
    group.add_argument(
        "--function", type=_text, metavar="NAME", help="a memoized call of a function whose name contains this"
    )
    group.add_argument("--older", type=_time, metavar="TIME", help="stored longer ago than this: 12h, 30d")
    group.add_argument("--unused", type=_time, metavar="TIME", help="not used for as long as this")
    group.add_argument("--larger", type=_size, metavar="SIZE", help="takes more than this: 500k, 10M")


def _add_yes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="do not ask")


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 500k, 10M, 2GiB")
    size = float(match[1]) * _SIZE_UNITS[match[2]]
    if size == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is too large")
    return int(size)


def _time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdwy])", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90s, 30m, 12h, 30d, 2w, 1y")
    return float(match[1]) * _TIME_UNITS[match[2]]


# Others


def _known_containers(**_: object) -> list[str]:
    return identifiers(_fs.default_container_dir())


def _complete(parser: argparse.ArgumentParser) -> None:
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def _completion(options: argparse.Namespace) -> int:
    try:
        import argcomplete
    except ImportError:
        say("persistent-dict: this needs argcomplete:  pip install 'persistent_dict[cli]'")
        return 1
    shellcode: Any = argcomplete.shellcode  # type: ignore[attr-defined]  # documented, and not in its __all__
    print(shellcode(["persistent-dict"], shell=options.shell))
    return 0
