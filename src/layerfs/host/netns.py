"""Network namespaces with a name: a file that one is mounted on keeps it when no process is in it."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from layerfs.host.mountcalls import umount

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_NSFS_MAGIC = 0x6E736673

_libc = ctypes.CDLL(None, use_errno=True)


def make(path: Path) -> None:
    """Make a network namespace that is mounted on the new file *path*.

    Raises `OSError`; then no file is left. Needs root.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    failed: list[int] = []
    thread = threading.Thread(target=_unshare, args=(os.fsencode(path), failed))
    thread.start()
    thread.join()
    if failed:
        path.unlink()
        raise OSError(failed[0], os.strerror(failed[0]), str(path))


def _unshare(path: bytes, failed: list[int]) -> None:
    """Enter a new namespace in this thread alone, which ends with it, and mount that on *path*."""
    own = b"/proc/thread-self/ns/net"
    if _libc.unshare(_CLONE_NEWNET) != 0 or _libc.mount(own, path, None, ctypes.c_ulong(_MS_BIND), None) != 0:
        failed.append(ctypes.get_errno())


def is_one(path: Path) -> bool:
    """Return whether a namespace is mounted on *path*."""
    try:
        buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type, a long
        if _libc.statfs(os.fsencode(path), buffer) != 0:
            return False
    except OSError:
        return False
    return ctypes.c_long.from_buffer(buffer).value == _NSFS_MAGIC


def remove(path: Path) -> None:
    """Unmount the namespace on *path*, and remove the file; it ends once no process is in it.

    May be repeated. Raises `OSError`.
    """
    for _ in range(16):  # mounted more than once by somebody else's mistake
        try:
            umount(os.fsencode(path), lazy=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            break
    with suppress(FileNotFoundError):
        path.unlink()
