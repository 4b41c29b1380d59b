"""What makes calls to the file system fail, or be the last ones of a process."""

from __future__ import annotations

import contextlib
import os

# Every function of `os` that touches the file system on behalf of the package.
CALLS = [
    "chmod", "close", "fchmod", "fstat", "fsync", "listdir", "lstat", "makedirs", "mkdir", "open", "posix_fadvise",
    "pread", "preadv", "read", "rename", "rmdir", "unlink", "write", "writev",
]  # fmt: skip


class Injector:
    """Makes the Nth call to the file system fail, or fail after having done its work."""

    def __init__(self, monkeypatch, directory):
        self.directory = str(directory)
        self.count, self.at, self.error, self.after, self.failed = 0, -1, None, False, ""
        self.ours: set[int] = set()
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(*args, **kwargs):
            if not self.concerns(args):
                return real(*args, **kwargs)
            self.count += 1
            fails = self.count == self.at
            if fails:
                self.failed = name
                if name == "close":  # a descriptor is free even where close fails
                    real(*args, **kwargs)
                    self.ours.discard(args[0])
                if not self.after:
                    raise self.error
            done = None if fails and name == "close" else real(*args, **kwargs)
            if name == "open":
                if fails:
                    os_close(done)
                else:
                    self.ours.add(done)
            elif name == "close":
                self.ours.discard(args[0])
            if fails:
                raise self.error
            return done

        return call

    def concerns(self, args):
        place = args[0] if args else None
        return place in self.ours if isinstance(place, int) else str(place).startswith(self.directory)

    def start(self, at, error, after=False):
        self.count, self.at, self.error, self.after, self.failed = 0, at, error, after, ""


os_close = os.close


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from persistent_dict import PersistentDict
d = PersistentDict("d", container_dir={directory!r}, durability={durability!r})
count = 0
def dying(real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == {at}:
            try:
                {after} and real(*args, **kwargs)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in {calls!r}:
    setattr(os, name, dying(getattr(os, name)))
{action}
print(count)
"""


def make_old(directory):
    for path in [*directory.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (0, 0), follow_symlinks=False)
