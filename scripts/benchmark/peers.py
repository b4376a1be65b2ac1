"""The filesystems that are compared: how each is mounted over a stack of directories, and taken down."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

PATIENCE = 900.0  # seconds; a mount that is still at work then is cut off


def command(*words: str | Path) -> str:
    """Run a command, return what it printed; its error output is the message of a `RuntimeError`."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{words[0]} exited with {done.returncode}: {' / '.join(lines)}")
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """What is mounted: one lower tree, a fresh upper and work directory, and where."""

    lower: Path
    upper: Path
    work: Path
    mountpoint: Path

    @classmethod
    def make(cls, directory: Path, lower: Path) -> Stack:
        """Return a stack over *lower* whose other directories are new ones in *directory*."""
        stack = cls(lower, directory / "upper", directory / "work", directory / "mnt")
        for path in (stack.upper, stack.work, stack.mountpoint):
            path.mkdir(parents=True)
        return stack

    @property
    def options(self) -> str:
        """The mount options that name these directories."""
        return f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"


def mount_layerfs(stack: Stack) -> None:
    """Mount with layerfs."""
    directories = ("--lower", stack.lower, "--upper", stack.upper, "--work", stack.work)
    command("layerfs", "mount", *directories, stack.mountpoint)


def mount_overlay(stack: Stack) -> None:
    """Mount with the kernel's overlayfs."""
    command("mount", "-t", "overlay", "overlay", "-o", stack.options, stack.mountpoint)


def mount_fuse_overlayfs(stack: Stack) -> None:
    """Mount with fuse-overlayfs."""
    command("fuse-overlayfs", "-o", f"{stack.options},allow_other,suid,dev", stack.mountpoint)


def copy_bare(stack: Stack) -> None:
    """Make a plain copy in place of a mount: what the filesystem below costs by itself."""
    command("cp", "-a", "--reflink=auto", f"{stack.lower}/.", stack.mountpoint)


PEERS: dict[str, Callable[[Stack], None]] = {
    "layerfs": mount_layerfs,
    "overlay": mount_overlay,
    "fuse-overlayfs": mount_fuse_overlayfs,
    "bare": copy_bare,
}
DEFAULT_PEERS = ("layerfs", "overlay", "fuse-overlayfs")


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
def mounted(peer: str, stack: Stack) -> Iterator[None]:
    """Have *stack* mounted by *peer*; a filesystem that hangs is cut off after `PATIENCE`."""
    cut_off = Timer(PATIENCE, lambda: subprocess.run(["umount", "-f", stack.mountpoint], check=False))
    cut_off.daemon = True
    cut_off.start()
    try:
        PEERS[peer](stack)
        yield
    finally:
        try:
            unmount(stack.mountpoint)
        finally:
            cut_off.cancel()


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
