"""A filesystem whose objects fail with EIO, as on a broken disk: `python failing_lower.py MOUNTPOINT`.

Its root holds one object for each way to fail, named after it (`OBJECTS`), and the sound file `sound`. Each
file of `SPOTS` has one bad sector. A read of `slow` writes a line to standard output, and waits for input.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import pyfuse3
import trio

sys.path[:0] = [str(Path(__file__).parents[2])]  # it is run as a program, too

from tests.conftest import detach  # noqa: E402

SIZE = 4 << 20
BROKEN_FROM = 3 << 20
"""Where in the file `read` the part begins that cannot be read."""


SECTOR = 512
SPOTS = {
    b"spot-at-a-page": 1 << 20,
    b"spot-in-a-page": (1 << 20) + 5 * 4096 + 1536,
    b"spot-in-the-middle": 1_234_567 // SECTOR * SECTOR,
    b"spot-at-the-beginning": 0,
    b"spot-at-the-end": SIZE - SECTOR,
}
"""Files by where the sector begins that cannot be read."""


class Object(NamedTuple):
    """What an object is, and the request that fails on it."""

    mode: int
    fails: str = ""


FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
OBJECTS = {
    b"sound": Object(FILE),
    b"read": Object(FILE, "read"),
    b"open": Object(FILE, "open"),
    b"lookup": Object(FILE, "lookup"),
    b"listxattr": Object(FILE, "listxattr"),
    b"readlink": Object(LINK, "readlink"),
    b"opendir": Object(DIRECTORY, "opendir"),
    b"readdir": Object(DIRECTORY, "readdir"),
    b"slow": Object(FILE),
    **{name: Object(FILE) for name in SPOTS},
}
NAMES = list(OBJECTS)


@cache
def content() -> bytes:
    """Return what is in each file: nothing of it is zero."""
    return b"0123456789abcdef" * (SIZE // 16)


class Failing(pyfuse3.Operations):
    """Answers from `OBJECTS`; the inode of an object is its place there, counted from 2."""

    def _object(self, inode: int, request: str) -> Object:
        found = OBJECTS[NAMES[inode - 2]] if inode > 1 else Object(DIRECTORY)
        if found.fails == request:
            raise pyfuse3.FUSEError(errno.EIO)
        return found

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Return the attributes of an object."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = self._object(inode, "lookup").mode
        attributes.st_size = SIZE if stat.S_ISREG(attributes.st_mode) else 0
        attributes.st_nlink = 1
        attributes.st_mtime_ns = 10**18
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Find an object in the root."""
        if parent != pyfuse3.ROOT_INODE or name not in OBJECTS:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(NAMES.index(name) + 2)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        """Open a file."""
        self._object(inode, "open")
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Read from a file."""
        if offset + size > BROKEN_FROM:
            self._object(fh, "read")
        name = NAMES[fh - 2]
        if name in SPOTS and offset < SPOTS[name] + SECTOR and SPOTS[name] < offset + size:
            raise pyfuse3.FUSEError(errno.EIO)
        if name == b"slow":
            os.write(1, b"reading\n")
            while not select.select([0], [], [], 0)[0]:  # noqa: ASYNC110 - several may wait
                await trio.sleep(0.01)
        return content()[offset : offset + size]

    async def readlink(self, inode: int, ctx: object) -> bytes:
        """Return the target of a link."""
        self._object(inode, "readlink")
        return b"sound"

    async def listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        """Return the names of the extended attributes: none."""
        self._object(inode, "listxattr")
        return []

    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        """Return an extended attribute: there is none."""
        raise pyfuse3.FUSEError(errno.ENODATA)

    async def opendir(self, inode: int, ctx: object) -> int:
        """Open a directory."""
        self._object(inode, "opendir")
        return inode

    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """List the root; the other directories are empty, if they can be read."""
        self._object(fh, "readdir")
        if fh == pyfuse3.ROOT_INODE:
            for number in range(start, len(NAMES)):
                attributes = pyfuse3.EntryAttributes()
                attributes.st_ino = number + 2
                attributes.st_mode = OBJECTS[NAMES[number]].mode
                attributes.entry_timeout = attributes.attr_timeout = 0
                if not pyfuse3.readdir_reply(token, NAMES[number], attributes, number + 1):
                    break


@contextmanager
def mounted(directory: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Serve *directory* by a process of its own while the block lasts; yield its input and output."""
    with subprocess.Popen(
        [sys.executable, __file__, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.stdin, process.stdout
        finally:
            detach(directory)
            process.kill()


def main() -> None:
    """Serve until unmounted."""
    options = {"fsname=failing", "allow_other", "default_permissions"}
    pyfuse3.init(Failing(), sys.argv[1], options)
    os.write(1, b"ready\n")
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
