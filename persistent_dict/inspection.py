"""Looking into a container or an exported pack: what is in it, and whether it is as it was written.

Nothing is changed, nothing of an entry is run, and that entries were looked at is not noted. Everything is safe while
others read and write; what they add or remove meanwhile may be missing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from operator import add
from urllib.parse import unquote

from persistent_dict import _fs
from persistent_dict._inert import described, type_name
from persistent_dict.errors import ContainerError, InvalidEntryError, shown
from persistent_dict.formats import find_format
from persistent_dict.stores.container import Container, container_name, parsed
from persistent_dict.stores.disk import DiskStore
from persistent_dict.stores.pack_file import PackFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any

    from persistent_dict.formats import Buffer
    from persistent_dict.stores.base import Digest, Entry, EntryInfo
    from persistent_dict.stores.packs import Pack

    AnyStore = DiskStore | PackFile
    Progress = Callable[[int, int], object]

_PLAINLY = 12  # hex digits that are a digest's, whatever keys contain; as many as `ls` shows
_LARGEST = 64 * 1024 * 1024  # bytes of a value whose type is looked for


def nothing(done: int, total: int) -> None:
    """Take note of progress, and do nothing with it."""


# Finding


def find_container(argument: str) -> str:
    """Return the path of a container or pack for what somebody typed: a path, or the identifier of a dictionary.

    An identifier is looked for in the default place; the container of this Python comes first.

    Raises
    ------
    ContainerError
        There is none, or there are several.
    """
    parent = _fs.default_container_dir()
    names = _named(parent, argument)
    if len(names) > 1:
        from sys import implementation

        names = [path for path in names if path.endswith(f".{implementation.cache_tag}")] or names
    if len(names) > 1:
        raise ContainerError(parent, f"there are several of that name, give the path of one: {', '.join(names)}")
    if names:
        return names[0]
    if os.path.lexists(argument):
        return os.path.abspath(argument)
    others = ", ".join(repr(identifier) for identifier in identifiers(parent)[:10]) or "none"
    raise ContainerError(
        parent, f"there is no container of the name {argument!r} here, and no such path. Here are: {others}"
    )


def _named(parent: str, argument: str) -> list[str]:
    """Return the paths of the containers of an identifier, or of the name of a directory."""
    if os.path.isabs(argument) or argument.startswith("."):
        return []
    found = []
    for path in containers(parent):
        base = os.path.basename(path)
        if base == argument or (argument and base in _possible_names(argument, path)):
            found.append(path)
    return found


def _possible_names(identifier: str, path: str) -> list[str]:
    """Return what the container of an identifier is called, without a Python's tag and with the one that a path has."""
    tag = re.search(r"\.((?:cpython|pypy|graalpy)[-0-9a-z]*)$", path)
    return [container_name(identifier, python) for python in (["", tag[1]] if tag else [""])]


def identifiers(parent: str) -> list[str]:
    """Return the identifiers of the dictionaries whose containers are in a directory."""
    found = set()
    for path in containers(parent):
        try:
            found.add(unquote(Container(path, None, None, trusted=True, mode=0o700).facts().get("identifier", "")))
        except (OSError, ContainerError):
            continue
    return sorted(found - {""})


def containers(parent: str) -> list[str]:
    """Return the paths of the containers in a directory."""
    paths = [f"{parent}/{name}" for name in _fs.list_directory(parent) if not name.startswith(".")]
    return [path for path in paths if os.path.isfile(f"{path}/FORMAT") or os.path.isdir(f"{path}/entries")]


def open_store(path: str, *, trusted: bool = False) -> AnyStore:
    """Return the store of a container or of an exported pack, checked.

    Raises
    ------
    ContainerError
        It is none, or (`UntrustedContainerError`) others may have written to it.
    """
    if os.path.isfile(path):
        return PackFile(path, trusted=trusted, any_python=True)
    store = DiskStore(path, trusted=trusted)
    if not store.open():
        raise ContainerError(path, "there is no container here")
    return store


def open_container(path: str, *, trusted: bool = False) -> DiskStore:
    """Return the store of a container, which is no pack."""
    store = open_store(path, trusted=trusted)
    if isinstance(store, PackFile):
        raise ContainerError(path, "this is a pack by itself, which is only read; this needs a container")
    return store


def about(store: AnyStore) -> dict[str, str]:
    """Return `format`, `identifier` and `python` of a store."""
    text = store.container.about() if isinstance(store, DiskStore) else store.pack.about
    facts = parsed(text)
    return {name: unquote(facts.get(name, "")) for name in ("identifier", "format", "python")}


def packs_of(store: AnyStore) -> list[Pack]:
    """Return the packs, the one that counts first."""
    if isinstance(store, PackFile):
        return [store.pack]
    store.packs.refresh()
    return list(store.packs.known)


# Entries


@dataclass
class EntryFacts:
    """What is known of one entry.

    Attributes
    ----------
    digest, place : str
        Place: the entry's directory, or the pack.
    nbytes, disk_bytes : int
    stored_at, used_at : float
        Seconds since the epoch. `used_at` is right to about an hour.
    seconds : float
        How long the value took to compute, 0.0 where nobody measured.
    key : str
        A text for the key, "" where it was not asked for.
    function : str
        For a memoized call, the function; else "".
    problem : str
        What is wrong with what was looked at, "" if nothing was.
    """

    digest: str
    place: str
    nbytes: int
    disk_bytes: int
    stored_at: float = 0.0
    used_at: float = 0.0
    seconds: float = 0.0
    key: str = ""
    function: str = ""
    problem: str = ""


def entries(store: AnyStore, *, keys: bool = True, among: Collection[Digest] | None = None) -> Iterator[EntryFacts]:
    """Yield the facts of every entry, or of those `among` some, in no order; without `keys`, their key files are not
    read."""
    reader = KeyReader(store) if keys else None
    for info in store.scan():
        if among is None or info.digest in among:
            yield _facts(store, info, reader)


def _facts(store: AnyStore, info: EntryInfo, reader: KeyReader | None) -> EntryFacts:
    digest = info.digest
    facts = EntryFacts(digest, store.place(digest), info.nbytes, info.disk_bytes, used_at=info.used_at)
    try:
        if reader is not None:
            facts.key, facts.function = reader.read(digest)
        found = where_in_pack(store, digest)
        if found is not None:
            facts.stored_at, facts.seconds = (found[0].column(name)[found[1]] for name in ("stored_at", "seconds"))
        elif isinstance(store, DiskStore):
            facts.stored_at, facts.seconds = store.loose.times(digest)
    except InvalidEntryError as error:
        facts.problem = error.reason
    except OSError as error:
        facts.problem = f"it cannot be read: {error}"
    facts.stored_at = facts.stored_at or facts.used_at
    return facts


def where_in_pack(store: AnyStore, digest: Digest) -> tuple[Pack, int] | None:
    """Return where in a pack the entry is that counts, None where it is loose."""
    if isinstance(store, PackFile):
        return store.pack, store.pack.find(digest)
    found = store.packs.find(digest)
    if found is None or (found[2] and store.loose.stat(digest) is not None):
        return None
    return found[:2]


class KeyReader:
    """Makes texts of the keys in a store."""

    def __init__(self, store: AnyStore) -> None:
        self._store = store
        self._format = about(store)["format"]

    def read(self, digest: Digest) -> tuple[str, str]:
        """Return a text for an entry's key, and the function if it is a memoized call's."""
        found = where_in_pack(self._store, digest)
        part = self._store.get_key(digest) if found is None else found[0].get_key(found[1])
        if part is None:
            return "", ""
        try:
            key = self._decoded(part.stream)
        except Exception as error:  # whatever the bytes lead to
            return f"<{len(part.stream)} bytes that cannot be described: {type(error).__name__}>", ""
        return _call(key) or (shown(key, 1000), "")

    def _decoded(self, stream: Buffer) -> Any:
        if self._format in ("json", "raw"):
            return find_format(self._format).loads_key(stream)
        return described(stream)


def _call(key: Any) -> tuple[str, str] | None:
    """Return the text of a memoized call, and the function; None where the key is something else."""
    if type(key) is not tuple or len(key) < 4:
        return None
    name, version, code, names = key[:4]
    if not all(type(part) is str for part in (name, code, names)) or not re.fullmatch("([0-9a-f]{32})?", code):
        return None
    parameters = names.split(", ") if names else []
    if len(parameters) != len(key) - 4:
        return None
    arguments = ", ".join(f"{name}={_argument(value)}" for name, value in zip(parameters, key[4:], strict=True))
    extra = "" if version is None else f" version {shown(version, 40)}"
    return f"{name}({arguments}){extra}", name


def _argument(value: Any) -> str:
    if type(value) is bytes and len(value) == 40:  # a digest stands for what is long
        return f"#{value[:8].decode('ascii', 'replace')}"
    return shown(value, 80)


def find_digest(store: AnyStore, text: str) -> Digest:
    """Return the digest that begins with `text`, or that of the only key whose text contains it.

    Raises
    ------
    ContainerError
        There is none, or there are several.
    """
    path = store.path
    if re.fullmatch(f"[0-9a-f]{{{_PLAINLY},40}}", text):
        found = [info.digest for info in store.scan() if info.digest.startswith(text)]
        if len(found) == 1:
            return found[0]
    is_begin = re.fullmatch("[0-9a-f]{4,40}", text) is not None  # of a digest, or a number in a key
    matching = [facts for facts in entries(store) if text in facts.key or (is_begin and facts.digest.startswith(text))]
    if len(matching) == 1:
        return matching[0].digest
    if not matching:
        raise ContainerError(path, f"no digest begins with {text!r}, and no key contains it")
    several = "".join(f"\n  {facts.digest}  {shown(facts.key, 80)}" for facts in matching[:10])
    ways = "give the digest of one (rm takes all of them by --key)"
    raise ContainerError(path, f"{text!r} is in {len(matching)} keys or digests; {ways}:{several}")


# One entry


@dataclass
class Description:
    """What can be said of one entry without running anything of it.

    Attributes
    ----------
    facts : EntryFacts
    checks : str
        "intact", or what is wrong.
    checksum : str
        The algorithm that its files are checked by.
    value_bytes, key_bytes, buffers : int
        Encoded sizes without footers; of how many buffers outside the stream the value's are.
    value_type : str
        What the value's bytes say that it is; "" where they do not say.
    value : str
        With `load`, the value's repr.
    """

    facts: EntryFacts
    checks: str = "intact"
    value_bytes: int = 0
    key_bytes: int = 0
    buffers: int = 0
    value_type: str = ""
    value: str = ""


def describe(store: AnyStore, digest: Digest, *, load: bool = False) -> Description:
    """Return what can be said of one entry. With `load`, its value is decoded, which may run code.

    Raises
    ------
    ContainerError
        There is no such entry.
    """
    found = where_in_pack(store, digest)
    if found is not None:
        info: EntryInfo | None = found[0].info(found[1])
    else:
        info = store.loose.info(digest) if isinstance(store, DiskStore) else None
    if info is None:
        raise ContainerError(store.path, f"there is no entry {digest}")
    description = Description(_facts(store, info, KeyReader(store)))
    try:
        entry = _checked(store, digest)
    except InvalidEntryError as error:
        description.checks = error.reason
        return description
    if entry is not None:
        value = entry.value
        description.value_bytes, description.key_bytes = value.nbytes, entry.key.nbytes
        description.buffers = len(value.buffers)
        name = about(store)["format"]
        description.value_type = _type_of(value.stream, value.buffers, name)
        if load:
            try:
                description.value = shown(_loaded(value.stream, value.buffers, name), 10_000)
            except Exception as error:  # whatever the bytes lead to
                description.checks = (
                    f"its bytes are intact, but decoding them fails with {type(error).__name__}: {error}"
                )
    return description


def _checked(store: AnyStore, digest: Digest) -> Entry | None:
    """Return an entry, every byte of it checked."""
    found = where_in_pack(store, digest)
    if found is not None:
        return found[0].get(found[1], is_hit=False)
    return store.loose.check(digest) if isinstance(store, DiskStore) else None


def _type_of(stream: Buffer, buffers: Sequence[Buffer], name: str) -> str:
    if name == "raw":
        return "bytes"
    if len(stream) > _LARGEST:
        return ""
    try:
        return type_name(find_format(name).loads(stream, buffers) if name == "json" else described(stream, buffers))
    except Exception:  # whatever the bytes lead to; of other formats there is nothing to say
        return ""


def _loaded(stream: Buffer, buffers: Sequence[Buffer], name: str) -> Any:
    from importlib import import_module

    return find_format(name if name in ("pickle", "json", "raw") else import_module(name)).loads(stream, buffers)


# Checking


@dataclass
class Verification:
    """What checking every byte has found.

    Attributes
    ----------
    checked : int
        Entries.
    nbytes : int
        Of their files.
    problems : list of InvalidEntryError
        What is damaged; the class says of what kind.
    """

    checked: int = 0
    nbytes: int = 0
    problems: list[InvalidEntryError] = field(default_factory=list)


def verify(store: AnyStore, progress: Progress = nothing) -> Verification:
    """Check every byte of every entry, and of the packs' indexes. What is removed or healed meanwhile is no damage."""
    found = Verification()
    total = len(store)
    for problem, nbytes in _checks(store):
        found.checked += 1
        found.nbytes += nbytes
        if problem is not None:
            found.problems.append(problem)
        if not found.checked % 256:
            progress(found.checked, max(total, found.checked))
    found.problems += [pack.error() for pack in packs_of(store) if pack.problem]
    progress(found.checked, found.checked)
    return found


def _checks(store: AnyStore) -> Iterator[tuple[InvalidEntryError | None, int]]:
    """Yield for each entry what is wrong with it, None if nothing is, and its bytes."""
    if isinstance(store, DiskStore):
        for digest in list(store.loose.digests()):
            try:
                problem = loose_problem(store, digest)
            except OSError as error:
                problem = InvalidEntryError(store.loose.place(digest), f"it cannot be read: {error}", "", store.path)
            yield problem, 0 if problem else store.loose.size(digest)
    for pack in packs_of(store):
        sizes = map(add, pack.column("value_sizes"), pack.column("key_sizes"))
        dead = pack.dead()
        for i, (is_intact, size) in enumerate(zip(pack.intact(), sizes, strict=True)):
            if i not in dead:
                yield (None if is_intact else pack.problem_of(i) or pack.scratch_at(i)), size


def loose_problem(store: DiskStore, digest: Digest) -> InvalidEntryError | None:
    """Return what is wrong with a loose entry, None if nothing is."""
    place = store.loose.place(digest)
    try:
        if store.loose.check(digest) is None and store.loose.is_wreck(digest):
            return InvalidEntryError(place, "its directory has no value file", place, store.path)
    except InvalidEntryError as error:
        return error
    return None
