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


def _chosen(store: AnyStore, options: Namespace) -> Iterator[EntryFacts]:
    """Yield the entries that the filters let through."""
    from time import time

    now = time()
    for facts in entries(store):
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
        "bytes": f"{as_size(found.nbytes)}, about {as_size(found.disk_bytes)} on disk in {found.inodes} inodes",
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

    found = []
    for path in containers(_fs.default_container_dir()):
        try:
            found.append(stats(open_store(path, trusted=options.trusted)))
        except (PersistentDictError, OSError) as error:
            say(f"persistent-dict: {error}")
    if options.json:
        _terminal.print_json([asdict(one) for one in found])
        return 0
    names = [unquote(os.path.basename(one.path)) for one in found]
    rows = [
        (name, one.entries, as_size(one.disk_bytes), as_duration(one.seconds), as_age(one.newest))
        for name, one in zip(names, found, strict=True)
    ]
    say(f"in {_fs.default_container_dir()}:")
    _terminal.print_table(["container", "entries", "on disk", "computing", "last stored"], rows, right=" rrr")
    return 0


def ls(options: Namespace) -> int:
    chosen = sorted(_chosen(_store(options), options), key=SORTS[options.sort], reverse=options.reverse)
    chosen = chosen[: options.limit]
    if options.json:
        _terminal.print_json_items(map(asdict, chosen))
        return 0
    rows = [
        (f.digest[:12], as_size(f.nbytes), as_age(f.stored_at), as_age(f.used_at), as_duration(f.seconds),
         f"{shown_text(f.key)}{f'  [{f.problem}]' if f.problem else ''}")
        for f in chosen
    ]  # fmt: skip
    _terminal.print_table(["digest", "size", "stored", "used", "computing", "key"], rows, right=" rrrr")
    return 0


def shown_text(text: str, limit: int = 100) -> str:
    """Return a text that is not longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


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
    filters = (options.key, options.function, options.older, options.unused, options.larger)
    if not options.entries and all(one is None for one in filters):
        say("persistent-dict: say which entries: digests, parts of keys, or filters; clear removes all")
        return 2
    digests = {find_digest(store, entry) for entry in options.entries}
    if any(one is not None for one in filters):
        chosen = {facts.digest for facts in _chosen(store, options)}
        digests = digests & chosen if options.entries else chosen
    refused = _may(options, f"Remove {_many(len(digests), 'entry', 'entries')} of {store.path}?") if digests else None
    if refused is not None:
        return refused
    return _removed(options, remove(store, digests))


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
        if plan.removed:
            refused = _may(
                options,
                f"Remove {_many(len(plan.removed), 'entry', 'entries')} ({as_size(plan.freed)}) of {store.path}?",
            )
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
    if options.dry_run:
        rows = [(info.digest[:12], as_size(info.disk_bytes), as_age(info.used_at)) for info in plan.removed]
        if rows:
            _terminal.print_table(["digest", "on disk", "used"], rows, right=" rr")
    verb = "would be removed" if options.dry_run else "removed"
    say(
        f"{_many(len(plan.removed), 'entry', 'entries')} ({as_size(plan.freed)}) {verb}, {plan.left} left; "
        f"{_many(plan.swept, 'left-over')} and {plan.quarantined} set aside long ago {verb}"
    )
    return 0


# Moving


def pack(options: Namespace) -> int:
    from persistent_dict.maintenance import pack

    store = _container(options)
    with Progress("packing") as progress:
        count, loose = pack(store, max_entry=options.max_entry, everything=options.all, progress=progress)
    if options.json:
        _terminal.print_json({"packed": count, "were_loose": loose})
    elif count:
        say(f"a new pack has {_many(count, 'entry', 'entries')}, {loose} of which were loose")
    else:
        say("there is nothing to pack")
    return 0


def export(options: Namespace) -> int:
    from persistent_dict.maintenance import export

    store = _store(options)
    with Progress("exporting") as progress:
        count = export(store, options.pack, overwrite=options.force, progress=progress)
    path = os.path.abspath(options.pack)
    if options.json:
        _terminal.print_json({"pack": path, "entries": count, "bytes": os.stat(path).st_size})
    else:
        say(f"{_many(count, 'entry', 'entries')} ({as_size(os.stat(path).st_size)}) written to {path}")
    return 0


def import_(options: Namespace) -> int:
    from persistent_dict.maintenance import import_pack

    with Progress("importing") as progress:
        report = import_pack(options.pack, options.container or "", trusted=options.trusted, progress=progress)
    if options.json:
        _terminal.print_json(asdict(report))
    else:
        say(f"{_many(report.added, 'entry', 'entries')} added to {report.container}, {report.kept} were there")
        for digest in report.damaged:
            print(f"{digest}: damaged, and left out")
    return 1 if report.damaged else 0


# Words


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def _command(command: str, path: str) -> str:
    return f"{python_command()} -m persistent_dict {command} {shell_quoted(path)}"
