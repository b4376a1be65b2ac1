"""What a copy is made of: contents with their holes, owner, mode, attributes, times. No nodes in here."""

from __future__ import annotations

import errno
import os
import stat
from functools import cache

from layerfs.union import syscalls
from layerfs.union.marking import INODE
from layerfs.union.ranges import copy_range, shorter
from layerfs.union.reading import read_at
from layerfs.union.upper import Upper

_SMALL = 4096


def copy_metadata(
    source: bytes,
    st: os.stat_result,
    upper: Upper,
    target: bytes,
    *,
    follow: bool = False,
    record: bytes | None = None,
) -> None:
    """Give *target*, a path, the owner, attributes, mode and times of *source* (*st*).

    A link at the end of *target* is followed if *follow*. *record* says which inode number it keeps
    (`InodeTable.record`). Raises `OSError`: EOVERFLOW for an owner whom the user namespace does not know, as
    overlayfs has it.
    """
    try:
        if st.st_uid == _unmapped_owner():
            _check_owner(source, st)
        os.chown(target, st.st_uid, st.st_gid, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW)) from None
        raise
    upper.marking.copy(source, target, follow=follow)
    if record is not None:
        try:
            os.setxattr(target, upper.marking.prefix + INODE, record, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSPC):
                raise  # a number lost at the next mount is better than a file that cannot be written
    if not stat.S_ISLNK(st.st_mode):  # last but times: who may not write to a file cannot set its attributes
        os.chmod(target, stat.S_IMODE(st.st_mode))
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=follow)


@cache
def _unmapped_owner() -> int | None:
    """Return the uid that stat(2) shows for owners unknown in our user namespace; None outside of one."""
    try:
        with open("/proc/self/uid_map") as mapping, open("/proc/sys/kernel/overflowuid") as overflow:
            everything = mapping.read().split() == ["0", "0", str(0xFFFFFFFF)]
            return None if everything else int(overflow.read())
    except OSError:
        return None


def _check_owner(source: bytes, st: os.stat_result) -> None:
    """Raise EINVAL for an owner that is not mapped, and only looks like the user of that number.

    The kernel knows: it lets nobody open such a file with O_NOATIME (open(2), EPERM).
    """
    if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
        try:
            os.close(os.open(source, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC))
        except PermissionError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source) from None


def copy_data(source: int, target: int, length: int) -> None:
    """Copy the first *length* bytes of file *source* to the empty file *target*, holes as holes.

    Raises `OSError`; EIO where the source turns out to be shorter: a layer's file does not change, and part
    of it must not pass for the whole.
    """
    if length <= _SMALL:
        data = read_at(source, length, 0)
        if os.pwrite(target, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif not syscalls.clone_file(source, target):
        offset = 0
        while offset < length:
            try:
                offset = os.lseek(source, offset, os.SEEK_DATA)
                end = min(os.lseek(source, offset, os.SEEK_HOLE), length)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole up to the end
            copy_range(source, target, offset, end - offset, at=offset)
            offset = end
    if os.fstat(source).st_size < length:
        raise shorter()
    os.ftruncate(target, length)
