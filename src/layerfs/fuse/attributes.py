"""What the kernel is told of a node, and for how long it may believe it.

The daemon is the only one that changes the tree, so the kernel may keep names and attributes for good;
what changes it knows of itself, because it asked for the change.
"""

from __future__ import annotations

import os

import pyfuse3

FOREVER = 10.0 * 365 * 86400
"""Seconds for which names and attributes hold."""


def entry(inode: int, st: os.stat_result, links: int, blocks: int) -> pyfuse3.EntryAttributes:
    """Return the attributes of a node, whose object in the layers has the stat *st*."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(inode)
    attributes.st_mode = pyfuse3.ModeT(st.st_mode)
    attributes.st_nlink = links
    attributes.st_uid = st.st_uid
    attributes.st_gid = st.st_gid
    attributes.st_rdev = st.st_rdev
    attributes.st_size = st.st_size
    attributes.st_blksize = st.st_blksize
    attributes.st_blocks = blocks
    attributes.st_atime_ns = st.st_atime_ns
    attributes.st_mtime_ns = st.st_mtime_ns
    attributes.st_ctime_ns = st.st_ctime_ns
    attributes.entry_timeout = FOREVER
    attributes.attr_timeout = FOREVER
    return attributes


def dot_entry(inode: int, mode: int) -> pyfuse3.EntryAttributes:
    """Return what a listing says of "." or "..": the kernel reads only number and type."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(inode)
    attributes.st_mode = pyfuse3.ModeT(mode)
    return attributes


def _no_entry() -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(0)
    attributes.entry_timeout = FOREVER
    return attributes


NO_ENTRY = _no_entry()
"""The answer for a name that does not exist: the kernel remembers that, too."""
