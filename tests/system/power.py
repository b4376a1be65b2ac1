"""Disks that can lose their power.

ext4 and XFS can be told to stop writing at once (`promises.disk.cut_power`). What has reached the image by
then is all there is after it is mounted again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import Layerfs, detach, mounts_below, wait_until
from tests.system.promises.disk import cut_power

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Disk:
    """A filesystem in an image that can lose its power."""

    def __init__(self, directory: Path, *features: str, kind: str = "ext4") -> None:
        self.kind = kind
        self.image = directory / f"disk.{kind}"
        self.path = directory / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate((256 if kind == "ext4" else 320) << 20)
        subprocess.run([f"mkfs.{kind}", "-q", *features, self.image], check=True, timeout=30)
        self.plug_in()

    def plug_in(self) -> None:
        """Mount it, ext4 with a commit of the journal every second, XFS whatever else has its UUID."""
        options = "loop,commit=1" if self.kind == "ext4" else "loop,nouuid"
        subprocess.run(["mount", "-o", options, self.image, self.path], check=True, timeout=20)

    def cut(self) -> None:
        """Have nothing reach the image from now on."""
        cut_power(self.path)

    def unplug(self) -> None:
        """Unmount it, once nobody uses it any more."""
        umount = ["umount", "-q", str(self.path)]
        wait_until(lambda: subprocess.run(umount, timeout=20, check=False).returncode == 0)
        try:
            wait_until(lambda: not self._is_attached(), 1)
        except AssertionError:  # another mount namespace has a copy: mounted again, it would be the same one
            copy = self.image.with_name(f"{self.image.name}.copy")
            subprocess.run(["cp", "--sparse=always", self.image, copy], check=True, timeout=60)
            self.image.unlink()
            self.image = copy

    def _is_attached(self) -> bool:
        found = subprocess.run(["losetup", "-j", self.image], capture_output=True, timeout=20, check=True)
        return bool(found.stdout)

    def lose_power(self, layerfs: Layerfs) -> None:
        """Cut it, end every process of *layerfs*, which has its store there, and mount it again."""
        self.cut()
        for pid in layerfs.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mountpoint in mounts_below(layerfs.directory):
            if mountpoint != self.path:
                detach(mountpoint)
        self.unplug()
        self.plug_in()


@contextmanager
def later_boot(layerfs: Layerfs, directory: Path) -> Iterator[None]:
    """Have the commands of *layerfs* meet another boot of the machine; what they mount, only they see."""
    file = directory / "boot_id"
    file.write_text(f"{uuid.uuid4()}\n")
    words = layerfs.words
    bind = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
    layerfs.words = ["unshare", "--mount", "sh", "-c", bind, str(file), *words]
    try:
        yield
    finally:
        layerfs.words = words
