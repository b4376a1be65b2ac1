"""The places in a tree that a container's mounts need: which of them are missing, and away with them after.

A runtime makes an empty file or directory wherever something is to be mounted and nothing is. These are no
work of the command that runs, so they are not to be in the layer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from layerfs.container.rootfs import open_beneath

_MOST_LINKS = 40
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(slots=True)
class Missing:
    """What was not there before a container was made, by paths relative to the root of the tree."""

    paths: list[bytes] = field(default_factory=list)
    """Each after those that it lies in."""
    times: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Access and modification times of the directories that had something made in them."""


def missing(root: int, destinations: Iterable[str]) -> Missing:
    """Return what has to be made in the tree with the descriptor *root* to mount on *destinations*.

    Links are followed as in the tree itself, and never out of it. Raises `OSError`.
    """
    found = Missing()
    known: set[bytes] = set()
    for destination in destinations:
        for path in _missing(root, os.fsencode(destination)):
            if path not in known:
                known.add(path)
                found.paths.append(path)
                above = os.path.dirname(path)
                if above not in known and above not in found.times:
                    with _opened(root, above) as fd:
                        status = os.stat(fd)
                    found.times[above] = status.st_atime_ns, status.st_mtime_ns
    return found


def clear_away(root: int, made: Missing) -> None:
    """Remove those of *made* that are still empty, and give the directories around them their times again.

    Whatever has become something else stays. Raises `OSError`.
    """
    for path in reversed(made.paths):
        above, name = os.path.split(path)
        with suppress(*_GONE), _opened(root, above) as fd:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                with suppress(OSError):  # it has something in it by now
                    os.rmdir(name, dir_fd=fd)
            elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
                os.unlink(name, dir_fd=fd)
    for path, times in made.times.items():
        with suppress(*_GONE), _opened(root, path) as fd:
            os.utime(f"/proc/self/fd/{fd}", ns=times)


@contextmanager
def _opened(root: int, path: bytes) -> Iterator[int]:
    """Open the directory *path* below *root*, by way of directories alone, for the block."""
    try:
        fd = open_beneath(root, path or b".", _DIRECTORY)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link is there by now
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _missing(root: int, destination: bytes) -> list[bytes]:
    """Return the paths, outermost first, that are missing on the way to *destination*."""
    rest = [part for part in reversed(destination.split(b"/")) if part not in (b"", b".")]
    way: list[bytes] = []
    links = 0
    while rest:
        part = rest.pop()
        if part == b"..":
            del way[-1:]
            continue
        target = b""
        try:
            with _opened(root, b"/".join(way)) as fd:
                status = os.stat(part, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    target = os.readlink(part, dir_fd=fd)
        except _GONE:
            left = [part]
            for other in reversed(rest):
                if other == b"..":
                    del left[-1:]
                else:
                    left.append(other)
            return [b"/".join([*way, *left[: n + 1]]) for n in range(len(left))]
        if target:
            links += 1
            if links > _MOST_LINKS:
                return []  # the runtime will say so
            if target.startswith(b"/"):
                way = []
            rest += [it for it in reversed(target.split(b"/")) if it not in (b"", b".")]
        else:
            way.append(part)
    return []
