"""Copying ranges of bytes from one file to another."""

from __future__ import annotations

import errno
import os

from layerfs.union.reading import read_at

_CANNOT = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def copy_range(source: int, target: int, offset: int, length: int, *, at: int = 0) -> None:
    """Copy *length* bytes of file *source* from *offset* to *at* in file *target*, in the kernel if it can.

    Raises `OSError`; EIO where the source turns out to be shorter.
    """
    while length:
        try:
            copied = os.copy_file_range(source, target, min(length, 1 << 26), offset, at)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            copied = 0
        if not copied:  # some filesystems cannot, and say so with 0
            data = read_at(source, min(length, 1 << 20), offset)
            if not data:
                raise shorter()
            copied = os.pwrite(target, data, at)
        offset, at, length = offset + copied, at + copied, length - copied


def shorter() -> OSError:
    """Return the error for a lower file that is shorter than it was: a part must not pass for the whole."""
    return OSError(errno.EIO, os.strerror(errno.EIO))
