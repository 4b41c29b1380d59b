"""What each command does, and what it prints."""

from __future__ import annotations

import os
from dataclasses import asdict
from urllib.parse import unquote

from persistent_dict import _fs, _terminal
from persistent_dict._terminal import Progress, as_age, as_duration, as_size, say
from persistent_dict.errors import PersistentDictError, python_command, shell_quoted
from persistent_dict.inspection import (
    containers,
    describe,
    entries,
    find_container,
    find_digest,
    open_container,
    open_store,
)
from persistent_dict.inspection import (
    verify as verify_store,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any

    from persistent_dict.inspection import AnyStore, EntryFacts
    from persistent_dict.stores.disk import DiskStore

# What a command works on


def _store(options: Namespace) -> AnyStore:
    return open_store(find_container(options.container), trusted=options.trusted)


def _container(options: Namespace) -> DiskStore:
    return open_container(find_container(options.container), trusted=options.trusted)


_FILTERS = ("key", "function", "older", "unused", "larger")


def _chosen(store: AnyStore, options: Namespace) -> Iterator[EntryFacts]:
    """Yield the entries that the filters let through; for `rm`, of those that are named where some are."""
    from time import time

    now = time()
    named = {find_digest(store, entry) for entry in getattr(options, "entries", ())}
    for facts in entries(store, among=named or None):
        if (
            (options.key is None or options.key in facts.key)
            and (options.function is None or options.function in facts.function)
            and (options.older is None or now - facts.stored_at > options.older)
            and (options.unused is None or now - facts.used_at > options.unused)
            and (options.larger is None or facts.nbytes > options.larger)
        ):
            yield facts


def _may(options: Namespace, question: str) -> int | None:
    """Return None where somebody agrees to a deletion, else the exit code."""
    if options.yes:
        return None
    answer = _terminal.is_confirmed(question)
    if answer is None:
        say(f"persistent-dict: {question}  Nobody is there to answer: say so with --yes.")
        return 2
    if not answer:
        say("Nothing was removed.")
        return 1
    return None


# Looking

SORTS: dict[str, Callable[[EntryFacts], Any]] = {
    "stored": lambda facts: -facts.stored_at,
    "used": lambda facts: -facts.used_at,
    "size": lambda facts: -facts.nbytes,
    "seconds": lambda facts: -facts.seconds,
    "key": lambda facts: facts.key,
}


def stats(options: Namespace) -> int:
    from persistent_dict.survey import stats

    if options.container is None:
        return _all_stats(options)
    found = stats(_store(options))
    if options.json:
        _terminal.print_json(asdict(found))
        return 0
    _terminal.print_facts({
        "container": found.path,
        "identifier": found.identifier,
        "format": found.format + (f", {found.python}" if found.python else ""),
        "entries": f"{found.entries} ({found.loose} loose, {found.packed} in {_many(found.packs, 'pack')})",
        "bytes": f"{as_size(found.nbytes)}, about {as_size(found.disk_bytes)} on disk "
        f"in {_many(found.inodes, 'file or directory', 'files and directories')}",
        "computing kept": as_duration(found.seconds),
        "stored": f"{as_age(found.oldest)} to {as_age(found.newest)}" if found.entries else "nothing",
        "set aside": found.quarantined,
        "in tmp/": f"{found.staged} being written, or left by killed processes (swept after an hour)",
    })  # fmt: skip
    for title, shares in (("stored", found.ages), ("size", found.sizes)):
        print()
        _terminal.print_table([title, "entries", ""], _bars(shares), right=" r")
    if found.functions:
        print()
        if found.sampled < found.entries:
            say(f"functions: estimated from {found.sampled} of {found.entries} entries")
        rows = [(f.name, f.entries, as_size(f.nbytes), as_duration(f.seconds)) for f in found.functions[:20]]
        _terminal.print_table(["function", "entries", "bytes", "computing"], rows, right=" rrr")
    return 0


def _bars(shares: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    most = max(shares.values(), default=0) or 1
    for name, count in shares.items():
        yield name, count, "#" * -(-count * 30 // most)


def _all_stats(options: Namespace) -> int:
    from persistent_dict.survey import stats

    found, failed = [], False
    for path in containers(_fs.default_container_dir()):
        try:
            found.append(stats(open_store(path, trusted=options.trusted)))
        except (PersistentDictError, OSError) as error:
            failed = True
            say(f"persistent-dict: {error}")
    if options.json:
        _terminal.print_json([asdict(one) for one in found])
        return int(failed)
    names = [unquote(os.path.basename(one.path)) for one in found]
    rows = [
        (name, one.entries, as_size(one.disk_bytes), as_duration(one.seconds), as_age(one.newest))
        for name, one in zip(names, found, strict=True)
    ]
    say(f"in {_fs.default_container_dir()}:")
    _terminal.print_table(["container", "entries", "on disk", "computing", "last stored"], rows, right=" rrr")
    return int(failed)


def ls(options: Namespace) -> int:
    chosen = sorted(_chosen(_store(options), options), key=SORTS[options.sort], reverse=options.reverse)
    chosen = chosen[: options.limit]
    if options.json:
        _terminal.print_json_items(map(asdict, chosen))
        return 0
    _print_entries(chosen)
    return 0


def _print_entries(chosen: list[EntryFacts]) -> None:
    heads, columns = (
        ["digest", "size", "stored", "used"],
        [
            [facts.digest[:12] for facts in chosen],
            [as_size(facts.nbytes) for facts in chosen],
            [as_age(facts.stored_at) for facts in chosen],
            [as_age(facts.used_at) for facts in chosen],
        ],
    )
    if any(facts.seconds for facts in chosen):
        heads.append("computing")
        columns.append([as_duration(facts.seconds) for facts in chosen])
    heads.append("key")
    columns.append([f"[{facts.problem}]  {facts.key}" if facts.problem else facts.key for facts in chosen])
    _terminal.print_table(heads, zip(*columns, strict=True), right=" rrrr"[: len(heads) - 1])


def show(options: Namespace) -> int:
    store = _store(options)
    found = describe(store, find_digest(store, options.entry), load=options.load)
    facts = found.facts
    if options.json:
        _terminal.print_json(asdict(found))
    else:
        lines: dict[str, object] = {
            "key": facts.key,
            "digest": facts.digest,
            "place": facts.place,
            "stored": as_age(facts.stored_at),
            "used": as_age(facts.used_at),
            "computing": as_duration(facts.seconds),
            "size": f"{facts.nbytes} bytes: value {found.value_bytes} ({_many(found.buffers, 'buffer')}), "
            f"key {found.key_bytes}",
            "value": found.value_type or "(its bytes do not say what it is)",
            "checks": found.checks,
        }
        if facts.function:
            lines["function"] = facts.function
        if options.load:
            lines["loaded"] = found.value
        _terminal.print_facts(lines)
    return 0 if found.checks == "intact" else 1


def report(options: Namespace) -> int:
    from persistent_dict.report import write_report

    with Progress("checking") as progress:
        problems = write_report(_store(options), options.output, progress)
    if options.json:
        _terminal.print_json({"report": os.path.abspath(options.output), "problems": problems})
    else:
        print(os.path.abspath(options.output))
    return 0


def path(options: Namespace) -> int:
    path = _fs.default_container_dir() if options.container is None else find_container(options.container)
    if options.json:
        _terminal.print_json({"path": path})
    else:
        print(path)
    return 0


# Mending


def verify(options: Namespace) -> int:
    store = _store(options)
    with Progress("checking") as progress:
        found = verify_store(store, progress)
    if options.json:
        problems = [_as_json(problem) for problem in found.problems]
        _terminal.print_json(
            {"path": store.path, "checked": found.checked, "bytes": found.nbytes, "problems": problems}
        )
    else:
        for problem in found.problems:
            print(f"{problem.path}: {problem.reason}")
        say(
            f"{_many(found.checked, 'entry', 'entries')} ({as_size(found.nbytes)}) checked, "
            f"{len(found.problems)} damaged"
        )
        if found.problems:
            say(f"repair sets them aside:  {_command('repair', store.path)}")
    return 1 if found.problems else 0


def _as_json(problem: PersistentDictError) -> dict[str, object]:
    return {"type": type(problem).__name__, **{name: getattr(problem, name) for name in ("path", "reason", "entry")}}


def repair(options: Namespace) -> int:
    from persistent_dict.maintenance import repair

    store = _store(options)
    with Progress("checking") as progress:
        report = repair(store, progress)
    if options.json:
        set_aside = [{**_as_json(error), "aside": aside} for error, aside in report.set_aside]
        _terminal.print_json(
            {"path": store.path, "checked": report.checked, "set_aside": set_aside, "swept": report.swept}
        )
    else:
        for error, aside in report.set_aside:
            print(f"{error.path}: {error.reason}\n  moved to {aside}")
        say(
            f"{_many(report.checked, 'entry', 'entries')} checked, {len(report.set_aside)} set aside, "
            f"{_many(report.swept, 'left-over')} of killed processes removed"
        )
    return 1 if report.set_aside else 0


def rm(options: Namespace) -> int:
    from persistent_dict.maintenance import remove

    store = _container(options)
    if not options.entries and all(getattr(options, name) is None for name in _FILTERS):
        say("persistent-dict: say which entries: digests, parts of keys, or filters; clear removes all")
        return 2
    chosen = list(_chosen(store, options))
    if options.dry_run:
        return _would_be_removed(options, chosen)
    digests = [facts.digest for facts in chosen]
    what = f"{digests[0][:12]}, {chosen[0].key[:80]}," if len(chosen) == 1 else _many(len(chosen), "entry", "entries")
    refused = _may(options, f"Remove {what} of {store.path}?") if digests else None
    if refused is not None:
        return refused
    return _removed(options, remove(store, digests))


def _would_be_removed(options: Namespace, chosen: list[EntryFacts]) -> int:
    if options.json:
        _terminal.print_json({"would_remove": [asdict(facts) for facts in chosen]})
    else:
        if chosen:
            _print_entries(chosen)
        say(f"{_many(len(chosen), 'entry', 'entries')} would be removed")
    return 0


def clear(options: Namespace) -> int:
    from persistent_dict.maintenance import clear

    store = _container(options)
    refused = _may(options, f"Remove all {_many(len(store), 'entry', 'entries')} of {store.path}?")
    return _removed(options, clear(store)) if refused is None else refused


def _removed(options: Namespace, count: int) -> int:
    if options.json:
        _terminal.print_json({"removed": count})
    else:
        say(f"{_many(count, 'entry', 'entries')} removed")
    return 0


def prune(options: Namespace) -> int:
    from persistent_dict.maintenance import prune
    from persistent_dict.stores.limits import Limits

    store = _container(options)
    limits = Limits(options.max_bytes, options.max_entries, options.max_age)
    plan = prune(store, limits, dry_run=True)
    if not options.dry_run:
        if plan.removed or plan.quarantined:
            old = f" and {plan.quarantined} that were set aside long ago" if plan.quarantined else ""
            what = f"{_many(len(plan.removed), 'entry', 'entries')} ({as_size(plan.freed)}){old}"
            refused = _may(options, f"Remove {what} of {store.path}?")
            if refused is not None:
                return refused
        plan = prune(store, limits)
    if options.json:
        digests = [info.digest for info in plan.removed]
        _terminal.print_json({
            "dry_run": options.dry_run, "removed": digests, "freed": plan.freed, "left": plan.left,
            "swept": plan.swept, "quarantined": plan.quarantined,
        })  # fmt: skip
        return 0
    if options.dry_run and plan.removed:
        order = {info.digest: number for number, info in enumerate(plan.removed)}
        _print_entries(sorted(entries(store, among=order), key=lambda facts: order[facts.digest]))
    verb = "would be removed" if options.dry_run else "removed"
    told = [f"{_many(len(plan.removed), 'entry', 'entries')} ({as_size(plan.freed)}) {verb}, {plan.left} left"]
    if plan.swept:
        told.append(f"{_many(plan.swept, 'left-over')} of killed processes {verb}")
    if plan.quarantined:
        told.append(f"{plan.quarantined} that had been set aside long ago {verb}")
    say("; ".join(told))
    return 0


# Moving


def pack(options: Namespace) -> int:
    from persistent_dict.maintenance import pack

    store = _container(options)
    with Progress("packing") as progress:
        report = pack(store, max_entry=options.max_entry, everything=options.all, progress=progress)
    if options.json:
        _terminal.print_json(asdict(report))
    elif report.packed:
        say(f"a new pack has {_many(report.packed, 'entry', 'entries')}, {report.were_loose} of which were loose")
    else:
        say("there is nothing to pack")
    return _left_out(options, report, "left where it is", store.path)


def _left_out(options: Namespace, report: Any, how: str, path: str) -> int:
    """Tell which entries were left out because they are damaged. Return the exit code."""
    is_damaged = bool(report.damaged or report.lost)
    if is_damaged and not options.json:
        for digest in report.damaged:
            print(f"{digest}: damaged, and {how}")
        for problem in report.lost:
            print(f"{problem.path}: {problem.reason}")
        say(f"what is wrong:  {_command('verify', path)}")
    return int(is_damaged)


def export(options: Namespace) -> int:
    from persistent_dict.maintenance import export

    store = _store(options)
    with Progress("exporting") as progress:
        report = export(store, options.pack, overwrite=options.force, progress=progress)
    if options.json:
        _terminal.print_json(asdict(report))
    else:
        say(f"{_many(report.entries, 'entry', 'entries')} ({as_size(report.nbytes)}) written to {report.pack}")
    return _left_out(options, report, "left out", store.path)


def import_(options: Namespace) -> int:
    from persistent_dict.maintenance import import_pack

    with Progress("importing") as progress:
        report = import_pack(options.pack, options.container or "", trusted=options.trusted, progress=progress)
    if options.json:
        _terminal.print_json(asdict(report))
    else:
        say(f"{_many(report.added, 'entry', 'entries')} added to {report.container}, {report.kept} were there")
    return _left_out(options, report, "left out", options.pack)


# Words


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def _command(command: str, path: str) -> str:
    return f"{python_command()} -m persistent_dict {command} {shell_quoted(path)}"
