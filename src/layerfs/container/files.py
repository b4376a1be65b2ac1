"""What a container has in the store besides its tree: its log and the network's files; and how volumes begin.

The former lie at `containers/ID/`: they are no part of what a commit seals, live as long as the container,
and are removed with it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container.rootfs import open_inside
from layerfs.errors import BadRequest, LayerfsError, from_os_error

if TYPE_CHECKING:
    from layerfs.container.mountpoints import Point


def directory(store: Path, mount_id: str) -> Path:
    """Return the directory of a container in the store at *store*."""
    return store / "containers" / mount_id


def log_path(store: Path, mount_id: str) -> Path:
    """Return the path of the log of what a container wrote."""
    return directory(store, mount_id) / "log"


def make_sources(points: Iterable[Point]) -> None:
    """Make the directories of the host that *points* want made where nothing is; raises `LayerfsError`."""
    for point in points:
        if point["Type"] == "bind" and point["Spec"].get("CreateMountpoint"):
            _make_directory(point["Source"])


def _make_directory(path: str) -> None:
    """Make the host directory *path* if nothing is there, as Docker does; raises `LayerfsError`."""
    try:
        os.stat(path)
    except FileNotFoundError:
        try:
            os.makedirs(path, 0o755, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, "make the directory of a volume") from None
    except OSError as error:
        raise from_os_error(error, "use the directory of a volume") from None


def fill(volume: Path, root: Path, path: str, *, in_place: bool) -> None:
    """Make the empty directory *volume* a copy of the directory *path* below *root*, if there is one.

    Whole or not at all, unless it is done *in_place*: where *volume* is a mountpoint, or others have it
    mounted. Raises `LayerfsError`.
    """
    unfinished = volume if in_place else volume.with_name(volume.name + ".new")
    try:
        if not in_place:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o755)
        try:
            source = open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not in_place:
                unfinished.rmdir()
            return
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise BadRequest(f"the container has a volume at {path}, but a file is there") from None
        raise from_os_error(error, f"fill the volume at {path}") from None
    try:
        done = subprocess.run(
            ["cp", "-a", "--reflink=auto", f"/proc/self/fd/{source}/.", unfinished],
            pass_fds=(source,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    finally:
        os.close(source)
    if done.returncode != 0:
        if not in_place:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise LayerfsError(f"cannot fill the volume at {path}: {done.stderr.partition(chr(10))[0]}")
    if not in_place:
        unfinished.rename(volume)
