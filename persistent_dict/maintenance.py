"""Upkeep of a container: functions without printing, safe while others read and write.

They take a store that `open_store` has opened, and a `progress` that is called with how many entries are done, of how
many. All of them sync what they write before they remove what it replaces.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import time

from persistent_dict import _fs
from persistent_dict.errors import ContainerError, InvalidEntryError
from persistent_dict.inspection import about, loose_problem, nothing, open_store, packs_of
from persistent_dict.stores.container import container_name
from persistent_dict.stores.disk import DiskStore
from persistent_dict.stores.pack_file import PackFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistent_dict.inspection import AnyStore, Progress
    from persistent_dict.stores.base import Digest, EntryInfo
    from persistent_dict.stores.limits import Limits

__all__ = ["clear", "export", "import_pack", "open_store", "pack", "prune", "remove", "repair"]

_DAY = 86400.0  # seconds
_LARGE = 1 << 20  # bytes; two files for as much are no burden


@dataclass
class RepairReport:
    """What `repair` found.

    Attributes
    ----------
    checked : int
        Entries whose every byte was read.
    set_aside : list of (InvalidEntryError, str)
        What was damaged, and where it was moved.
    swept : int
        What killed processes had left, now removed or finished.
    """

    checked: int = 0
    set_aside: list[tuple[InvalidEntryError, str]] = field(default_factory=list)
    swept: int = 0


def repair(store: AnyStore, progress: Progress = nothing) -> RepairReport:
    """Check every entry, move the damaged ones to the container's ``quarantine/``, and finish what a crash has left.

    Nothing is unpickled: bytes that are intact but do not decode stay. Entries that are removed or healed meanwhile
    are no damage. A pack with damaged entries is written anew without them. An exported pack is, too; it is kept beside
    its place, as ``….damaged-…``.
    """
    report, total = RepairReport(), len(store)
    if isinstance(store, PackFile):
        report.checked, report.set_aside = total, store.mend(progress)
        return report
    for digest in list(store.loose.digests()):
        try:
            problem = loose_problem(store, digest)
        except OSError:  # it may be well: verify tells of it
            problem = None
        aside = store.quarantine(digest) if problem else ""
        if problem and aside:  # else it was removed or healed meanwhile
            report.set_aside.append((problem, aside))
        report.checked += 1
        progress(report.checked, max(total, report.checked))
    for pack in packs_of(store):
        report.set_aside += store.packing.mend(pack, store.quarantine_path)
        report.checked += len(pack.living())
        progress(report.checked, max(total, report.checked))
    report.swept = store.sweep()
    return report


@dataclass
class PruneReport:
    """What `prune` removed, or would remove.

    Attributes
    ----------
    removed : list of EntryInfo
        The least recently used first.
    freed : int
        Bytes on disk, about.
    left : int
        Entries.
    swept, quarantined : int
        What killed processes had left, and what had been set aside long ago.
    """

    removed: list[EntryInfo]
    freed: int
    left: int
    swept: int = 0
    quarantined: int = 0


def prune(store: DiskStore, limits: Limits, *, dry_run: bool = False, quarantine_age: float = 30 * _DAY) -> PruneReport:
    """Remove the entries that were used least recently, until the limits hold; and left-overs.

    What is removed beside: what killed processes have left, and what was set aside more than `quarantine_age` seconds
    ago. With `dry_run` nothing is removed.
    """
    infos = list(store.scan())
    surplus = limits.surplus(infos)
    old = _set_aside_before(store.quarantine_path, time() - quarantine_age)
    report = PruneReport(surplus, sum(info.disk_bytes for info in surplus), len(infos) - len(surplus))
    report.quarantined = len(old)
    if not dry_run:
        store.delete_unused(surplus)
        for path in old:
            _fs.remove_tree(path)
        report.swept = store.sweep()
    return report


def _set_aside_before(directory: str, limit: float) -> list[str]:
    """Return what was moved into a directory before a time."""
    paths = [f"{directory}/{name}" for name in _fs.list_directory(directory)]
    return [path for path in paths if _fs.changed_at(path) < limit]


@dataclass
class PackReport:
    """What `pack` did.

    Attributes
    ----------
    packed, were_loose : int
        Entries of the new pack, and how many of them were loose; zeros where there was nothing to do.
    damaged : list of str
        The digests of those that stay where they are, since they are damaged.
    lost : list of InvalidEntryError
        Packs of which entries are lost, nobody knows which.
    """

    packed: int
    were_loose: int
    damaged: list[Digest]
    lost: list[InvalidEntryError]


def pack(
    store: DiskStore, *, max_entry: int = _LARGE, everything: bool = False, progress: Progress = nothing
) -> PackReport:
    """Move loose entries of at most `max_entry` bytes into a pack, together with those of small packs.

    With `everything`, all packs become one. Damaged entries stay where they are.
    """
    return PackReport(*store.packing.pack(max_entry, everything, progress), _lost(store))


def _lost(store: AnyStore) -> list[InvalidEntryError]:
    return [pack.error() for pack in packs_of(store) if not pack.complete]


@dataclass
class ExportReport:
    """What `export` did.

    Attributes
    ----------
    pack : str
        The file.
    entries, nbytes : int
        How many it has, and its size.
    damaged : list of str
        The digests of those that were left out, since they are damaged.
    lost : list of InvalidEntryError
        Packs of which entries are lost, nobody knows which.
    """

    pack: str
    entries: int
    nbytes: int
    damaged: list[Digest]
    lost: list[InvalidEntryError]


def export(store: AnyStore, path: str, *, overwrite: bool = False, progress: Progress = nothing) -> ExportReport:
    """Write all entries that are intact to a pack of their own at `path`, at once and synced.

    Raises
    ------
    FileExistsError
        Something is at `path`.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise NotADirectoryError(f"{path} cannot be a file: name one in a directory that is there")
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already: choose another name, or let it be overwritten (--force)")
    count, damaged = store.write_to(path, progress)
    return ExportReport(path, count, os.stat(path).st_size, damaged, _lost(store))


@dataclass
class ImportReport:
    """What `import_pack` did.

    Attributes
    ----------
    container : str
    added, kept : int
        Entries that were not there, and those that were and stay as they are.
    damaged : list of str
        The digests of those that could not be read.
    lost : list of InvalidEntryError
        The pack, if entries of it are lost, nobody knows which.
    """

    container: str
    added: int
    kept: int
    damaged: list[Digest]
    lost: list[InvalidEntryError]


def import_pack(path: str, container: str = "", *, trusted: bool = False, progress: Progress = nothing) -> ImportReport:
    """Add the entries of an exported pack to a container; those that are there stay.

    Without `container`, to that of the dictionary of the same identifier in the default place. It is made where there
    is none.

    Raises
    ------
    ContainerError
        The two were made with different formats, identifiers or Pythons; or others may have written to either.
    """
    source = PackFile(path, trusted=trusted, any_python=True)
    known = about(source)
    store = DiskStore(container or ".", known["format"] or None, known["identifier"] or None, trusted=trusted)
    if not container or not store.open():
        if not (known["format"] and known["identifier"]):
            problem = "what it says about itself is lost, so it cannot be told where it belongs: name a container"
            raise ContainerError(path, problem)
        name = container_name(known["identifier"], known["python"])
        container = container or os.path.join(_fs.default_container_dir(), name)
        if os.path.basename(os.path.abspath(container)) != name:
            raise ContainerError(container, f"there is no container here; its dictionary looks for one named {name}")
        store = DiskStore(container, known["format"], known["identifier"], trusted=trusted)
    elif known["format"] and about(store)["python"] != known["python"]:
        raise ContainerError(container, f"it is for {about(store)['python']}, and the pack is for {known['python']}")
    return ImportReport(store.path, *store.take_in(source.pack, progress), _lost(source))


def remove(store: DiskStore, digests: Iterable[Digest]) -> int:
    """Remove entries, damaged or not. Return how many there were."""
    return store.delete_many(digests)


def clear(store: DiskStore) -> int:
    """Remove all entries. Return how many there were."""
    count = len(store)
    store.clear()
    return count
