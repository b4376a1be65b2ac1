"""Mounting, serving and unmounting: the FUSE session of this process (pyfuse3 has one a process)."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

import pyfuse3
import trio
from pyfuse3 import InodeT

from layerfs.errors import Conflict, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.fuse import busypoll, wire
from layerfs.fuse.filesystem import Filesystem
from layerfs.fuse.operations import Operations
from layerfs.fuse.reply import later
from layerfs.host import mountcalls, mounttable, rundir
from layerfs.host.mounttable import Place
from layerfs.union.node import File

_DEVICE = "/dev/fuse"
_ENDED = (errno.ENODEV, errno.ECONNABORTED)
"""How reading a request fails when the filesystem was unmounted, the second if that happens meanwhile."""

_PATIENCE = 60.0
"""Seconds that the last writes may take at the end."""
_log = logging.getLogger(__name__)

_abort = -1
"""Ends the connection of this process to the kernel, and no other one's, when it is written to (fusectl)."""
_is_stopped = False
"""Whether `stop` has been called since `serve` was."""


def check_mountpoint(mountpoint: str) -> None:
    """Raise the `LayerfsError` that says why nothing can be mounted at *mountpoint*, if so.

    What a dead daemon of layerfs has left there is taken away.
    """
    while (there := mounttable.mounted_at(mountpoint)) and there.type == mounttable.TYPE:
        owner = rundir.owner(there.device)
        alive = owner is not None and owner[1] is not None
        if alive or not mounttable.detach(mountpoint, there.device):
            other = owner[0] if owner else there.source
            raise Conflict(f"{other} is mounted at {mountpoint}: unmount it first, or choose another")
    try:
        is_directory = stat.S_ISDIR(os.stat(mountpoint).st_mode)
    except FileNotFoundError:
        raise NotFound(f"mountpoint {mountpoint} does not exist: create it first") from None
    except OSError as error:
        raise from_os_error(error, f"mount at {mountpoint}") from None
    if not is_directory:
        raise Conflict(f"mountpoint {mountpoint} is not a directory")


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


def mount(operations: Operations, place: Place, source: str, options: frozenset[str]) -> int:
    """Mount *operations* at *place*, with *source* in the mount table; return the filesystem's `st_dev`.

    Raises `LayerfsError`; then nothing is mounted.
    """
    mount_options = set(options) | {"default_permissions", f"fsname={_escape(source)}", "subtype=layerfs"}
    if os.geteuid() == 0:
        mount_options |= {"allow_other"}
        mount_options |= {option for option in ("suid", "dev") if f"no{option}" not in options}
    others = {mounted.device for mounted in mounttable.mounts()}
    try:
        before = mountcalls.identify(place.path)
        # Held itself, too: no link that somebody puts in its place is followed.
        directory = os.open(place.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"mount at {place.mountpoint}") from None
    try:
        by_root = f"/proc/{os.readlink('/proc/self')}/fd/{directory}"
        pyfuse3.init(operations, by_root if os.geteuid() == 0 else place.mountpoint, mount_options)
    except RuntimeError as error:
        raise LayerfsError(
            f"cannot mount at {place.mountpoint}: {error} (the log has fuse's own words)"
        ) from None
    finally:
        os.close(directory)
    try:
        there = mountcalls.identify(place.path)
        if there == before:
            raise Conflict(f"{place.mountpoint} was moved while it was mounted on: try again")
    except OSError as error:
        _undo(source, others)
        raise from_os_error(error, f"mount at {place.mountpoint}") from None
    except BaseException:
        _undo(source, others)
        raise
    global _abort
    with suppress(OSError):  # a container may not have that filesystem
        path = f"/sys/fs/fuse/connections/{os.minor(there.device)}/abort"
        _abort = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    return there.device


def _undo(source: str, others: set[int]) -> None:
    """Take away what `mount` has mounted, wherever that is: from *source*, none of *others* (`st_dev`).

    What somebody else has mounted since then answers, and stays.
    """
    close()
    for mounted in list(mounttable.mounts()):
        is_new = mounted.type == mounttable.TYPE and mounted.device not in others
        if is_new and mounted.source == _printable(source):
            with suppress(LayerfsError):
                mounttable.detach(mounted.place, mounted.device)


def _escape(source: str) -> str:
    """Return *source* as libfuse takes it in an option: which are split at unescaped commas."""
    return re.sub(r"([\\,])", r"\\\1", _printable(source))


def _printable(source: str) -> str:
    """Return *source* as the mount table shows it."""
    text = "".join(char if char.isprintable() else "?" for char in source)
    return text.encode("ascii", "replace").decode()


async def serve(filesystem: Filesystem, is_mounted: Callable[[], bool]) -> None:
    """Answer requests until the filesystem is unmounted, or `stop` is called.

    *is_mounted* tells whether it still is in the mount table. Where it is, or was stopped, the connection was
    cut, and the kernel may not have told all times: then late files keep the moment of their last write.
    """
    global _is_stopped
    _is_stopped = False
    busypoll.install()
    try:
        async with trio.open_nursery() as nursery:
            later.serve_in(nursery)
            await pyfuse3.main(min_tasks=4)
            nursery.cancel_scope.cancel()
    except* OSError as errors:
        if any(error.errno not in _ENDED for error in _leaves(errors)):
            raise
    finally:
        # First, and at once: umount(2) has returned, or will before long, and people may look at the upper.
        if not _is_stopped and not is_mounted():
            filesystem.late_times.settle_before()
        wire.revoke_all()
        with trio.CancelScope(shield=True), trio.move_on_after(_PATIENCE) as waiting:
            await wire.writes_done()
        if waiting.cancelled_caught:
            _log.error("waited %g seconds for writes to the upper, which may be incomplete", _PATIENCE)


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def stop() -> None:
    """Make `serve` return."""
    global _is_stopped
    _is_stopped = True
    pyfuse3.terminate()


def drop_attributes(filesystem: Filesystem) -> None:
    """Have the kernel forget the attributes that it was told; to be called between `serve` and `close`.

    It would take writes to files that it knows, and lose them, although nobody serves them any more: only for
    their attributes it has to ask.
    """
    for node in filesystem.union.table.nodes.values():
        if isinstance(node, File) and node.is_regular:
            try:
                pyfuse3.invalidate_inode(InodeT(node.ino), attr_only=True)
            except OSError as error:
                if error.errno in _ENDED:
                    return  # nobody has the filesystem mounted


def close() -> None:
    """Let go of the session after `serve`; whoever still uses the mount gets ENOTCONN.

    Reads that a disk still keeps waiting are not waited for, nor answered. The connection is cut first. A
    thread that asks the kernel to forget a name (`Filesystem.set_times`) may wait for the directory, whose
    user waits for an answer of ours: it would keep the device open, and both of them would wait for ever.
    """
    global _abort
    wire.stop_answering()
    if _abort >= 0:
        with suppress(OSError):
            os.write(_abort, b"1")
        os.close(_abort)
        _abort = -1
    pyfuse3.close(unmount=False)
