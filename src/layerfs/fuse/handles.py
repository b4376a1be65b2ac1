"""File handles without state: the handle is the inode number, with one bit for "opened to write".

So there is no table of open files to keep or to lose. The bit lets a release say whether a writer
went: a commit must know which files may have writes that the kernel has not passed on yet.
"""

from __future__ import annotations

import os

_WRITER = 1 << 62


def make(inode: int, *, writer: bool) -> int:
    """Return the handle for an open of *inode*."""
    return inode | _WRITER if writer else inode


def inode_of(handle: int) -> int:
    """Return the inode number in *handle*."""
    return handle & ~_WRITER


def is_writer(handle: int) -> bool:
    """Tell whether *handle* is of an open for writing."""
    return bool(handle & _WRITER)


def wants_write(flags: int) -> bool:
    """Tell whether open(2) with *flags* asks to write."""
    return flags & os.O_ACCMODE != os.O_RDONLY
