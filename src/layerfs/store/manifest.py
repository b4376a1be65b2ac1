"""Manifests: what a sealed layer's tree consists of, so that a later look can tell what changed.

A manifest is text, one line a path, in the order of `system.walk`:

    TYPE MODE UID GID MTIME SIZE DETAIL PATH [XATTR=VALUE ...]

TYPE is one of f d l c b p s, MODE four octal digits, MTIME nanoseconds since the epoch, SIZE bytes (`-` but
for files), DETAIL the XXH3-128 of a file's content, a link's target, or a device's MAJOR:MINOR (`-` else).
Attributes are sorted by name, their values in hexadecimal. In paths, targets and names every byte but
printable ASCII other than space, `=` and backslash is written `\\xHH`. The first line is the format's
name and version; the last is `end COUNT DIGEST`, the XXH3-128 of all the lines before it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from layerfs.errors import LayerfsError
from layerfs.union.trees import list_xattrs, walk

HEADER = b"layerfs-manifest 1\n"
_TYPES = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}
_ESCAPED = re.compile(rb"[^!-<>-\[\]-~]")
_CHUNK = 1 << 20


class Damaged(LayerfsError):
    """A manifest cannot be read, or is not what was written."""


class Record(NamedTuple):
    """What a manifest says of one path; all as it stands in the file, but for the path itself."""

    path: bytes
    type: str
    mode: str
    uid: str
    gid: str
    mtime: str
    size: str
    detail: str
    xattrs: tuple[str, ...]

    def line(self) -> bytes:
        """Return the line for this record."""
        fields = [*self[1:8], _escape(self.path), *self.xattrs]
        return " ".join(fields).encode("ascii") + b"\n"


def records(tree: Path, digests: dict[int, str] | None = None) -> Iterator[Record]:
    """Yield the record of each path in *tree*; raises `OSError`.

    Files are read, but for those whose XXH3-128 is in *digests*, by inode number.
    """
    digests = dict(digests or {})  # and those of files with several links
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, status in walk(root):
            yield _record(root, path, status, digests)
    finally:
        os.close(root)


def _record(root: int, path: bytes, status: os.stat_result, digests: dict[int, str]) -> Record:
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    size = detail = "-"
    if kind == "f":
        size = str(status.st_size)
        found = digests.get(status.st_ino)
        detail = found or _digest(root, path, status.st_size)
        if status.st_nlink > 1:
            digests[status.st_ino] = detail
    elif kind == "l":
        detail = _escape(os.readlink(path, dir_fd=root))
    elif kind in "cb":
        detail = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    full = b"/proc/self/fd/%d/%s" % (root, path)  # there is no lgetxattrat(2) yet
    xattrs = tuple(
        f"{_escape(os.fsencode(name))}={os.getxattr(full, name, follow_symlinks=False).hex()}"
        for name in list_xattrs(full)
    )
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    owner = str(status.st_uid), str(status.st_gid)
    return Record(path, kind, mode, *owner, str(status.st_mtime_ns), size, detail, xattrs)


def _digest(root: int, path: bytes, size: int) -> str:
    """Return the XXH3-128 of a file's content, *size* bytes; the interpreter's lock is free meanwhile.

    Raises `OSError`, EIO where the file turns out to have another size: a layer does not change.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        digest = xxhash.xxh3_128()
        done = 0
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
            done += len(chunk)
        if done != size:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return digest.hexdigest()
    finally:
        os.close(fd)


def write(tree: Path, file: Path, digests: dict[int, str] | None = None) -> None:
    """Write the manifest of *tree* to *file*, which appears whole and on disk or not at all.

    *digests* are known already: see `records`. Raises `OSError`.
    """
    _write(records(tree, digests), file)


def renew(tree: Path, file: Path, paths: Collection[bytes]) -> None:
    """Write the manifest *file* again, with the directories *paths* of *tree* as they are now.

    Raises `OSError`, and `Damaged` for the manifest.
    """
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(
            (
                _record(root, record.path, os.stat(record.path, dir_fd=root), {})
                if record.path in paths
                else record
                for record in read(file)
            ),
            file,
        )
    finally:
        os.close(root)


def _write(lines: Iterable[Record], file: Path) -> None:
    unfinished = file.with_name(file.name + ".tmp")
    digest = xxhash.xxh3_128(HEADER)
    count = 0
    with unfinished.open("wb") as out:
        out.write(HEADER)
        for count, record in enumerate(lines, 1):  # noqa: B007
            line = record.line()
            digest.update(line)
            out.write(line)
        out.write(f"end {count} {digest.hexdigest()}\n".encode("ascii"))
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(file: Path) -> Iterator[Record]:
    """Yield the records of the manifest *file*.

    Raises `OSError`, and `Damaged` where it is missing or not whole (at the latest after the last record).
    """
    digest = xxhash.xxh3_128(HEADER)
    count = 0
    try:
        lines = file.open("rb")
    except FileNotFoundError:
        raise Damaged(f"{file} is missing") from None
    with lines:
        if next(lines, b"") != HEADER:
            raise Damaged(f"{file} is not a manifest that this layerfs can read")
        for line in lines:
            if line.startswith(b"end "):
                if line != f"end {count} {digest.hexdigest()}\n".encode("ascii"):
                    break
                return
            digest.update(line)
            count += 1
            fields = line.decode("ascii", "replace").rstrip("\n").split(" ")
            if len(fields) < 8:
                break
            yield Record._make([_unescape(fields[7]), *fields[:7], tuple(fields[8:])])
    raise Damaged(f"{file} is damaged")


def compare(tree: Path, file: Path) -> Iterator[tuple[bytes, str]]:
    """Yield each path of *tree* that is not as the manifest *file* says, and how it differs.

    Raises `OSError` where the tree cannot be read and `Damaged` for the manifest.
    """
    actual, expected = records(tree), read(file)
    have, want = next(actual, None), next(expected, None)
    while have or want:
        if want is None or (have is not None and _order(have) < _order(want)):
            assert have is not None
            yield have.path, "is not in the manifest"
            have = next(actual, None)
        elif have is None or _order(want) < _order(have):
            yield want.path, "is missing"
            want = next(expected, None)
        else:
            if have != want:
                yield have.path, _differences(have, want)
            have, want = next(actual, None), next(expected, None)


def _order(record: Record) -> list[bytes]:
    return [] if record.path == b"." else record.path.split(b"/")


def _differences(have: Record, want: Record) -> str:
    if have.type != want.type:
        return f"type is {have.type}, not {want.type}"
    details = {"f": "content", "l": "target", "c": "device", "b": "device"}
    parts = []
    for name, is_, was in zip(Record._fields[2:], have[2:], want[2:], strict=True):
        if is_ == was:
            continue
        if name == "detail":
            parts.append(
                f"{details[have.type]} differs"
                if have.type == "f"
                else f"{details[have.type]} is {is_}, not {was}"
            )
        elif name == "xattrs":
            parts.append("extended attributes differ")
        else:
            parts.append(f"{name} is {is_}, not {was}")
    return ", ".join(parts)


def _escape(text: bytes) -> str:
    return _ESCAPED.sub(lambda found: b"\\x%02x" % found[0][0], text).decode("ascii")


def _unescape(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode("ascii"))
