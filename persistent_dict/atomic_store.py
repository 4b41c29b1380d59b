"""One value in one file, replaced as a whole: somebody who looks sees the old file or the new one, never a part.

    with persistent_dict.atomic_store.open("runs.json", default=[]) as store:
        store.value.append("another run")

Stands in for the package atomic_store, whose calls all work here. One thing differs: where an exception leaves the
``with``, that package writes what it has; here nothing is written, unless `commit_on_error=True` asks for it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from _thread import get_ident
from copy import deepcopy
from errno import ETIMEDOUT
from hashlib import blake2b
from threading import RLock
from time import time_ns

from persistent_dict import _fs
from persistent_dict.errors import StaleStoreError, UnreadableStoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Self

__all__ = ["AbstractFormatBstr", "AbstractFormatFile", "AtomicStore", "WrapBinaryFormat", "open"]

_SETTLED = 2_000_000_000  # ns; the coarsest clock of a file system in use ticks in 2 s
_FOREVER = 1e9  # seconds

_locked_by: dict[str, tuple[int, int]] = {}  # which thread of which process has locked a file


class AbstractFormatBstr:
    """A format of one's own, by bytes: a subclass has both methods. With ``is_binary=False``, by str."""

    def dumps(self, obj: Any, **kwargs: Any) -> Any:
        """Return `obj` encoded."""
        raise NotImplementedError(f"{type(self).__name__} has no dumps")

    def loads(self, binary_string: Any, **kwargs: Any) -> Any:
        """Return what was encoded."""
        raise NotImplementedError(f"{type(self).__name__} has no loads")


class AbstractFormatFile:
    """A format of one's own, by binary files: a subclass has both methods. With ``is_binary=False``, by text files."""

    def dump(self, obj: Any, fp: Any, **kwargs: Any) -> None:
        """Write `obj` to a file."""
        raise NotImplementedError(f"{type(self).__name__} has no dump")

    def load(self, fp: Any, **kwargs: Any) -> Any:
        """Return what a file has."""
        raise NotImplementedError(f"{type(self).__name__} has no load")


class WrapBinaryFormat(AbstractFormatFile):
    """Makes of a format by bytes, or by str, one by files."""

    def __init__(self, format_bstr: Any) -> None:
        self.format_bstr = format_bstr

    def dump(self, obj: Any, fp: Any, **kwargs: Any) -> None:
        encoded = self.format_bstr.dumps(obj, **kwargs)
        if isinstance(encoded, str) != isinstance(fp, io.TextIOBase):
            is_binary = not isinstance(encoded, str)
            raise TypeError(f"dumps returned a {type(encoded).__name__}: open the store with is_binary={is_binary}")
        fp.write(encoded)

    def load(self, fp: Any, **kwargs: Any) -> Any:
        return self.format_bstr.loads(fp.read(), **kwargs)


class _Json(AbstractFormatFile):
    """What `json` does, by the faster of its two ways."""

    def dump(self, obj: Any, fp: Any, **kwargs: Any) -> None:
        fp.write(json.dumps(obj, **kwargs))

    def load(self, fp: Any, **kwargs: Any) -> Any:
        return json.loads(fp.read(), **kwargs)


class _Toml:
    """Reading by the standard library (from Python 3.11), writing by tomli-w."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        if not isinstance(obj, dict):
            raise TypeError(f"a TOML file is a table: the value must be a dict, not a {type(obj).__name__}")
        tomli_w = _imported("tomli_w", "toml")
        return str(tomli_w.dumps(obj, **kwargs))

    def loads(self, text: str, **kwargs: Any) -> Any:
        module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
        return _imported(module, "toml").loads(text, **kwargs)


class _Bson:
    """By the package bson, or by the one of that name that pymongo brings."""

    def dumps(self, obj: Any, **kwargs: Any) -> bytes:
        bson = _imported("bson", "bson")
        return bytes(bson.dumps(obj, **kwargs) if hasattr(bson, "dumps") else bson.encode(obj, **kwargs))

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        bson = _imported("bson", "bson")
        return bson.loads(data, **kwargs) if hasattr(bson, "loads") else bson.decode(data, **kwargs)


def _imported(module: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"this format needs {module}:  pip install 'persistent_dict[{extra}]'") from error


def _find_format(format: Any) -> tuple[Any, bool]:  # noqa: A002  # the argument's public name
    """Return an object with `dump` and `load`, and whether it works on binary files."""
    if format is None or format == "json" or format is json:
        return _Json(), False
    if format == "toml":
        return WrapBinaryFormat(_Toml()), False
    if format == "bson":
        return WrapBinaryFormat(_Bson()), True
    if format == "pickle":
        import pickle

        return pickle, True
    if all(callable(getattr(format, name, None)) for name in ("dump", "load")):
        return format, True
    if all(callable(getattr(format, name, None)) for name in ("dumps", "loads")):
        return WrapBinaryFormat(format), True
    raise ValueError(
        f'unknown format {format!r}: use None, "json", "pickle", "bson", "toml", or a module or object with dump and '
        "load, or with dumps and loads"
    )


class AtomicStore:
    """One value in one file. `open` makes it.

    Attributes
    ----------
    value : object
        What the file had when it was read, or the default where there was none; and what `commit` writes.
    path : str or path
        The file.
    format : object
        Has `dump` and `load`.
    is_binary : bool
    load_kwargs, dump_kwargs : dict
    ignore_inner_exits : bool

    Notes
    -----
    One thread at a time; other threads and processes open a store of their own. With a lock, threads may share one, and
    take turns.
    """

    value: Any

    def __init__(
        self,
        path: str | os.PathLike[str],
        default: Any,
        format: Any,  # noqa: A002  # the public name
        is_binary: bool,
        load_kwargs: dict[str, Any],
        dump_kwargs: dict[str, Any],
        ignore_inner_exits: bool,
        *,
        lock: bool | float = False,
        safe_sync: bool = True,
        backup: bool = False,
        overwrite: bool = False,
        commit_on_error: bool = False,
    ) -> None:
        self.path = path
        self.format = format
        self.is_binary = is_binary
        self.load_kwargs = load_kwargs
        self.dump_kwargs = dump_kwargs
        self.ignore_inner_exits = ignore_inner_exits
        self._default = default
        self._file = os.path.realpath(os.fsdecode(path))  # a link is followed, not replaced
        self._backup = f"{self._file}.bak"
        status = _fs.status_of(self._file)
        mode = 0o600 if status is None else status.st_mode  # who may write the file may wait for its lock
        self._lock = None if lock is False else _fs.FileLock(f"{self._file}.lock", mode)
        self._patience = _FOREVER if lock is True else float(lock)
        self._turn = RLock()
        self._safe_sync = safe_sync
        self._keeps_backup = backup
        self._overwrite = overwrite
        self._commit_on_error = commit_on_error
        self._level = self._process = 0
        self._has_swept = False
        self._seen: tuple[object, bytes, bool] | None = None  # what file is meant to be replaced
        self.reload()

    # Reading

    def reload(self) -> None:
        """Read the file again, and forget what `value` was.

        Raises
        ------
        UnreadableStoreError
            There is a file, but its format cannot make anything of it. A `ValueError`, too.
        OSError
            It cannot be read, or is no regular file.
        """
        found = _fs.read_file(self._file)
        if found is None:
            self.value, self._seen = deepcopy(self._default), None
        else:
            self.value = self._decoded(found[0])
            self._remember(*found)

    def _decoded(self, data: bytes) -> Any:
        file = io.BytesIO(data)
        try:
            return self.format.load(file if self.is_binary else io.TextIOWrapper(file, "utf-8"), **self.load_kwargs)
        except (ImportError, MemoryError, TypeError):  # of a package that is not there, or of `load_kwargs`
            raise
        except Exception as error:  # whatever the bytes lead to
            backup = self._backup if os.path.isfile(self._backup) else ""
            raise UnreadableStoreError(self._file, f"{type(error).__name__}: {error}", backup) from error

    def _remember(self, data: bytes, status: os.stat_result) -> None:
        is_settled = time_ns() - status.st_mtime_ns > _SETTLED
        self._seen = _stamp(status), _checksum(data), is_settled

    # Writing

    def commit(self, *, overwrite: bool = False) -> None:
        """Write `value` to the file, at once. Where that fails, the file stays as it is; but where an `OSError` comes
        of syncing its directory, the last step, the new value is there, and may not outlive a power cut.

        Parameters
        ----------
        overwrite : bool
            Write it, too, where somebody else has changed the file since it was read.

        Raises
        ------
        StaleStoreError
            Somebody else has changed the file since it was read, and it is not locked.
        TimeoutError
            Somebody else has held the lock for too long.
        OSError
            The file cannot be written.
        Exception
            Whatever the format raises for a value that it cannot encode.
        """
        with self._turn:
            data = self._encoded()
            if self._level or self._lock is None:
                self._replace(data, overwrite)
                return
            self._take_lock(self._lock)
            try:
                self._replace(data, overwrite)
            finally:
                self._free_lock(self._lock)

    def _encoded(self) -> bytes:
        if self.is_binary:
            binary = io.BytesIO()
            self.format.dump(self.value, binary, **self.dump_kwargs)
            return binary.getvalue()
        text = io.StringIO()
        self.format.dump(self.value, text, **self.dump_kwargs)
        return text.getvalue().encode()

    def _replace(self, data: bytes, overwrite: bool) -> None:
        is_locked = self._lock is not None and self._level > 0
        if not (overwrite or self._overwrite or is_locked) and self._has_changed():
            raise StaleStoreError(self._file)
        if not self._has_swept:
            _fs.sweep_beside(self._file)
            self._has_swept = True
        backup = self._backup if self._keeps_backup else ""
        self._remember(data, _fs.replace_file(self._file, data, backup, must_last=self._safe_sync))
        if self._safe_sync:
            _fs.sync_directory(os.path.dirname(self._file))

    def _has_changed(self) -> bool:
        """Whether the file is another than the one that was read or written last. The same bytes are no change."""
        status = _fs.status_of(self._file)
        if status is None or self._seen is None:
            return (status is None) != (self._seen is None)
        stamp, checksum, is_settled = self._seen
        if is_settled and stamp == _stamp(status):
            return False
        found = _fs.read_file(self._file)
        return found is None or _checksum(found[0]) != checksum

    # As a context manager

    def __enter__(self) -> Self:
        """Take the lock, where there is one, and then read the file anew."""
        if self._lock is not None:
            self._turn.acquire()
            try:
                if not self._level:
                    self._take_lock(self._lock)
                    try:
                        self.reload()
                    except BaseException:
                        self._free_lock(self._lock)
                        raise
            except BaseException:
                self._turn.release()
                raise
        self._level += 1
        self._process = os.getpid()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Commit, if no exception is on its way; then give the lock back."""
        try:
            is_meant = (kind is None or self._commit_on_error) and self._process == os.getpid()  # no forked child
            if is_meant and (self._level == 1 or not self.ignore_inner_exits):
                self.commit()
        finally:
            self._level -= 1
            if self._lock is not None:
                if not self._level:
                    self._free_lock(self._lock)
                self._turn.release()

    def _take_lock(self, lock: _fs.FileLock) -> None:
        if _locked_by.get(self._file) == (os.getpid(), get_ident()):
            raise RuntimeError(f"{self._file}: this thread has locked it already, and would wait for itself for ever")
        if not lock.acquire(self._patience):
            waited = f"the lock has been held for {self._patience:g} s, by {lock.holder() or 'somebody'}"
            raise TimeoutError(ETIMEDOUT, waited, f"{self._file}.lock")
        _locked_by[self._file] = os.getpid(), get_ident()

    def _free_lock(self, lock: _fs.FileLock) -> None:
        _locked_by.pop(self._file, None)
        lock.release()


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def open(  # noqa: A001  # the public name
    path: str | os.PathLike[str],
    default: Any = None,
    format: Any = None,  # noqa: A002  # the public name
    is_binary: bool | None = None,
    load_kwargs: dict[str, Any] | None = None,
    dump_kwargs: dict[str, Any] | None = None,
    ignore_inner_exits: bool | None = False,
    *,
    lock: bool | float = False,
    safe_sync: bool = True,
    backup: bool = False,
    overwrite: bool = False,
    commit_on_error: bool = False,
) -> AtomicStore:
    """Return the store of one value in the file `path`.

    Parameters
    ----------
    path : str or path
        The file; its directory must be there. A link is followed.
    default : object
        The value where there is no file; a copy of it.
    format : None, str, module or object
        None or "json"; "pickle", "bson", "toml"; or anything that has `dump` and `load`, or `dumps` and `loads`.
    is_binary : bool, optional
        Whether the format writes bytes; True but for JSON and TOML. Text is UTF-8.
    load_kwargs, dump_kwargs : dict, optional
        What the format's functions are given beside: ``dump_kwargs={"separators": (",", ":")}``.
    ignore_inner_exits : bool
        Of nested ``with`` blocks over one store, the outermost alone commits.
    lock : bool or float
        Hold a lock, ``<path>.lock``, from entering a ``with`` to leaving it, and read the file anew on entering: so of
        two processes that add to a counter, none loses what the other has added. A number: how many seconds to wait
        for it. True: as long as it takes; the kernel frees the lock of a process that dies.
    safe_sync : bool
        Sync the file and its directory, so that what was committed outlives a power cut. Without, a power cut may
        leave the old file, the new one, or on some file systems an empty one.
    backup : bool
        Keep the version before as ``<path>.bak``.
    overwrite : bool
        Commit, too, where somebody else has changed the file since it was read.
    commit_on_error : bool
        Commit also when an exception leaves a ``with``, as the package atomic_store does.

    Raises
    ------
    UnreadableStoreError
        There is a file, but its format cannot make anything of it. It is never replaced by the default.
    OSError
        It cannot be read.

    Notes
    -----
    `PERSISTENT_DICT_DISABLE` has no effect here: such a file is no cache. Permissions, extended attributes and, where
    this user may, the owner of an existing file are kept; hard links to it keep the old version. After an exception,
    `value` still is what the block has made of it; `reload` takes that back, and so does entering with a lock.
    """
    found, is_binary_by_default = _find_format(format)
    return AtomicStore(
        path,
        default,
        found,
        is_binary_by_default if is_binary is None else is_binary,
        load_kwargs or {},
        dump_kwargs or {},
        bool(ignore_inner_exits),
        lock=lock,
        safe_sync=safe_sync,
        backup=backup,
        overwrite=overwrite,
        commit_on_error=commit_on_error,
    )
