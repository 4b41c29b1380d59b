"""Every file-system primitive, and what each does on a crash. The only importer of filelock and platformdirs.

A file is written privately and published by one rename. Errors come through as `OSError`; "not there" is an answer
(None or False), and so is a lost race.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from _thread import get_ident
from errno import (
    EBADF,
    EEXIST,
    EINVAL,
    ELOOP,
    EMLINK,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENOTSUP,
    ENXIO,
    EPERM,
    ESTALE,
    ETIMEDOUT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar

    from filelock import BaseFileLock

    from persistent_dict.formats import Buffer

# O_NONBLOCK: opening a FIFO must not wait for a writer. O_NOFOLLOW: a planted link is refused.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
_IOV_MAX = 512
_ATTEMPTS = 100
_POLL = 0.005  # seconds
_STAGE_SUFFIX = ".tmp"
_STALE = 3600  # seconds
_HEX = frozenset("0123456789abcdef")
_DISABLE = os.fsencode("PERSISTENT_DICT_DISABLE")

#: Errors of opening that say "something else than a regular file stands here".
FOREIGN = frozenset({ELOOP, ENOTDIR, ENXIO})


# Reading


def open_file(path: str, dir_fd: int | None = None) -> int:
    """Return a descriptor for reading a file, without following a link in its last component and without waiting."""
    return os.open(path, READ, dir_fd=dir_fd)


def open_quietly(path: str, dir_fd: int | None = None) -> int:
    """Do what `open_file` does, and leave the time of the last access as it is, where this user may."""
    try:
        return os.open(path, READ | getattr(os, "O_NOATIME", 0), dir_fd=dir_fd)
    except PermissionError:
        return open_file(path, dir_fd)


def open_directory(path: str) -> int:
    """Return a descriptor for a directory, not for a link to one."""
    return os.open(path, _DIRECTORY)


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from all others."""
    return status.st_dev, status.st_ino


def is_still(fd: int, known: tuple[int, int]) -> bool:
    """Whether a descriptor is still that of a file, as it is not where somebody has closed all of a process's."""
    try:
        return identity(os.fstat(fd)) == known
    except OSError as error:
        if error.errno not in (EBADF, ESTALE):
            raise
        return False


def read_into(fd: int, buffer: memoryview, offset: int) -> bool:
    """Fill `buffer` from `offset` of the file. False: the file ends before."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            return False
        done += count
    return True


def read_file(path: str) -> tuple[bytes, os.stat_result] | None:
    """Return what a regular file has, and its status; None where there is none."""
    try:
        fd = open_file(path)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(EINVAL, "it is no regular file", path)
        chunks = [os.read(fd, status.st_size + 1)]
        while chunks[-1]:
            chunks.append(os.read(fd, 1 << 20))
        return b"".join(chunks), status
    finally:
        os.close(fd)


def status_of(path: str) -> os.stat_result | None:
    """Return a file's status, None where there is none."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


# Writing


def create_file(path: str, mode: int) -> int:
    """Return a descriptor for writing a file, which must not exist."""
    return os.open(path, _WRITE, mode & 0o666)


def write_file(path: str, chunks: list[Buffer], mode: int, durability: str) -> None:
    """Make a file of `chunks`, which must not exist, and hand it to the disk as far as `durability` asks."""
    fd = create_file(path, mode)
    try:
        write_all(fd, chunks)
        if mode & 0o077:  # the umask has taken what the group was to have
            os.fchmod(fd, mode & 0o666)
        if durability == "writeout":
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # starts writing, does not wait
        elif durability != "none":
            os.fsync(fd)
    except BaseException:
        close_quietly(fd)
        raise
    os.close(fd)  # its error counts: a quota, a network file system


def write_all(fd: int, chunks: list[Buffer]) -> None:
    """Write all of `chunks` where the descriptor stands."""
    if len(chunks) <= _IOV_MAX:
        written = os.writev(fd, chunks)
        if written == sum(map(len, chunks)):
            return
        chunks = _after(chunks, written)
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _after(chunks: list[Buffer], written: int) -> list[Buffer]:
    """Return what is left of `chunks` after their first `written` bytes."""
    left: list[Buffer] = []
    for chunk in chunks:
        left.append(memoryview(chunk)[written:])
        written = max(0, written - len(chunk))
    return left


def close_quietly(fd: int) -> None:
    """Close a descriptor, whatever that says."""
    try:
        os.close(fd)
    except OSError:  # an earlier error is on its way, and tells more, or nothing can have been lost
        return


def close_if_still(fd: int, known: tuple[int, int]) -> None:
    """Close a descriptor that is still a file's."""
    try:
        if fd >= 0 and is_still(fd, known):
            os.close(fd)
    except OSError:  # as above
        return


def make_directory(path: str, mode: int) -> bool:
    """Make a directory. False: something of that name is there."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    if mode & 0o077:  # the umask has taken what the group was to have
        os.chmod(path, mode)
    return True


def sync_directory(path: str) -> None:
    """Make renames and new names in a directory outlive a power cut, where its file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_with_parents(path: str) -> None:
    """Make a directory's name outlive a power cut: sync it and those above it, where this user may open them."""
    above = path
    while True:
        try:
            sync_directory(above)
        except PermissionError:  # somebody else's: it was there before
            pass
        if above == os.path.dirname(above):
            return
        above = os.path.dirname(above)


def sync(fd: int) -> None:
    """fsync; a file system that has none for this kind of file is not an error."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):
            raise


def replace_file(path: str, data: Buffer, backup: str, *, must_last: bool) -> os.stat_result:
    """Put a file in the place of another, at once. Return the new one's status.

    It has the permissions and extended attributes of the other and, where this user may give it, its owner. With
    `backup`, a path, the other stays there. With `must_last`, its bytes are synced; its name is for the caller to sync.
    """
    stage, before = _stage_beside(path), status_of(path)
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(EINVAL, "it is no regular file", path)
    try:
        fd = os.open(stage, _WRITE, 0o666 if before is None else 0o600)
    except FileNotFoundError:
        raise FileNotFoundError(ENOENT, "there is no such directory", os.path.dirname(path)) from None
    try:
        try:
            write_all(fd, [data])
            if before is not None:
                _make_like(fd, path, before)
            if must_last:
                os.fsync(fd)
            status = os.fstat(fd)
        except BaseException:
            close_quietly(fd)
            raise
        os.close(fd)  # its error counts
        if backup and before is not None:
            _link_over(path, _stage_beside(path), backup)
        os.rename(stage, path)
    except BaseException:
        discard(stage)
        raise
    return status


def _make_like(fd: int, path: str, before: os.stat_result) -> None:
    """Give an open file the owner, the extended attributes and the permissions of another, as far as this user may."""
    for owner in (before.st_uid, -1):
        try:
            os.fchown(fd, owner, before.st_gid)
            break
        except PermissionError:
            continue
    for name in _extended_attributes(path):  # access-control lists are among them
        try:
            os.setxattr(fd, name, os.getxattr(path, name))
        except OSError:
            continue
    os.fchmod(fd, stat.S_IMODE(before.st_mode) & 0o777)


def _extended_attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path) if hasattr(os, "listxattr") else []
    except OSError:  # a file system without them
        return []


def _link_over(path: str, stage: str, target: str) -> None:
    """Let a file be at `target`, too, in the place of what is there."""
    try:
        try:
            os.link(path, stage)
        except OSError as error:
            if error.errno not in (EPERM, ENOTSUP, EMLINK):
                raise
            from shutil import copy2  # a file system without links

            copy2(path, stage)
        os.rename(stage, target)
    finally:
        discard(stage)  # rename leaves it where both are links to one file, as after a crash


def sweep_beside(path: str) -> None:
    """Remove what processes that were killed in `replace_file` have left, after an hour."""
    directory, name = os.path.split(path)
    prefix = _stage_prefix(name)
    for other in list_directory(directory):
        middle = other.removeprefix(prefix).removesuffix(_STAGE_SUFFIX)
        if other == f"{prefix}{middle}{_STAGE_SUFFIX}" and len(middle) == 16 and _HEX.issuperset(middle):
            status = status_of(f"{directory}/{other}")
            if status is not None and stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _STALE:
                discard(f"{directory}/{other}")


def _stage_beside(path: str) -> str:
    directory, name = os.path.split(path)
    return f"{directory}/{_stage_prefix(name)}{os.urandom(8).hex()}{_STAGE_SUFFIX}"


def _stage_prefix(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:100])}."


def publish_directory(staged: str, final: str) -> bool:
    """Rename a directory to where readers look. False: a directory with something in it stands there already."""
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno in (EEXIST, ENOTEMPTY):
            return False
        raise
    return True


def rename_if_there(source: str, target: str) -> bool:
    """Rename. False: there is no source."""
    try:
        os.rename(source, target)
    except FileNotFoundError:
        return False
    return True


# Removing


def remove_tree(path: str) -> None:
    """Remove a directory and all in it, or a file; links are removed, not followed. What vanishes meanwhile is fine."""
    try:
        os.unlink(path)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # a directory; macOS says EPERM
        if not is_directory(path):
            raise
    for _ in range(_ATTEMPTS):
        try:
            for name in sorted(os.listdir(path), reverse=True):  # an entry's value before its key: half of it is a miss
                remove_tree(f"{path}/{name}")
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:  # again, if a writer that holds the directory's descriptor has just put a file there
            if error.errno not in (EEXIST, ENOTEMPTY):
                raise


def remove_all(paths: list[str]) -> None:
    """Remove what stands at some paths, as `remove_tree` does."""
    for path in paths:
        remove_tree(path)


def discard(path: str) -> None:
    """Remove what was staged and is not needed. Where that fails, it stays to be swept: an error, or a success, that
    tells more is on its way."""
    try:
        remove_tree(path)
    except OSError:
        return


def is_directory(path: str) -> bool:
    """Whether a real directory, no link, stands there. Errors other than "not there" come through."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def time_of(path: str) -> float:
    """Return when a file was last written, in seconds since the epoch, 0.0 where there is none."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def changed_at(path: str) -> float:
    """Return when a file was last written, renamed or given other permissions."""
    try:
        return os.lstat(path).st_ctime
    except FileNotFoundError:
        return 0.0


def touch(path: str, mode: int) -> None:
    """Make a file, or say that it was written now."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode & 0o666)
    try:
        if mode & 0o077 and os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, mode & 0o666)
        os.utime(fd)
    finally:
        os.close(fd)


def size_of(path: str) -> int:
    """Return a file's size in bytes, 0 where there is none."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def list_directory(path: str) -> list[str]:
    """Return the names in a directory, sorted; none where there is no directory."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def tree(path: str) -> Iterator[str]:
    """Yield a path and, where it is a directory, what is in it, one level deep."""
    yield path
    for name in list_directory(path) if is_directory(path) else ():
        yield f"{path}/{name}"


# Whom to trust


def trusted_owners() -> frozenset[int]:
    """Return the user ids whose files may be unpickled: this process's, root's, and that of who called sudo."""
    owners = {0, os.geteuid()}
    sudo = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and sudo.isdigit():
        owners.add(int(sudo))
    return frozenset(owners)


def distrust(path: str, mode: int) -> tuple[str, str]:
    """Say why what is in a directory may be somebody else's: the reason and the command that mends it, or two "".

    A `mode` that lets the group write says that the group is trusted. The directories above may not be another user's,
    and whoever may write there needs the sticky bit to leave ours alone; a group there is fine, since a container that
    it swaps in has the wrong owner.
    """
    from persistent_dict.errors import shell_quoted

    owners = trusted_owners()
    real = os.path.realpath(path)
    status = os.lstat(real)
    shared = bool(mode & 0o020)
    if status.st_uid not in owners and not (shared and status.st_gid in {os.getegid(), *os.getgroups()}):
        return f"it belongs to the user {status.st_uid}, not to you", f"chown {os.geteuid()} {shell_quoted(path)}"
    for bit, who in ((0o002, "everybody"), (0o020, "its group")):
        if status.st_mode & bit and not mode & bit:
            recursive = "-R " if stat.S_ISDIR(status.st_mode) else ""
            command = f"chmod {recursive}go-w {shell_quoted(path)}"
            return f"{who} may write to it (mode {status.st_mode & 0o777:o})", command
    for link in _links_on_the_way(path):
        if os.lstat(link).st_uid not in owners:
            return f"the link {link} on the way to it belongs to the user {os.lstat(link).st_uid}", ""
    parent = real
    while parent != os.path.dirname(parent):
        parent = os.path.dirname(parent)
        status = os.lstat(parent)
        if status.st_uid not in owners:
            return f"the directory {parent} above it belongs to the user {status.st_uid}", ""
        if status.st_mode & 0o002 and not status.st_mode & stat.S_ISVTX:
            return f"everybody may write to {parent} above it", f"chmod o-w {shell_quoted(parent)}"
    return "", ""


def _links_on_the_way(path: str) -> Iterator[str]:
    way = os.path.abspath(path)
    while way != os.path.dirname(way):
        if os.path.islink(way):
            yield way
        way = os.path.dirname(way)


# Places and locks


# What os.environ keeps its variables in. Asking os.environ for one that is not set raises and catches two exceptions on
# the way, which is a tenth of a hit's time.
_environment: dict[Any, Any] = getattr(os.environ, "_data", {_DISABLE: b"1"})


def disabled() -> bool:
    """Whether PERSISTENT_DICT_DISABLE turns all caches off, now."""
    return _DISABLE in _environment and os.environ.get("PERSISTENT_DICT_DISABLE", "") not in ("", "0")


def default_container_dir() -> str:
    """Return the directory that holds containers: PERSISTENT_DICT_DIR, else the user's cache directory."""
    chosen = os.environ.get("PERSISTENT_DICT_DIR", "")
    if chosen:
        return chosen
    if sys.platform == "darwin" and os.environ.get("XDG_CACHE_HOME"):  # platformdirs asks for it on Linux alone
        return os.path.join(os.environ["XDG_CACHE_HOME"], "persistent_dict")
    from platformdirs import user_cache_dir

    return user_cache_dir("persistent_dict", appauthor=False)


class FileLock:
    """A lock file, which one thread of one process holds at a time. The kernel frees it when its holder dies, and
    nothing is left of it afterwards."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._lock: BaseFileLock | None = None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Wait for it, up to `timeout` seconds. False: somebody else holds it. An `OSError`: it cannot be had."""
        import filelock

        if self._lock is None:
            self._lock = filelock.FileLock(
                self._path,
                mode=self._mode & 0o666,
                thread_local=False,  # a coroutine's steps run in several threads
                fallback_to_soft=False,
                on_acquired=_sign,
            )
        try:
            self._lock.acquire(timeout=timeout, poll_interval=_POLL)
        except filelock.Timeout:
            return False
        return True

    def release(self) -> bool:
        """Let others have it, and remove the file. Return whether it was held."""
        if self._lock is None or not self._lock.is_locked:  # a forked child holds nothing of its parent's
            return False
        try:
            try:
                os.unlink(self._path)  # while it is held: whoever waits for it sees that, and makes another
            finally:
                self._lock.release()
        except OSError:  # the file is gone already, the place read-only, the descriptor closed by somebody
            pass
        return True

    def holder(self) -> str:
        """Return who holds it, for a person to read; "" where that is not known."""
        try:
            fd = open_file(self._path)
        except OSError:
            return ""
        try:
            return os.read(fd, 1000).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)


class DigestLock(FileLock):
    """A lock file for the work on one digest. It saves work, and guards nothing: where it cannot be had (no locks in
    the file system, no right to make the file), the work goes on without it."""

    def __init__(self, directory: str, name: str, mode: int) -> None:
        super().__init__(f"{directory}/{name}.lock", mode)

    def acquire(self, timeout: float = 0.0) -> bool:
        """Wait for it, up to `timeout` seconds. False: somebody else holds it."""
        try:
            if self._lock is None:
                make_directory(os.path.dirname(self._path), self._mode)
            return super().acquire(timeout)
        except (OSError, NotImplementedError, RuntimeError):  # RuntimeError: it came along through a fork
            self._lock = None
            return True


class DirectoryLock:
    """A lock on a directory, for the time of a ``with``: shared by those who change entries one by one, held alone by
    who moves many.

    `gate` is a file in it: who wants the lock alone closes it, so that those who share the lock cannot keep it from
    them by taking turns. The kernel frees all when the holder dies. Who waits longer than `timeout` seconds gets a
    `TimeoutError`. Where the file system has no locks, the shared one is not needed, and the other cannot be had: an
    `OSError`. A forked child has none of its parent's.
    """

    held: ClassVar[dict[int, tuple[int, str]]] = {}  # which thread has a descriptor, and for what

    def __init__(self, path: str, gate: str, *, alone: bool = False, timeout: float = 60.0) -> None:
        self._path = path
        self._gate = gate
        self._alone = alone
        self._timeout = timeout
        self._fds: list[int] = []

    def __enter__(self) -> None:
        self._free_forgotten()
        end = time.monotonic() + self._timeout
        try:
            self._take(self._gate, end)
            self._take(self._path, end)
            if not self._alone:
                self._free(self._fds[0])
                del self._fds[0]
        except BaseException:
            self.__exit__()
            raise

    def _take(self, path: str, end: float) -> None:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

        self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.held[self._fds[-1]] = get_ident(), self._path
        while True:
            try:
                flock(self._fds[-1], (LOCK_EX if self._alone else LOCK_SH) | LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    waited = f"another process has been changing it for {self._timeout:g} s; `fuser -v` names it"
                    raise TimeoutError(ETIMEDOUT, waited, self._path) from None
                time.sleep(0.001)
            except OSError:
                if self._alone:
                    raise
                return

    def __exit__(self, *exception: object) -> None:
        try:
            while self._fds:
                self._free(self._fds[-1])
                del self._fds[-1]
        finally:
            if self._fds:  # an interrupt
                self.__exit__()

    def _free(self, fd: int) -> None:
        from fcntl import LOCK_UN, flock

        if fd not in self.held:  # this is a child, forked meanwhile
            return
        try:
            flock(fd, LOCK_UN)  # closing would not free it while a child that is being forked has a copy
        except OSError:  # no locks here
            pass
        finally:
            self.held.pop(fd, None)
            close_quietly(fd)  # nothing was written

    def _free_forgotten(self) -> None:
        """Free what this thread has held since an interrupt came between the end of a ``with`` and its clean-up."""
        mine = get_ident(), self._path
        for fd in [fd for fd, holder in list(self.held.items()) if holder == mine]:
            self._free(fd)

    @classmethod
    def forget(cls) -> None:
        """Close a forked child's copies, with which the lock would outlive a killed parent."""
        while cls.held:
            close_quietly(cls.held.popitem()[0])


os.register_at_fork(after_in_child=DirectoryLock.forget)


def _sign(fd: int) -> None:
    """Write into a lock file who holds it."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    except OSError:  # a full disk: the lock holds all the same
        return
