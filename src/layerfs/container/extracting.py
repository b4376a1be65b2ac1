"""Copying into a tree that may be in use, as `docker cp` does: the members of an archive are written to it.

Unlike an image's layer (see `archive.unpack`), the tree has things in it already, and names that begin with
`.wh.` are names like others.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from layerfs.archive.holes import parts_with_data
from layerfs.archive.tar import Member
from layerfs.archive.unpack import Content
from layerfs.container.rootfs import open_beneath, open_inside
from layerfs.errors import BadRequest, Forbidden, LayerfsError, from_os_error

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_TYPES = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
_CHUNK = 1 << 20
_KEPT = 32
"""Directories that are kept open."""
_IGNORED = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)
"""Why an attribute may be left out, as by Docker: it is not for this user, or not for this filesystem."""


class Extractor:
    """Writes members below a directory; a context manager, whose work `finish` ends."""

    def __init__(
        self,
        open_directory: Callable[[bytes], int],
        place: str,
        *,
        owner: tuple[int, int] | None = None,
        chown: bool = True,
        overwrite: bool = True,
    ) -> None:
        """Write below the directory that people call *place*, in which *open_directory* opens others.

        Everything belongs to *owner*, or to whom the archive says; without *chown*, to this user. Unless
        *overwrite*, no directory gives way to anything else, nor anything else to a directory.
        """
        self._open_directory = open_directory
        self._place = place
        self._owner = owner
        self._chown = chown
        self._overwrite = overwrite
        self._open: dict[bytes, int] = {}
        self._times: dict[bytes, int] = {}

    @classmethod
    def in_root(
        cls, root: int, path: str, *, owner: tuple[int, int] | None = None, overwrite: bool = True
    ) -> Extractor:
        """Return one for the directory *path* in the tree with the root *root*, whose links lead to the tree.

        So a directory that the archive names may be a link to one, as /lib is in most images.
        """
        start = os.fsencode(path).rstrip(b"/")
        return cls(
            lambda below: open_inside(root, b"%b/%b" % (start, below), _DIRECTORY),
            path,
            owner=owner,
            overwrite=overwrite,
        )

    @classmethod
    def beneath(cls, directory: int, place: str) -> Extractor:
        """Return one for *directory* itself, of a tree that is not the archive's: no link is followed."""
        return cls(
            lambda below: open_beneath(directory, below or b".", _DIRECTORY),
            place,
            chown=False,
            overwrite=False,
        )

    def __enter__(self) -> Extractor:
        """Return the extractor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the directories."""
        self._forget()

    def add(self, member: Member, content: Content) -> None:
        """Write one member in place of what has the same name. Raises `LayerfsError`."""
        path = self._inside(member.name)
        if not path:
            return  # the directory itself, which is as it is
        above, name = posixpath.split(path)
        try:
            self._put(self._parent(above), path, name, member, content)
        except OSError as error:
            raise self._failed(error, path) from None

    def finish(self) -> None:
        """Give directories their times, which writing into them has changed. Raises `LayerfsError`."""
        for path, moment in sorted(self._times.items(), reverse=True):
            try:
                os.utime(self._directory(path), ns=(moment, moment))
            except (FileNotFoundError, NotADirectoryError):
                continue  # something else has come in its place
            except OSError as error:
                raise self._failed(error, path) from None

    def _inside(self, name: bytes) -> bytes:
        """Return the path below the directory that *name* means, empty for itself. Raises `BadRequest`."""
        path = posixpath.normpath(name.lstrip(b"/") or b".")
        if path == b".." or path.startswith(b"../"):
            raise BadRequest(f"{os.fsdecode(name[:200])!r} is outside of {self._place!r}")
        return b"" if path == b"." else path

    def _put(self, parent: int, path: bytes, name: bytes, member: Member, content: Content) -> None:
        try:
            before: os.stat_result | None = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            before = None
        if before is not None:
            was, is_now = stat.S_ISDIR(before.st_mode), member.kind == "directory"
            if was != is_now and not self._overwrite:
                old, new = ("directory", "non-directory") if was else ("non-directory", "directory")
                shown = posixpath.join(self._place, os.fsdecode(path))
                given = os.fsdecode(member.name)
                raise BadRequest(f'cannot overwrite {old} "{shown}" with {new} "{given}"')
            if was and is_now:
                self._set_attributes(self._directory(path), member)
                self._times[path] = member.mtime_ns
                return
            if member.kind == "link" and self._inside(member.target) == path:
                raise BadRequest(f"{os.fsdecode(path)!r} in the archive is a link to itself")
            self._remove(parent, name, is_directory=was)
        self._create(parent, path, name, member, content)

    def _remove(self, parent: int, name: bytes, *, is_directory: bool) -> None:
        if not is_directory:
            os.unlink(name, dir_fd=parent)
            return
        kept = os.dup(parent)
        try:
            self._forget()
            shutil.rmtree(os.fsdecode(name), dir_fd=kept)
        finally:
            os.close(kept)

    def _create(self, parent: int, path: bytes, name: bytes, member: Member, content: Content) -> None:
        if member.kind == "directory":
            parent = self._parent(posixpath.dirname(path))
            os.mkdir(name, 0o700, dir_fd=parent)
            self._set_attributes(self._directory(path), member)
            self._times[path] = member.mtime_ns
            return
        parent = self._parent(posixpath.dirname(path))  # it may have been closed
        if member.kind == "file":
            fd = os.open(name, _NEW, 0o600, dir_fd=parent)
            try:
                _write(fd, member, content)
                self._set_attributes(fd, member)
                os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            except BaseException:
                with suppress(OSError):
                    os.unlink(name, dir_fd=parent)
                raise
            finally:
                os.close(fd)
            return
        if member.kind == "link":
            target = self._inside(member.target)
            # A descriptor of its own: opening the directory of the target may close that of the name.
            kept = os.dup(parent)
            try:
                source = self._directory(posixpath.dirname(target))
                last = posixpath.basename(target) or b"."
                os.link(last, name, src_dir_fd=source, dst_dir_fd=kept, follow_symlinks=False)
            finally:
                os.close(kept)
            return
        if member.kind == "symlink":
            os.symlink(member.target, name, dir_fd=parent)
        else:
            device = os.makedev(member.major, member.minor)
            os.mknod(name, _TYPES[member.kind] | 0o600, device, dir_fd=parent)
        self._set_attributes_at(parent, name, member)

    def _set_attributes(self, fd: int, member: Member) -> None:
        if self._chown:
            os.fchown(fd, *self._owner_of(member))
        os.fchmod(fd, member.mode)  # after chown(2), which clears the set-id bits
        for name, value in member.xattrs.items():
            self._set_xattr(fd, name, value)

    def _set_attributes_at(self, parent: int, name: bytes, member: Member) -> None:
        if self._chown:
            uid, gid = self._owner_of(member)
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if member.kind != "symlink":
            os.chmod(name, member.mode, dir_fd=parent)
        for attribute, value in member.xattrs.items():
            self._set_xattr(b"/proc/self/fd/%d/%s" % (parent, name), attribute, value)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _owner_of(self, member: Member) -> tuple[int, int]:
        return self._owner or (member.uid, member.gid)

    def _set_xattr(self, file: int | bytes, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno not in _IGNORED:
                raise

    def _parent(self, path: bytes) -> int:
        """Return a descriptor of a directory, made together with those above it if it is missing."""
        try:
            return self._directory(path)
        except FileNotFoundError:
            above, name = posixpath.split(path)
            if not name:
                raise
        parent = self._parent(above)
        os.mkdir(name, 0o755, dir_fd=parent)
        if self._chown and self._owner:
            os.chown(name, *self._owner, dir_fd=parent, follow_symlinks=False)
        return self._directory(path)

    def _directory(self, path: bytes) -> int:
        """Return a descriptor of a directory, which is good until the call after the next few."""
        fd = self._open.pop(path, None)
        if fd is None:
            if len(self._open) >= _KEPT:
                os.close(self._open.pop(next(iter(self._open))))
            fd = self._open_directory(path)
        self._open[path] = fd
        return fd

    def _forget(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _failed(self, error: OSError, path: bytes) -> LayerfsError:
        shown = posixpath.join(self._place, os.fsdecode(path))
        if error.errno == errno.EROFS:
            return Forbidden(f"{shown} is on a filesystem that is marked read-only")
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return BadRequest(f"cannot write {shown}: a directory above it is a file or a link")
        error.filename = None
        return from_os_error(error, f"write {shown}")


def _write(fd: int, member: Member, content: Content) -> None:
    """Write what a file holds, with holes where there are blocks of zeros."""
    written = 0
    for offset, length in member.extents if member.extents is not None else [(0, member.size)]:
        end = offset + length
        while offset < end:
            piece = content.some(min(end - offset, _CHUNK))
            for start, stop in parts_with_data(piece, offset):
                data, at = piece[start:stop], offset + start
                while data:
                    count = os.pwrite(fd, data, at)
                    data, at = data[count:], at + count
                written = offset + stop
            offset += len(piece)
    if written < member.size:
        os.ftruncate(fd, member.size)
