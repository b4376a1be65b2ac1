"""Room that is kept for those who remove something: they have to write to the store before any is free.

It is a file beside the database. On a full disk it is removed, and made again once there is room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from layerfs.errors import NoSpace

T = TypeVar("T")
_SIZE = 1 << 20
"""Bytes: enough for some removals. Each writes a few pages to the database's journal."""
_STEP = 1 << 16
_NAME = "reserve"
_LEAST = 16
"""How many times that size has to be free for it to be kept: a small disk has better uses for it."""


def keep(root: Path) -> None:
    """Keep room in the store at *root*, unless there is little; fine if it is kept already. Never raises."""
    with suppress(OSError):
        if not (root / _NAME).exists():
            free = os.statvfs(root)
            if free.f_bavail * free.f_frsize >= _LEAST * _SIZE:
                _make(root, _SIZE)


def _make(root: Path, size: int) -> None:
    """Take *size* bytes, all of them or nothing. Raises `OSError`."""
    fd = os.open(root / _NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.unlink(root / _NAME)
        raise
    finally:
        os.close(fd)


def with_reserve(root: Path, action: Callable[[], T]) -> T:
    """Return what *action* returns, which removes something from the store at *root*.

    Where the disk is full the reserve is given up and *action*, which may be repeated, is called once more.
    Raises what it raises then.
    """
    try:
        done = action()
    except NoSpace:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    else:
        keep(root)
        return done
    try:
        os.unlink(root / _NAME)
    except OSError:
        return action()  # perhaps somebody else has just given it up
    try:
        return action()
    finally:
        _keep_what_is_left(root)


def _keep_what_is_left(root: Path) -> None:
    for size in range(_SIZE, 0, -_STEP):
        with suppress(OSError):
            _make(root, size)
            return
