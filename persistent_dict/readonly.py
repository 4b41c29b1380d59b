"""A dictionary that is served straight from a pack file."""

from __future__ import annotations

import os

from persistent_dict.dicts import WriteOncePersistentDict
from persistent_dict.errors import ContainerError
from persistent_dict.formats import find_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAMED = ("pickle", "json", "raw")


def open_readonly(
    path: str | os.PathLike[str],
    key_builder: Callable[[Any], str] | None = None,
    *,
    format: Any = None,  # noqa: A002  # as in the dictionaries
    in_mem_cache_size: int | None = 256,
    mmap: bool = False,
    trusted: bool = False,
    references: Any = None,
) -> WriteOncePersistentDict[Any, Any]:
    """Return a dictionary of what is in a pack that `persistent-dict export` made.

    Parameters
    ----------
    path : path
        The pack.
    key_builder : callable, optional
        That of the dictionary that was exported.
    format : str, module or object, optional
        That of the dictionary that was exported; known for "pickle", "json" and "raw".
    in_mem_cache_size, mmap, trusted, references
        As for `WriteOncePersistentDict`.

    Raises
    ------
    ContainerError
        It is no pack; one of another format, or with another Python's pickles; or (`UntrustedContainerError`) others
        may have written to the file.

    Notes
    -----
    What is stored in it is not kept: a `CacheWriteWarning` says so, once. To keep what it lacks, give it as `over=` to
    a dictionary of its own place.
    """
    from urllib.parse import unquote

    from persistent_dict.stores.pack_file import PackFile

    made_with = None if format is None else find_format(format)
    wanted = None if made_with is None else made_with.name
    store = PackFile(os.fspath(path), wanted, mmap=mmap, trusted=trusted)
    name = unquote(store.facts["format"])
    if made_with is None and name not in _NAMED:
        raise ContainerError(store.path, f"its values were written by {name}: pass that as format=")
    identifier = unquote(store.facts.get("identifier", "")) or os.path.basename(store.path)
    opened: WriteOncePersistentDict[Any, Any] = WriteOncePersistentDict(
        identifier,
        key_builder,
        format=format or name,
        in_mem_cache_size=in_mem_cache_size,
        store=store,
        references=references,
    )
    opened.filename = store.path
    return opened
