"""Looking into a mounted image without leaving it, whatever its symbolic links say."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from layerfs.errors import BadRequest

_OPENAT2 = 437
"""The number of openat2(2), which is the same on every architecture."""
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_MOST = 4 << 20
"""Bytes that a file of users or groups may have."""
_ATTEMPTS = 256
"""How often a path is looked up while the tree around it changes."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_inside(root: Path | int, path: str | bytes, flags: int) -> int:
    """Open *path* as a process with *root* as its root directory would; return the descriptor.

    *root* is a directory, or a descriptor of one. Links, absolute ones too, lead to places below it
    (openat2(2), RESOLVE_IN_ROOT). Raises `OSError`, EAGAIN only if directories were renamed or mounted all
    the time. Opening a device or a fifo has effects: `read_inside` avoids that.
    """
    if isinstance(root, int):
        return _open(root, path, flags, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _open(top, path, flags, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(top)


def open_beneath(top: int, path: bytes, flags: int) -> int:
    """Open *path* below the directory *top* by way of directories alone; return the descriptor.

    Raises `OSError`: ELOOP for a symbolic link on the way, EXDEV for a path that would leave *top*.
    """
    return _open(top, path, flags, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)


def open_on_filesystem(top: int, path: bytes, flags: int) -> int:
    """Open *path* as `open_beneath` does, and on no other filesystem than that of *top*: EXDEV, too."""
    return _open(top, path, flags, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV)


def _open(top: int, path: str | bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    name = os.fsencode(path)
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(_OPENAT2, top, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # Any rename or mount on the machine makes the kernel unsure where a ".." leads: openat2(2).
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def read_inside(root: Path | int, path: str) -> str:
    """Return the text of the regular file *path* below *root*, an empty one where there is no such file.

    Anything else of that name is not opened: a device might act on it, and a fifo wait for its other end.
    Raises `BadRequest` for a file that is too long to be what it should be, and `OSError`.
    """
    try:
        found = open_inside(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return ""
        # The same file for sure, whatever the path leads to by now.
        with open(f"/proc/self/fd/{found}", "rb") as file:
            content = file.read(_MOST + 1)
    finally:
        os.close(found)
    if len(content) > _MOST:
        raise BadRequest(f"{path} in the image has more than {_MOST >> 20} MiB")
    return content.decode("utf-8", "surrogateescape")
