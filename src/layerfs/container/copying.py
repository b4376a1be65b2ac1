"""Copying out of a tree that may be in use, as `docker cp` does: what is at a path, and an archive of it.

The tree is known by a descriptor of its root, and no link in it leads outside (see `rootfs`). What is not a
plain file is never opened: a device might act, and a fifo wait for its other end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from layerfs.archive import layertar, tarformat
from layerfs.archive.tar import Member
from layerfs.container.rootfs import open_inside
from layerfs.errors import BadRequest, LayerfsError, from_os_error

_LOOK = os.O_PATH | os.O_NOFOLLOW
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_LINKS = 255
"""Symbolic links that are followed for one path, as Go does."""
_NOT_FILES = frozenset(
    (0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x19800202, 0x64626720, 0x74726163, 0x73636673)
)
"""Filesystems that show the kernel (statfs(2)): proc, sysfs, both cgroups, devpts, mqueue, debugfs, ..."""
_OF_THIS_MACHINE = ("security.selinux", "security.ima", "security.evm")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class PathStat:
    """What is at a path."""

    name: str
    """The last part of the path as it was given: "." and "/" are such."""
    status: os.stat_result
    link_target: str
    """Where a symbolic link leads to in the end, as an absolute path; empty for anything else."""


@contextmanager
def source(root: int, path: str) -> Iterator[int]:
    """Open what is at *path*, for `describe` and `archive`: a symbolic link itself, unless a slash follows.

    Raises `OSError`.
    """
    fd = open_inside(root, path or "/", _LOOK)
    try:
        yield fd
    finally:
        os.close(fd)


def describe(root: int, path: str, fd: int) -> PathStat:
    """Return what *fd* is, which was opened at *path*. Raises `OSError`."""
    status = os.fstat(fd)
    return PathStat(_base(path), status, resolve(root, path) if stat.S_ISLNK(status.st_mode) else "")


def _base(path: str) -> str:
    """Return what Go's filepath.Base does."""
    stripped = path.rstrip("/")
    return stripped.rpartition("/")[2] if stripped else "/"


def resolve(root: int, path: str) -> str:
    """Return *path* without any symbolic link in it, as far as there is something. Raises `OSError`.

    The tree may change meanwhile: what it returns is for people, and to be resolved again.
    """
    done = "/"
    left = [part for part in path.split("/") if part]
    links = 0
    while left:
        part = left.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = posixpath.dirname(done)
            continue
        place = posixpath.join(done, part)
        try:
            fd = open_inside(root, place, _LOOK)
        except (FileNotFoundError, NotADirectoryError):
            return posixpath.normpath(posixpath.join(place, *left))
        try:
            is_link = stat.S_ISLNK(os.fstat(fd).st_mode)
            target = os.readlink(b"", dir_fd=fd) if is_link else b""
        finally:
            os.close(fd)
        if not is_link:
            done = place
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        text = os.fsdecode(target)
        done = "/" if text.startswith("/") else done
        left = [part for part in text.split("/") if part] + left
    return done


def archive(fd: int, path: str, name: str | None = None) -> Generator[bytes, None, None]:
    """Yield an archive of *fd*, which was opened at *path*; there it is called *name*, or as *path* ends.

    Of a directory everything is in it, but what lies on filesystems that show the kernel. What vanishes
    meanwhile is left out, and a file that becomes shorter is filled up with zeros. Raises `OSError`.
    """
    base = os.fsencode(_base(path) if name is None else name)
    if base == b"/":
        base = b""  # as Docker's clients expect: what is in it has names that begin with a slash
    walk = _Walk()
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        yield from walk.directory(os.open(".", _LIST, dir_fd=fd), base)
    else:
        yield from walk.other(fd, base, status)
    yield tarformat.END


class _Walk:
    """Yields members, and knows which are further names of one before."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], bytes] = {}

    def directory(self, fd: int, name: bytes) -> Generator[bytes, None, None]:
        """Yield the directory *fd*, which is closed, and all in it, each directory before what is in it."""
        stack: list[tuple[int, bytes, list[bytes], int]] = []
        try:
            status = os.fstat(fd)
            stack.append((fd, name, [], status.st_dev))
            stack[0][2].extend(_names(fd))
            yield tarformat.header(_member(name, "directory", status, fd))
            while stack:
                fd, name, names, device = stack[-1]
                if not names:
                    os.close(stack.pop()[0])
                    continue
                entry = names.pop()
                with suppress(FileNotFoundError, NotADirectoryError):
                    found = os.open(entry, _LOOK | os.O_CLOEXEC, dir_fd=fd)
                    inside = b"%b/%b" % (name, entry)
                    try:
                        status = os.fstat(found)
                        if not stat.S_ISDIR(status.st_mode):
                            yield from self.other(found, inside, status)
                            continue
                        below = os.open(".", _LIST, dir_fd=found)
                    finally:
                        os.close(found)
                    shown = status.st_dev == device or not _shows_the_kernel(below)
                    stack.append((below, inside, [], status.st_dev))
                    stack[-1][2].extend(_names(below) if shown else ())
                    yield tarformat.header(_member(inside, "directory", status, below))
        finally:
            for fd, _, _, _ in stack:
                os.close(fd)

    def other(self, fd: int, name: bytes, status: os.stat_result) -> Generator[bytes, None, None]:
        """Yield anything else; *fd* is an O_PATH descriptor of it. Sockets are left out, as by Docker."""
        kind = layertar.KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return
        identity = status.st_dev, status.st_ino
        place = b"/proc/self/fd/%d" % fd
        member = _member(name, kind, status, fd)
        if status.st_nlink > 1 and identity in self._links:
            member.kind, member.target, member.size = "link", self._links[identity], 0
            yield tarformat.header(member)
            return
        if status.st_nlink > 1:
            self._links[identity] = name
        if kind == "symlink":
            member.target = os.readlink(b"", dir_fd=fd)
        if kind != "file":
            yield tarformat.header(member)
            return
        opened = os.open(place, _READ)
        try:
            yield tarformat.header(member)
            yield from layertar.content(opened, name, member.size, fill=True)
        finally:
            os.close(opened)


def _names(fd: int) -> list[bytes]:
    """Return the names in a directory, the last one first."""
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def _shows_the_kernel(fd: int) -> bool:
    answer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, answer) != 0:
        return False
    return int(ctypes.c_long.from_buffer(answer).value) in _NOT_FILES


def _member(name: bytes, kind: str, status: os.stat_result, fd: int) -> Member:
    place = b"/proc/self/fd/%d" % fd
    attributes: dict[bytes, bytes] = {}
    if kind != "symlink":
        try:
            for attribute in os.listxattr(place):
                if attribute not in _OF_THIS_MACHINE:
                    with suppress(OSError):  # it has just gone
                        attributes[os.fsencode(attribute)] = os.getxattr(place, attribute)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                raise
    return layertar.member(name, layertar.KINDS[stat.S_IFMT(status.st_mode)], status, attributes)


def refused(error: OSError, path: str, name: str) -> LayerfsError:
    """Return the error for *path* of the container *name*, which cannot be looked at."""
    from layerfs.errors import NotFound

    if error.errno == errno.ENOENT:
        return NotFound(f"Could not find the file {path} in container {name}")
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return BadRequest(f"cannot use {path} in container {name}: {error.strerror}")
    return from_os_error(error, f"copy {path} of container {name}")
