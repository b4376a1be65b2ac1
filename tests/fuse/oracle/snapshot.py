"""What a mounted tree looks like to its users, and where two such trees differ."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

NOW = -1
"""Stands for every time since the test began: the two sides work one after the other."""
_DAY = 86_400 * 10**9


class Item(NamedTuple):
    """One name in the merged tree; `names` are all names of an inode that has several."""

    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    rdev: int = 0
    mtime: int = 0
    links: int = 0
    names: tuple[bytes, ...] = ()
    content: bytes = b""
    attributes: tuple[tuple[str, bytes], ...] = ()
    error: str = ""


Snapshot = dict[bytes, Item]


def take(
    root: bytes, began: int, *, kernel: bool, upper: bytes | None = None, digests: bool = False
) -> Snapshot:
    """Return everything below *root*, and the root itself as b"".

    Times within a day from *began* (nanoseconds) on are `NOW`. What cannot be read is noted with its errno.
    With *upper* files count as one only if they are in there. With *digests* the contents of files are noted
    by their digest, for trees that are larger than memory.
    """
    found: Snapshot = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            st = os.lstat(root + b"/" + path)
            found[path] = _item(root + b"/" + path, st, began, digests)
            if stat.S_ISDIR(st.st_mode):
                pending += _names(root, path)
            elif st.st_nlink > 1 and (upper is None or os.path.lexists(upper + b"/" + path)):
                inodes.setdefault((st.st_dev, st.st_ino), []).append(path)
        except OSError as error:
            if kernel and error.errno == errno.ENOENT:
                # A directory that merges with nothing below is listed by the kernel as it is on disk, so
                # a whiteout left in it shows as a name that does not exist. layerfs does not list it.
                continue
            found[path] = Item(0, error=errno.errorcode.get(error.errno or 0, str(error)))
    for paths in inodes.values():
        names = tuple(sorted(paths))
        for path in names if len(names) > 1 else ():
            found[path] = found[path]._replace(names=names)
    return found


def _names(root: bytes, path: bytes) -> list[bytes]:
    prefix = path + b"/" if path else b""
    with os.scandir(root + b"/" + path) as entries:
        names = [prefix + entry.name for entry in entries]
    assert len(names) == len(set(names)), f"{path!r} lists a name twice: {sorted(names)}"
    return names


def _item(path: bytes, st: os.stat_result, began: int, digests: bool) -> Item:
    kind = stat.S_IFMT(st.st_mode)
    content = b""
    if kind == stat.S_IFREG:
        with open(path, "rb", buffering=0) as file:
            content = hashlib.file_digest(file, "sha256").digest() if digests else file.readall() or b""
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    directory = kind == stat.S_IFDIR
    return Item(
        type=kind,
        mode=stat.S_IMODE(st.st_mode),
        uid=st.st_uid,
        gid=st.st_gid,
        size=0 if directory else st.st_size,
        rdev=st.st_rdev,
        mtime=NOW if began <= st.st_mtime_ns < began + _DAY else st.st_mtime_ns,
        links=0 if directory else st.st_nlink,
        content=content,
        attributes=attributes(path),
    )


def attributes(path: bytes | int) -> tuple[tuple[str, bytes], ...]:
    """Return the extended attributes of *path* (not followed) in the order of their names."""
    follow = isinstance(path, int)
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=follow))
        for name in sorted(os.listxattr(path, follow_symlinks=follow))
    )


def differences(kernel: Mapping[bytes, Item], layerfs: Mapping[bytes, Item]) -> list[str]:
    """Return a line for everything that is not the same in the two trees."""
    lines = []
    for path in sorted(kernel.keys() | layerfs.keys()):
        one, two = kernel.get(path), layerfs.get(path)
        if one is None or two is None:
            where, item = ("layerfs", two) if one is None else ("the kernel's", one)
            lines.append(f"{path!r} exists only in {where}: {item}")
            continue
        lines += [
            f"{path!r} {name}: the kernel has {_shown(name, theirs)}, layerfs {_shown(name, ours)}"
            for name, theirs, ours in zip(Item._fields, one, two, strict=True)
            if theirs != ours
        ]
    return lines


def _shown(name: str, value: object) -> str:
    if name in ("mode", "type") and isinstance(value, int):
        return oct(value)
    if isinstance(value, bytes) and len(value) > 80:
        return f"{value[:80]!r}... ({len(value)} bytes, sum {sum(value)})"
    return repr(value)
