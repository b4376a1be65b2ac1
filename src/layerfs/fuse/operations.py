"""pyfuse3's operations: they bring requests to their handlers where the extension does not."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyfuse3
from pyfuse3 import FileHandleT, InodeT

from layerfs.fuse import requests
from layerfs.fuse.attributes import NO_ENTRY, dot_entry, entry
from layerfs.fuse.filesystem import Change
from layerfs.fuse.handlers import Entry, Handlers
from layerfs.fuse.reply import errno_of
from layerfs.fuse.setid import Caller
from layerfs.union import attributes
from layerfs.union.copyup import writable_upper


class Operations(pyfuse3.Operations):
    """Has *answers* answer the kernel's requests. `requests` counts them by name."""

    supports_dot_lookup = False
    enable_acl = True

    def __init__(self, answers: Handlers) -> None:
        super().__init__()
        self.handlers = answers
        self.enable_writeback_cache = answers.union.upper is not None  # it costs a GETATTR after each close
        self.requests: dict[str, int] = Counter()

    def counts(self) -> dict[str, int]:
        """Return how many requests there were, by name, those that the extension has brought included."""
        return Counter(self.requests) + Counter(requests.counts())


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


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


def _as_is(answer: Any) -> Any:
    return answer


def _entry(told: Entry) -> pyfuse3.EntryAttributes:
    return NO_ENTRY if isinstance(told, bytes) else entry(*told)


def _opened(inode: int) -> pyfuse3.FileInfo:
    """Return what the kernel is told of an open file: its handle is the inode number, which has no state."""
    return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)


def _statvfs(figures: os.statvfs_result) -> pyfuse3.StatvfsData:
    answer = pyfuse3.StatvfsData()
    for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
        setattr(answer, "f_" + name, getattr(figures, "f_" + name))
    return answer


def _forget(answers: Handlers, inodes: list[tuple[InodeT, int]]) -> None:
    for inode, count in inodes:
        answers.forget(inode, count)


async def _open(answers: Handlers, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> int:
    """Open a file. To write it copies nothing yet, unless it is to be cut to nothing."""
    filesystem = answers.filesystem
    node = filesystem.file(inode)
    if flags & os.O_ACCMODE != os.O_RDONLY:
        writable_upper(answers.union)
    if flags & os.O_TRUNC:
        async with filesystem.contents.cutting(node, 0):
            attributes.truncate(answers.union, node, 0)
            filesystem.syncing.cut_to_nothing(node)
        filesystem.drop_set_id(node, _caller(ctx))
    elif node.partial is None:
        answers.union.data(node)  # what cannot be read should fail here, not later
    return inode


def _refuse(answers: Handlers, handle: int) -> None:
    """Answer that there is nothing to do, so that the kernel does not ask at every close again."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


async def _write(answers: Handlers, inode: int, offset: int, data: bytes) -> int:
    await answers.write(inode, offset, 0, data)
    return len(data)


def _readdir(answers: Handlers, inode: int, start: int, token: pyfuse3.ReaddirToken) -> None:
    """List a directory from the name after cookie *start*, with attributes."""
    directory = answers.filesystem.directory(inode)
    for cookie, name in answers.names(directory, start):
        listed = answers.listed(directory, name)
        if listed is None:
            continue
        node, told, number, kind = listed
        # The kernel keeps nothing of what has no type.
        found = _entry(told) if told else dot_entry(number or answers.union.table.fresh(), kind)
        if not pyfuse3.readdir_reply(token, name, found, cookie):
            if node is not None:
                answers.union.release(node)
            return
        if node is not None:
            node.references += 1


_WAYS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "lookup": (lambda to, parent, name, ctx: to.lookup(parent, name), _entry),
    "forget": (_forget, _as_is),
    "getattr": (lambda to, inode, ctx: to.getattr(inode), _entry),
    "setattr": (
        lambda to, inode, attr, fields, fh, ctx: to.change(inode, _change(attr, fields), _caller(ctx)),
        _entry,
    ),
    "readlink": (lambda to, inode, ctx: to.readlink(inode), _as_is),
    "statfs": (lambda to, ctx: to.union.statvfs(), _statvfs),
    "mknod": (
        lambda to, parent, name, mode, rdev, ctx: to.mknod(parent, mode, rdev, ctx.umask, name, _caller(ctx)),
        _entry,
    ),
    "mkdir": (
        lambda to, parent, name, mode, ctx: to.mkdir(parent, mode, ctx.umask, name, _caller(ctx)),
        _entry,
    ),
    "symlink": (lambda to, parent, name, target, ctx: to.symlink(parent, name, target, _caller(ctx)), _entry),
    "link": (lambda to, inode, parent, name, ctx: to.link(parent, inode, name), _entry),
    "unlink": (lambda to, parent, name, ctx: to.unlink(parent, name), _as_is),
    "rmdir": (lambda to, parent, name, ctx: to.rmdir(parent, name), _as_is),
    "rename": (
        lambda to, old, name, new, new_name, flags, ctx: to.rename2(old, new, flags, name, new_name),
        _as_is,
    ),
    "create": (
        lambda to, parent, name, mode, flags, ctx: to.mknod(
            parent, stat.S_IFREG | mode, 0, ctx.umask, name, _caller(ctx)
        ),
        lambda told: (_opened(told[0]), _entry(told)),
    ),
    "open": (_open, _opened),
    "release": (lambda to, handle: None, _as_is),
    "read": (lambda to, handle, offset, size: to.read(handle, offset, size), _as_is),
    "write": (_write, _as_is),
    "flush": (_refuse, _as_is),
    "fsync": (lambda to, handle, data_only: to.fsync(handle, int(data_only)), _as_is),
    "opendir": (lambda to, inode, ctx: to.filesystem.directory(inode).ino, _as_is),
    "readdir": (_readdir, _as_is),
    "releasedir": (lambda to, handle: None, _as_is),
    "fsyncdir": (lambda to, handle, data_only: to.fsyncdir(handle, int(data_only)), _as_is),
    "getxattr": (lambda to, inode, name, ctx: to.getxattr(inode, name), _as_is),
    "listxattr": (lambda to, inode, ctx: to.listxattr(inode), lambda names: names.split(b"\0")[:-1]),
    "setxattr": (
        lambda to, inode, name, value, ctx: to.setxattr(inode, 0, name, value, _caller(ctx)),
        _as_is,
    ),
    "removexattr": (lambda to, inode, name, ctx: to.removexattr(inode, name), _as_is),
}
"""By the name of the operation: how its arguments go to a handler, and what pyfuse3 makes of the answer."""


def _operation(name: str, ask: Callable[..., Any], convert: Callable[[Any], Any]) -> Callable[..., Any]:
    async def operation(self: Operations, *arguments: Any) -> Any:
        self.requests[name] += 1
        try:
            answer = ask(self.handlers, *arguments)
            return convert(await answer if inspect.iscoroutine(answer) else answer)
        except (pyfuse3.FUSEError, MemoryError):
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error, name)) from None

    return operation


for _name, _way in _WAYS.items():
    setattr(Operations, _name, _operation(_name, *_way))
