"""Changing what an object is like: owner, mode, times, length, extended attributes.

The object must be in the upper. Each function raises `OSError` and then has changed nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from layerfs.union import syscalls
from layerfs.union.copyup import copy_up, copy_up_directory, copy_up_removed
from layerfs.union.node import Directory, File, Node
from layerfs.union.view import Union


def ensure_upper(union: Union, node: Node) -> None:
    """Bring *node* into the upper if it is not there, also one that has been removed and is still open."""
    if union.in_upper(node):
        return
    if isinstance(node, Directory):
        (copy_up_removed if node.removed else copy_up_directory)(union, node)
    else:
        copy_up(union, node)


def chown(union: Union, node: Node, uid: int, gid: int) -> None:
    """Set owner and group (-1 leaves one as it is). The set-id bits stay: who asks decides on them."""
    mode = stat.S_IMODE(union.stat(node).st_mode)
    if isinstance(node, Directory):
        os.chown(node.dirs[0].fd(), uid, gid)
    elif node.pin >= 0:
        os.chown(b"/proc/self/fd/%d" % node.pin, uid, gid)
    else:
        os.chown(node.entry, uid, gid, dir_fd=node.home.fd(), follow_symlinks=False)
    if mode & (stat.S_ISUID | stat.S_ISGID) and not _is_symlink(node):
        chmod(union, node, mode)


def chmod(union: Union, node: Node, mode: int) -> None:
    """Set the permission, set-id and sticky bits to those in *mode*; EOPNOTSUPP on a symbolic link."""
    if isinstance(node, Directory):
        os.chmod(node.dirs[0].fd(), stat.S_IMODE(mode))
    elif _is_symlink(node):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    elif node.pin >= 0:
        os.chmod(b"/proc/self/fd/%d" % node.pin, stat.S_IMODE(mode))
    else:
        os.chmod(node.entry, stat.S_IMODE(mode), dir_fd=node.home.fd())


def utime(union: Union, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set access and modification time, in nanoseconds since the epoch; None leaves one as it is."""
    if isinstance(node, File) and node.partial is not None and mtime_ns is not None:
        node.partial.keep_time(mtime_ns)
    if isinstance(node, Directory):
        syscalls.utimensat(node.dirs[0].fd(), None, atime_ns, mtime_ns)
    elif node.writable:
        syscalls.utimensat(node.fd, None, atime_ns, mtime_ns)
    elif node.pin >= 0:
        st = node.stat()  # an O_PATH descriptor is good for no futimens(3)
        times = (
            st.st_atime_ns if atime_ns is None else atime_ns,
            st.st_mtime_ns if mtime_ns is None else mtime_ns,
        )
        os.utime(b"/proc/self/fd/%d" % node.pin, ns=times)
    else:
        syscalls.utimensat(node.home.fd(), node.entry, atime_ns, mtime_ns)


def truncate(union: Union, node: File, length: int) -> None:
    """Set the length of a regular file, in bytes. Nobody may be filling a partial one meanwhile."""
    if node.partial is not None:
        node.partial.cut(length, union.marking.prefix)
        return
    os.ftruncate(union.data(node, write=True), length)


def setxattr(union: Union, node: Node, name: bytes, value: bytes) -> None:
    """Set the extended attribute that people call *name*."""
    _forget_attributes(node)
    path, follow = union.path_for_xattr(node)
    os.setxattr(path, union.marking.stored_name(name), value, follow_symlinks=follow)


def removexattr(union: Union, node: Node, name: bytes) -> None:
    """Remove the extended attribute that people call *name*; ENODATA where there is none."""
    _forget_attributes(node)
    path, follow = union.path_for_xattr(node)
    os.removexattr(path, union.marking.stored_name(name), follow_symlinks=follow)


def _forget_attributes(node: Node) -> None:
    """Drop what is remembered of *node*'s extended attributes: they change."""
    if isinstance(node, Directory):
        node.default_acl = None


def _is_symlink(node: Node) -> bool:
    return isinstance(node, File) and stat.S_ISLNK(node.kind)
