"""Which extended attributes are the overlay's own: those of one prefix, the same for a whole stack.

overlayfs marks directories and files with private attributes (kernel documentation, "overlayfs", sections
"whiteouts and opaque directories" and "redirect_dir"). Anybody who may write to a file may set attributes
below `user.` on it, so a mount that serves others must take no orders from those. As in the kernel, a stack
is read and written with `trusted.overlay.`, which takes CAP_SYS_ADMIN in the initial user namespace, or, with
the option "userxattr" and where `trusted.` cannot be had, with `user.overlay.`. Attributes below the other
prefix are files' own, as all others are: shown, set and copied as they stand.

People who use the mount never see the private ones. An attribute of such a name that *they* set (an overlay
mounted inside this one does) is stored escaped, `trusted.overlay.X` as `trusted.overlay.overlay.X`, as the
kernel does since 6.7.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import NamedTuple

from layerfs.union import syscalls

OPAQUE = b"opaque"
REDIRECT = b"redirect"
WHITEOUT = b"whiteout"
METACOPY = b"metacopy"
"""On a regular file: it has metadata alone, the contents are those of the file below it."""
PARTIAL = b"layerfs.partial"
"""On a file with `METACOPY`: some of the contents are in it (`layerfs.union.partial`)."""
INODE = b"layerfs.ino"
"""Written by layerfs alone: the number that a file had before it was copied up (`InodeTable.record`)."""

_ESCAPE = b"overlay."
_DIGITS = 19
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in the kernel's include/linux/proc_ns.h
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SYS_ADMIN = 1, 2, 21


class Marks(NamedTuple):
    """What the private attributes of one layer's directory say."""

    opaque: bool = False
    xattr_whiteouts: bool = False
    redirect: bytes | None = None


class FileMarks(NamedTuple):
    """What the private attributes of a file in a layer say: see `INODE`, `METACOPY` and so on."""

    inode: bytes | None = None
    metacopy: bool = False
    redirect: bytes | None = None
    partial: int | None = None
    """Up to where a partial file may have its bytes from below."""


_NO_MARKS = Marks()
_NO_FILE_MARKS = FileMarks()


@dataclass(frozen=True, slots=True)
class Marking:
    """The prefixes of the overlay's own attributes in one stack.

    `prefix` is what layerfs writes and reads, `foreign` that of a program whose layers are read too.
    """

    prefix: bytes
    foreign: tuple[bytes, ...] = ()

    @property
    def private(self) -> tuple[bytes, ...]:
        """All prefixes of attributes that are not shown."""
        return (self.prefix, *self.foreign)

    def stored_name(self, shown: bytes) -> bytes:
        """Return the name under which an attribute that people call *shown* is stored."""
        for prefix in self.private:
            if shown.startswith(prefix):
                return prefix + _ESCAPE + shown[len(prefix) :]
        return shown

    def shown_name(self, stored: bytes) -> bytes | None:
        """Return the name under which people see the attribute *stored*, or None for a private one."""
        for prefix in self.private:
            if stored.startswith(prefix):
                rest = stored[len(prefix) :]
                return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
        return stored

    def read(self, fd: int) -> Marks:
        """Return the marks of the layer directory open as *fd*; none where xattrs are not supported."""
        try:
            names = os.listxattr(fd)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return _NO_MARKS
            raise
        marks = _NO_MARKS
        for text in names:
            name = os.fsencode(text)
            for prefix in self.private:
                if name == prefix + OPAQUE:
                    value = os.getxattr(fd, text)
                    marks = marks._replace(
                        opaque=marks.opaque or value == b"y",
                        xattr_whiteouts=marks.xattr_whiteouts or value == b"x",
                    )
            if name == self.prefix + REDIRECT:
                marks = marks._replace(redirect=os.getxattr(fd, text))
        return marks

    def read_file(self, dir_fd: int, name: bytes) -> FileMarks:
        """Return the marks of *name*, anything but a directory, in the layer directory *dir_fd*."""
        while True:
            try:
                return self._read_file(dir_fd, name)
            except OSError as error:
                if error.errno != errno.ENODATA:  # some of them have been taken away meanwhile
                    raise

    def _read_file(self, dir_fd: int, name: bytes) -> FileMarks:
        try:
            names = syscalls.listxattrat(dir_fd, name)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return _NO_FILE_MARKS
            raise
        marks = _NO_FILE_MARKS
        path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
        for stored in names:
            if not stored.startswith(self.prefix):
                continue
            rest = stored[len(self.prefix) :]
            if rest == METACOPY:
                marks = marks._replace(metacopy=True)
            elif rest == REDIRECT:
                marks = marks._replace(redirect=os.getxattr(path, stored, follow_symlinks=False))
            elif rest == PARTIAL:
                marks = marks._replace(partial=_number(os.getxattr(path, stored, follow_symlinks=False)))
            elif rest == INODE:
                marks = marks._replace(inode=os.getxattr(path, stored, follow_symlinks=False))
        return marks

    def is_whiteout(self, dir_fd: int, name: bytes) -> bool:
        """Tell whether the file *name* is a whiteout in the xattr form of Linux 6.7."""
        path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
        try:
            os.getxattr(path, self.prefix + WHITEOUT, follow_symlinks=False)
        except OSError:
            return False
        return True

    def can_be_written(self, fd: int) -> bool:
        """Tell whether the directory *fd*, which may be marked for a moment, takes such attributes."""
        probe = self.prefix + b"probe"
        try:
            os.setxattr(fd, probe, b"")
            os.removexattr(fd, probe)
        except OSError:
            return False
        return True

    def copy(self, source: bytes, target: bytes, *, follow: bool = False) -> None:
        """Copy all attributes from path *source* (followed) to path *target* (followed if *follow*).

        Private ones stay behind: they speak of the layer they are in. So do, where the target refuses
        them, `security.` and `trusted.` ones, as overlayfs and cp(1) have it.
        """
        try:
            names = os.listxattr(source)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return
            raise
        for text in names:
            name = os.fsencode(text)
            if self.shown_name(name) is None:
                continue
            _set_unless_refused(target, name, os.getxattr(source, name), follow=follow)

    def match(self, source: int, target: int) -> bool:
        """Give directory *target* the attributes of directory *source* and no others; tell if some changed.

        Private ones do not count, and what the target refuses stays behind, as with `copy`.
        """
        wanted, present = self.shown_values(source), self.shown_values(target)
        changed = False
        for name in present.keys() - wanted.keys():
            os.removexattr(target, name)
            changed = True
        for name, value in wanted.items():
            if present.get(name) != value:
                changed |= _set_unless_refused(target, name, value)
        return changed

    def shown_values(self, fd: int) -> dict[bytes, bytes]:
        """Return the attributes of directory *fd* that are not private, with their values."""
        try:
            names = [os.fsencode(text) for text in os.listxattr(fd)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return {}
            raise
        return {name: os.getxattr(fd, name) for name in names if self.shown_name(name) is not None}


def _number(value: bytes) -> int:
    """Return the number that *value* is; raises EIO for what is none."""
    if not value.isdigit() or len(value) > _DIGITS:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return int(value)


def _set_unless_refused(target: int | bytes, name: bytes, value: bytes, *, follow: bool = True) -> bool:
    """Set an attribute; tell whether it is set: `security.` and `trusted.` ones may be refused."""
    try:
        os.setxattr(target, name, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM) and name.startswith((b"security.", b"trusted.")):
            return False
        raise
    return True


TRUSTED = Marking(b"trusted.overlay.")
USER = Marking(b"user.overlay.", (b"user.fuseoverlayfs.",))


class Trust(Enum):
    """Whose redirects, metacopy marks and inode numbers are followed in a layer.

    They give what is below a new place and new permissions, as a symbolic link does that no permission is
    asked for. Opaque marks and whiteouts hide only what their own directory merges with, and always count.
    """

    ALL = 1
    """Nobody but layerfs has written them."""
    OWN = 2
    """Those on objects of the user whose rights this process has, and no more rights than his."""
    NONE = 3
    """EPERM, as the kernel's overlayfs answers with redirect_dir=nofollow and metacopy=off."""

    def covers(self, owner: int) -> bool:
        """Tell whether the marks on an object of user *owner* are followed."""
        return self is Trust.ALL or (self is Trust.OWN and owner == os.geteuid())


def of_this_process() -> Marking:
    """Return the marking that this process uses unless it is told to use `USER`."""
    return _marking_of(os.geteuid())


@cache
def _marking_of(user: int) -> Marking:  # a process may become another user's, and is asked again then
    return TRUSTED if _is_initial_namespace() and _capabilities() >> _CAP_SYS_ADMIN & 1 else USER


def trust_in_others() -> Trust:
    """Return how far this process trusts `USER` marks in a tree that others than layerfs may write to."""
    return _trust_of(os.geteuid())


@cache
def _trust_of(user: int) -> Trust:
    past_permissions = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
    if _capabilities() & past_permissions and not _is_alone_in_namespace():
        return Trust.NONE
    return Trust.OWN


def _capabilities() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def _is_initial_namespace() -> bool:
    return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE


def _is_alone_in_namespace() -> bool:
    """Tell whether this user namespace has one user: its root is then that user, and has no more rights."""
    with open("/proc/self/uid_map") as users:
        return sum(int(line.split()[2]) for line in users) == 1
