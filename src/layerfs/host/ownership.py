"""Directories that are trusted: they belong to this user, and nobody else can write to them.

What layerfs reads from its run directory and its store it obeys: sockets, pids, paths to remove. So it uses
neither when somebody else may have made it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from layerfs.errors import Forbidden, LayerfsError, from_os_error


def check_private(path: Path, what: str, instead: str, *, links: bool = False) -> None:
    """Raise `Forbidden` unless the directory *path* is this user's own, and writable by nobody else.

    *what* it is, and what to do *instead* of using it, stand in the message. A directory that is not there is
    fine. A symbolic link is refused unless *links* are allowed: then the directory that it leads to counts.
    Other users may read the directory: what must not be read in it has its own mode.
    """
    try:
        status = os.stat(path) if links else os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise from_os_error(error, f"use the {what}") from None
    if stat.S_ISLNK(status.st_mode):
        why = "is a symbolic link"
    elif not stat.S_ISDIR(status.st_mode):
        why = "is not a directory"
    elif status.st_uid != os.geteuid():
        why = f"belongs to user {status.st_uid}, not to user {os.geteuid()}"
    elif status.st_mode & 0o022:
        why = f"can be written to by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return
    raise Forbidden(f"the {what} {path} {why}: {instead}")


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open the file *path* in a trusted directory, never through a symbolic link; return the descriptor.

    *mode* is that of a file that is made. Raises `Forbidden` for a link, and `OSError`.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Forbidden(f"{path} is a symbolic link, which layerfs never makes: remove it") from None
        raise


def home() -> Path:
    """Return the user's home directory. Raises `LayerfsError` when it has none."""
    try:
        return Path.home()
    except RuntimeError:
        raise LayerfsError(
            "this user has no home directory: set HOME, or LAYERFS_ROOT to a directory for the store"
        ) from None
