"""Every state that a power cut may leave of what some code has done to files.

The operations of the code are recorded: names that come and go, bytes that are written, what is synced. POSIX promises
of those before the cut only that what was synced is there: a directory's names if the directory was synced afterwards,
a file's bytes if the file was. All else may be there or not, in any combination (the model of the ALICE study, Pillai
et al., OSDI 2014). A write counts as three operations: the file's new length, and two halves, so that files are found
short, empty, full of zeros and half written. Where there are too many combinations, a seeded sample of them is taken,
together with all that come about by leaving out, or keeping, one operation alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
from pathlib import Path

REAL = {name: getattr(os, name) for name in (
    "close", "fsync", "ftruncate", "link", "mkdir", "open", "pwrite", "rename", "rmdir", "unlink", "write", "writev",
)}  # fmt: skip


class Recorder:
    """Notes what is done below `root` while it is entered by ``with``.

    Attributes
    ----------
    ops : list of tuple
        What was done, oldest first; files and directories are numbers.
    """

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.ops = []
        self.fds = {}
        self.numbers = itertools.count(1)
        self.names = {0: {}}  # of each directory, as they are now: name to number
        self.before = {0: {}}  # the tree at the beginning: dicts of names, and bytes
        self.notice(Path(self.root), 0)

    def notice(self, path, number):
        for child in sorted(path.iterdir()):
            self.names[number][child.name] = new = next(self.numbers)
            self.before[number][child.name] = new
            if child.is_dir():
                self.names[new], self.before[new] = {}, {}
                self.notice(child, new)
            else:
                self.before[new] = child.read_bytes()

    def mark(self, label):
        """Note that something was promised from now on."""
        self.ops.append(("mark", label))

    def __enter__(self):
        for name in REAL:
            setattr(os, name, self.wrap(name))
        return self

    def __exit__(self, *exception):
        for name, real in REAL.items():
            setattr(os, name, real)

    def wrap(self, name):
        def call(*args, **kwargs):
            done = REAL[name](*args, **kwargs)
            getattr(self, f"on_{name}")(done, *args, **kwargs)
            return done

        return call

    def look(self, path, dir_fd=None):
        """Return the directory's number, the name in it, and the number behind it; None outside of the root."""
        if dir_fd is not None:
            here, rest = self.fds.get(dir_fd, [None])[0], os.fspath(path)
        else:
            here, rest = 0, os.path.abspath(path)
            if rest == self.root:
                return None, "", 0
            rest = rest.removeprefix(f"{self.root}/") if rest.startswith(f"{self.root}/") else None
        if here is None or rest is None:
            return None
        *parents, name = rest.split("/")
        for parent in parents:
            here = self.names[here][parent]
        return here, name, self.names[here].get(name)

    def on_mkdir(self, _, path, mode=0o777):
        place = self.look(path)
        if place:
            self.bind(*place[:2], next(self.numbers), {})

    def bind(self, directory, name, number, made=None):
        if made is not None:
            self.ops.append(("make", number, made))
            if made == {}:
                self.names[number] = {}
        self.names[directory][name] = number
        self.ops.append(("bind", directory, name, number))

    def on_open(self, fd, path, flags, mode=0o777, *, dir_fd=None):
        place = self.look(path, dir_fd)
        if place is None:
            return
        directory, name, number = place
        if number is None:
            number = next(self.numbers)
            self.bind(directory, name, number, b"")
        self.fds[fd] = [number, 0]

    def on_close(self, _, fd):
        self.fds.pop(fd, None)

    def on_write(self, count, fd, data):
        self.put(fd, bytes(data)[:count])

    def on_writev(self, count, fd, chunks):
        self.put(fd, b"".join(map(bytes, chunks))[:count])

    def on_pwrite(self, count, fd, data, offset):
        self.put(fd, bytes(data)[:count], offset)

    def put(self, fd, data, offset=None):
        if fd not in self.fds or not data:
            return
        number, at = self.fds[fd]
        if offset is None:
            offset = at
            self.fds[fd][1] += len(data)
        half = len(data) // 2
        self.ops.append(("grow", number, offset + len(data)))
        self.ops += [("bytes", number, offset, data[:half]), ("bytes", number, offset + half, data[half:])]

    def on_ftruncate(self, _, fd, size):
        if fd in self.fds:
            self.ops.append(("grow", self.fds[fd][0], size))

    def on_fsync(self, _, fd):
        if fd in self.fds:
            self.ops.append(("sync", self.fds[fd][0]))

    def on_link(self, _, source, target):
        place = self.look(target)
        if place:
            self.bind(*place[:2], self.look(source)[2])

    def on_rename(self, _, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        old, new = self.look(source, src_dir_fd), self.look(target, dst_dir_fd)
        if old and new:
            del self.names[old[0]][old[1]]
            self.names[new[0]][new[1]] = old[2]
            self.ops.append(("move", old[0], old[1], new[0], new[1], old[2]))

    def on_unlink(self, _, path):
        place = self.look(path)
        if place:
            del self.names[place[0]][place[1]]
            self.ops.append(("unbind", *place))

    on_rmdir = on_unlink

    # What a cut may leave

    def states(self, limit=2000, seed=1):
        """Yield pairs: what was promised before the cut, and a tree that it may leave, each once."""
        seen = set()
        for end in range(len(self.ops) + 1):
            done = self.ops[:end]
            promised = frozenset(op[1] for op in done if op[0] == "mark")
            certain, open_ = sorted_out(done)
            for chosen in subsets(open_, limit, random.Random(f"{seed} {end}")):
                tree = self.replayed([done[at] for at in sorted(certain | chosen)])
                frozen = freeze(tree, 0)
                if (promised, frozen) not in seen:
                    seen.add((promised, frozen))
                    yield promised, frozen

    def replayed(self, ops):
        tree = {number: dict(found) if isinstance(found, dict) else found for number, found in self.before.items()}
        for op in self.ops:  # what was made exists; whether it has a name is another question
            if op[0] == "make":
                tree[op[1]] = dict(op[2]) if isinstance(op[2], dict) else op[2]
        for kind, *rest in ops:
            if kind == "bind":
                directory, name, number = rest
                tree[directory][name] = number
            elif kind == "unbind":
                directory, name, number = rest
                if tree[directory].get(name) == number:
                    del tree[directory][name]
            elif kind == "move":
                old, old_name, new, new_name, number = rest
                if tree[old].get(old_name) == number:
                    del tree[old][old_name]
                tree[new][new_name] = number
            elif kind == "grow":
                number, size = rest
                tree[number] = tree[number].ljust(size, b"\0")
            elif kind == "bytes":
                number, at, data = rest
                now = tree[number].ljust(at, b"\0")
                tree[number] = now[:at] + data + now[at + len(data) :]
        return tree


def sorted_out(done):
    """Return the places of the operations that must be there, and of those that may be."""
    certain, open_ = set(), []
    for at, op in enumerate(done):
        if op[0] in ("mark", "sync", "make"):
            continue
        synced = {later[1] for later in done[at + 1 :] if later[0] == "sync"}
        if op[0] == "move":
            is_certain = op[1] in synced or op[3] in synced  # a journal has both names or none
        else:
            is_certain = op[1] in synced
        if is_certain:
            certain.add(at)
        else:
            open_.append(at)
    return certain, open_


def subsets(places, limit, chance):
    if 2 ** len(places) <= limit:
        for size in range(len(places) + 1):
            yield from map(set, itertools.combinations(places, size))
        return
    everything = set(places)
    yield set()
    yield everything
    for at in places:
        yield {at}
        yield everything - {at}
    for _ in range(limit):
        share = chance.random()
        yield {at for at in places if chance.random() < share}


def freeze(tree, number):
    found = tree[number]
    if not isinstance(found, dict):
        return found
    return tuple(sorted((name, freeze(tree, child)) for name, child in found.items()))


def materialise(frozen, path):
    """Make files and directories of a state."""
    path.mkdir(0o700)
    for name, found in frozen:
        if isinstance(found, tuple):
            materialise(found, path / name)
        else:
            (path / name).write_bytes(found)


def explore(recorder, scratch, check, limit=2000):
    """Call `check(directory, promised)` on every state. Return how many there were."""
    count = 0
    for promised, frozen in recorder.states(limit):
        place = Path(scratch, f"state {count}")
        materialise(frozen, place)
        try:
            check(place, promised)
        except BaseException as error:
            error.args = (f"state {count}, promised {sorted(promised)}: {frozen!r:.2000}", *error.args)
            raise
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)
        count += 1
    return count
