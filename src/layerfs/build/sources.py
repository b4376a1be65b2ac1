"""Trees that a build copies from: a directory on disk, and the layers of another stage.

Both are read one directory at a time, by descriptors and names, and no symbolic link is followed by the
kernel: `follow` does that, within the tree. So nothing in a tree, however hostile, leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from layerfs.errors import BadRequest
from layerfs.union import syscalls, xattr
from layerfs.union.marking import Marking
from layerfs.union.node import Directory, File
from layerfs.union.stack import Stack
from layerfs.union.view import Union

DEEPEST = 256
"""Directories in one another that are read: each takes a descriptor or two."""
_LINKS = 255
"""Symbolic links that are followed in one path, as the kernel and BuildKit have it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DESCRIPTORS = 64


class Item(NamedTuple):
    """A name in a directory of a source, and its lstat."""

    name: bytes
    st: os.stat_result


class SourceDirectory(Protocol):
    """An open directory of a source."""

    @property
    def st(self) -> os.stat_result:
        """Its stat."""

    def items(self) -> list[Item]:
        """Return what is in it, sorted by name as bytes. Raises `OSError`."""

    def find(self, name: bytes) -> os.stat_result | None:
        """Return the lstat of *name*, None where there is none. Raises `OSError`."""

    def enter(self, name: bytes) -> SourceDirectory:
        """Return the directory *name* in it, which the caller closes. Raises `OSError`."""

    def open(self, item: Item) -> int:
        """Return a descriptor to read a regular file with, which the caller closes.

        Raises `BadRequest` where something else has come in its place, and `OSError`.
        """

    def readlink(self, name: bytes) -> bytes:
        """Return the target of a symbolic link. Raises `OSError`."""

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        """Return the extended attributes that are copied, of *name*, or of the file open as *fd* if not -1.

        With an empty *name*, those of the directory itself.
        """

    def close(self) -> None:
        """Close it."""


class Source(Protocol):
    """A tree that is copied from."""

    keeps_owners: bool
    """Whether what is copied belongs to whom it belongs here, and not to root: so it is with stages."""
    digests: dict[tuple[int, int], bytes]
    """What `digests` knows of files beforehand, by (device, inode)."""
    called: str
    """What people call it: `the build context`, `the stage base`."""

    def root(self) -> SourceDirectory:
        """Return its root, which the caller closes. Raises `OSError`."""


@contextmanager
def of_stack(stack: Stack, called: str) -> Iterator[Source]:
    """Yield the merged tree of *stack* as a source that keeps owners. Raises `OSError`."""
    raise NotImplementedError
