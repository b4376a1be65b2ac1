"""What is on the disk: a plain tree, the kernel's overlay, a layerfs store, or directories for layerfs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.system.promises import base, machine
from tests.system.promises.commits import MOUNT
from tests.system.promises.disk import Disk, detach
from tests.system.promises.world import World

KINDS = ("plain", "overlay", "store", "dirs")


class Rig:
    """One kind of stack on *disk*; *room* is a directory that survives. Paths are the same in every boot."""

    def __init__(self, kind: str, disk: Disk, room: Path, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self.disk = disk
        self.options = options
        self.store = disk.path / "store"
        self.run = room / "run"
        self.mountpoint = room / "mnt"
        self.output = room / "output"
        for path in (self.run, self.mountpoint):
            path.mkdir(exist_ok=True)

    @property
    def is_layerfs(self) -> bool:
        """Whether layerfs serves it."""
        return self.kind in ("store", "dirs")

    @property
    def control(self) -> Path:
        """The control socket of the mount."""
        return self.run / f"{MOUNT}.sock"

    @property
    def root(self) -> Path:
        """Where the programs work."""
        return self.disk.path / "tree" if self.kind == "plain" else self.mountpoint

    def furnish(self) -> None:
        """Put on the disk, once, what is there before the first boot."""
        disk = self.disk.path
        for name in ("tree", "upper", "work"):
            (disk / name).mkdir()
        base.make(World(), disk / "tree")
        if self.kind == "store":
            self._layerfs("import", str(disk / "tree"), "base:1")
            shutil.rmtree(disk / "tree")
        os.sync()

    def mount(self, *options: str) -> None:
        """Mount it for the first time, layerfs with more *options*.

        Raises `RuntimeError` with what layerfs says when that fails.
        """
        if self.kind == "overlay":
            disk = self.disk.path
            words = f"lowerdir={disk}/tree,upperdir={disk}/upper,workdir={disk}/work"
            words += ",index=on,redirect_dir=on"
            subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", words, self.mountpoint], check=True, timeout=30
            )
        elif self.kind == "store":
            self._layerfs(
                "mount", *self.options, *options, "--image", "base:1", "--name", MOUNT, str(self.mountpoint)
            )
        elif self.kind == "dirs":
            disk = self.disk.path
            directories = [f"--lower={disk}/tree", f"--upper={disk}/upper", f"--work={disk}/work"]
            self._layerfs(
                "mount", *self.options, *options, *directories, "--name", MOUNT, str(self.mountpoint)
            )

    def mount_again(self) -> None:
        """Mount what is there already."""
        if self.is_layerfs:
            self._layerfs("mount", "--name", MOUNT, str(self.mountpoint))
        else:
            self.mount()

    def umount(self) -> None:
        """Unmount in peace."""
        if self.is_layerfs:
            self._layerfs("umount", MOUNT)

    def kill(self) -> None:
        """Kill the daemon, and take its mount away; to be called by the first process of the machine."""
        pid = int((self.run / f"{MOUNT}.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        detach(self.mountpoint)

    def off(self) -> None:
        """Take the mount of a machine that has ended away, and what was in its memory."""
        detach(self.mountpoint)
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()

    def log(self) -> str:
        """Return what the daemon of this boot has logged."""
        file = self.run / f"{MOUNT}.log"
        return file.read_text() if file.exists() else ""

    def _layerfs(self, *arguments: str) -> str:
        status, text = self.layerfs(*arguments)
        if status:
            raise RuntimeError(f"layerfs {' '.join(arguments)}: {text}")
        return text

    def layerfs(self, *arguments: str) -> tuple[int, str]:
        """Run `layerfs ARGUMENTS`; return its exit status and what it printed."""
        self.output.unlink(missing_ok=True)
        status = machine.layerfs(arguments, self.output)
        return status, self.output.read_text().strip()
