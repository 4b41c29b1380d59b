"""When entries were last used, to about an hour: the access time of a loose value file, a table beside a pack.

The access time is set by the hit itself, so that it is right on file systems mounted with noatime, too.
"""

from __future__ import annotations

import os
import sys
from array import array
from time import time_ns

from persistent_dict import _fs

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FRESH = 3600.0  # seconds; a hit within this time of the last one is not noted


def used_at(status: os.stat_result) -> float:
    """Return when a value file was last read by a hit, or written."""
    return max(status.st_atime, status.st_mtime)


def refresh(fd: int, status: os.stat_result) -> None:
    """Note that a value file is used now. Where that is not allowed, it is not noted."""
    try:
        os.utime(fd, ns=(time_ns(), status.st_mtime_ns))
    except OSError:  # read-only, or another user's
        return


class Usage:
    """A file of one number of 4 bytes for each entry of a pack: in which hour since the epoch it was last hit.

    A hint: it is never synced, and without it every entry counts as last used before it was packed.
    """

    def __init__(self, path: str, count: int, mode: int) -> None:
        self.hours = array("I", bytes(4 * count))
        self._fd, self._identity = -1, (0, 0)
        try:
            self._fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode & 0o666
            )
            status = os.fstat(self._fd)
            self._identity = _fs.identity(status)
            if mode & 0o077 and status.st_uid == os.geteuid():  # despite the umask
                os.fchmod(self._fd, mode & 0o666)
            known = os.pread(self._fd, 4 * count, 0)
        except OSError:  # read-only, or something else of that name
            return
        known += bytes(4 * count - len(known))
        self.hours = array("I", known)
        if sys.byteorder == "big":
            self.hours.byteswap()

    def __del__(self) -> None:
        _fs.close_if_still(self._fd, self._identity)

    def at(self, i: int) -> float:
        """Return when entry `i` was last hit, 0.0 where that is not known."""
        return self.hours[i] * FRESH

    def note(self, i: int, now: float) -> None:
        """Note that entry `i` is hit `now`, in seconds since the epoch."""
        hour = int(now / FRESH)
        if self.hours[i] < hour:
            self.hours[i] = hour
            try:
                if self._fd >= 0 and _fs.is_still(self._fd, self._identity):
                    os.pwrite(self._fd, hour.to_bytes(4, "little"), 4 * i)
            except OSError:  # a full disk
                return
