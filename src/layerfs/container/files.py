"""What a container has in the store besides its tree: its log, the network's files, volumes without a name.

They lie at `containers/ID/`: they are no part of what a commit seals, live as long as the container, and
are removed with it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
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


def found(point: Point, own: Path, root: Path) -> Point:
    """Return a mount point with a path as its source; makes what has to be made for that.

    A volume without a name is a directory below *own*, which begins with what the image mounted at *root*
    has there. Raises `LayerfsError`.
    """
    if point["Type"] == "volume":
        if not point["Spec"]["Anonymous"]:
            raise BadRequest(f"get {point['Name']}: no such volume")
        volume = own / "volumes" / point["Name"]
        if not volume.exists():
            _fill(volume, root, point["Destination"])
        return {**point, "Source": str(volume)}
    if point["Type"] == "bind" and point["Spec"].get("CreateMountpoint"):
        _make_directory(point["Source"])
    return point


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


def _fill(volume: Path, root: Path, path: str) -> None:
    """Make *volume* a copy of the directory *path* below *root*, or an empty directory where it has none."""
    unfinished = volume.with_name(volume.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        try:
            source = open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            unfinished.rename(volume)
            return
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise BadRequest(f"the image has a volume {path}, but a file is there") from None
        raise from_os_error(error, f"make the volume {path}") from None
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
        shutil.rmtree(unfinished, ignore_errors=True)
        raise LayerfsError(f"cannot fill the volume {path}: {done.stderr.partition(chr(10))[0]}")
    unfinished.rename(volume)
