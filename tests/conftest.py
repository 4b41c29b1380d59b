"""No test touches the user's own caches."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture(autouse=True)
def _own_cache_directory(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path_factory.getbasetemp() / "caches"))
    monkeypatch.delenv("PERSISTENT_DICT_DISABLE", raising=False)


@pytest.fixture(params=["ext4", "ext4 with few inodes", "tmpfs"])
def small_disk(request, tmp_path):
    """A mounted file system of some MiB."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("mounting a file system needs root and mkfs.ext4")
    mount = tmp_path / "mount"
    mount.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        inodes = ["-N", "64"] if "inodes" in request.param else []
        subprocess.run(["mkfs.ext4", "-q", *inodes, str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
