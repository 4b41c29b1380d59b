"""Values that refer to other entries: writing all that one consists of, and putting it together again."""

from __future__ import annotations

from collections import namedtuple
from errno import EBUSY

from persistent_dict import _fs
from persistent_dict.errors import (
    ContainerError,
    CyclicReferenceError,
    InvalidEntryError,
    MissingReferenceError,
    NameTakenError,
    NoSuchEntryError,
    shown,
)
from persistent_dict.stores.base import Entry, TakenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any, NamedTuple

    from persistent_dict.stores.base import Digest, Part

    class Draft(NamedTuple):
        """An entry that is to be stored.

        Attributes
        ----------
        key : object
        entry : Entry
        overwrite : bool
            Whether it takes the place of what is there.
        part : object
            Where the entry is part of another's value: the object. It may be there already, if it is equal.
        """

        key: Any
        entry: Entry
        overwrite: bool
        part: Any = None
else:
    Draft = namedtuple("Draft", "key entry overwrite part", defaults=(None,))
_DEEPEST = 100  # references in a chain; loading takes some frames of the stack for each
_ATTEMPTS = 100  # at names that others take meanwhile


class PlaceError(Exception):
    """What the place of an entry answered, on its way through a decoder, which it says nothing about."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Links:
    """The references among the entries of one dictionary."""

    def __init__(self, dictionary: Any, references: Any) -> None:
        self._dictionary = dictionary
        self._references = references

    # Writing

    def drafts_of(self, key: Any, value: Any, seconds: float, key_stream: Any, overwrite: bool) -> dict[Digest, Draft]:
        """Return what storing a value takes: its own entry, and one for every object in it that has a name.

        Raises
        ------
        CyclicReferenceError
            Objects that have names are parts of each other.
        NameTakenError
            Two different objects in it have one name.
        """
        root = self._digest(key)
        drafts: dict[Digest, Draft] = {}
        graph: dict[Digest, list[Digest]] = {}
        seen: dict[tuple[Digest, int], Any] = {}  # by id; the objects live as long
        waiting = [(root, key, value)]
        while waiting:
            digest, name, thing = waiting.pop()
            if (digest, id(thing)) in seen or (digest == root and drafts):
                continue
            seen[digest, id(thing)] = thing
            own = self._references.name(thing)
            is_itself = own is None or self._digest(own) == digest
            stream, buffers, named = self._format.dumps_named(thing, is_root=is_itself)
            if digest == root:
                key_stream = self._format.dumps_key(key) if key_stream is None else key_stream
                draft = Draft(key, Entry.new(key_stream, stream, buffers, seconds), overwrite)
            else:
                draft = Draft(name, Entry.new(self._format.dumps_key(name), stream, buffers), False, thing)
            parts = [(self._digest(part_name), part_name, part) for part_name, part in named]
            graph.setdefault(digest, []).extend(part[0] for part in parts)
            waiting += parts  # also where the name is known: equal names may stand for different objects
            known = drafts.setdefault(digest, draft)
            if known is not draft and not self._are_equal(draft, known.entry.value, drafts):
                raise NameTakenError(name, "in the same value")
        self._check_shape(graph, drafts)
        return drafts

    def _check_shape(self, graph: dict[Digest, list[Digest]], drafts: dict[Digest, Draft]) -> None:
        if len(graph) == 1 and not any(graph.values()):
            return
        from graphlib import CycleError, TopologicalSorter

        depth: dict[Digest, int] = {}
        try:
            for digest in TopologicalSorter(graph).static_order():
                depth[digest] = 1 + max((depth[part] for part in graph[digest]), default=0)
        except CycleError as error:
            raise CyclicReferenceError([drafts[digest].key for digest in reversed(error.args[1])]) from None
        if max(depth.values()) > _DEEPEST:
            raise RecursionError(f"a chain of more than {_DEEPEST} references: Python's stack may not do to load it")

    def new_parts(self, drafts: Mapping[Digest, Draft], around: Mapping[Digest, Draft]) -> set[Digest]:
        """Return the digests of the parts that are stored nowhere yet, neither in the store nor in what is `around`.

        Raises
        ------
        NameTakenError
            Another object is stored under the name of one.
        """
        new: set[Digest] = set()
        for digest, draft in drafts.items():
            if draft.part is None or _fs.disabled():
                continue
            there = around[digest].entry.value if digest in around else self._stored(draft.key, digest)
            if there is None:
                new.add(digest)
            elif not self._are_equal(draft, there, {**around, **drafts}):
                raise NameTakenError(draft.key, f"at {self._dictionary._store.place(digest)}")
        return new

    def _are_equal(self, draft: Draft, there: Part, drafts: Mapping[Digest, Draft]) -> bool:
        """Whether an object is what is stored under its name: by its bytes, by ``==``, or by the bytes that do not
        depend on which of its parts are one object."""
        ours = draft.entry.value
        if [*map(bytes, (ours.stream, *ours.buffers))] == [*map(bytes, (there.stream, *there.buffers))]:
            return True
        theirs = self._format.loads_resolving(there.stream, there.buffers, self.resolver(drafts))
        try:
            if theirs == draft.part:
                return True
        except Exception:  # noqa: S110  # arrays do not compare to one bool, and a user's __eq__ may raise anything
            pass
        try:
            return bool(self._format.plain_bytes(theirs) == self._format.plain_bytes(draft.part))
        except (RecursionError, ValueError):  # an object that contains itself
            return False

    def store(self, drafts: dict[Digest, Draft], root: Digest) -> bool | None:
        """Store a value with its parts, all at once. False: there is an entry under its key, and nothing was changed;
        None: nothing is ever stored here."""
        try:
            kept = self.store_all(drafts, () if drafts[root].overwrite else (root,))
        except TakenError:
            return False
        return None if kept is None else True

    def store_all(self, drafts: dict[Digest, Draft], new: Collection[Digest] = ()) -> Collection[Digest] | None:
        """Store what was drafted. Return the digests of what was there and stays; None: nothing is ever stored here.

        Raises
        ------
        TakenError
            Something in `new` is there.
        NameTakenError
            As `new_parts`.
        """
        for _ in range(_ATTEMPTS):
            new_parts = self.new_parts(drafts, {})
            try:
                kept: Collection[Digest] | None = self._dictionary._store_all(drafts, new_parts.union(new))
            except TakenError as error:  # by what may be equal
                if not set(new).isdisjoint(error.digests):
                    raise
            else:
                return kept
        raise OSError(EBUSY, "others keep storing and removing objects that the value refers to")

    # Reading

    def resolver(self, drafts: Mapping[Digest, Draft], *, sets_aside: bool = True) -> Callable[[Any], Any]:
        """Return what makes objects of names, for the time of reading one value: each is made once. With `sets_aside`,
        what is damaged is treated as the dictionary does."""
        done: dict[Digest, Any] = {}
        way: dict[Digest, Any] = {}

        def resolve(name: Any) -> Any:
            digest = self._digest(name)
            if digest in done:
                return done[digest]
            if digest in way:
                raise CyclicReferenceError([*way.values(), name])
            part = drafts[digest].entry.value if digest in drafts else self._stored(name, digest, sets_aside=sets_aside)
            if part is None:
                raise MissingReferenceError(self._dictionary._store.place(digest), _told(name, list(way.values())))
            way[digest] = name
            done[digest] = self._format.loads_resolving(part.stream, part.buffers, resolve)
            del way[digest]
            return done[digest]

        return resolve

    def fetch(self, name: Any, drafts: Mapping[Digest, Draft]) -> Any:
        """Return what is stored under a name, with what was drafted in place of the parts that are stored.

        Raises
        ------
        NoSuchEntryError
            There is none.
        """
        part = self._stored(name, self._digest(name))
        if part is None:
            raise NoSuchEntryError(name)
        return self._format.loads_resolving(part.stream, part.buffers, self.resolver(drafts))

    def _stored(self, name: Any, digest: Digest, *, sets_aside: bool = True) -> Part | None:
        """Return the value that is stored under a name, None where there is none."""
        dictionary = self._dictionary
        try:
            entry = dictionary._store.get(digest)
        except InvalidEntryError as error:
            if not sets_aside:
                raise
            dictionary._handle_invalid(error, digest, name)
            return None
        except (OSError, ContainerError) as error:
            raise PlaceError(error) from error
        if entry is None:
            return None
        dictionary._check_key(entry.key, digest, name)
        value: Part = entry.value
        return value

    @property
    def _format(self) -> Any:
        return self._dictionary._format

    def _digest(self, key: Any) -> Digest:
        digest: Digest = self._dictionary._digest(key)[0]
        return digest


def _told(name: Any, way: list[Any]) -> str:
    by = f", by way of {' and '.join(map(shown, way))}," if way else ""
    return f"it refers to {shown(name)}{by} and there is no entry of that name"
