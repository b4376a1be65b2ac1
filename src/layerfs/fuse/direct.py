"""Requests that the extension hands over as they are on the wire, and the answers to them (linux/fuse.h).

Most requests need nothing but a few system calls. The extension (`_direct.c`) reads those from /dev/fuse,
has them answered here, writes the answer and goes on to the next, without a turn of the event loop in
between. A handler returns the answer's payload or an errno, or None before it has done anything: then the
request needs to wait for something, and goes to pyfuse3's operation for it. An `OSError` is answered with
its errno.
"""

from __future__ import annotations

import bisect
import errno
import os
import resource
import stat
import struct
import time

from layerfs.fuse import wire
from layerfs.fuse.attributes import FOREVER
from layerfs.fuse.filesystem import Change, Filesystem, Found
from layerfs.fuse.setid import Caller
from layerfs.union import mutate, syscalls, xattr
from layerfs.union.entering import enter, enter_new
from layerfs.union.layer import LayerDir
from layerfs.union.node import Directory, File, Node
from layerfs.union.rename import rename

_NS = 1_000_000_000
_ENTRY_SIZE = 128
_KNOWN = 512
"""How many inodes the extension may answer for at a time."""
_DIRENT_SIZE = 24
_SETATTR_IN = struct.Struct("=IIQQQqqqIIIIIIII")
_READ_IN = struct.Struct("=QQI")
_SIZE = struct.Struct("=II")
_INODE = struct.Struct("=Q")

_NO_ENTRY = struct.pack("=QQQ", 0, 0, int(FOREVER)).ljust(_ENTRY_SIZE, b"\0")
_EMPTY_ENTRY = bytes(_ENTRY_SIZE)
_UNKNOWN_INODE = 0xFFFFFFFF
"""Stands in a listing for a number that is not known, as libfuse has it."""

_MODE, _UID, _GID, _SIZE_SET, _ATIME, _MTIME = (1 << bit for bit in range(6))
_CHANGES = (1 << 6) - 1
_ATIME_NOW, _MTIME_NOW, _CTIME = 1 << 7, 1 << 8, 1 << 10

_OPCODES = {
    1: "lookup",
    2: "forget",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    15: "read",
    16: "write",
    20: "fsync",
    22: "getxattr",
    23: "listxattr",
    30: "fsyncdir",
    43: "fallocate",
    44: "readdirplus",
    45: "rename2",
}
"""Requests with a handler: enum fuse_opcode.

A handler is called with the inode, what follows the header, and the caller's uid, gid and pid; `read`,
`write`, `fallocate`, `fsync`, `fsyncdir` and `forget` are called with less.
"""


class Direct:
    """Answers requests from *filesystem*."""

    def __init__(self, extension: wire.Wire, filesystem: Filesystem) -> None:
        self._wire = extension
        self._filesystem = filesystem
        self._union = filesystem.union
        self._contents = filesystem.contents

    def install(self) -> None:
        """Have the extension bring requests here."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._union.on_change = lambda node: self._wire.drop_attributes(node.ino)
        self._wire.set_known_room(min(_KNOWN, descriptors // 8))
        self._wire.set_handlers({opcode: getattr(self, name) for opcode, name in _OPCODES.items()})

    # -- what answers are made of -------------------------------------------------------------------

    def _entry(self, found: Found) -> bytes:
        node, st = found
        union = self._union
        return self._wire.entry_out(node.ino, st, union.links(node, st), union.blocks(node, st))

    def _find(self, directory: Directory, name: bytes) -> tuple[Node, bytes] | None:
        """Find *name* in a directory, and what to tell of it; the kernel knows the node once more."""
        union = self._union
        node = union.known(directory, name)
        if node is not None:
            found = node, union.stat(node)
        else:
            target = union.resolve(directory, name)
            if target is None:
                return None
            if isinstance(target, LayerDir):
                table = union.table
                prefix = union.marking.prefix if target.layer.below else b""
                new = self._wire.plain_entry(target.fd(), name, table.bases, table.nodes, prefix)
                if new is not None and not union.is_known_object(target.layer, new[0]):
                    ino, kind, _, entry = new
                    node = enter_new(union, directory, name, target, ino, kind)
                    node.references = 1
                    return node, entry
            found = enter(union, directory, name, target)
        entry = self._entry(found)
        found[0].references += 1
        return found[0], entry

    def _attributes(self, node: Node) -> bytes:
        union = self._union
        st = union.stat(node)
        return self._wire.attr_out(node.ino, st, union.links(node, st), union.blocks(node, st))

    # -- lookup and attributes ------------------------------------------------------------------------

    def lookup(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """LOOKUP: a name of a directory."""
        found = self._find(self._filesystem.directory(inode), body[:-1])
        return found[1] if found else _NO_ENTRY

    def forget(self, inode: int, count: int) -> None:
        """FORGET: references that the kernel has dropped."""
        self._filesystem.forget(inode, count)

    def getattr(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """GETATTR."""
        node = self._filesystem.node(inode)
        answer = self._attributes(node)
        if isinstance(node, Directory):
            part = self._union.upper_part(node)
            if part is not None:
                self._wire.vouch(inode, part.fd(), 1 if len(node.dirs) > 1 else 0, False, False)
        elif not self._union.in_upper(node):
            self._wire.keep_attributes(inode, answer)
        return answer

    def setattr(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes | None:
        """SETATTR: struct fuse_setattr_in."""
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, owner, group, _ = (
            _SETATTR_IN.unpack_from(body)
        )
        node = self._filesystem.node(inode)
        only_mtime = valid & (_CHANGES | _MTIME_NOW) == _MTIME
        if only_mtime and isinstance(node, File) and self._union.in_upper(node):
            # By far the most of them: the kernel passes on the time of a write.
            self._filesystem.set_times(node, None, mtime * _NS + mtime_ns)
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
        effective = self._filesystem.effective(node, change, Caller(uid, gid, pid))
        if effective is not None:
            if not self._contents.bring_in_place(node, effective.size, metadata_only=effective.size is None):
                return None
            self._filesystem.apply(node, effective)
        return self._attributes(node)

    def readlink(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """READLINK."""
        return self._union.readlink(self._filesystem.file(inode))

    # -- names --------------------------------------------------------------------------------------

    def mknod(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """MKNOD: struct fuse_mknod_in (mode, rdev, umask, padding), name."""
        mode, rdev, umask, _ = struct.unpack_from("=IIII", body)
        caller = Caller(uid, gid, pid, umask)
        found = self._filesystem.mknod(inode, body[16:-1], mode, _wide_device(rdev), caller)
        if isinstance(found[0], File) and found[0].writable and self._contents.lets_write:
            self._filesystem.late_times.vouch(found[0])
        return self._entry(found)

    def mkdir(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """MKDIR: struct fuse_mkdir_in (mode, umask), name."""
        mode, umask = _SIZE.unpack_from(body)
        return self._entry(self._filesystem.mkdir(inode, body[8:-1], mode, Caller(uid, gid, pid, umask)))

    def symlink(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """SYMLINK: name, target."""
        name, target, _ = body.split(b"\0")
        return self._entry(self._filesystem.symlink(inode, name, target, Caller(uid, gid, pid)))

    def link(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes | None:
        """LINK: inode, new name in the directory *inode*."""
        node = self._filesystem.file(_INODE.unpack_from(body)[0])
        if not self._contents.bring_in_place(node, metadata_only=True):
            return None
        return self._entry(self._filesystem.link(node, inode, body[8:-1]))

    def unlink(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """UNLINK: name."""
        mutate.unlink(self._union, self._filesystem.directory(inode), body[:-1])
        return b""

    def rmdir(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """RMDIR: name."""
        mutate.rmdir(self._union, self._filesystem.directory(inode), body[:-1])
        return b""

    def rename(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes | None:
        """RENAME: new directory, name, new name."""
        return self._rename(inode, _INODE.unpack_from(body)[0], body[8:], 0)

    def rename2(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes | None:
        """RENAME2: struct fuse_rename2_in (new directory, flags, padding), name, new name."""
        target, flags, _ = struct.unpack_from("=QII", body)
        return self._rename(inode, target, body[16:], flags)

    def _rename(self, inode: int, target: int, names: bytes, flags: int) -> bytes | None:
        directory = self._filesystem.directory
        old, new = directory(inode), directory(target)
        name, new_name, _ = names.split(b"\0")
        moving = [(old, name), (new, new_name)] if flags & syscalls.RENAME_EXCHANGE else [(old, name)]
        for parent, entry in moving:
            node = mutate.existing(self._union, parent, entry)
            if not self._contents.bring_in_place(node, metadata_only=True):
                return None
        rename(self._union, old, name, new, new_name, flags)
        return b""

    def readdirplus(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """READDIRPLUS: struct fuse_read_in; a directory from the name after a cookie, with attributes."""
        _, start, size = _READ_IN.unpack_from(body)
        union, directory, dirent = self._union, self._filesystem.directory(inode), self._wire.dirent
        answer: list[bytes] = []
        if start < 2:
            parent = directory.parent or directory
            for cookie, name, number in ((1, b".", directory.ino), (2, b"..", parent.ino)):
                if start < cookie:
                    record = _EMPTY_ENTRY + dirent(number, cookie, stat.S_IFDIR, name)
                    size -= len(record)
                    answer.append(record)
        listing = union.listing(directory)
        for position in range(bisect.bisect_left(listing, (start + 1, b"")), len(listing)):
            cookie, name = listing[position]
            size -= (_ENTRY_SIZE + _DIRENT_SIZE + len(name) + 7) & ~7
            if size < 0:
                break
            union.trim()
            try:
                found = self._find(directory, name)
            except OSError:  # it is listed all the same: whoever looks it up hears what is wrong with it
                answer += (_EMPTY_ENTRY, dirent(_UNKNOWN_INODE, cookie, 0, name))
                continue
            if found is not None:
                node, record = found
                kind = stat.S_IFDIR if isinstance(node, Directory) else node.kind
                answer.append(record)
                answer.append(dirent(node.ino, cookie, kind, name))
        return b"".join(answer)

    # -- contents -----------------------------------------------------------------------------------

    def read(self, inode: int) -> int | None:
        """READ: return the descriptor to read from."""
        return self._union.data(self._filesystem.file(inode))

    def write(self, inode: int, takes_set_id: bool) -> int | None:
        """WRITE: return the descriptor to write to, once that needs no copy-up, and no commit is made."""
        node = self._filesystem.file(inode)
        if takes_set_id or not self._contents.lets_write or not self._contents.bring_in_place(node):
            return None
        fd = self._union.data(node, write=True)
        if not self._filesystem.late_times.vouch(node):
            self._filesystem.late_times.written(node)
        return fd

    def fallocate(self, inode: int, takes_set_id: bool) -> int | None:
        """FALLOCATE: return the descriptor to change, as `write`."""
        return self.write(inode, takes_set_id)

    def fsync(self, inode: int) -> int | None:
        """FSYNC: return the descriptor to sync, where that is all there is to it (see `Syncing`)."""
        return self._filesystem.syncing.descriptor(self._filesystem.file_to_sync(inode))

    def fsyncdir(self, inode: int) -> int | None:
        """FSYNCDIR: return the descriptor to sync, as `fsync`."""
        return self._filesystem.syncing.descriptor(self._filesystem.directory(inode))

    # -- extended attributes --------------------------------------------------------------------------

    def getxattr(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes | int:
        """GETXATTR: struct fuse_getxattr_in (size, padding), name."""
        node, name = self._filesystem.node(inode), body[8:-1]
        if name == xattr.CAPABILITY and isinstance(node, File) and node.no_capability:
            return errno.ENODATA  # the usual answer to the usual question
        value = self._union.getxattr(node, name)
        return _sized(value, _SIZE.unpack_from(body)[0])

    def listxattr(self, inode: int, body: bytes, uid: int, gid: int, pid: int) -> bytes:
        """LISTXATTR: struct fuse_getxattr_in (size, padding)."""
        names = self._union.listxattr(self._filesystem.node(inode))
        return _sized(b"".join(name + b"\0" for name in names), _SIZE.unpack_from(body)[0])


def _sized(value: bytes, size: int) -> bytes:
    """Return *value*, or its length where the caller gave no room and asks for that."""
    if size == 0:
        return _SIZE.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _time(seconds: int, nanoseconds: int, *, now: int) -> int:
    return time.time_ns() if now else seconds * _NS + nanoseconds


def _wide_device(number: int) -> int:
    """Return the device number that the kernel has encoded in 32 bits."""
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


def direct_counts() -> dict[str, int]:
    """Return how many requests were answered directly, by name."""
    if wire.extension is None:
        return {}
    return {_OPCODES[opcode]: count for opcode, count in wire.extension.counts().items()}
