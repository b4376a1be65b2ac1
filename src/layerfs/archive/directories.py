"""The directories of a tree that is being written: opened one name at a time, kept open for a while."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from layerfs.errors import BadRequest

Parts = tuple[bytes, ...]
"""A path below the root of the tree."""

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST = 64


class NoDirectory(BadRequest):
    """Something is to be in a directory that is none."""


class Directories:
    """Descriptors on the directories of *tree*, the ones used last; no symbolic link is followed."""

    def __init__(self, tree: Path) -> None:
        self.root = os.open(tree, _DIRECTORY)
        self._open: dict[Parts, int] = {}
        self.made: set[Parts] = set()
        """Those that were made because something in them was opened."""

    def close(self) -> None:
        """Close them all."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self.root)

    def open(self, parts: Parts, *, create: bool) -> int:
        """Return a descriptor on a directory, made together with those above it if it may be.

        It is good until the call after the next. Raises `NoDirectory`, and `OSError`.
        """
        if not parts:
            return self.root
        fd = self._open.pop(parts, None)
        if fd is None:
            if len(self._open) >= _MOST:
                os.close(self._open.pop(next(iter(self._open))))  # the one used longest ago
            fd = self._walk(parts, create)
        self._open[parts] = fd
        return fd

    def forget(self, parts: Parts) -> None:
        """Close what is open of a directory that is about to go, and of those in it."""
        for path in [path for path in self._open if path[: len(parts)] == parts]:
            os.close(self._open.pop(path))

    def _walk(self, parts: Parts, create: bool) -> int:
        """Open a directory, from the nearest one above it that is open."""
        depth = len(parts) - 1
        while depth and parts[:depth] not in self._open:
            depth -= 1
        start = self._open[parts[:depth]] if depth else self.root
        fd = start
        for at in range(depth, len(parts)):
            try:
                below = self._enter(fd, parts, at, create)
            finally:
                if fd != start:
                    os.close(fd)
            fd = below
        return fd

    def _enter(self, fd: int, parts: Parts, at: int, create: bool) -> int:
        try:
            with suppress(FileNotFoundError):
                return os.open(parts[at], _DIRECTORY, dir_fd=fd)
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.mkdir(parts[at], 0o700, dir_fd=fd)
            self.made.add(parts[: at + 1])
            return os.open(parts[at], _DIRECTORY, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        path, where = (os.fsdecode(b"/".join(names)) for names in (parts, parts[: at + 1]))
        raise NoDirectory(
            f"the archive is refused because of its member {path!r}:"
            f" {where!r} is a link or file, not a directory"
        )


def is_real_root() -> bool:
    """Tell whether this is root, and not only the root of a user namespace."""
    if os.geteuid() != 0:
        return False
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(0xFFFFFFFF)]
    except OSError:
        return True
