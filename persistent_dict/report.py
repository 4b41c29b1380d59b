"""A page that shows what fills a container: one HTML file, which loads nothing and runs nothing.

Whatever comes from keys, paths and reasons passes `_text`; a Content-Security-Policy forbids what would be missed.
"""

from __future__ import annotations

import os
import time
from heapq import nlargest
from html import escape
from itertools import islice

from persistent_dict._terminal import as_age, as_duration, as_size, printable
from persistent_dict.errors import InvalidEntryError, shell_quoted
from persistent_dict.inspection import KeyReader, entries, verify
from persistent_dict.stores.disk import DiskStore
from persistent_dict.survey import FunctionShare, stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from persistent_dict.inspection import AnyStore, EntryFacts, Progress
    from persistent_dict.survey import Stats

_ROWS = 10  # of a list of entries
_FUNCTIONS = 15
_PROBLEMS = 100
_SMALL = 1 << 20  # bytes: what `persistent-dict pack` moves
_MANY = 100  # loose small entries, from which on packing is worth a hint

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --box: #fff; --text: #1d2125; --faint: #5b636c; --line: #dfe2e6;
  --track: #eceef1; --bytes: #2b6cb0; --time: #b0560b; --count: #4a6572; --bad: #b3261e; --good: #1b7742; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #15181b; --box: #1c2024; --text: #e5e8eb;
  --faint: #9ca5ae; --line: #30363c; --track: #282d32; --bytes: #6ba6e6; --time: #dd9a4c; --count: #8fa9b6;
  --bad: #ff8b80; --good: #62c48d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 2rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; line-height: 1.3; }
p { margin: 0 0 .75rem; max-width: 46rem; }
section { margin-top: 2.75rem; }
code, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .86em; }
pre { margin: 0 0 .75rem; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--box); white-space: pre-wrap; }
.faint, caption, thead th { color: var(--faint); }
.lead { margin: .6rem 0 0; font-size: 1.1rem; }
.about { margin: .35rem 0 0; font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1.75rem 0 0; padding: 0; }
.tiles div { display: flex; flex-direction: column; padding: .85rem 1rem .9rem; border: 1px solid var(--line);
  border-radius: 8px; background: var(--box); }
.tiles dt { order: 1; font-size: .875rem; color: var(--faint); }
.tiles dd { margin: 0; }
.tiles .value { order: 2; font-size: 1.6rem; font-weight: 600; line-height: 1.35; overflow-wrap: normal; }
.tiles .note { order: 3; font-size: .8125rem; line-height: 1.4; color: var(--faint); }
.bad { color: var(--bad); } .good { color: var(--good); }
.two { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 0 3rem; }
table { width: 100%; border-collapse: collapse; font-size: .9375rem; }
caption { padding: 0 0 .5rem; text-align: left; font-size: .875rem; }
th, td { padding: .4rem 0 .4rem 1.25rem; border-bottom: 1px solid var(--line); text-align: left; font-weight: 400;
  vertical-align: baseline; }
th:first-child { padding-left: 0; }
thead th { padding-bottom: .3rem; font-size: .8125rem; white-space: nowrap; }
td, thead th + th { text-align: right; white-space: nowrap; }
.measure { display: flex; align-items: center; gap: .75rem; }
.measure span { flex: none; min-width: 4.6rem; text-align: right; }
.bar { flex: 1 1 0; width: 0; min-width: 3rem; height: .5rem; border-radius: 2px; overflow: hidden; }
.whole { display: block; width: 100%; height: .75rem; margin: 0 0 .75rem; border-radius: 3px; }
.track { fill: var(--track); } .bytes { fill: var(--bytes); } .time { fill: var(--time); }
.count { fill: var(--count); }
@media (min-width: 44rem) { .functions th:first-child { width: 34%; } .functions td + td { width: 27%; } }
.functions thead th + th + th { padding-left: 1.25rem; text-align: left; }
.shares { font-size: .9375rem; } .shares th { white-space: nowrap; } .shares td { width: 60%; }
.problems { margin: 0; padding: 0; list-style: none; }
.problems li { padding: .7rem 0 .75rem; border-top: 1px solid var(--line); }
.problems p { margin: 0 0 .25rem; } .problems dl { margin: 0; font-size: .9375rem; }
.problems dt { float: left; clear: left; width: 6rem; color: var(--faint); } .problems dd { margin: 0 0 .15rem 6rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .875rem;
  color: var(--faint); }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media screen and (max-width: 44rem) {
  body { padding: 1.5rem 1rem; } h1 { font-size: 1.6rem; } section { margin-top: 2.25rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles .value { font-size: 1.35rem; }
  .two { grid-template-columns: 1fr; }
  .list, .functions, .list :is(caption, tbody), .functions :is(caption, tbody) { display: block; }
  :is(.list, .functions) thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  :is(.list, .functions) tr { display: grid; padding: .55rem 0; border-bottom: 1px solid var(--line); }
  :is(.list, .functions) :is(th, td) { width: auto; padding: 0; border: 0; text-align: left; }
  :is(.list, .functions) th { grid-column: 1 / -1; margin-bottom: .15rem; }
  .list tr { grid-template-columns: repeat(3, 1fr); gap: 0 .75rem; }
  :is(.list, .functions) td[data-head]::before { content: attr(data-head); display: block; font-size: .75rem;
    color: var(--faint); }
  .functions td { display: grid; grid-template-columns: 5.5rem 1fr; align-items: center; }
  .measure span { min-width: 4.4rem; }
  .problems dt { float: none; width: auto; } .problems dd { margin-left: 0; }
}
@media print { body { max-width: none; padding: 0; font-size: 10pt; } section { margin-top: 1.5rem; }
  h2, caption { break-after: avoid; } tr, li, .tiles, .two > div { break-inside: avoid; }
  thead { display: table-row-group; } }
"""


def write_report(store: AnyStore, path: str, progress: Progress) -> int:
    """Write the page to `path`, whole or not at all. Return how many problems it tells of.

    Every byte of the container is read to find what is damaged; keys are read of some thousands of entries at most.
    """
    problems = verify(store, progress).problems
    _replace(path, _page(store, stats(store), problems).encode())
    return len(problems)


def _replace(path: str, content: bytes) -> None:
    path = os.path.realpath(path)  # a link to the page stays a link
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        if os.path.lexists(beside):
            os.unlink(beside)
        raise


# The page


def _page(store: AnyStore, found: Stats, problems: list[InvalidEntryError]) -> str:
    largest, slowest, small, spare = _picked(store)
    name = _text(found.identifier or os.path.basename(found.path))
    sections = [
        _problems(store, problems),
        _functions(found),
        _shares(found),
        _list(store, "Largest entries", "Size, time of storing and time that computing took.", largest),
        _list(store, "Most expensive entries", "What would take longest to compute again.", slowest),
        _places(store, found, small, spare),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy()}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} – persistent-dict report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header>{_head(found, name)}{_tiles(found, problems)}</header>\n<main>\n"
        f"{''.join(filter(None, sections))}</main>\n{_foot(found)}\n</body>\n</html>\n"
    )


def _policy() -> str:
    """Return the tag that lets the page load nothing, and have no style but its own."""
    from base64 import b64encode
    from hashlib import sha256

    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    rules = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _head(found: Stats, name: str) -> str:
    kept = f", which took {as_duration(found.seconds)} to compute" if found.seconds else ""
    told = f"{_count(found.entries, 'entry', 'entries')} of {as_size(found.nbytes)}{kept}."
    newest = f" The last one was stored {as_age(found.newest)}." if found.newest else ""
    return (
        f'<h1>{name}</h1>\n<p class="lead">{told if found.entries else "Nothing is in here yet."}{newest}</p>\n'
        f'<p class="about faint">Written {_now()}; ages are as of then.</p>\n'
    )


def _tiles(found: Stats, problems: list[InvalidEntryError]) -> str:
    each = found.seconds / found.entries if found.entries else 0.0
    damaged = f'<a class="bad" href="#damaged">{len(problems):,}</a>' if problems else '<span class="good">0</span>'
    tiles = [
        ("Entries", f"{found.entries:,}", f"{found.loose:,} loose, {found.packed:,} packed"),
        ("On disk, about", as_size(found.disk_bytes), f"{as_size(found.nbytes)} of data"),
        ("Computing kept", as_duration(found.seconds), f"{as_duration(each)} an entry" if each else "not measured"),
        ("Damaged", damaged, "what mends it is below" if problems else "every byte was checked"),
    ]
    parts = (
        f'<div><dt>{what}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>\n'
        for what, value, note in tiles
    )
    return f'<dl class="tiles">\n{"".join(parts)}</dl>'


def _foot(found: Stats) -> str:
    from persistent_dict import __version__

    made_by = f"format {found.format}" + (f", of {found.python}" if found.python else "")
    return (
        f"<footer><p>Container <code>{_text(found.path)}</code>, {_text(made_by)}.</p>\n"
        f"<p>Written {_now()} by persistent_dict {_text(__version__)}.</p></footer>"
    )


# Its sections


def _section(title: str, *parts: str, name: str = "") -> str:
    return f"<section{f' id={name}' if name else ''}>\n<h2>{title}</h2>\n{''.join(parts)}</section>\n"


def _problems(store: AnyStore, problems: list[InvalidEntryError]) -> str:
    if not problems:
        return ""
    cure = "<p>This sets all of it aside, to be computed again when it is asked for:</p>\n" + _command("repair", store)
    items = "".join(map(_problem, problems[:_PROBLEMS]))
    rest = len(problems) - _PROBLEMS
    more = f"<p>And {rest:,} more: <code>persistent-dict verify</code> tells of all.</p>\n" if rest > 0 else ""
    return _section("Damaged", cure, f'<ol class="problems">\n{items}</ol>\n', more, name="damaged")


def _problem(problem: InvalidEntryError) -> str:
    facts = {"file": problem.path}
    if problem.entry:
        facts["to remove"] = f"rm -rf {shell_quoted(problem.entry)}"
    lines = (f"<dt>{what}</dt><dd><code>{_text(fact)}</code></dd>\n" for what, fact in facts.items())
    return f'<li><p class="bad">{_text(problem.reason)}</p>\n<dl>{"".join(lines)}</dl></li>\n'


def _functions(found: Stats) -> str:
    if not found.functions:
        return ""
    shares = _with_rest(found)
    most = max(share.nbytes for share in shares), max(share.seconds for share in shares)
    rows = [
        [
            f'<span class="mono">{_text(share.name)}</span>' if share in found.functions else share.name,
            f"{share.entries:,}",
            _measure(share.nbytes, most[0], found.nbytes, as_size(share.nbytes), "bytes"),
            _measure(share.seconds, most[1], found.seconds, as_duration(share.seconds), "time"),
        ]
        for share in shares
    ]
    caption = "What the results of each function take, and what they took to compute."
    if found.sampled < found.entries:
        caption += f" Estimated from {found.sampled:,} of {found.entries:,} entries."
    return _section("By function", _table("functions", caption, ["Function", "Entries", "Size", "Computing"], rows))


def _with_rest(found: Stats) -> list[FunctionShare]:
    """Return the first functions, what the others take together, and what belongs to none."""
    shown, others = found.functions[:_FUNCTIONS], found.functions[_FUNCTIONS:]
    shares = [*shown, _sum(f"{len(others)} more functions", others)] if others else list(shown)
    known = _sum("", found.functions)
    rest = found.entries - known.entries, found.nbytes - known.nbytes, found.seconds - known.seconds
    if rest[0] > len(found.functions):  # fewer may come from rounding, where it is an estimate
        shares.append(FunctionShare("Other keys", rest[0], max(rest[1], 0), max(rest[2], 0.0)))
    return shares


def _sum(name: str, shares: Iterable[FunctionShare]) -> FunctionShare:
    total = FunctionShare(name, 0, 0, 0.0)
    for share in shares:
        total.entries += share.entries
        total.nbytes += share.nbytes
        total.seconds += share.seconds
    return total


def _shares(found: Stats) -> str:
    if not found.entries:
        return ""
    parts = []
    for title, head, shares in (("Ages", "Stored", found.ages), ("Sizes", "Size", found.sizes)):
        most = max(shares.values())
        rows = [[_text(name), _measure(n, most, found.entries, f"{n:,}", "count")] for name, n in shares.items()]
        caption = "Each entry is in the first row that fits."
        parts.append(f"<div>{_section(title, _table('shares', caption, [head, 'Entries'], rows))}</div>\n")
    return f'<div class="two">\n{"".join(parts)}</div>\n'


def _list(store: AnyStore, title: str, caption: str, chosen: list[EntryFacts]) -> str:
    if not chosen:
        return ""
    rows = [
        [f'<span class="mono">{_key(store, facts)}</span>', as_size(facts.nbytes), as_age(facts.stored_at),
         as_duration(facts.seconds) if facts.seconds else "–"]
        for facts in chosen
    ]  # fmt: skip
    return _section(title, _table("list", caption, ["Key", "Size", "Stored", "Computing"], rows))


def _key(store: AnyStore, facts: EntryFacts) -> str:
    try:
        key = KeyReader(store).read(facts.digest)[0]
    except InvalidEntryError:
        key = ""
    key = key or facts.digest
    return _text(key if len(key) <= 160 else f"{key[:159]}…")


def _places(store: AnyStore, found: Stats, small: int, spare: int) -> str:
    if not found.entries:
        return ""
    label = f"{found.packed:,} of {_count(found.entries, 'entry', 'entries')} in {_count(found.packs, 'pack', 'packs')}"
    chart = _bar("whole", found.packed / found.entries, label, "count")
    told = f"<p>{label}, {found.loose:,} loose; about {_count(found.inodes, 'inode', 'inodes')}.</p>\n"
    hint = ""
    if small >= _MANY and isinstance(store, DiskStore):
        hint = (
            f"<p>{small:,} of the loose entries are small. Packed, they take about {as_size(spare)} and {3 * small:,} "
            f"inodes less, and are read faster:</p>\n{_command('pack', store)}"
        )
    return _section("Loose and packed", chart, told, hint)


# Its facts


def _picked(store: AnyStore) -> tuple[list[EntryFacts], list[EntryFacts], int, int]:
    """Return the largest entries and those that took longest, without keys; how many small entries are loose, and what
    of the disk they take beyond their bytes."""
    largest: list[EntryFacts] = []
    slowest: list[EntryFacts] = []
    small = spare = 0
    for batch in _batches(entries(store, keys=False)):
        largest = nlargest(_ROWS, [*largest, *batch], key=lambda facts: facts.nbytes)
        slowest = nlargest(_ROWS, [*slowest, *batch], key=lambda facts: facts.seconds)
        loose = [facts for facts in batch if not facts.place.endswith(f":{facts.digest}") and facts.nbytes <= _SMALL]
        small += len(loose)
        spare += sum(facts.disk_bytes - facts.nbytes for facts in loose)
    return largest, [facts for facts in slowest if facts.seconds], small, spare


def _batches(facts: Iterator[EntryFacts]) -> Iterator[list[EntryFacts]]:
    while batch := list(islice(facts, 1000)):
        yield batch


# Its parts


def _text(text: str) -> str:
    """Return a text as it may stand anywhere in the page."""
    return escape(printable(text))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M %z")


def _command(command: str, store: AnyStore) -> str:
    return f"<pre><code>persistent-dict {command} {_text(shell_quoted(store.path))}</code></pre>\n"


def _table(kind: str, caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are markup. Roles are given, as small screens lay it out as no table."""
    head = "".join(f'<th role="columnheader" scope="col">{head}</th>' for head in heads)
    lines = (
        f'<tr role="row"><th role="rowheader" scope="row">{first}</th>'
        + "".join(
            f'<td role="cell" data-head="{head}">{cell}</td>' for head, cell in zip(heads[1:], cells, strict=True)
        )
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<table class="{kind}" role="table">\n<caption>{caption}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{"".join(lines)}</tbody>\n'
        "</table>\n"
    )


def _measure(part: float, most: float, total: float, text: str, colour: str) -> str:
    """Return a bar, as long as its part of the longest one, and what it stands for."""
    label = f"{part / total:.0%}" if total else "nothing"
    return f'<div class="measure">{_bar("bar", part / most if most else 0.0, label, colour)}<span>{text}</span></div>'


def _bar(kind: str, share: float, label: str, colour: str) -> str:
    width = f"{min(max(share, 0.0), 1.0):.2%}"
    return (
        f'<svg class="{kind}" role="img" aria-label="{label}"><rect class="track" width="100%" height="100%"/>'
        f'<rect class="{colour}" width="{width}" height="100%"/></svg>'
    )
