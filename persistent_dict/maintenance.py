"""Upkeep of a container: functions without printing, safe while others read and write."""

from __future__ import annotations

from persistent_dict.errors import ContainerError, InvalidEntryError
from persistent_dict.stores.disk import DiskStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class RepairReport:
    """What `repair` found.

    Attributes
    ----------
    checked : int
        Entries whose every byte was read.
    set_aside : list of (InvalidEntryError, str)
        The damaged ones, and where each was moved.
    swept : int
        What killed writers had left in the staging directory over an hour ago, now removed.
    """

    def __init__(self) -> None:
        self.checked = 0
        self.set_aside: list[tuple[InvalidEntryError, str]] = []
        self.swept = 0


def repair(container: str, *, trusted: bool = False, progress: Callable[[int], object] | None = None) -> RepairReport:
    """Check every entry of a container, move the damaged ones to its ``quarantine/``, remove stale staging.

    Nothing is unpickled: bytes that are intact but do not decode stay. Entries that are removed or healed meanwhile
    are no damage. `progress` is called with the number of entries checked so far.

    Raises
    ------
    ContainerError
        It is no container of this version, or (`UntrustedContainerError`) others may have written to it.
    """
    store = DiskStore(container, trusted=trusted)
    if not store.open():
        raise ContainerError(container, "there is no container here")
    report = RepairReport()
    for digest in store.digests():
        try:
            entry = store.get(digest)
            problem = None if entry else InvalidEntryError(store.place(digest), "its directory has no value file")
        except InvalidEntryError as error:
            problem = error
        aside = store.quarantine(digest) if problem else ""
        if problem and aside:  # else it was removed or healed meanwhile
            report.set_aside.append((problem, aside))
        report.checked += 1
        if progress is not None:
            progress(report.checked)
    report.swept = store.sweep()
    return report
