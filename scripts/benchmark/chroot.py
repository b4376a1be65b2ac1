"""Work inside a root filesystem: commands in a chroot of a Debian tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .peers import command, unmount

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def inside(root: Path, *words: str) -> str:
    """Run a command in a chroot of *root*; return what it printed."""
    proxies = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    done = subprocess.run(
        ["chroot", root, *words],
        env=ENVIRONMENT | proxies,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} in {root} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


@contextmanager
def system_mounts(root: Path) -> Iterator[None]:
    """Have /proc and /dev/pts in *root*, as package scripts expect; its other devices are its own."""
    command("mount", "-t", "proc", "proc", root / "proc")
    try:
        command("mount", "-t", "devpts", "devpts", root / "dev/pts")
        yield
    finally:
        unmount(root / "dev")
        unmount(root / "proc")


def make_debian(top: Path) -> None:
    """Make a minimal Debian tree that has the packages of Node.js downloaded, not installed."""
    source = command(Path(__file__).parents[1] / "debian-tree").strip()
    command("cp", "-a", f"{source}/.", top)
    with system_mounts(top):
        inside(top, "apt-get", "update")
        inside(top, "apt-get", "install", "-y", "--download-only", "nodejs")
