"""What each request does to the union, once it has its handler (`handlers`) and whatever waits is done.

Nothing here awaits: an operation runs to its end, and no other sees half of it. What may take long, the
copy-up before the first change of a lower file, is up to the caller, who has `Contents` for it. Failures
are `OSError`s with the errno to answer, and change nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pyfuse3
from pyfuse3 import FileNameT, InodeT

from layerfs.fuse import setid, wire
from layerfs.fuse.contents import Contents
from layerfs.fuse.setid import Caller
from layerfs.fuse.syncing import StoreSync, Syncing
from layerfs.fuse.times import LateTimes, is_everywhere
from layerfs.union import attributes, mutate, xattr
from layerfs.union.generation import refresh
from layerfs.union.mutate import Owner
from layerfs.union.node import Directory, File, Node
from layerfs.union.view import Union

Found = tuple[Node, os.stat_result]
_NS = 1_000_000_000


class Change(NamedTuple):
    """What a setattr is to change; None leaves a thing as it is. Times are nanoseconds since the epoch.

    `ctime` says that the kernel has noted a change of the inode.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: bool = False

    def chowns(self) -> bool:
        """Tell whether owner or group are to change."""
        return self.uid is not None or self.gid is not None


class Filesystem:
    """The union as requests see it: inode numbers, callers, set-id rules, times."""

    def __init__(
        self, union: Union, *, durable: bool = True, store: StoreSync | None = None, syncs: bool = True
    ) -> None:
        """Without *durable* a copy-up is not written to disk before it counts. fsync waits for *store*.

        Without *syncs* it does nothing.
        """
        self.union = union
        self.contents = Contents(union, durable=durable)
        self.syncing = Syncing(union, store or StoreSync(), syncs=syncs)
        self.late_times = LateTimes(union)
        self.barrier: bytes | None = None
        """The name of the file for `layerfs.fuse.flush`, once there is one."""
        self.collect: Callable[[], Awaitable[None]] | None = None
        """Has the kernel send what was written until now, once that is possible. Raises `LayerfsError`."""

    # -- nodes ----------------------------------------------------------------------------------

    def node(self, inode: int) -> Node:
        """Return the node of a request; descriptors are trimmed here, where none is in use yet."""
        union = self.union
        union.trim()
        try:
            node = union.table.nodes[inode]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        if node.generation != union.generation:
            refresh(union, node)
        return node

    def directory(self, inode: int) -> Directory:
        """Return the directory of a request."""
        node = self.node(inode)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def file(self, inode: int) -> File:
        """Return the node of a request that is for anything but a directory."""
        node = self.node(inode)
        if isinstance(node, Directory):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    def forget(self, inode: int, count: int) -> None:
        """Take back *count* references that the kernel has dropped."""
        node = self.union.table.nodes.get(inode)
        if node is not None:
            if isinstance(node, File) and node.references <= count:
                self.late_times.settle(node)
            self.union.forget(node, count)

    # -- attributes -------------------------------------------------------------------------------

    def effective(self, node: Node, change: Change, caller: Caller) -> Change | None:
        """Return what *change* comes to by the rules of set-id bits; None where nothing is to be done."""
        mode = change.mode
        if mode is None:
            mode = self._mode_left(node, change, caller)
        if not (change.chowns() or mode is not None or change.size is not None):
            if change.atime is None and change.mtime is None:
                return None
            if isinstance(node, File) and not self.union.in_upper(node) and not self._has_a_name(node):
                return None  # the kernel's last word on a removed lower file: no reason to copy it up
        return change if mode is change.mode else change._replace(mode=mode)

    def _has_a_name(self, node: File) -> bool:
        return bool(node.names) or self.union.links(node, node.stat()) > 0

    def _mode_left(self, node: Node, change: Change, caller: Caller) -> int | None:
        """Return the permissions that a change leaves where it takes set-id bits; None where it does not.

        Two things come with no field that asks for a change: chown(2) that changes nothing, told by its
        ctime (sent for regular files alone), and a write that is to take set-id bits or capabilities.
        """
        if isinstance(node, Directory):
            return None
        chown, cut = change.chowns(), change.size is not None
        nothing = not (chown or cut) and change.atime is None and change.mtime is None
        chown_same = nothing and (change.ctime or not node.is_regular)
        if chown or chown_same or ((nothing or cut) and caller.uid != 0):
            return setid.after_change(node.stat(), caller, needs_owner=chown_same)
        return None

    def apply(self, node: Node, change: Change) -> None:
        """Make an effective *change* of a node that is in place for it (a directory need not be)."""
        union = self.union
        attributes.ensure_upper(union, node)
        if change.chowns():
            uid = -1 if change.uid is None else change.uid
            gid = -1 if change.gid is None else change.gid
            attributes.chown(union, node, uid, gid)
        if change.size is not None and isinstance(node, File):
            self._truncate(node, change.size)
        if change.mode is not None:
            attributes.chmod(union, node, stat.S_IMODE(change.mode))
        if change.mtime is not None and isinstance(node, File):
            self.set_times(node, change.atime, change.mtime)
        elif change.atime is not None or change.mtime is not None:
            attributes.utime(union, node, change.atime, change.mtime)

    def set_times(self, node: File, atime: int | None, mtime: int) -> None:
        """Set the times of a file in the upper as the kernel tells them."""
        self.late_times.set(node, atime, mtime)
        if not is_everywhere(mtime) and node.stat().st_mtime_ns // _NS != mtime // _NS:
            # The disk has the nearest time that it can hold, but the kernel shows the one it was given until
            # it forgets the file. A thread asks for that: it may wait for the directory, and that for us.
            for parent, name in node.names:
                pyfuse3.invalidate_entry_async(InodeT(parent.ino), FileNameT(name), ignore_enoent=True)

    def _truncate(self, node: File, length: int) -> None:
        """Set the length of a file; one that it has already is no change, and leaves the time as it is."""
        st = node.stat()
        attributes.truncate(self.union, node, length)
        if st.st_size == length:
            attributes.utime(self.union, node, None, st.st_mtime_ns)
        if length == 0:
            self.syncing.cut_to_nothing(node)

    # -- names ------------------------------------------------------------------------------------

    def masked(self, parent: Directory, mode: int, umask: int) -> int:
        """Return *mode* less the caller's umask, which a default ACL overrules (acl(5)).

        Without the extension the kernel has applied the umask already, ACL or not.
        """
        if mode & umask and wire.is_active() and not self.union.has_default_acl(parent):
            mode &= ~umask
        return mode

    def create(self, parent: int, name: bytes, mode: int, caller: Caller, umask: int) -> Found:
        """Make an empty regular file."""
        directory = self.directory(parent)
        mode = self.masked(directory, mode, umask)
        node, st = mutate.create(self.union, directory, name, mode, Owner(caller.uid, caller.gid))
        node.references += 1
        return node, st

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller, umask: int) -> Found:
        """Make a fifo, socket, device or regular file."""
        if stat.S_ISREG(mode):
            return self.create(parent, name, mode, caller, umask)
        directory = self.directory(parent)
        mode = self.masked(directory, mode, umask)
        node, st = mutate.mknod(self.union, directory, name, mode, rdev, Owner(caller.uid, caller.gid))
        node.references += 1
        return node, st

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller, umask: int) -> Found:
        """Make a directory."""
        directory = self.directory(parent)
        mode = self.masked(directory, mode, umask)
        node, st = mutate.mkdir(self.union, directory, name, mode, Owner(caller.uid, caller.gid))
        node.references += 1
        return node, st

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Found:
        """Make a symbolic link."""
        owner = Owner(caller.uid, caller.gid)
        node, st = mutate.symlink(self.union, self.directory(parent), name, target, owner)
        node.references += 1
        return node, st

    def link(self, node: File, parent: int, name: bytes) -> Found:
        """Make another name for a file that is in place."""
        st = mutate.link(self.union, node, self.directory(parent), name)
        node.references += 1
        return node, st

    # -- contents ---------------------------------------------------------------------------------

    def node_to_sync(self, inode: int) -> Node:
        """Return the node of an FSYNC, with the modification time on it that is to be on disk as well.

        The kernel sends the data and tells the time before it asks for an FSYNC; a write that the daemon did
        after it was told has moved the time on disk.
        """
        node = self.node(inode)
        if isinstance(node, File):
            self.late_times.settle(node)
        return node

    def drop_set_id(self, node: File, caller: Caller | None = None) -> None:
        """Clear the set-id bits that a change of contents takes, and have the kernel ask for the mode again.

        It says itself when a write does; the cut of an open counts unless root asks.
        """
        if caller is None or caller.uid:
            mode = setid.after_change(node.stat(), caller)
            if mode is not None:
                attributes.chmod(self.union, node, mode)
                pyfuse3.invalidate_inode(InodeT(node.ino), attr_only=True)  # takes no lock, waits for nothing

    # -- extended attributes ------------------------------------------------------------------------

    def setxattr(self, node: Node, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an extended attribute of a node that is in place; an ACL may take the set-group-id bit."""
        attributes.ensure_upper(self.union, node)
        attributes.setxattr(self.union, node, name, value)
        if name == xattr.ACCESS_ACL:
            st = self.union.stat(node)
            if st.st_mode & stat.S_ISGID and not setid.may_keep_group_bit(st, caller):
                attributes.chmod(self.union, node, st.st_mode & ~stat.S_ISGID)
