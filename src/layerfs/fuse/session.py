"""Mounting, serving and unmounting: the FUSE session of this process (pyfuse3 has one a process)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import pyfuse3
import trio

from layerfs import mounttable, runtime
from layerfs.errors import Conflict, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.fuse import busypoll, wire
from layerfs.fuse.filesystem import Filesystem
from layerfs.fuse.operations import Operations

_DEVICE = "/dev/fuse"
_ENDED = (errno.ENODEV, errno.ECONNABORTED)
"""How reading a request fails when the filesystem was unmounted, the second if that happens meanwhile."""


def check_mountpoint(mountpoint: str, name: str) -> None:
    """Raise the `LayerfsError` that says why *name* cannot be mounted at *mountpoint*, if so.

    The caller holds the run lock of *name*: a mount of that name which is there already was left by a
    daemon that died, and is taken away.
    """
    while (there := mounttable.mounted_at(mountpoint)) and there.type == mounttable.TYPE:
        if there.source != name and not _is_dead(mountpoint, there.source):
            raise Conflict(f"{there.source} is mounted at {mountpoint}: unmount it first, or choose another")
        mounttable.unmount(mountpoint, lazy=True)
    try:
        is_directory = stat.S_ISDIR(os.stat(mountpoint).st_mode)
    except FileNotFoundError:
        raise NotFound(f"mountpoint {mountpoint} does not exist: create it first") from None
    except OSError as error:
        raise from_os_error(error, f"mount at {mountpoint}") from None
    if not is_directory:
        raise Conflict(f"mountpoint {mountpoint} is not a directory")


def _is_dead(mountpoint: str, name: str) -> bool:
    """Tell whether the daemon of the mount *name* at *mountpoint* has ended.

    The kernel answers stat(2) from its cache even then; statvfs(3) always goes to the daemon.
    """
    if runtime.running_pid(name) is not None:
        return False
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def check_device() -> None:
    """Raise the `LayerfsError` that says why /dev/fuse cannot be used, if so."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise Forbidden(f"no permission to open {_DEVICE}: run as root, or let this user open it") from None
    except OSError as error:
        raise NotFound(
            f"cannot open {_DEVICE} ({error.strerror}): load the kernel's fuse module ('modprobe fuse'), "
            f"or give the container the device"
        ) from None


def mount(operations: Operations, mountpoint: str, name: str, options: frozenset[str]) -> None:
    """Mount *operations* at *mountpoint*, named *name* in the mount table. Raises `LayerfsError`."""
    mount_options = set(options) | {"default_permissions", f"fsname={_escape(name)}", "subtype=layerfs"}
    if os.geteuid() == 0:
        mount_options |= {"allow_other"}
        mount_options |= {option for option in ("suid", "dev") if f"no{option}" not in options}
    try:
        pyfuse3.init(operations, mountpoint, mount_options)
    except RuntimeError as error:
        raise LayerfsError(f"cannot mount at {mountpoint}: {error} (the log has fuse's own words)") from None


def _escape(name: str) -> str:
    return name.encode("ascii", "replace").decode().replace(",", "_")


async def serve(filesystem: Filesystem) -> None:
    """Answer requests until the filesystem is unmounted."""
    busypoll.install()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filesystem.late_times.settle_later)
            await pyfuse3.main(min_tasks=4)
            nursery.cancel_scope.cancel()
    except* OSError as errors:
        if any(error.errno not in _ENDED for error in _leaves(errors)):
            raise
    finally:
        wire.quiesce()
        filesystem.late_times.settle_all()


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def stop() -> None:
    """Make `serve` return."""
    pyfuse3.terminate()


def close() -> None:
    """Let go of the session after `serve`; whoever still uses the mount gets ENOTCONN.

    Reads that a disk still keeps waiting are not waited for, nor answered.
    """
    wire.stop_answering()
    pyfuse3.close(unmount=False)


async def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount while `serve` goes on answering. Raises `Conflict` when the mount is in use and not *lazy*."""
    await trio.to_thread.run_sync(lambda: mounttable.unmount(mountpoint, lazy=lazy))
