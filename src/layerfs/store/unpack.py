"""Writing the members of an archive into a tree, whatever they claim to be, and nowhere else.

Every name is walked from the tree's root one directory at a time, and no symbolic link is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from layerfs.errors import BadRequest
from layerfs.store.system import PRIVATE_XATTRS
from layerfs.union import whiteout, xattr

Kind = Literal["file", "directory", "symlink", "link", "character", "block", "fifo"]
Parts = tuple[bytes, ...]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One thing to be written, as the archive describes it."""

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes]
    target: bytes = b""
    """Of a symlink or hard link."""
    device: int = 0
    size: int = 0
    extents: Sequence[tuple[int, int]] | None = None
    """Offset and length of what a sparse file holds."""


class Unpacker:
    """Writes members into the empty directory *tree*; a context manager, ended by `finish`."""

    def __init__(self, tree: Path) -> None:
        self._root = os.open(tree, _DIRECTORY)
        self._parent: tuple[Parts, int] | None = None  # the directory written to last
        self._directories: dict[Parts, Member] = {}  # whose attributes are set at the end
        self._is_root = os.geteuid() == 0

    def __enter__(self) -> Unpacker:
        """Return the unpacker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the directories."""
        self._forget_parent()
        os.close(self._root)

    def add(self, member: Member, content: BinaryIO) -> None:
        """Write one member, in place of what has the same name.

        *content* is read for a file: its extents follow each other there, without the holes.

        Raises `BadRequest` for a member that leaves the tree or makes no sense in it, and `OSError`.
        """
        parts = _parts(member.name)
        try:
            if not parts:
                if member.kind == "directory":
                    self._directories[()] = member
                return
            parent = self._open_parent(parts)
            if parts[-1].startswith(whiteout.AUFS_PREFIX):
                self._white_out(parent, parts)
                return
            try:
                self._create(parent, parts, member, content)
            except FileExistsError:
                if self._clear(parent, parts, member):
                    self._create(parent, parts, member, content)
        except OSError as error:
            error.filename = member.name
            raise

    def finish(self) -> None:
        """Give the directories their attributes, which writing into them would have changed."""
        self._forget_parent()
        for parts in sorted(self._directories, key=len, reverse=True):
            fd = self._open(parts, create=False)
            try:
                self._set_attributes(fd, self._directories[parts])
            finally:
                os.close(fd)

    def _create(self, parent: int, parts: Parts, member: Member, content: BinaryIO) -> None:
        name = parts[-1]
        if member.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories[parts] = member
        elif member.kind == "file":
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
            try:
                _write(fd, member, content)
                self._set_attributes(fd, member)
            finally:
                os.close(fd)
        elif member.kind == "link":
            self._link(parent, name, member)
        elif member.kind == "symlink":
            os.symlink(member.target, name, dir_fd=parent)
            self._set_attributes_at(parent, name, member)
        else:
            types = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
            os.mknod(name, types[member.kind] | 0o600, member.device, dir_fd=parent)
            self._set_attributes_at(parent, name, member)

    def _link(self, parent: int, name: bytes, member: Member) -> None:
        target = _parts(member.target)
        try:
            directory = self._open(target[:-1], create=False)
        except FileNotFoundError:
            raise _refused(
                member.name, f"it is a link to {_shown(member.target)}, which is not there"
            ) from None
        try:
            os.link(
                target[-1] if target else b".",
                name,
                src_dir_fd=directory,
                dst_dir_fd=parent,
                follow_symlinks=False,
            )
        except FileNotFoundError:
            raise _refused(
                member.name, f"it is a link to {_shown(member.target)}, which is not there"
            ) from None
        finally:
            os.close(directory)

    def _clear(self, parent: int, parts: Parts, member: Member) -> bool:
        """Make room for *member*; False when it is a directory that is there already."""
        name = parts[-1]
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            if member.kind == "link" and _parts(member.target) == parts:
                raise _refused(member.name, "it is a link to itself")
            os.unlink(name, dir_fd=parent)
            return True
        if member.kind == "directory":
            self._directories[parts] = member
            return False
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise _refused(member.name, "it replaces a directory that has entries") from None
        self._directories.pop(parts, None)
        return True

    def _white_out(self, parent: int, parts: Parts) -> None:
        name = parts[-1]
        if name == whiteout.AUFS_OPAQUE:
            whiteout.set_opaque(parent, xattr.writable_prefix(self._root))
            return
        if name.startswith(whiteout.AUFS_PREFIX * 2):
            return  # AUFS' own housekeeping
        deleted = name.removeprefix(whiteout.AUFS_PREFIX)
        if deleted in (b"", b".", b".."):
            raise _refused(b"/".join(parts), "it is a whiteout of nothing")
        with suppress(FileExistsError):  # then the layer has something of that name, which counts
            whiteout.make_whiteout(parent, deleted)

    def _open_parent(self, parts: Parts) -> int:
        if self._parent is None or self._parent[0] != parts[:-1]:
            fd = self._open(parts[:-1], create=True)
            self._forget_parent()
            self._parent = parts[:-1], fd
        return self._parent[1]

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _open(self, parts: Parts, *, create: bool) -> int:
        """Open a directory of the tree, making it and those above it where they are missing."""
        fd = os.open(b".", _DIRECTORY, dir_fd=self._root)
        for depth, name in enumerate(parts, 1):
            try:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=fd)
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                where = _shown(b"/".join(parts[:depth]))
                raise _refused(b"/".join(parts), f"{where} is a link or file, not a directory") from None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _set_attributes(self, fd: int, member: Member) -> None:
        self._allowed(lambda: os.chown(fd, member.uid, member.gid))
        os.chmod(fd, member.mode)  # after chown(2), which clears the set-id bits
        for name, value in member.xattrs.items():
            self._set_xattr(fd, name, value)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _set_attributes_at(self, parent: int, name: bytes, member: Member) -> None:
        self._allowed(lambda: os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False))
        if member.kind != "symlink":
            os.chmod(name, member.mode, dir_fd=parent)
        for attribute, value in member.xattrs.items():
            self._set_xattr(b"/proc/self/fd/%d/%s" % (parent, name), attribute, value)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _set_xattr(self, file: int | bytes, name: str, value: bytes) -> None:
        if name.startswith(PRIVATE_XATTRS):
            return  # what a directory is to an overlay is not for an archive to say
        follow = isinstance(file, int)
        self._allowed(lambda: os.setxattr(file, name, value, follow_symlinks=follow))

    def _allowed(self, action: Callable[[], None]) -> None:
        """Do what only root may do; others go without."""
        try:
            action()
        except PermissionError:
            if self._is_root:
                raise


def _write(fd: int, member: Member, content: BinaryIO) -> None:
    for offset, length in member.extents if member.extents is not None else [(0, member.size)]:
        os.lseek(fd, offset, os.SEEK_SET)
        while length > 0:
            chunk = memoryview(content.read(min(length, _CHUNK)))
            if not chunk:
                raise _refused(member.name, "its content is cut short")
            length -= len(chunk)
            while chunk:
                chunk = chunk[os.write(fd, chunk) :]
    os.ftruncate(fd, member.size)


def _parts(name: bytes) -> Parts:
    if name.startswith(b"/"):
        raise _refused(name, "its path is absolute")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise _refused(name, "its path contains '..'")
    return parts


def _refused(name: bytes, why: str) -> BadRequest:
    return BadRequest(f"the archive is refused because of its member {_shown(name)}: {why}")


def _shown(name: bytes) -> str:
    try:
        return repr(name.decode())
    except UnicodeDecodeError:
        return repr(name)[1:]
