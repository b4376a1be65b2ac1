"""Who keeps the set-user-id and set-group-id bits: the kernel's rules, which a FUSE filesystem applies.

After chown(2), and after a write or cut by somebody without CAP_FSETID, a file loses S_ISUID; S_ISGID too
where the group may execute it, or where the caller is not in its group (fs/attr.c,
setattr_should_drop_suidgid; chown(2), write(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

import pyfuse3


class Caller(NamedTuple):
    """Who asks: effective ids, and process."""

    uid: int
    gid: int
    pid: int


def after_change(st: os.stat_result, caller: Caller | None, *, needs_owner: bool = False) -> int | None:
    """Return the permissions of a file once a change has taken its set-id bits; None if it has none to lose.

    Without *caller* the caller is not known, and taken to be in the file's group. With *needs_owner* only the
    owner and root may cause it: raises `OSError` (EPERM) for others.
    """
    if not st.st_mode & (stat.S_ISUID | stat.S_ISGID) or stat.S_ISLNK(st.st_mode):
        return None
    drop = st.st_mode & stat.S_ISUID
    if st.st_mode & stat.S_IXGRP or (caller is not None and not may_keep_group_bit(st, caller)):
        drop |= st.st_mode & stat.S_ISGID
    if not drop:
        return None
    if needs_owner and caller is not None and caller.uid not in (0, st.st_uid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return stat.S_IMODE(st.st_mode & ~drop)


def may_keep_group_bit(st: os.stat_result, caller: Caller) -> bool:
    """Tell whether the caller is root or in the group of the object *st*."""
    if caller.uid == 0 or caller.gid == st.st_gid:
        return True
    try:
        return st.st_gid in pyfuse3.get_sup_groups(caller.pid)
    except (OSError, RuntimeError):
        return False  # it has ended meanwhile
