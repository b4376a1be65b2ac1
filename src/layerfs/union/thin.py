"""Which files are partial at first when they are copied up, and which are copied whole."""

from __future__ import annotations

import errno
import os

from layerfs.union.upper import Upper
from layerfs.union.view import Union

_ROOM = 16 << 20
"""Bytes that a filesystem has left over when a file becomes partial: others write there, too."""

TOO_LONG = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
"""What is answered for a path that is longer than an attribute."""


def may_be_thin(union: Union, upper: Upper, length: int) -> bool:
    """Tell whether a file of that many bytes may be partial at first."""
    least = union.thin_from
    if least is None or length < least or len(union.partials) >= union.most_partial:
        return False
    return upper.can_hold_partial()


def has_room(union: Union, fd: int, length: int) -> bool:
    """Tell whether the filesystem of *fd* has room for all that partial files lack, and *length* bytes more.

    Whoever writes to a partial file has been told that it is in the upper: it must not turn out later that
    the rest does not fit.
    """
    figures = os.fstatvfs(fd)
    lacking = sum(node.partial.limit for node in list(union.partials) if node.partial is not None)
    return figures.f_bavail * figures.f_frsize > lacking + length + _ROOM
