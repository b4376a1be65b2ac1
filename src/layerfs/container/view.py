"""The tree of a mount as those in it see it, opened for a moment: a descriptor of its root directory.

A container that runs is seen as its first process sees it, volumes included. A mount at rest is mounted for
the moment, and the volumes of a container with it, in a mount namespace that only one thread is in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import files, hostfiles, lifecycle, volumes
from layerfs.container.private_mounts import Bind, PrivateMounts
from layerfs.container.stored import points_of
from layerfs.errors import Conflict, LayerfsError, from_os_error
from layerfs.host import mounttable, rundir
from layerfs.host.record import Lock, Record, look
from layerfs.mounting.find import mount_of
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.container.lifecycle import Launch
    from layerfs.store.model import Mount

_ROOT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def opened(root: Path, mount: Mount, launch: Launch) -> Iterator[int]:
    """Yield an O_PATH descriptor of the root directory of *mount*, of the store at *root*.

    Whatever is opened by it has to be closed before the block ends. No container is started or removed while
    it is at rest. The block may end in another thread. Raises `LayerfsError`.
    """
    if mount.container:
        lifecycle.finish(root, mount.id)
    if (fd := _in_use(mount)) is None:
        with Lock(mount.id) as lock:
            fd = _in_use(mount)
            if fd is None:
                with _at_rest(root, mount, launch, lock) as fd:
                    yield fd
                return
    try:
        yield fd
    finally:
        os.close(fd)


def is_at_rest(mount: Mount) -> bool:
    """Return whether `opened` will mount *mount*, as far as can be told before. Raises `LayerfsError`."""
    fd = _in_use(mount)
    if fd is not None:
        os.close(fd)
    return fd is None


def _in_use(mount: Mount) -> int | None:
    """Return the root of a mount that is in use, None for one at rest."""
    try:
        record = look(mount.id) if mount.container else None
        if record is not None and record.alive():
            lifecycle.bundle_of(mount)
            return _of_process(record, mount.name)
        pid, device = rundir.running(mount.name)
        if pid is None or mount.mountpoint is None:
            return None
        if mount.mountpoint == str(_place(mount)):
            return None  # of a copy that was killed
        fd = os.open(mount.mountpoint, _ROOT)
        if os.fstat(fd).st_dev == device:
            return fd
        os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"look into {mount.name}") from None
    raise Conflict(f"{mount.name} is not to be seen at {mount.mountpoint}: is it in another mount namespace?")


def _of_process(record: Record, name: str) -> int:
    fd = os.open(f"/proc/{record.pid}/root", _ROOT)
    if record.alive():  # else it may be that of another process with the same number
        return fd
    os.close(fd)
    raise Conflict(f"{name} has just ended: try again")


def _place(mount: Mount) -> Path:
    from layerfs.host.record import directory

    return directory(mount.id) / "rootfs"


@contextmanager
def _at_rest(root: Path, mount: Mount, launch: Launch, lock: Lock) -> Iterator[int]:
    from layerfs.mounting.request import MountRequest

    tree = lock.path / "rootfs"
    try:
        with suppress(FileExistsError):
            os.mkdir(tree)
        if not mounttable.mounted_at(str(tree)):
            launch(MountRequest(mountpoint=str(tree), root=root, name=mount.name))
        try:
            binds = _binds(root, mount, tree) if mount.container else []
            if binds:
                with PrivateMounts(tree, binds) as fd:
                    yield fd
            else:
                fd = os.open(tree, _ROOT)
                try:
                    yield fd
                finally:
                    os.close(fd)
        finally:
            try:
                volumes.take_down(root, mount.id)
            finally:
                _unmount(root, mount)
                with suppress(OSError):
                    lock.discard()
    except OSError as error:
        raise from_os_error(error, f"look into {mount.name}") from None


def _unmount(root: Path, mount: Mount) -> None:
    with Store(root) as store:
        mount_of(store, mount).unmount(force=True)
        with suppress(LayerfsError):
            store.set_mountpoint(mount.id, mount.mountpoint)


def _binds(root: Path, mount: Mount, tree: Path) -> list[Bind]:
    """Return what a container that is at rest would have mounted on its tree, which is mounted on *tree*.

    A volume that it does not have yet is made, as at its start.
    """
    own = files.directory(root, mount.id)
    points = hostfiles.points(own) if (own / "hosts").exists() else []
    ready = volumes.set_up(root, mount, tree, points_of(mount))
    files.make_sources(ready)
    points += ready
    found = {
        point["Destination"]: Bind(point["Source"], point["Destination"], point["RW"])
        for point in points
        if point["Type"] in ("bind", "volume")
    }
    return sorted(found.values(), key=lambda bind: bind.destination.count("/"))
