"""Mounting, serving and unmounting: the FUSE session of this process (pyfuse3 has one a process)."""

from __future__ import annotations

import errno
import os
import subprocess

import pyfuse3
import trio

from layerfs.errors import Conflict, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.fuse.operations import Operations
from layerfs.union import syscalls

_DEVICE = "/dev/fuse"


def check_mountpoint(mountpoint: str) -> None:
    """Raise the `LayerfsError` that says why nothing can be mounted at *mountpoint*, if so.

    A mount left behind by a daemon that died is taken away first.
    """
    try:
        os.stat(mountpoint)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            detach(mountpoint)
        elif error.errno == errno.ENOENT:
            raise NotFound(f"mountpoint {mountpoint} does not exist: create it first") from None
        else:
            raise from_os_error(error, f"mount at {mountpoint}") from None
    if not os.path.isdir(mountpoint):
        raise Conflict(f"mountpoint {mountpoint} is not a directory")
    if os.path.ismount(mountpoint):
        raise Conflict(f"something is mounted at {mountpoint} already: unmount it first, or choose another")


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


async def serve() -> None:
    """Answer requests until the filesystem is unmounted."""
    await pyfuse3.main(min_tasks=4)


def stop() -> None:
    """Make `serve` return."""
    pyfuse3.terminate()


def close() -> None:
    """Let go of the session after `serve`; whoever still uses the mount gets ENOTCONN."""
    pyfuse3.close(unmount=False)


async def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount while `serve` goes on answering. Raises `Conflict` when the mount is in use and not *lazy*."""
    await trio.to_thread.run_sync(detach if lazy else _unmount, mountpoint)


def detach(mountpoint: str) -> None:
    """Take *mountpoint* out of the tree at once; the filesystem ends when its last user is gone."""
    _umount(mountpoint, lazy=True)


def _unmount(mountpoint: str) -> None:
    _umount(mountpoint, lazy=False)


def _umount(mountpoint: str, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        try:
            syscalls.umount(os.fsencode(mountpoint), lazy=lazy)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(
                    f"{mountpoint} is busy: a process has a file or its directory there; "
                    f"end it, or unmount with --force"
                ) from None
            raise from_os_error(error, f"unmount {mountpoint}") from None
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Conflict(f"cannot unmount {mountpoint}: {done.stderr.strip() or 'fusermount3 failed'}")
