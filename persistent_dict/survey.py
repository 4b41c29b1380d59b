"""What fills a container, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import add
from time import time

from persistent_dict import _fs
from persistent_dict.errors import InvalidEntryError
from persistent_dict.inspection import KeyReader, about, packs_of, where_in_pack
from persistent_dict.stores.disk import DiskStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistent_dict.inspection import AnyStore
    from persistent_dict.stores.base import Digest
    from persistent_dict.stores.packs import Pack

_SAMPLE = 10_000  # entries whose keys are read, to say which functions they belong to
_DAY = 86400.0
_AGES = {"an hour": 3600.0, "a day": _DAY, "a week": 7 * _DAY, "a month": 30 * _DAY, "a year": 365 * _DAY}
_SIZES = {"1 KiB": 1 << 10, "16 KiB": 1 << 14, "256 KiB": 1 << 18, "4 MiB": 1 << 22, "64 MiB": 1 << 26}


@dataclass
class FunctionShare:
    """What the results of one memoized function take; estimated, where not all keys were read."""

    name: str
    entries: int
    nbytes: int
    seconds: float


@dataclass
class Stats:
    """What fills a container.

    Attributes
    ----------
    path, identifier, format, python : str
    entries, loose, packed, packs, inodes : int
    nbytes, disk_bytes : int
        The sum of the entries' files, footers included, and what they take on disk, about.
    seconds : float
        How long everything that is kept took to compute.
    oldest, newest : float
        When the first and the last entry was stored, seconds since the epoch; 0.0 where there is none.
    ages, sizes : dict of str to int
        How many entries were stored within a time, and not within the shorter ones; likewise for sizes in bytes.
    functions : list of FunctionShare
        For memoized calls: what takes most comes first.
    sampled : int
        From how many entries `functions` was estimated.
    quarantined, staged : int
        What was set aside as damaged, and what writers are busy with or have left.
    """

    path: str
    identifier: str = ""
    format: str = ""
    python: str = ""
    entries: int = 0
    loose: int = 0
    packed: int = 0
    packs: int = 0
    inodes: int = 0
    nbytes: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    oldest: float = 0.0
    newest: float = 0.0
    ages: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    functions: list[FunctionShare] = field(default_factory=list)
    sampled: int = 0
    quarantined: int = 0
    staged: int = 0


class _Facts:
    """The sizes, times of storing and seconds of all entries, by columns."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.stored_at: list[float] = []
        self.seconds: list[float] = []

    def add_loose(self, store: DiskStore, digest: Digest) -> int:
        """Add a loose entry. Return what it takes on disk."""
        try:
            info = store.loose.info(digest)
        except InvalidEntryError:
            return 0
        if info is None:  # removed meanwhile
            return 0
        try:
            stored_at, seconds = store.loose.times(digest)
        except (InvalidEntryError, OSError):
            stored_at, seconds = info.used_at, 0.0
        self.sizes.append(info.nbytes)
        self.stored_at.append(stored_at)
        self.seconds.append(seconds)
        return info.disk_bytes

    def add_pack(self, pack: Pack, left_out: set[int]) -> None:
        """Add the entries of a pack, but for some."""
        sizes = map(add, pack.column("value_sizes"), pack.column("key_sizes"))
        for total, column in (
            (self.sizes, sizes),
            (self.stored_at, pack.column("stored_at")),
            (self.seconds, pack.column("seconds")),
        ):
            total.extend(column if not left_out else [fact for i, fact in enumerate(column) if i not in left_out])


def stats(store: AnyStore) -> Stats:
    """Return what fills a container, or an exported pack.

    Of packed entries the index alone is read, of loose ones their footers; keys are read of some thousands at most.
    What moves meanwhile may be counted twice, or not.
    """
    known, facts, loose = about(store), _Facts(), list[str]()
    if isinstance(store, DiskStore):
        loose = list(store.loose.digests())  # before the packs: what moves meanwhile is then seen twice, not never
    packs = packs_of(store)
    found = Stats(store.path, known["identifier"], known["format"], known["python"], packs=len(packs))
    if isinstance(store, DiskStore):
        loose = [digest for digest in loose if where_in_pack(store, digest) is None]
        found.disk_bytes = sum(facts.add_loose(store, digest) for digest in loose)
        found.quarantined = len(_fs.list_directory(store.quarantine_path))
        found.staged = len(_fs.list_directory(f"{store.path}/tmp"))
    found.loose = len(facts.sizes)
    counting = list(_counting(packs, loose))
    for pack, left_out in counting:
        facts.add_pack(pack, left_out)
        found.disk_bytes += pack.size
    found.entries = len(facts.sizes)
    found.packed = found.entries - found.loose
    found.inodes = 3 * found.loose + len({digest[:2] for digest in loose}) + found.packs
    found.nbytes, found.seconds = sum(facts.sizes), sum(facts.seconds)
    found.oldest, found.newest = min(facts.stored_at, default=0.0), max(facts.stored_at, default=0.0)
    now = time()
    newer = {f"within {name}": sum(map((now - age).__le__, facts.stored_at)) for name, age in _AGES.items()}
    smaller = {f"under {name}": sum(map(size.__gt__, facts.sizes)) for name, size in _SIZES.items()}
    found.ages = _shares(newer, "earlier", found.entries)
    found.sizes = _shares(smaller, "larger", found.entries)
    sample = _spread(loose, counting)
    found.sampled = len(sample)
    found.functions = _functions(store, sample, found.entries / max(len(sample), 1))
    return found


def _counting(packs: list[Pack], loose: list[Digest]) -> Iterator[tuple[Pack, set[int]]]:
    """Yield the packs, each with the numbers of those of its entries that others come before."""
    for number, pack in enumerate(packs):
        left_out = {pack.find(digest) for digest in loose}
        left_out.update(pack.dead())
        for later in packs[:number]:
            if not set(_digests(pack)).isdisjoint(_digests(later)):
                left_out.update(pack.find(later.digest(i)) for i in range(later.count))
        yield pack, left_out - {-1}


def _digests(pack: Pack) -> list[bytes]:
    digests = bytes(pack.column("digests"))
    return [digests[at : at + 20] for at in range(0, len(digests), 20)]


def _shares(cumulative: dict[str, int], rest: str, total: int) -> dict[str, int]:
    """Return how many there are in each step, from how many there are up to it; and beyond the last one."""
    shares, before = {}, 0
    for name, count in {**cumulative, rest: total}.items():
        shares[name], before = count - before, count
    return shares


def _spread(loose: list[Digest], packs: list[tuple[Pack, set[int]]]) -> list[Digest]:
    """Return digests from all over the store: as they are hashes, every n-th is as good as any."""
    step = -(-(len(loose) + sum(pack.count - len(left_out) for pack, left_out in packs)) // _SAMPLE) or 1
    sample = loose[::step]
    for pack, left_out in packs:
        counting = [i for i in range(pack.count) if i not in left_out] if left_out else range(pack.count)
        sample += map(pack.digest, counting[::step])
    return sample


def _functions(store: AnyStore, sample: Iterable[Digest], scale: float) -> list[FunctionShare]:
    reader = KeyReader(store)
    shares: dict[str, FunctionShare] = {}
    for digest in sample:
        try:
            function = reader.read(digest)[1]
            facts = store.stat(digest) if function else None
            seconds = _seconds(store, digest) if function else 0.0
        except InvalidEntryError:
            continue
        if facts is not None:
            share = shares.setdefault(function, FunctionShare(function, 0, 0, 0.0))
            share.entries += 1
            share.nbytes += facts.nbytes
            share.seconds += seconds
    for share in shares.values():
        share.entries, share.nbytes = round(share.entries * scale), round(share.nbytes * scale)
        share.seconds *= scale
    return sorted(shares.values(), key=lambda share: -share.nbytes)


def _seconds(store: AnyStore, digest: Digest) -> float:
    found = where_in_pack(store, digest)
    if found is None:
        return store.loose.times(digest)[1] if isinstance(store, DiskStore) else 0.0
    return float(found[0].column("seconds")[found[1]])
