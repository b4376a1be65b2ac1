"""pyfuse3's operations over a union.

The rule that keeps this correct: an operation runs to its end without an `await`, so no other sees
half of it. The awaits there are come first (`copy_up`, which waits for nobody else's file) or are the
whole of the operation (`read`, `fsync`); the state they leave holds until the next one.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FlagT, InodeT, ModeT

from layerfs.fuse import handles, setid, wire
from layerfs.fuse.attributes import NO_ENTRY, dot_entry, entry
from layerfs.fuse.contents import Contents
from layerfs.fuse.reply import operation
from layerfs.union import attributes, mutate, syscalls, xattr
from layerfs.union.copyup import writable_upper
from layerfs.union.mutate import Owner
from layerfs.union.node import Directory, File, Node
from layerfs.union.rename import rename
from layerfs.union.view import Union


class Operations(pyfuse3.Operations):
    """Answers the kernel's requests from *union*.

    `requests` counts them by name; `writing` holds the files that are open for writing somewhere, `written`
    those whose modification time on disk a delayed write has moved, with the time that the kernel knows.
    """

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, union: Union, *, durable: bool = True) -> None:
        super().__init__()
        self.union = union
        self.contents = Contents(union, durable=durable)
        self.requests: dict[str, int] = Counter()
        self.writing: set[File] = set()
        self.written: dict[File, int] = {}
        if wire.extension is not None:
            wire.extension.set_fallocate(self._on_fallocate)

    # -- nodes ----------------------------------------------------------------------------------

    def _node(self, inode: int) -> Node:
        """Return the node of a request; descriptors are trimmed here, where none is in use yet."""
        self.union.trim()
        try:
            return self.union.table.nodes[inode]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def _directory(self, inode: int) -> Directory:
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _file(self, inode: int) -> File:
        node = self._node(inode)
        if isinstance(node, Directory):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    def _entry(self, node: Node, st: os.stat_result) -> pyfuse3.EntryAttributes:
        """Return *node*'s entry, and count that the kernel knows it once more."""
        node.references += 1
        return entry(self.union, node, st)

    def _masked(self, parent: Directory, mode: int, ctx: pyfuse3.RequestContext) -> ModeT:
        """Return *mode* less the caller's umask, which a default ACL overrules (acl(5)).

        Without the extension the kernel has applied the umask already, ACL or not.
        """
        if mode & ctx.umask and wire.is_active() and not self.union.has_default_acl(parent):
            mode &= ~ctx.umask
        return ModeT(mode)

    # -- lookup and attributes --------------------------------------------------------------------

    @operation
    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find *name* in a directory."""
        found = self.union.find(self._directory(parent_inode), name)
        return self._entry(*found) if found else NO_ENTRY

    @operation
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back references that the kernel has dropped."""
        nodes = self.union.table.nodes
        for inode, count in inode_list:
            node = nodes.get(inode)
            if node is not None:
                self.union.forget(node, count)

    @operation
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return an inode's attributes."""
        node = self._node(inode)
        return entry(self.union, node, self.union.stat(node))

    @operation
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change owner, mode, length and times, as far as *fields* says."""
        node = self._node(inode)
        chown = fields.update_uid or fields.update_gid
        times = fields.update_atime or fields.update_mtime
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else self._mode_left(node, fields, ctx)
        if times and not (chown or mode is not None or fields.update_size) and self._is_lost(node):
            times = False  # the kernel's last word on a removed file: no reason to copy it up
        if chown or times or mode is not None or fields.update_size:
            if fields.update_size:
                await self.contents.copy_up(node, attr.st_size)
            else:
                await self.contents.copy_up(node, metadata_only=True)
            attributes.ensure_upper(self.union, node)
            if chown:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                attributes.chown(self.union, node, uid, gid)
            if fields.update_size and isinstance(node, File):
                attributes.truncate(self.union, node, attr.st_size)
            if mode is not None:
                attributes.chmod(self.union, node, mode)
            if times:
                atime = attr.st_atime_ns if fields.update_atime else None
                mtime = attr.st_mtime_ns if fields.update_mtime else None
                attributes.utime(self.union, node, atime, mtime)
            if fields.update_mtime and isinstance(node, File):
                self.written.pop(node, None)
        return entry(self.union, node, self.union.stat(node))

    def _mode_left(
        self, node: Node, fields: pyfuse3.SetattrFields, ctx: pyfuse3.RequestContext
    ) -> int | None:
        """Return the permissions that a change leaves where it takes set-id bits; None where it does not.

        Two things come with no field that asks for a change: chown(2) that changes nothing, told by its
        ctime (sent for regular files alone), and a write that is to take set-id bits or capabilities.
        """
        if isinstance(node, Directory):
            return None
        chown = fields.update_uid or fields.update_gid
        nothing = not (chown or fields.update_atime or fields.update_mtime or fields.update_size)
        chown_same = nothing and (fields.update_ctime or not node.is_regular)
        if chown or chown_same or ((nothing or fields.update_size) and ctx.uid != 0):
            return setid.after_change(node.stat(), ctx, needs_owner=chown_same)
        return None

    def _is_lost(self, node: Node) -> bool:
        """Tell whether *node* is a lower file that has been removed: it will never be seen again."""
        return isinstance(node, File) and not node.names and not self.union.in_upper(node)

    @operation
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> bytes:
        """Return the target of a symbolic link."""
        return self.union.readlink(self._file(inode))

    @operation
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the figures of the filesystem that takes the writes."""
        answer = pyfuse3.StatvfsData()
        figures = self.union.statvfs()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, "f_" + name, getattr(figures, "f_" + name))
        return answer

    # -- names ----------------------------------------------------------------------------------

    @operation
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a fifo, socket, device or regular file."""
        parent = self._directory(parent_inode)
        mode = self._masked(parent, mode, ctx)
        return self._entry(*mutate.mknod(self.union, parent, name, mode, rdev, Owner(ctx.uid, ctx.gid)))

    @operation
    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        parent = self._directory(parent_inode)
        mode = self._masked(parent, mode, ctx)
        return self._entry(*mutate.mkdir(self.union, parent, name, mode, Owner(ctx.uid, ctx.gid)))

    @operation
    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        parent = self._directory(parent_inode)
        return self._entry(*mutate.symlink(self.union, parent, name, target, Owner(ctx.uid, ctx.gid)))

    @operation
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make another name for a file."""
        node = self._file(inode)
        await self.contents.copy_up(node, metadata_only=True)
        parent = self._directory(new_parent_inode)
        return self._entry(node, mutate.link(self.union, node, parent, new_name))

    @operation
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a name of a file."""
        mutate.unlink(self.union, self._directory(parent_inode), name)

    @operation
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an empty directory."""
        mutate.rmdir(self.union, self._directory(parent_inode), name)

    @operation
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Rename; with RENAME_EXCHANGE both files are copied up first."""
        moving = [(self._directory(parent_inode_old), name_old)]
        if flags & syscalls.RENAME_EXCHANGE:
            moving.append((self._directory(parent_inode_new), name_new))
        for parent, name in moving:
            node = mutate.existing(self.union, parent, name)
            await self.contents.copy_up(node, metadata_only=True)
        old, new = self._directory(parent_inode_old), self._directory(parent_inode_new)
        rename(self.union, old, name_old, new, name_new, flags)

    # -- files ----------------------------------------------------------------------------------

    @operation
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        parent = self._directory(parent_inode)
        mode = self._masked(parent, mode, ctx)
        node, st = mutate.create(self.union, parent, name, mode, Owner(ctx.uid, ctx.gid))
        return self._opened(node, flags), self._entry(node, st)

    @operation
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file. To write it copies nothing yet, unless it is to be cut to nothing."""
        node = self._file(inode)
        if handles.wants_write(flags):
            writable_upper(self.union)
        if flags & os.O_TRUNC:
            await self.contents.copy_up(node, 0)
            attributes.truncate(self.union, node, 0)
            self._drop_set_id(node, ctx)
        else:
            self.union.data(node)  # what cannot be read should fail here, not later
        return self._opened(node, flags)

    def _opened(self, node: File, flags: int) -> pyfuse3.FileInfo:
        writer = handles.wants_write(flags)
        if writer:
            node.writers += 1
            self.writing.add(node)
        return pyfuse3.FileInfo(fh=FileHandleT(handles.make(node.ino, writer=writer)), keep_cache=True)

    @operation
    async def release(self, fh: FileHandleT) -> None:
        """Note that a handle is closed for good, mappings included."""
        node = self.union.table.nodes.get(handles.inode_of(fh))
        if handles.is_writer(fh) and isinstance(node, File):
            node.writers -= 1
            if node.writers <= 0:
                self.writing.discard(node)
                self.settle_time(node)

    def settle_time(self, node: File) -> None:
        """Give *node* on disk the modification time that the kernel shows.

        The kernel keeps that time under the writeback cache and sends it where it changed; it writes later
        than the time that it was written to, which must not show.
        """
        mtime = self.written.pop(node, None)
        if mtime is not None and self.union.in_upper(node):
            attributes.utime(self.union, node, None, mtime)

    @operation
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from a file."""
        found = await self.contents.read(self._file(handles.inode_of(fh)), off, size)
        return cast(bytes, found)  # any buffer will do

    @operation
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write to a file: all or, with the errno, as much as fitted."""
        node = self._file(handles.inode_of(fh))
        takes_set_id = wire.extension is not None and wire.extension.takes_set_id()
        if node not in self.written:
            self.written[node] = node.stat().st_mtime_ns
        await self.contents.write(node, off, buf)
        if takes_set_id:
            self._drop_set_id(node)
        return len(buf)

    def _drop_set_id(self, node: File, ctx: pyfuse3.RequestContext | None = None) -> None:
        """Clear the set-id bits that a change of contents takes, and have the kernel ask for the mode again.

        It says itself when a write does; the cut of an open counts unless root asks.
        """
        if ctx is None or ctx.uid:
            mode = setid.after_change(node.stat(), ctx)
            if mode is not None:
                attributes.chmod(self.union, node, mode)
                pyfuse3.invalidate_inode(InodeT(node.ino), attr_only=True)  # takes no lock, waits for nothing

    @operation
    async def flush(self, fh: FileHandleT) -> None:
        """Answer that there is nothing to do, so that the kernel does not ask at every close again."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    @operation
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a file to disk."""
        await self.contents.sync(self._file(handles.inode_of(fh)), data_only=datasync)

    def _on_fallocate(self, request: wire.Request, inode: int, mode: int, offset: int, length: int) -> None:
        trio.lowlevel.spawn_system_task(self._fallocate, request, inode, mode, offset, length)

    async def _fallocate(
        self, request: wire.Request, inode: int, mode: int, offset: int, length: int
    ) -> None:
        """Answer fallocate(2), which comes by way of the extension."""
        assert wire.extension is not None
        try:
            await self.fallocate(inode, mode, offset, length)
        except pyfuse3.FUSEError as error:
            wire.extension.reply_error(request, error.errno)
        else:
            wire.extension.reply_error(request, 0)

    @operation
    async def fallocate(self, inode: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a part of a file."""
        await self.contents.fallocate(self._file(inode), mode, offset, length)

    # -- directories ----------------------------------------------------------------------------

    @operation
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        """Open a directory; listings have no state."""
        return FileHandleT(self._directory(inode).ino)

    @operation
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from the name after cookie *start_id*, with attributes."""
        union, directory = self.union, self._directory(fh)
        st = union.stat(directory)
        parent = directory.parent or directory
        for cookie, name, inode in ((1, b".", directory.ino), (2, b"..", parent.ino)):
            if start_id < cookie and not pyfuse3.readdir_reply(
                token, name, dot_entry(inode, st.st_mode), cookie
            ):
                return
        listing = union.listing(directory)
        for position in range(bisect.bisect_left(listing, (start_id + 1, b"")), len(listing)):
            cookie, name = listing[position]
            try:
                found = union.find(directory, name)
                if found is None:
                    continue
                attributes = entry(union, *found)
            except OSError:
                continue  # a lookup of this one name will say what is wrong with it
            if not pyfuse3.readdir_reply(token, name, attributes, cookie):
                union.release(found[0])
                return
            found[0].references += 1

    @operation
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory: nothing is kept for an open one."""

    @operation
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a directory to disk."""
        await self.contents.sync(self._directory(fh), data_only=datasync)

    # -- extended attributes --------------------------------------------------------------------

    @operation
    async def getxattr(self, inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return an extended attribute."""
        return self.union.getxattr(self._node(inode), name)

    @operation
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes."""
        return self.union.listxattr(self._node(inode))

    @operation
    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Set an extended attribute."""
        node = self._node(inode)
        await self.contents.copy_up(node, metadata_only=True)
        attributes.ensure_upper(self.union, node)
        attributes.setxattr(self.union, node, name, value)
        if name == xattr.ACCESS_ACL:
            st = self.union.stat(node)
            if st.st_mode & stat.S_ISGID and not setid.may_keep_group_bit(st, ctx):
                attributes.chmod(self.union, node, st.st_mode & ~stat.S_ISGID)

    @operation
    async def removexattr(self, inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an extended attribute; one that is not there costs no copy-up."""
        node = self._node(inode)
        self.union.getxattr(node, name)
        await self.contents.copy_up(node, metadata_only=True)
        attributes.ensure_upper(self.union, node)
        attributes.removexattr(self.union, node, name)
