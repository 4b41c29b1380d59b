"""How much a container may keep, and which entries go when it is more: those that were used longest ago."""

from __future__ import annotations

from time import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistent_dict.stores.base import EntryInfo


class Limits:
    """What a container may keep.

    Attributes
    ----------
    max_bytes : int or None
        What the entries take on disk, as `EntryInfo.disk_bytes` counts it. None, here and below: no limit.
    max_entries : int or None
    max_age : float or None
        Seconds since an entry was last used.
    """

    __slots__ = ("max_age", "max_bytes", "max_entries")

    def __init__(
        self, max_bytes: int | None = None, max_entries: int | None = None, max_age: float | None = None
    ) -> None:
        for name, limit in (("max_bytes", max_bytes), ("max_entries", max_entries), ("max_age", max_age)):
            if limit is not None and not isinstance(limit, (int, float)):
                raise TypeError(f"{name}={limit!r}: a limit is a number")
            if limit is not None and not limit >= 0:
                raise ValueError(f"{name}={limit!r}: a limit is a number from 0 on")
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_age = max_age

    def __bool__(self) -> bool:
        return (self.max_bytes, self.max_entries, self.max_age) != (None, None, None)

    def __reduce__(self) -> tuple[type[Limits], tuple[float | None, ...]]:
        return (Limits, (self.max_bytes, self.max_entries, self.max_age))

    def share(self, part: float) -> Limits:
        """Return limits that are a part of these, but for the age."""
        max_bytes, max_entries = (
            None if limit is None else int(limit * part) for limit in (self.max_bytes, self.max_entries)
        )
        return Limits(max_bytes, max_entries, self.max_age)

    def surplus(self, infos: Iterable[EntryInfo]) -> list[EntryInfo]:
        """Return the entries that have to go, the least recently used first."""
        by_use = sorted(infos, key=lambda info: (info.used_at, info.digest))
        count, total, now = len(by_use), sum(info.disk_bytes for info in by_use), time()
        for number, info in enumerate(by_use):
            is_within = (
                (self.max_bytes is None or total <= self.max_bytes)
                and (self.max_entries is None or count <= self.max_entries)
                and (self.max_age is None or now - info.used_at <= self.max_age)
            )
            if is_within:
                return by_use[:number]
            count, total = count - 1, total - info.disk_bytes
        return by_use
