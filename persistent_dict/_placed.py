"""Where a dictionary's entries are: in a store or a directory that was given, or in the default place."""

from __future__ import annotations

import os
from weakref import WeakValueDictionary

from persistent_dict import _fs
from persistent_dict.stores.container import container_path
from persistent_dict.stores.disk import DiskStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from persistent_dict.formats import Format
    from persistent_dict.stores.base import Reader

_in_default_place: WeakValueDictionary[int, Placed] = WeakValueDictionary()  # by id: dictionaries do not hash


def displace_all() -> None:
    """Let every dictionary of this process that was given no place look for the default place again."""
    for placed in list(_in_default_place.values()):
        placed._displace()


class Placed:
    """Has `container_dir`, `filename` and `_store`; in the default place they are found at the first use."""

    identifier: str
    container_dir: str
    filename: str
    _format: Format
    _options: dict[str, Any]  # of the DiskStore
    _over: list[Any]
    _store: Any

    def _settle(self, store: Any, container_dir: str | os.PathLike[str] | None) -> None:
        """Take the place that was given. Raise what is wrong with identifier and options, wherever it is."""
        if store is not None:
            self._store, self.container_dir, self.filename = store, "", ""
            return
        self._place(os.fspath(container_dir or ""))
        if not container_dir:
            self._displace()

    def _place(self, container_dir: str) -> None:
        self.container_dir = container_dir
        self.filename = container_path(container_dir, self.identifier, self._format)
        self._store = DiskStore(self.filename, self._format.name, self.identifier, **self._options)
        if self._over:
            from persistent_dict.stores.layered import LayeredStore

            self._store = LayeredStore(self._store, [self._below(item) for item in self._over])

    def _below(self, item: Any) -> Reader:
        """Return the store of a read-only dictionary, or of a pack at a path."""
        if isinstance(item, (str, os.PathLike)):
            from persistent_dict.stores.pack_file import PackFile

            options = {name: self._options.get(name, False) for name in ("mmap", "trusted")}
            return PackFile(os.fspath(item), self._format.name, self.identifier, **options)
        store: Reader = getattr(item, "_store", item)
        return store

    def _displace(self) -> None:
        """Forget the place; the next use looks for the default one."""
        _in_default_place[id(self)] = self
        for name in ("container_dir", "filename", "_store"):
            vars(self).pop(name, None)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            # Only asked for what is not there.
            if name not in ("container_dir", "filename", "_store"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self._place(_fs.default_container_dir())
            return vars(self)[name]
