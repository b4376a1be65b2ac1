"""The overlay's own extended attributes: where they are kept, and how they are kept out of sight.

overlayfs marks directories and files with private attributes (kernel documentation, "overlayfs",
sections "whiteouts and opaque directories" and "redirect_dir"). People who use the mount never see
those; an attribute of the same name that *they* set (an overlay mounted inside this one does) is
stored escaped, `trusted.overlay.X` as `trusted.overlay.overlay.X`, as the kernel does since 6.7.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from layerfs.union import syscalls

TRUSTED = b"trusted.overlay."
USER = b"user.overlay."
FUSE_OVERLAYFS = b"user.fuseoverlayfs."
PRIVATE = (TRUSTED, USER, FUSE_OVERLAYFS)
_ESCAPE = b"overlay."

ACCESS_ACL = b"system.posix_acl_access"
CAPABILITY = b"security.capability"
DEFAULT_ACL = b"system.posix_acl_default"

OPAQUE = b"opaque"
REDIRECT = b"redirect"
WHITEOUT = b"whiteout"
METACOPY = b"metacopy"
"""On a regular file: it has metadata alone, the contents are those of the file below it."""
INODE = b"layerfs.ino"
"""Written by layerfs alone: the number that a file had before it was copied up (`InodeTable.record`)."""


def stored_name(shown: bytes) -> bytes:
    """Return the name under which an attribute that people call *shown* is stored."""
    for prefix in PRIVATE:
        if shown.startswith(prefix):
            return prefix + _ESCAPE + shown[len(prefix) :]
    return shown


def shown_name(stored: bytes) -> bytes | None:
    """Return the name under which people see the attribute *stored*, or None for a private one."""
    for prefix in PRIVATE:
        if stored.startswith(prefix):
            rest = stored[len(prefix) :]
            return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
    return stored


def writable_prefix(fd: int) -> bytes:
    """Return the prefix to write private attributes with: `trusted.` where allowed, else `user.`.

    *fd* is a directory that may be marked for a moment (the work directory).
    """
    probe = TRUSTED + b"probe"
    try:
        os.setxattr(fd, probe, b"")
        os.removexattr(fd, probe)
    except OSError:
        return USER
    return TRUSTED


class Marks(NamedTuple):
    """What the private attributes of one layer's directory say."""

    opaque: bool = False
    xattr_whiteouts: bool = False
    redirect: bytes | None = None


_NO_MARKS = Marks()


def read_marks(fd: int) -> Marks:
    """Return the marks of the layer directory open as *fd*; none where xattrs are not supported."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return _NO_MARKS
        raise
    opaque = xattr_whiteouts = False
    redirect = None
    for text in names:
        name = os.fsencode(text)
        if not name.startswith(PRIVATE):
            continue
        if name.endswith(b"." + OPAQUE) and shown_name(name) is None:
            value = os.getxattr(fd, text)
            opaque |= value == b"y"
            xattr_whiteouts |= value == b"x"
        elif name in (TRUSTED + REDIRECT, USER + REDIRECT):
            redirect = os.getxattr(fd, text)
    if opaque or xattr_whiteouts or redirect is not None:
        return Marks(opaque, xattr_whiteouts, redirect)
    return _NO_MARKS


def set_mark(fd: int, name: bytes, value: bytes) -> None:
    """Set the private attribute *name* on the directory *fd*, also where its owner may not write to it."""
    try:
        os.setxattr(fd, name, value)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, mode | stat.S_IWUSR)
        try:
            os.setxattr(fd, name, value)
        finally:
            os.fchmod(fd, mode)


def is_xattr_whiteout(dir_fd: int, name: bytes) -> bool:
    """Tell whether the file *name* is a whiteout in the xattr form of Linux 6.7."""
    path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
    for prefix in (TRUSTED, USER):
        try:
            os.getxattr(path, prefix + WHITEOUT, follow_symlinks=False)
        except OSError:
            continue
        return True
    return False


class FileMarks(NamedTuple):
    """What the private attributes of a file in a layer say: see `INODE`, `METACOPY` and `REDIRECT`."""

    inode: bytes | None = None
    metacopy: bool = False
    redirect: bytes | None = None


_NO_FILE_MARKS = FileMarks()


def read_file_marks(dir_fd: int, name: bytes) -> FileMarks:
    """Return the marks of *name*, anything but a directory, in the layer directory *dir_fd*."""
    try:
        names = syscalls.listxattrat(dir_fd, name)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return _NO_FILE_MARKS
        raise
    marks = _NO_FILE_MARKS
    path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
    for stored in names:
        prefix, dot, rest = stored.partition(b".overlay.")
        if not dot or prefix not in (b"trusted", b"user"):
            continue
        if rest == METACOPY:
            marks = marks._replace(metacopy=True)
        elif rest == REDIRECT:
            marks = marks._replace(redirect=os.getxattr(path, stored, follow_symlinks=False))
        elif rest == INODE:
            marks = marks._replace(inode=os.getxattr(path, stored, follow_symlinks=False))
    return marks


def default_acl(fd: int) -> bytes | None:
    """Return the default ACL of the directory *fd*, as the attribute that holds it; None without one."""
    try:
        return os.getxattr(fd, DEFAULT_ACL)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def copy(source: bytes, target: bytes, *, follow: bool = False) -> None:
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
        if shown_name(name) is None:
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name), follow_symlinks=follow)
        except OSError as error:
            refused = error.errno in (errno.EOPNOTSUPP, errno.EPERM)
            if not (refused and name.startswith((b"security.", b"trusted."))):
                raise
