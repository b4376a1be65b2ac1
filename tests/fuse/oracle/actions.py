"""What is done to both mounts, each action a value that says so: printed in order they are a reproduction.

`perform` returns what the two sides must agree on, or raises the `OSError` whose errno they must agree on.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from layerfs.union import syscalls
from tests.fuse.oracle.mounts import KernelSide, LayerfsSide, Side
from tests.fuse.oracle.snapshot import attributes

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_libc = ctypes.CDLL(None, use_errno=True)


class Action:
    """One thing to do on a side."""

    def perform(self, side: Side) -> object:
        """Do it on *side*."""
        raise NotImplementedError


@contextmanager
def user(uid: int) -> Iterator[None]:
    """Do what is inside as the user and group *uid*."""
    if uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def outcome(action: Action, side: Side, uid: int) -> object:
    """Perform *action* on *side* as user *uid* and return its value, or the name of its errno."""
    with side.guard():
        try:
            with user(uid):
                return action.perform(side)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))


@dataclass(frozen=True)
class Write(Action):
    """Open with *flags*, write *data* at *offset* (None: where the file's position is), close."""

    path: bytes
    flags: int
    data: bytes
    offset: int | None = None
    mode: int = 0o644

    def perform(self, side: Side) -> object:
        fd = os.open(side.path(self.path), self.flags | os.O_NONBLOCK | os.O_NOCTTY, self.mode)
        try:
            if not self.data:
                return 0
            return os.write(fd, self.data) if self.offset is None else os.pwrite(fd, self.data, self.offset)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Truncate(Action):
    path: bytes
    length: int

    def perform(self, side: Side) -> None:
        path = side.path(self.path)
        same = os.stat(path).st_size == self.length
        os.truncate(path, self.length)
        if same:  # FUSE's writeback cache then leaves the time of change alone
            os.utime(path)


@dataclass(frozen=True)
class Rename(Action):
    path: bytes
    target: bytes
    flags: int = 0

    def perform(self, side: Side) -> None:
        old, new = side.path(self.path), side.path(self.target)
        parent = old.rpartition(b"/")[0]
        st = os.stat(parent)
        try:
            syscalls.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, self.flags)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY and isinstance(side, KernelSide) and os.geteuid() == 0:
                # The kernel leaves a new time on the directory although nothing has changed.
                os.utime(parent, ns=(st.st_atime_ns, st.st_mtime_ns))
            raise


@dataclass(frozen=True)
class Link(Action):
    path: bytes
    target: bytes

    def perform(self, side: Side) -> None:
        os.link(side.path(self.path), side.path(self.target), follow_symlinks=False)


@dataclass(frozen=True)
class Symlink(Action):
    content: bytes
    path: bytes

    def perform(self, side: Side) -> None:
        os.symlink(self.content, side.path(self.path))


@dataclass(frozen=True)
class Unlink(Action):
    path: bytes

    def perform(self, side: Side) -> None:
        os.unlink(side.path(self.path))


@dataclass(frozen=True)
class Rmdir(Action):
    path: bytes

    def perform(self, side: Side) -> None:
        os.rmdir(side.path(self.path))


@dataclass(frozen=True)
class Clear(Action):
    """Remove everything in a directory: what stays is one that is empty over layers that are not."""

    path: bytes

    def perform(self, side: Side) -> None:
        self._clear(side.path(self.path))

    def _clear(self, path: bytes) -> None:
        for name in sorted(os.listdir(path)):
            inner = path + b"/" + name
            try:
                mode = os.lstat(inner).st_mode
            except FileNotFoundError:
                continue  # a whiteout that the kernel lists: see snapshot.take
            if stat.S_ISDIR(mode):
                self._clear(inner)
                os.rmdir(inner)
            else:
                os.unlink(inner)


@dataclass(frozen=True)
class Mkdir(Action):
    path: bytes
    mode: int

    def perform(self, side: Side) -> None:
        os.mkdir(side.path(self.path), self.mode)


@dataclass(frozen=True)
class Mknod(Action):
    path: bytes
    mode: int
    device: tuple[int, int] = (0, 0)

    def perform(self, side: Side) -> None:
        os.mknod(side.path(self.path), self.mode, os.makedev(*self.device))


@dataclass(frozen=True)
class Chmod(Action):
    path: bytes
    mode: int

    def perform(self, side: Side) -> None:
        os.chmod(side.path(self.path), self.mode)


@dataclass(frozen=True)
class Chown(Action):
    path: bytes
    uid: int
    gid: int

    def perform(self, side: Side) -> None:
        os.chown(side.path(self.path), self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True)
class Utime(Action):
    """Set access and modification time: nanoseconds, `NOW`, or `KEEP`. Returns a stat's explicit ones."""

    path: bytes
    times: tuple[int, int]

    NOW: ClassVar[int] = (1 << 30) - 1
    KEEP: ClassVar[int] = (1 << 30) - 2

    def perform(self, side: Side) -> object:
        words: list[int] = []
        for time in self.times:
            words += [0, time] if time in (self.NOW, self.KEEP) else divmod(time, 10**9)
        path = side.path(self.path)
        if _libc.utimensat(_AT_FDCWD, path, (ctypes.c_long * 4)(*words), _AT_SYMLINK_NOFOLLOW) != 0:
            raise OSError(ctypes.get_errno(), "utimensat")
        st = os.lstat(path)
        return [
            found
            for found, time in zip((st.st_atime_ns, st.st_mtime_ns), self.times, strict=True)
            if time not in (self.NOW, self.KEEP)
        ]


@dataclass(frozen=True)
class SetAttribute(Action):
    """Set an extended attribute; *flags* are 0, XATTR_CREATE or XATTR_REPLACE."""

    path: bytes
    name: str
    value: bytes
    flags: int = 0

    def perform(self, side: Side) -> None:
        os.setxattr(side.path(self.path), self.name, self.value, self.flags, follow_symlinks=False)


@dataclass(frozen=True)
class RemoveAttribute(Action):
    path: bytes
    name: str

    def perform(self, side: Side) -> None:
        try:
            os.removexattr(side.path(self.path), self.name, follow_symlinks=False)
        except OSError as error:
            # To remove an ACL that is not there succeeds on the kernel's overlayfs if the object is in the
            # upper, and is ENODATA if it is not; on layerfs the answer does not depend on that.
            if not (error.errno == errno.ENODATA and self.name.startswith("system.posix_acl_")):
                raise


@dataclass(frozen=True)
class Open(Action):
    """Open a file or directory and keep it open under the number *handle*."""

    handle: int
    path: bytes
    flags: int

    def perform(self, side: Side) -> object:
        side.handles[self.handle] = os.open(side.path(self.path), self.flags | os.O_NONBLOCK | os.O_NOCTTY)
        return None


@dataclass(frozen=True)
class Close(Action):
    handle: int

    def perform(self, side: Side) -> None:
        os.close(side.handles.pop(self.handle))


@dataclass(frozen=True)
class Use(Action):
    """Do something with an open file or directory, and return what it then looks like."""

    handle: int
    what: str
    number: int = 0
    data: bytes = b""

    def perform(self, side: Side) -> object:
        fd = side.handles[self.handle]
        match self.what:
            case "write":
                os.pwrite(fd, self.data, self.number)
            case "append":
                if stat.S_ISREG(os.fstat(fd).st_mode):  # the end of a directory is no place to ask for
                    os.lseek(fd, 0, os.SEEK_END)
                os.write(fd, self.data)
            case "map":
                if self.number < os.fstat(fd).st_size:
                    with mmap.mmap(fd, 0) as memory:
                        memory[self.number] = 0x6D
            case "truncate":
                os.ftruncate(fd, self.number)
            case "chmod":
                os.fchmod(fd, self.number)
            case "chown":
                os.fchown(fd, self.number, self.number)
            case "setxattr":
                os.setxattr(fd, "user.open", self.data)
            case "sync":
                os.fsync(fd)
            case "create":
                os.close(os.open(b"a", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=fd))
        return self._state(fd)

    def _state(self, fd: int) -> object:
        st = os.fstat(fd)
        content: object = None
        if stat.S_ISREG(st.st_mode):
            try:
                content = os.pread(fd, 1 << 20, 0)
            except OSError as error:
                content = error.errno
        elif stat.S_ISDIR(st.st_mode):
            content = [name for name in sorted(os.listdir(fd)) if _exists(fd, name)]
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
        return st.st_mode, st.st_uid, st.st_gid, size, st.st_rdev, content, attributes(fd)


def _exists(directory: int, name: str) -> bool:
    """Tell whether *name*, which has been listed, exists: see `snapshot.take`, which minds that it does."""
    try:
        os.lstat(f"/proc/self/fd/{directory}/{name}")
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Remount(Action):
    def perform(self, side: Side) -> None:
        side.remount()


@dataclass(frozen=True)
class Commit(Action):
    """Make the upper a lower layer and go on with an empty one. Open files stay open."""

    def perform(self, side: Side) -> None:
        side.commit()


@dataclass(frozen=True)
class Forget(Action):
    """Have the kernel forget what it knows of layerfs' tree; nothing else changes."""

    def perform(self, side: Side) -> object:
        if isinstance(side, LayerfsSide):
            side.forget()
        return None
