"""What each durability leaves after a power cut: the file system is shut down in the middle, and mounted again."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections import Counter

import pytest

from persistent_dict import InvalidEntryError, NoSuchEntryError, PersistentDict, WriteOncePersistentDict

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), of ext4 and xfs
WITHOUT_THE_LOG = 2  # nothing more reaches the disk, not even the journal


@pytest.fixture
def disk(tmp_path):
    """A function that mounts an image of an ext4 file system, which commits its journal every second."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("mounting a file system needs root and mkfs.ext4")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)

    def mounted():
        command = ["mount", "-o", "loop,commit=1", str(image), str(mount)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        return mount

    yield mounted
    subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)


def cut(mount):
    directory = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_THE_LOG))
    except OSError as error:
        pytest.skip(f"this kernel cannot shut a file system down: {error}")
    finally:
        os.close(directory)
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("kind", [WriteOncePersistentDict, PersistentDict])
@pytest.mark.parametrize("durability", ["none", "writeout", "consistent", "durable"])
def test_after_a_power_cut(durability, kind, disk):
    mount = disk()
    d = kind("d", container_dir=mount / "new" / "directories", durability=durability)
    values, stored = {}, 0
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        d[stored] = values[stored] = str(stored) * (1 + stored * 37 % 3000)
        stored += 1
        if kind is PersistentDict and stored % 5 == 0:  # an older value must not come back either
            d[stored - 2] = values[stored - 2] = values[stored - 2] + "new"
        time.sleep(0.02)
    cut(mount)
    d = kind("d", container_dir=disk() / "new" / "directories")
    seen: Counter[str] = Counter()
    for key, value in values.items():
        try:
            found = d[key]
            seen["right" if found == value else "older" if found + "new" == value else "wrong"] += 1
        except NoSuchEntryError:
            seen["missing"] += 1
        except InvalidEntryError:
            seen["invalid"] += 1
    print(f"ext4, {durability}, {kind.__name__}: {dict(seen)}")
    assert sum(seen.values()) == stored > 20
    assert not seen["wrong"]
    if durability in ("consistent", "durable"):
        assert not seen["invalid"]
    if durability == "durable":
        assert seen["right"] == stored
