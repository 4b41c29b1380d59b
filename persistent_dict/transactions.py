"""Many entries of one dictionary at once: all of them are there, or none, whatever crashes.

    with transaction(d) as txn:
        txn.store("mesh", mesh)
        txn.store("solution", solution)

Objects are encoded while the block runs. Leaving it writes them to one file, syncs that, and makes it visible by one
rename; an exception that leaves the block leaves nothing.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from collections import namedtuple

from persistent_dict.errors import NoSuchEntryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, NamedTuple, TypeVar

    from typing_extensions import Self

    from persistent_dict._computing import ComputingDictionary
    from persistent_dict._links import Draft
    from persistent_dict.stores.base import Digest

    K = TypeVar("K")
    V = TypeVar("V")

    class TransactionResult(NamedTuple):
        """What became of the keys of a transaction.

        Attributes
        ----------
        stored : tuple
            The keys whose values are there now.
        kept : tuple
            Those that somebody else stored first, and which keep that value.
        """

        stored: tuple[Any, ...]
        kept: tuple[Any, ...]
else:
    TransactionResult = namedtuple("TransactionResult", "stored kept")

    class Generic:
        """What typing's does for a reader of types, without typing's import."""

        def __class_getitem__(cls, parameters):
            return cls


_open: list[Transaction[Any, Any]] = []


def transaction(dictionary: ComputingDictionary[K, V]) -> Transaction[K, V]:
    """Return a transaction over a dictionary, to be entered by ``with``.

    Raises
    ------
    NotImplementedError
        On leaving: the dictionary's store cannot store many entries at once.

    Notes
    -----
    A transaction inside another one over the same dictionary, in one thread or task, joins it: what it has stored is
    written when the outermost one ends; an exception that leaves the inner one takes back what that has stored. Other
    threads and processes may read and write meanwhile. What is stored is synced, whatever the dictionary's
    `durability`.
    """
    return Transaction(dictionary)


class Transaction(Generic["K", "V"]):
    """What `transaction` returns: stores, and reads what it has stored, for one thread.

    Attributes
    ----------
    result : TransactionResult or None
        What became of the keys, once the outermost block has ended.
    """

    def __init__(self, dictionary: ComputingDictionary[K, V]) -> None:
        self._dictionary = dictionary
        self._drafts: dict[Digest, Draft] = {}
        self._before: dict[Digest, Draft] = {}
        self._outer: Transaction[K, V] | None = None
        self._state = "new"
        self._worker: object = None
        self._result: TransactionResult | None = None

    @property
    def result(self) -> TransactionResult | None:
        return self._result if self._outer is None else self._outer.result

    def __enter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("a transaction is entered once: call transaction() for another one")
        self._worker = _this_worker()
        for other in reversed(_open):
            if other._dictionary is self._dictionary and other._worker == self._worker:
                self._outer, self._drafts = other, other._drafts
                break
        self._before = dict(self._drafts)
        self._state = "open"
        _open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._check()
        self._state = "over"
        _open.remove(self)
        if kind is not None:
            self._drafts.clear()
            self._drafts.update(self._before)
        elif self._outer is None:
            self._result = TransactionResult(*self._dictionary._store_drafts(self._drafts))
        else:
            self._outer._check()

    # Writing

    def store(self, key: K, value: V, *, seconds: float = 0.0) -> None:
        """Encode `value`, to be stored under `key` when the transaction ends. `seconds`: how long it took to compute.

        Over a `PersistentDict` it takes the place of what is there, by then.

        Raises
        ------
        ReadOnlyEntryError
            The dictionary is written once, and has an entry under the key, or this transaction has (see the
            dictionary's `on_conflict`). Where somebody else stores one later, `result` tells.
        """
        self._dictionary._draft(self._check(), key, value, seconds)

    def __setitem__(self, key: K, value: V) -> None:
        self.store(key, value)

    def store_if_not_present(self, key: K, value: V, *, seconds: float = 0.0) -> bool:
        """Do what `store` does if there is no entry yet, neither in the dictionary nor in this transaction. Return
        whether it did; where somebody else stores one later, `result` tells."""
        if key in self:
            return False
        self._dictionary._draft(self._check(), key, value, seconds, overwrite=False)
        return True

    def _check(self) -> dict[Digest, Draft]:
        if self._state != "open":
            raise RuntimeError("a transaction is used inside of its with block")
        return self._drafts

    # Reading

    def fetch(self, key: K) -> V:
        """Return the value that this transaction has stored under `key`, decoded; else that of the dictionary.

        Raises
        ------
        NoSuchEntryError
            A `KeyError`: there is none.
        InvalidEntryError
            As the dictionary's `fetch`.
        """
        value: V = self._dictionary._fetch_around(self._drafts, key)
        return value

    def __getitem__(self, key: K) -> V:
        return self.fetch(key)

    def get(self, key: K, default: Any = None) -> V | Any:
        """Return what `fetch` does, or `default` where there is nothing."""
        try:
            return self.fetch(key)
        except NoSuchEntryError:
            return default

    def __contains__(self, key: K) -> bool:
        return self._dictionary._drafted(self._drafts, key) is not None or key in self._dictionary


def _this_worker() -> object:
    """Return which thread and task this is."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no loop is running
        task = None
    return get_ident(), task
