"""Handlers: what answers a request of the kernel, by the table of requests.

A handler returns the answer, raises an `OSError` with the errno to answer, or, before it has done anything,
returns a coroutine that does one or the other: then the answer has to wait for something.

The rule that keeps this correct: a handler runs to its end without an `await`, so no other sees half of it.
What a coroutine awaits comes first (a copy-up, which waits for nobody else's file), and then the handler is
called again, or it is the whole of the operation (`read`, `fsync`).
"""

from __future__ import annotations

import bisect
import errno
import inspect
import os
import resource
import stat
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from layerfs.errors import LayerfsError
from layerfs.fuse import wire
from layerfs.fuse.attributes import FOREVER
from layerfs.fuse.filesystem import Change, Filesystem, Found
from layerfs.fuse.reply import later
from layerfs.fuse.requests import REFUSED, TABLE
from layerfs.fuse.setid import Caller
from layerfs.union import attributes, mutate, syscalls
from layerfs.union.layer import LayerDir
from layerfs.union.node import Directory, File, Node
from layerfs.union.rename import rename

_NS = 1_000_000_000
_VOUCHED = 4096
"""For how many inodes the extension may have a descriptor at a time."""
_ENTRY_SIZE = 128
_DIRENT_SIZE = 24
_SETATTR_IN = struct.Struct("=IIQQQqqqIIIIIIII")
_STATFS_OUT = struct.Struct("=QQQQQIII28x")
_WRITE_OUT = struct.Struct("=II")
_NO_ENTRY = struct.pack("=QQQ", 0, 0, int(FOREVER)).ljust(_ENTRY_SIZE, b"\0")
_UNKNOWN_INODE = 0xFFFFFFFF
"""Stands in a listing for a number that is not known, as libfuse has it."""

_MODE, _UID, _GID, _SIZE_SET, _ATIME, _MTIME = (1 << bit for bit in range(6))
_CHANGES = (1 << 6) - 1
_ATIME_NOW, _MTIME_NOW, _CTIME = 1 << 7, 1 << 8, 1 << 10
_TAKES_SET_ID, _DATA_ONLY = 1 << 2, 1 << 0
_XATTR_CREATE, _XATTR_REPLACE = 1, 2
_CAPABILITY = b"security.capability"

_T = TypeVar("_T")
Told = tuple[int, os.stat_result, int, int]
"""What the kernel is told of a node: its number, stat, link count and blocks."""
Entry = Told | bytes
"""The same of a name that it looks up; or the extension's struct fuse_entry_out."""
Later = Coroutine[Any, Any, _T]


class Handlers:
    """Answers requests from *filesystem*; a handler's first argument is the inode."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.union = filesystem.union
        self._contents = filesystem.contents
        self._wire = wire.extension

    def install(self, extension: wire.Wire) -> None:
        """Have the extension bring requests here."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.union.on_change = lambda node: extension.drop_attributes(node.ino)
        extension.know(min(_VOUCHED, descriptors // 8))
        extension.set_ways(Caller, later.begin)
        for opcode, row in TABLE.items():
            descriptor = getattr(self, row.descriptor) if row.descriptor else None
            extension.set_row(opcode, row.form, getattr(self, row.name), descriptor)
        for opcode, error in REFUSED.items():
            extension.set_row(opcode, "", error, None)

    # -- what answers are made of -------------------------------------------------------------------

    def _tell(self, found: Found) -> Told:
        node, st = found
        return node.ino, st, self.union.links(node, st), self.union.blocks(node, st)

    def _attributes(self, node: Node) -> Told:
        return self._tell((node, self.union.stat(node)))

    def _plain(self, home: LayerDir, name: bytes) -> tuple[int, int, bytes] | None:
        if self._wire is None:
            return None
        table = self.union.table
        prefix = self.union.marking.prefix if home.has_marks(name) else b""
        fd, path = home.where(name)
        if path is name:
            return self._wire.plain_entry(fd, name, table.bases, table.nodes, prefix)
        if not prefix:  # else it is known to have marks
            with suppress(FileNotFoundError):  # its layer may have gone: that is seen, and told, by who asks
                return self._wire.plain_entry(fd, path, table.bases, table.nodes, prefix)
        return None

    def find(self, directory: Directory, name: bytes) -> tuple[Node, Entry] | None:
        """Find *name* in a directory, and what to tell of it; the caller counts the reference."""
        found = self.union.find(directory, name, self._plain)
        if found is None:
            return None
        node, st = found
        return node, st if isinstance(st, bytes) else self._tell((node, st))

    async def _once_in_place(
        self,
        again: Callable[[], Later[_T] | _T],
        node: Node,
        length: int | None = None,
        *,
        metadata_only: bool = True,
    ) -> _T:
        """Copy *node* up and call the handler again, which may find that it has to wait once more."""
        await self._contents.copy_up(node, length, metadata_only=metadata_only)
        answer = again()
        return await answer if inspect.iscoroutine(answer) else answer  # type: ignore[return-value]

    # -- lookup and attributes ------------------------------------------------------------------------

    def lookup(self, inode: int, name: bytes) -> Entry:
        """LOOKUP: a name of a directory."""
        found = self.find(self.filesystem.directory(inode), name)
        if found is None:
            return _NO_ENTRY
        found[0].references += 1
        return found[1]

    def forget(self, inode: int, count: int) -> None:
        """FORGET: references that the kernel has dropped."""
        self.filesystem.forget(inode, count)

    def getattr(self, inode: int) -> Told:
        """GETATTR."""
        node = self.filesystem.node(inode)
        told = self._attributes(node)
        if self._wire is None:
            return told
        if isinstance(node, Directory):
            part = self.union.upper_part(node)
            if part is not None:
                self._wire.vouch(inode, part.fd(), 1 if len(node.dirs) > 1 else 0, False, False)
        elif not self.union.in_upper(node):
            self._wire.keep_attributes(told)
        return told

    def setattr(self, inode: int, body: bytes, caller: Caller) -> Told | Later[Told]:
        """SETATTR: struct fuse_setattr_in."""
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, owner, group, _ = (
            _SETATTR_IN.unpack_from(body)
        )
        if valid & (_CHANGES | _MTIME_NOW) == _MTIME:
            node = self.filesystem.node(inode)
            if isinstance(node, File) and self.union.in_upper(node):
                # By far the most of them: the kernel passes on the time of a write.
                self.filesystem.set_times(node, None, mtime * _NS + mtime_ns)
                return self._attributes(node)
        change = Change(
            mode=stat.S_IMODE(mode) if valid & _MODE else None,
            uid=owner if valid & _UID else None,
            gid=group if valid & _GID else None,
            size=size if valid & _SIZE_SET else None,
            atime=_time(atime, atime_ns, now=valid & _ATIME_NOW) if valid & _ATIME else None,
            mtime=_time(mtime, mtime_ns, now=valid & _MTIME_NOW) if valid & _MTIME else None,
            ctime=bool(valid & _CTIME),
        )
        return self.change(inode, change, caller)

    def change(self, inode: int, change: Change, caller: Caller) -> Told | Later[Told]:
        """Change owner, mode, length and times."""
        node = self.filesystem.node(inode)
        effective = self.filesystem.effective(node, change, caller)
        if effective is not None:
            length = effective.size
            if length is not None and isinstance(node, File) and node.partial is not None:
                return self._cut(node, length, effective)
            if not self._contents.bring_in_place(node, length, metadata_only=length is None):
                again = lambda: self.change(inode, change, caller)  # noqa: E731
                return self._once_in_place(again, node, length, metadata_only=length is None)
            self.filesystem.apply(node, effective)
        return self._attributes(node)

    async def _cut(self, node: File, length: int, change: Change) -> Told:
        """Make a *change* that sets the length of a partial file."""
        async with self._contents.cutting(node, length):
            self.filesystem.apply(node, change)
        return self._attributes(node)

    def readlink(self, inode: int) -> bytes:
        """READLINK."""
        return self.union.readlink(self.filesystem.file(inode))

    def statfs(self, inode: int) -> bytes:
        """STATFS: the figures of the filesystem that takes the writes."""
        st = self.union.statvfs()
        return _STATFS_OUT.pack(
            st.f_blocks,
            st.f_bfree,
            st.f_bavail,
            st.f_files,
            st.f_ffree,
            st.f_bsize,
            st.f_namemax,
            st.f_frsize,
        )

    # -- names --------------------------------------------------------------------------------------

    def mknod(self, inode: int, mode: int, rdev: int, umask: int, name: bytes, caller: Caller) -> Told:
        """MKNOD: a fifo, socket, device or regular file."""
        found = self.filesystem.mknod(inode, name, mode, rdev, caller, umask)
        if self._wire and isinstance(found[0], File) and found[0].writable and self._contents.lets_write:
            self.filesystem.late_times.vouch(found[0], is_new=True)
        return self._tell(found)

    def mkdir(self, inode: int, mode: int, umask: int, name: bytes, caller: Caller) -> Told:
        """MKDIR."""
        return self._tell(self.filesystem.mkdir(inode, name, mode, caller, umask))

    def symlink(self, inode: int, name: bytes, target: bytes, caller: Caller) -> Told:
        """SYMLINK."""
        return self._tell(self.filesystem.symlink(inode, name, target, caller))

    def link(self, inode: int, source: int, name: bytes) -> Told | Later[Told]:
        """LINK: a new name, in the directory *inode*, of the node *source*."""
        node = self.filesystem.file(source)
        if not self._contents.bring_in_place(node, metadata_only=True):
            return self._once_in_place(lambda: self.link(inode, source, name), node)
        return self._tell(self.filesystem.link(node, inode, name))

    def unlink(self, inode: int, name: bytes) -> None:
        """UNLINK."""
        mutate.unlink(self.union, self.filesystem.directory(inode), name)

    def rmdir(self, inode: int, name: bytes) -> None:
        """RMDIR."""
        mutate.rmdir(self.union, self.filesystem.directory(inode), name)

    def rename(self, inode: int, target: int, name: bytes, new_name: bytes) -> Later[None] | None:
        """RENAME: to *new_name* in the directory *target*."""
        return self.rename2(inode, target, 0, name, new_name)

    def rename2(
        self, inode: int, target: int, flags: int, name: bytes, new_name: bytes
    ) -> Later[None] | None:
        """RENAME2; with RENAME_EXCHANGE both files are copied up first."""
        old, new = self.filesystem.directory(inode), self.filesystem.directory(target)
        moving = [(old, name), (new, new_name)] if flags & syscalls.RENAME_EXCHANGE else [(old, name)]
        for parent, entry in moving:
            node = mutate.existing(self.union, parent, entry)
            if not self._contents.bring_in_place(node, metadata_only=True):
                return self._once_in_place(lambda: self.rename2(inode, target, flags, name, new_name), node)
        rename(self.union, old, name, new, new_name, flags)
        return None

    def names(self, directory: Directory, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield the names in a directory after the cookie *start*, each with its cookie."""
        yield from ((cookie, name) for cookie, name in ((1, b"."), (2, b"..")) if start < cookie)
        listing = self.union.listing(directory)
        for position in range(bisect.bisect_left(listing, (start + 1, b"")), len(listing)):
            yield listing[position]

    def listed(self, directory: Directory, name: bytes) -> tuple[Node | None, Entry | None, int, int] | None:
        """Return the node of a name, what is told of it, number and type; None if there is no such name."""
        if name in (b".", b".."):
            node = directory if name == b"." else directory.parent or directory
            return None, None, node.ino, stat.S_IFDIR
        self.union.trim()
        try:
            found = self.find(directory, name)
        except OSError:  # it is listed all the same: whoever looks it up hears what is wrong with it
            return None, None, 0, 0
        if found is None:
            return None
        return *found, found[0].ino, stat.S_IFDIR if isinstance(found[0], Directory) else found[0].kind

    def readdirplus(self, inode: int, start: int, size: int) -> bytes:
        """READDIRPLUS: a directory from the name after a cookie, with attributes."""
        assert self._wire is not None
        directory, answer = self.filesystem.directory(inode), list[bytes]()
        for cookie, name in self.names(directory, start):
            size -= (_ENTRY_SIZE + _DIRENT_SIZE + len(name) + 7) & ~7
            if size < 0:
                break
            listed = self.listed(directory, name)
            if listed is not None:
                node, told, number, kind = listed
                if node is not None:
                    node.references += 1
                answer.append(self._wire.direntplus(told, number or _UNKNOWN_INODE, cookie, kind, name))
        return b"".join(answer)

    # -- contents -----------------------------------------------------------------------------------

    def to_read(self, inode: int, flag: bool) -> int | None:
        """Return the descriptor to read from."""
        node = self.filesystem.file(inode)
        return None if node.partial is not None else self.union.data(node)

    async def read(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        """READ."""
        return await self._contents.read(self.filesystem.file(inode), offset, size)

    def to_write(self, inode: int, takes_set_id: bool) -> int | None:
        """Return the descriptor to change, once that needs no copy-up, and no commit is made."""
        node = self.filesystem.file(inode)
        if takes_set_id or not self._contents.lets_write or not self._contents.bring_in_place(node):
            return None
        if node.partial is not None:
            return None
        fd = self.union.data(node, write=True)
        if not self.filesystem.late_times.vouch(node):
            self.filesystem.late_times.written(node)
        return fd

    async def write(self, inode: int, offset: int, flags: int, data: bytes) -> bytes:
        """WRITE: all or, with the errno, as much as fitted."""
        node = self.filesystem.file(inode)
        with self.filesystem.late_times.writing(node):
            await self._contents.write(node, offset, data)
        if flags & _TAKES_SET_ID:
            self.filesystem.drop_set_id(node)
        return _WRITE_OUT.pack(len(data), 0)

    async def fallocate(self, inode: int, offset: int, length: int, mode: int) -> None:
        """FALLOCATE: allocate, punch or zero a part of a file."""
        node = self.filesystem.file(inode)
        with self.filesystem.late_times.writing(node):
            await self._contents.fallocate(node, mode, offset, length)

    def to_sync(self, inode: int, flag: bool) -> int | None:
        """Return the descriptor to sync, where that is all there is to it (see `Syncing`)."""
        return self.filesystem.syncing.descriptor(self.filesystem.node_to_sync(inode))

    async def fsync(self, inode: int, flags: int) -> None:
        """FSYNC."""
        node = self.filesystem.node_to_sync(inode)
        await self.filesystem.syncing.sync(node, data_only=bool(flags & _DATA_ONLY))

    fsyncdir = fsync

    # -- extended attributes --------------------------------------------------------------------------

    def getxattr(self, inode: int, name: bytes) -> bytes:
        """GETXATTR: the value; the extension tells its length where the caller has no room for it."""
        return self.union.getxattr(self.filesystem.node(inode), name)

    def listxattr(self, inode: int) -> bytes:
        """LISTXATTR: the names, each with a zero byte after it."""
        return b"".join(name + b"\0" for name in self.union.listxattr(self.filesystem.node(inode)))

    def setxattr(
        self, inode: int, flags: int, name: bytes, value: bytes, caller: Caller
    ) -> Later[None] | None:
        """SETXATTR."""
        node = self.filesystem.node(inode)
        if flags:
            self._check_exists(node, name, flags)
        if name == _CAPABILITY and isinstance(node, File) and node.is_regular:
            return self._set_capability(inode, value, caller)
        return self._set_attribute(inode, name, value, caller)

    def _set_attribute(self, inode: int, name: bytes, value: bytes, caller: Caller) -> Later[None] | None:
        node = self.filesystem.node(inode)
        if not self._contents.bring_in_place(node, metadata_only=True):
            return self._once_in_place(lambda: self._set_attribute(inode, name, value, caller), node)
        self.filesystem.setxattr(node, name, value, caller)
        return None

    async def _set_capability(self, inode: int, value: bytes, caller: Caller) -> None:
        """Set it once what was written before has come: each write takes it away."""
        if self.filesystem.collect is not None:
            with suppress(LayerfsError):  # what cannot be written takes nothing away
                await self.filesystem.collect()
        setting = self._set_attribute(inode, _CAPABILITY, value, caller)
        if setting is not None:
            await setting

    def _check_exists(self, node: Node, name: bytes, flags: int) -> None:
        try:
            self.union.getxattr(node, name)
        except OSError as error:
            if error.errno != errno.ENODATA or flags & _XATTR_REPLACE:
                raise
        else:
            if flags & _XATTR_CREATE:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def removexattr(self, inode: int, name: bytes) -> Later[None] | None:
        """REMOVEXATTR; one that is not there costs no copy-up."""
        node = self.filesystem.node(inode)
        self.union.getxattr(node, name)
        if not self._contents.bring_in_place(node, metadata_only=True):
            return self._once_in_place(lambda: self.removexattr(inode, name), node)
        attributes.ensure_upper(self.union, node)
        attributes.removexattr(self.union, node, name)
        return None


def _time(seconds: int, nanoseconds: int, *, now: int) -> int:
    return time.time_ns() if now else seconds * _NS + nanoseconds
