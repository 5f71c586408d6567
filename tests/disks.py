"""A small file system of its own, which only root may have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def mount_small(folder: Path, options: str) -> str:
    """Make a folder and mount a file system in memory there; returns the command for more.

    Where that can't be done the test is skipped, and with CI set it fails.
    """
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if not mount or not done or done.returncode:
        if os.environ.get("CI"):
            pytest.fail("mounting a small file system needs root")
        pytest.skip("mounting a small file system needs root")
    return mount


def unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)
