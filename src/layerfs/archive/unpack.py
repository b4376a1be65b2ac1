"""Writing the members of an archive into a tree, whatever they claim to be, and nowhere else.

Every name is walked from the tree's root one directory at a time, and no symbolic link is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import xxhash

from layerfs.archive.directories import NEW_FILE, Directories, NoDirectory, Parts, is_real_root
from layerfs.archive.holes import parts_with_data
from layerfs.archive.limits import Limits
from layerfs.archive.tar import Member
from layerfs.errors import BadRequest
from layerfs.union import whiteout
from layerfs.union.marking import of_this_process
from layerfs.union.trees import remove_trees

_TYPES = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
_CHUNK = 1 << 20
_LONGEST = 4095
"""Bytes of a path that the system takes (PATH_MAX)."""


_UNSAID = Member(b"", "directory", 0o755, 0, 0, 0)
"""What a directory is of which nobody says anything."""


class Content(Protocol):
    """What a member holds: `tar.Reader` is one."""

    def some(self, size: int) -> memoryview:
        """Return between one and *size* bytes; none only at the end."""


class Unpacker:
    """Writes members into the empty directory *tree*; a context manager, ended by `finish`.

    Names that begin with `.wh.` say what is deleted; without *whiteouts* they are names like others.
    `size` and `files` count what was in the archive so far, `digests` has the XXH3-128 of each file by
    inode number, `replaced` tells whether later members took the place of files, `left_out` counts device
    nodes that an ordinary user cannot make.
    """

    def __init__(
        self,
        tree: Path,
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
        *,
        whiteouts: bool = True,
    ) -> None:
        self._tree = tree
        self._whiteouts = whiteouts
        self._directories = Directories(tree)
        self._members: dict[Parts, Member] = {}  # directories, whose attributes are set at the end
        self._opaque: set[Parts] = set()
        self._deleted: set[Parts] = set()
        self._limits = limits
        self._is_root = is_real_root()
        self._user = os.geteuid(), os.getegid()
        self._marking = of_this_process()
        self.size = 0
        self.files = 0
        self.digests: dict[int, str] = {}
        self.replaced = False
        self.left_out = 0

    def __enter__(self) -> Unpacker:
        """Return the unpacker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the directories."""
        self._directories.close()

    def add(self, member: Member, content: Content) -> bool:
        """Write one member, in place of what has the same name; tell whether its content was written.

        *content* is read for a file: its extents follow each other there, without the holes.

        Raises `BadRequest` for a member that leaves the tree or makes no sense in it, and `OSError`.
        """
        parts = parts_of_name(member.name, whiteouts=self._whiteouts)
        self.files += 1
        self.size += member.size
        self._limits.check(self.size, self.files + len(self._directories.made))
        try:
            if not parts:
                if member.kind != "directory":
                    raise refused(member.name, "the root of a layer is a directory")
                self._members[()] = member
                return False
            if self._deleted:
                self._bring_back(parts)
            if self._whiteouts and parts[-1].startswith(whiteout.AUFS_PREFIX):
                with suppress(NoDirectory):  # what stands there instead hides what is below anyway
                    self._white_out(parts, member)
                return False
            parent = self._directories.open(parts[:-1], create=True)
            try:
                return self._create(parent, parts, member, content)
            except FileExistsError:
                if self._clear(parent, parts, member):
                    return self._create(parent, parts, member, content)
                return False
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise refused(member.name, "a name in its path is longer than 255 bytes") from None
            error.filename = member.name
            raise

    def finish(self) -> None:
        """Give the directories their attributes, which writing into them would have changed."""
        self._limits.check(self.size, self.files + len(self._directories.made))
        for parts in self._opaque:
            whiteout.set_opaque(self._directories.open(parts, create=False), self._marking)
        for parts in sorted({*self._members, *self._unsaid()}, reverse=True):
            fd = self._directories.open(parts, create=False)
            self._set_attributes(fd, self._members.get(parts, _UNSAID))

    def inheriting(self) -> list[bytes]:
        """Return the directories of which the archive says nothing: they are as they were below."""
        return [
            b"/".join(parts) or b"."
            for parts in self._unsaid()
            if not any(parts[:depth] in self._opaque for depth in range(len(parts) + 1))
        ]

    def _unsaid(self) -> list[Parts]:
        return sorted({(), *self._directories.made} - self._members.keys())

    def _create(self, parent: int, parts: Parts, member: Member, content: Content) -> bool:
        name = parts[-1]
        if member.kind == "file":
            fd = os.open(name, NEW_FILE, 0o600, dir_fd=parent)
            try:
                self._write(fd, member, content)
                self._set_attributes(fd, member)
            finally:
                os.close(fd)
            return True
        if member.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=parent)
            self._members[parts] = member
        elif member.kind == "link":
            self._link(parent, name, member)
        elif member.kind == "symlink":
            os.symlink(member.target, name, dir_fd=parent)
            self._set_attributes_at(parent, name, member)
        else:
            self._make_node(parent, name, member)
        return False

    def _make_node(self, parent: int, name: bytes, member: Member) -> None:
        if member.major >= 1 << 12 or member.minor >= 1 << 20:
            raise refused(member.name, "there are no devices of such numbers")
        try:
            device = os.makedev(member.major, member.minor)
            os.mknod(name, _TYPES[member.kind] | 0o600, device, dir_fd=parent)
        except PermissionError:
            if self._is_root or member.kind == "fifo":
                raise
            self.left_out += 1
        else:
            self._set_attributes_at(parent, name, member)

    def _link(self, parent: int, name: bytes, member: Member) -> None:
        target = parts_of_name(member.target, whiteouts=self._whiteouts)
        missing = refused(member.name, f"it is a link to {_shown(member.target)}, which is not there")
        try:
            directory = self._directories.open(target[:-1], create=False)
            os.link(
                target[-1] if target else b".",
                name,
                src_dir_fd=directory,
                dst_dir_fd=parent,
                follow_symlinks=False,
            )
        except FileNotFoundError:
            raise missing from None
        except PermissionError:  # as link(2) answers for directories
            if os.fsdecode(name) in os.listdir(parent):
                raise FileExistsError from None
            raise refused(member.name, f"it is a link to {_shown(member.target)}, a directory") from None

    def _clear(self, parent: int, parts: Parts, member: Member) -> bool:
        """Make room for *member*; False when it is a directory that is there already."""
        name = parts[-1]
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            if member.kind == "link" and parts_of_name(member.target, whiteouts=self._whiteouts) == parts:
                raise refused(member.name, "it is a link to itself")
            os.unlink(name, dir_fd=parent)
            if parts in self._deleted:
                self._deleted.discard(parts)
                if (
                    member.kind == "directory"
                ):  # what the layers below have of that name is deleted all the same
                    self._opaque.add(parts)
            self.replaced |= stat.S_ISREG(status.st_mode)
            return True
        if member.kind == "directory":
            self._members[parts] = member
            return False
        self._remove(parent, parts)
        return True

    def _remove(self, parent: int, parts: Parts) -> None:
        """Remove a directory and all in it, for something else of that name."""
        try:
            os.rmdir(parts[-1], dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            remove_trees(self._tree / os.fsdecode(b"/".join(parts)))
            self.replaced = True
        self._directories.forget(parts)
        gone = [path for path in self._members if path[: len(parts)] == parts]
        for path in gone:
            del self._members[path]
        for paths in (self._directories.made, self._opaque, self._deleted):
            paths -= {path for path in paths if path[: len(parts)] == parts}

    def _bring_back(self, parts: Parts) -> None:
        """Make directories above *parts* that the archive deletes, but then puts something into."""
        for depth in range(1, len(parts)):
            above = parts[:depth]
            if above in self._deleted:
                parent = self._directories.open(above[:-1], create=False)
                os.unlink(above[-1], dir_fd=parent)
                os.mkdir(above[-1], 0o700, dir_fd=parent)
                self._directories.made.add(above)
                self._deleted.discard(above)
                self._opaque.add(above)

    def _white_out(self, parts: Parts, member: Member) -> None:
        name = parts[-1]
        parent = self._directories.open(parts[:-1], create=True)
        if name == whiteout.AUFS_OPAQUE:
            self._opaque.add(parts[:-1])
            return
        if name.startswith(whiteout.AUFS_PREFIX * 2):
            return  # AUFS' own housekeeping
        deleted = name.removeprefix(whiteout.AUFS_PREFIX)
        if deleted in (b"", b".", b".."):
            raise refused(member.name, "it is a whiteout of nothing")
        place = (*parts[:-1], deleted)
        try:
            whiteout.make_whiteout(parent, deleted)
            self._deleted.add(place)
        except FileExistsError:  # then the layer has something of that name, which counts
            if stat.S_ISDIR(os.stat(deleted, dir_fd=parent, follow_symlinks=False).st_mode):
                self._opaque.add(place)

    def _write(self, fd: int, member: Member, content: Content) -> None:
        """Write a file's content, leaving holes where there are blocks of zeros."""
        digest = xxhash.xxh3_128()
        end = written = 0
        for offset, length in member.extents if member.extents is not None else [(0, member.size)]:
            _hash_zeros(digest, offset - end)
            end = offset + length
            while offset < end:
                piece = content.some(min(end - offset, _CHUNK))
                digest.update(piece)
                for start, stop in parts_with_data(piece, offset):
                    _write_all(fd, piece[start:stop], offset + start)
                    written = offset + stop
                offset += len(piece)
        _hash_zeros(digest, member.size - end)
        if written < member.size:
            os.ftruncate(fd, member.size)
        self.digests[os.fstat(fd).st_ino] = digest.hexdigest()

    def _set_attributes(self, fd: int, member: Member) -> None:
        mode = self._owned(member, lambda: os.fchown(fd, member.uid, member.gid))
        os.fchmod(fd, mode)  # after chown(2), which clears the set-id bits
        for name, value in member.xattrs.items():
            self._set_xattr(fd, name, value)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _set_attributes_at(self, parent: int, name: bytes, member: Member) -> None:
        mode = self._owned(
            member, lambda: os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        )
        if member.kind != "symlink":
            os.chmod(name, mode, dir_fd=parent)
        for attribute, value in member.xattrs.items():
            self._set_xattr(b"/proc/self/fd/%d/%s" % (parent, name), attribute, value)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _owned(self, member: Member, chown: Callable[[], None]) -> int:
        """Give a member to its owner; return the mode that it may have then.

        What stays with an ordinary user must not let others act as that user.
        """
        mode = member.mode
        try:
            chown()
        except OSError as error:
            if self._is_root or error.errno not in (
                errno.EPERM,
                errno.EINVAL,
            ):  # EINVAL: not in the namespace
                raise
            if member.uid != self._user[0]:
                mode &= ~stat.S_ISUID
            if member.gid != self._user[1] and member.kind != "directory":
                mode &= ~stat.S_ISGID
        return mode

    def _set_xattr(self, file: int | bytes, name: bytes, value: bytes) -> None:
        """Set an attribute; what a directory is to an overlay is not for an archive to say."""
        follow = isinstance(file, int)
        stored = self._marking.stored_name(name)
        try:
            os.setxattr(file, stored, value, follow_symlinks=follow)
        except PermissionError:
            if self._is_root:
                raise


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _hash_zeros(digest: xxhash.xxh3_128, count: int) -> None:
    while count > 0:
        digest.update(bytes(min(count, _CHUNK)))
        count -= _CHUNK


def parts_of_name(name: bytes, *, whiteouts: bool) -> Parts:
    """Return the names that the path of a member is made of. Raises `BadRequest` for one that leads out."""
    if name.startswith(b"/"):
        raise refused(name, "its path is absolute")
    if len(name) > _LONGEST:
        raise refused(name, f"its path is longer than {_LONGEST} bytes")
    parts = tuple([part for part in name.split(b"/") if part not in (b"", b".")])
    if b".." in parts:
        raise refused(name, "its path contains '..'")
    for part in parts[:-1]:
        if whiteouts and part.startswith(whiteout.AUFS_PREFIX):
            raise refused(name, "a directory cannot have the name of a whiteout")
    return parts


def refused(name: bytes, why: str) -> BadRequest:
    """Return the error that says why an archive with a member *name* is not unpacked."""
    return BadRequest(f"the archive is refused because of its member {_shown(name)}: {why}")


def _shown(name: bytes) -> str:
    shown = name if len(name) <= 256 else name[:256] + b"..."
    with suppress(UnicodeDecodeError):
        return repr(shown.decode())
    return repr(shown)[1:]
