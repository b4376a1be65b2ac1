"""pyfuse3's operations: requests that wait for something, and all of them without the extension.

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

from layerfs.fuse import wire
from layerfs.fuse.attributes import NO_ENTRY, dot_entry, entry
from layerfs.fuse.direct import direct_counts
from layerfs.fuse.filesystem import Change, Filesystem, Found
from layerfs.fuse.reply import operation
from layerfs.fuse.setid import Caller
from layerfs.union import attributes, mutate, syscalls
from layerfs.union.copyup import writable_upper
from layerfs.union.rename import rename


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


def _change(attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> Change:
    return Change(
        mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime=attr.st_atime_ns if fields.update_atime else None,
        mtime=attr.st_mtime_ns if fields.update_mtime else None,
        ctime=fields.update_ctime,
    )


class Operations(pyfuse3.Operations):
    """Answers the kernel's requests from *filesystem*. `requests` counts them by name."""

    supports_dot_lookup = False
    enable_acl = True

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self.filesystem = filesystem
        self.union = filesystem.union
        self.contents = filesystem.contents
        self.enable_writeback_cache = (
            filesystem.union.upper is not None
        )  # it costs a GETATTR after each close
        self.requests: dict[str, int] = Counter()
        if wire.extension is not None:
            wire.extension.set_fallocate(self._on_fallocate)

    def counts(self) -> dict[str, int]:
        """Return how many requests there were, by name, those answered directly included."""
        return Counter(self.requests) + Counter(direct_counts())

    def _entry(self, found: Found) -> pyfuse3.EntryAttributes:
        return entry(self.union, *found)

    # -- lookup and attributes --------------------------------------------------------------------

    @operation
    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find *name* in a directory."""
        found = self.filesystem.lookup(parent_inode, name)
        return self._entry(found) if found else NO_ENTRY

    @operation
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back references that the kernel has dropped."""
        for inode, count in inode_list:
            self.filesystem.forget(inode, count)

    @operation
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return an inode's attributes."""
        node = self.filesystem.node(inode)
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
        node = self.filesystem.node(inode)
        change = self.filesystem.effective(node, _change(attr, fields), _caller(ctx))
        if change is not None:
            await self.contents.copy_up(node, change.size, metadata_only=change.size is None)
            self.filesystem.apply(node, change)
        return entry(self.union, node, self.union.stat(node))

    @operation
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> bytes:
        """Return the target of a symbolic link."""
        return self.union.readlink(self.filesystem.file(inode))

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
        return self._entry(self.filesystem.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @operation
    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        return self._entry(self.filesystem.mkdir(parent_inode, name, mode, _caller(ctx)))

    @operation
    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        return self._entry(self.filesystem.symlink(parent_inode, name, target, _caller(ctx)))

    @operation
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make another name for a file."""
        node = self.filesystem.file(inode)
        await self.contents.copy_up(node, metadata_only=True)
        return self._entry(self.filesystem.link(node, new_parent_inode, new_name))

    @operation
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a name of a file."""
        mutate.unlink(self.union, self.filesystem.directory(parent_inode), name)

    @operation
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an empty directory."""
        mutate.rmdir(self.union, self.filesystem.directory(parent_inode), name)

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
        directory = self.filesystem.directory
        moving = [(directory(parent_inode_old), name_old)]
        if flags & syscalls.RENAME_EXCHANGE:
            moving.append((directory(parent_inode_new), name_new))
        for parent, name in moving:
            node = mutate.existing(self.union, parent, name)
            await self.contents.copy_up(node, metadata_only=True)
        old, new = directory(parent_inode_old), directory(parent_inode_new)
        rename(self.union, old, name_old, new, name_new, flags)

    # -- files ----------------------------------------------------------------------------------

    @operation
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        found = self.filesystem.create(parent_inode, name, mode, _caller(ctx))
        return _opened(found[0].ino), self._entry(found)

    @operation
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file. To write it copies nothing yet, unless it is to be cut to nothing."""
        node = self.filesystem.file(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            writable_upper(self.union)
        if flags & os.O_TRUNC:
            await self.contents.copy_up(node, 0)
            attributes.truncate(self.union, node, 0)
            self.filesystem.syncing.cut_to_nothing(node)
            self.filesystem.drop_set_id(node, _caller(ctx))
        else:
            self.union.data(node)  # what cannot be read should fail here, not later
        return _opened(node.ino)

    @operation
    async def release(self, fh: FileHandleT) -> None:
        """Close a handle: nothing is kept for an open one."""

    @operation
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from a file."""
        found = await self.contents.read(self.filesystem.file(fh), off, size)
        return cast(bytes, found)  # any buffer will do

    @operation
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write to a file: all or, with the errno, as much as fitted."""
        node = self.filesystem.file(fh)
        takes_set_id = wire.extension is not None and wire.extension.takes_set_id()
        with self.filesystem.late_times.writing(node):
            await self.contents.write(node, off, buf)
        if takes_set_id:
            self.filesystem.drop_set_id(node)
        return len(buf)

    @operation
    async def flush(self, fh: FileHandleT) -> None:
        """Answer that there is nothing to do, so that the kernel does not ask at every close again."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    @operation
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a file to disk."""
        await self.filesystem.syncing.sync(self.filesystem.file_to_sync(fh), data_only=datasync)

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
        node = self.filesystem.file(inode)
        with self.filesystem.late_times.writing(node):
            await self.contents.fallocate(node, mode, offset, length)

    # -- directories ----------------------------------------------------------------------------

    @operation
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        """Open a directory; listings have no state."""
        return FileHandleT(self.filesystem.directory(inode).ino)

    @operation
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from the name after cookie *start_id*, with attributes."""
        union, directory = self.union, self.filesystem.directory(fh)
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
            union.trim()
            try:
                found = union.find(directory, name)
                if found is None:
                    continue
                attributes = entry(union, *found)
            except OSError:  # listed all the same: whoever looks it up hears what is wrong with it
                found = None
                attributes = dot_entry(union.table.fresh(), 0)  # no type: of such the kernel keeps nothing
            there_was_room = pyfuse3.readdir_reply(token, name, attributes, cookie)
            if found is not None and there_was_room:
                found[0].references += 1
            elif found is not None:
                union.release(found[0])
            if not there_was_room:
                return

    @operation
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory: nothing is kept for an open one."""

    @operation
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a directory to disk."""
        await self.filesystem.syncing.sync(self.filesystem.directory(fh), data_only=datasync)

    # -- extended attributes --------------------------------------------------------------------

    @operation
    async def getxattr(self, inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return an extended attribute."""
        return self.union.getxattr(self.filesystem.node(inode), name)

    @operation
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes."""
        return self.union.listxattr(self.filesystem.node(inode))

    @operation
    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Set an extended attribute."""
        node = self.filesystem.node(inode)
        await self.contents.copy_up(node, metadata_only=True)
        self.filesystem.setxattr(node, name, value, _caller(ctx))

    @operation
    async def removexattr(self, inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an extended attribute; one that is not there costs no copy-up."""
        node = self.filesystem.node(inode)
        self.union.getxattr(node, name)
        await self.contents.copy_up(node, metadata_only=True)
        attributes.ensure_upper(self.union, node)
        attributes.removexattr(self.union, node, name)


def _opened(inode: int) -> pyfuse3.FileInfo:
    """Return what the kernel is told of an open file: its handle is the inode number, which has no state."""
    return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)
