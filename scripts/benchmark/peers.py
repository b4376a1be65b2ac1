"""The filesystems that are compared: how each is mounted over a stack of directories, and taken down."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

PATIENCE = 600.0  # seconds; a mount that is still at work then is cut off


def command(*words: str | Path, cwd: str | Path | None = None) -> str:
    """Run a command, return what it printed; its error output is the message of a `RuntimeError`."""
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{words[0]} exited with {done.returncode}: {' / '.join(lines)}")
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """What is mounted: lower trees, the topmost first, a fresh upper and work directory, and where."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    mountpoint: Path

    @classmethod
    def make(cls, directory: Path, lowers: tuple[Path, ...]) -> Stack:
        """Return a stack over *lowers* whose other directories are new ones in *directory*."""
        stack = cls(lowers, directory / "upper", directory / "work", directory / "mnt")
        for path in (stack.upper, stack.work, stack.mountpoint):
            path.mkdir(parents=True)
        return stack

    @property
    def base(self) -> Path:
        """The directory in which the lower trees are."""
        return self.lowers[0].parent

    @property
    def options(self) -> str:
        """The mount options that name these directories, the lower ones relative to `base`.

        All of an overlay's options have to fit in one page, which many absolute paths do not.
        """
        lowers = ":".join(lower.name for lower in self.lowers)
        return f"lowerdir={lowers},upperdir={self.upper},workdir={self.work}"


def mount_layerfs(stack: Stack) -> None:
    """Mount with layerfs."""
    lowers = [word for lower in stack.lowers for word in ("--lower", lower)]
    command("layerfs", "mount", *lowers, "--upper", stack.upper, "--work", stack.work, stack.mountpoint)


def mount_overlay(stack: Stack) -> None:
    """Mount with the kernel's overlayfs."""
    command("mount", "-t", "overlay", "overlay", "-o", stack.options, stack.mountpoint, cwd=stack.base)


def mount_fuse_overlayfs(stack: Stack) -> None:
    """Mount with fuse-overlayfs."""
    options = f"{stack.options},allow_other,suid,dev"
    command("fuse-overlayfs", "-o", options, stack.mountpoint, cwd=stack.base)


def copy_bare(stack: Stack) -> None:
    """Make a plain copy in place of a mount: what the filesystem below costs by itself."""
    for lower in reversed(stack.lowers):
        command("cp", "-a", "--reflink=auto", f"{lower}/.", stack.mountpoint)


PEERS: dict[str, Callable[[Stack], None]] = {
    "layerfs": mount_layerfs,
    "overlay": mount_overlay,
    "fuse-overlayfs": mount_fuse_overlayfs,
    "bare": copy_bare,
}
FILESYSTEMS = ("layerfs", "overlay", "fuse-overlayfs")
SNAPSHOTS = ("copies", "xfs", "btrfs")
"""Ways to keep a whole tree: cp --reflink=auto, the same on an XFS of its own, and snapshots of btrfs."""
DEFAULT_PEERS = (*FILESYSTEMS, "buildah", "buildah-fuse", "umoci", "podman", *SNAPSHOTS)
ALL_PEERS = (*DEFAULT_PEERS, "bare")  # buildah, umoci and podman mount nothing here
_PROGRAMS = {
    "overlay": (),
    "bare": (),
    "buildah-fuse": ("buildah", "fuse-overlayfs"),
    "copies": (),
    "xfs": ("mkfs.xfs",),
    "btrfs": ("mkfs.btrfs", "btrfs"),
}
"""What peers need that are no programs themselves."""


def missing(peer: str) -> str | None:
    """Return a program that *peer* needs and that is not installed, None if there is none."""
    return next((name for name in _PROGRAMS.get(peer, (peer,)) if shutil.which(name) is None), None)


def unmount(directory: Path) -> None:
    """Unmount what is mounted on *directory* and below, the innermost first; lazily where it is busy."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    for point in reversed([point for point in points if Path(point).is_relative_to(directory)]):
        try:
            command("umount", point)
        except RuntimeError:
            command("umount", "--lazy", point)


@contextmanager
def patience(mountpoint: Path) -> Iterator[None]:
    """Cut off a filesystem on *mountpoint* that is still at work after `PATIENCE`."""
    cut_off = Timer(PATIENCE, lambda: subprocess.run(["umount", "-f", mountpoint], check=False))
    cut_off.daemon = True
    cut_off.start()
    try:
        yield
    finally:
        cut_off.cancel()


@contextmanager
def mounted(peer: str, stack: Stack) -> Iterator[None]:
    """Have *stack* mounted by *peer*."""
    try:
        PEERS[peer](stack)
        yield
    finally:
        unmount(stack.mountpoint)


def our_processes() -> Iterator[Path]:
    """Yield the /proc directories of the processes that the benchmark has started."""
    mark = f"LAYERFS_RUN={os.environ['LAYERFS_RUN']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield process


def daemon_pid() -> int:
    """Return the process that serves the present mount: the one of ours that has /dev/fuse open."""
    for process in our_processes():
        with suppress(OSError):
            if any(str(fd.readlink()) == "/dev/fuse" for fd in (process / "fd").iterdir()):
                return int(process.name)
    raise RuntimeError("no daemon serves this mount")


def wait_for_daemons() -> None:
    """Wait until the daemons of what was unmounted, and their background work, have ended."""
    give_up = time.monotonic() + 60
    while names := [process.name for process in our_processes()]:
        if time.monotonic() > give_up:
            raise RuntimeError(f"process {names[0]} still runs a minute after its mount was unmounted")
        time.sleep(0.02)


def remove(directory: Path) -> None:
    """Remove *directory* and what is in it, but nothing that is mounted there."""
    unmount(directory)
    command("rm", "-rf", "--one-file-system", directory)
