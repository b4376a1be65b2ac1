"""Where an image comes from: a directory, an archive, or a stream of one. All are files by name."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from layerfs.archive.streams import PIECE, Feed, Read, decompressed
from layerfs.archive.tar import Reader
from layerfs.errors import BadRequest, from_os_error
from layerfs.union.reading import read_at

_MEMBERS = 1 << 16
"""The most files that an image archive may hold: an image of 125 layers has some 400."""
_HOPS = 8


@dataclass(frozen=True, slots=True)
class Region:
    """Part of an open file, or all of it: what a name stands for."""

    fd: int
    offset: int
    size: int

    def reader(self) -> Read:
        """Return a function that reads it from its beginning, up to so many bytes a call."""
        at, end = self.offset, self.offset + self.size

        def read(size: int) -> bytes:
            nonlocal at
            data = os.pread(self.fd, min(size, end - at), at) if at < end else b""
            at += len(data)
            return data

        return read


class Source(Protocol):
    """Files by name, as paths relative to the top."""

    def open(self, name: str) -> AbstractContextManager[Region | None]:
        """Open a file for as long as the context lasts; None where there is none."""


def read(source: Source, name: str, most: int) -> bytes | None:
    """Return a small file, None where there is none. Raises `BadRequest` if it is larger than *most*."""
    with source.open(name) as region:
        if region is None:
            return None
        if region.size > most:
            raise BadRequest(f"{name} is larger than {most >> 20} MiB")
        reader = region.reader()
        return b"".join(iter(lambda: reader(PIECE), b""))


class Directory:
    """The files below a directory. Its symbolic links are followed: layouts are made of them at times.

    What they lead to is opened only if it is a plain file: opening a device has effects.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def open(self, name: str) -> Iterator[Region | None]:
        """Open a file; see `Source`."""
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise BadRequest(f"{name!r} leads out of the image: it is no name of a file in it")
        try:
            found = os.open(self._path / name, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                raise BadRequest(f"{self._path / name} is not a file")
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            yield Region(fd, 0, status.st_size)
        finally:
            os.close(fd)


class Archive:
    """The files in an uncompressed tar archive, which has to be a file that can be read in any order."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._index(size)

    def _index(self, size: int) -> None:
        """Note where each file is, passing over what they hold."""
        position = _Position(self._fd, size)
        reader = Reader(position, needs_end=False)
        for count, member in enumerate(reader):
            if count >= _MEMBERS:
                raise BadRequest(f"the archive holds more than {_MEMBERS} files: it is no image")
            name = os.path.normpath(os.fsdecode(member.name))
            self._files.pop(name, None)
            self._links.pop(name, None)
            if member.kind == "file":
                if member.extents is not None:
                    raise BadRequest(f"the archive has a sparse member, {name!r}: it is no image")
                self._files[name] = (position.at, member.size)
            elif member.kind == "symlink":  # as old archives have for layers that are there already
                self._links[name] = os.path.normpath(Path(name).parent / os.fsdecode(member.target))
            elif member.kind == "link":
                self._links[name] = os.path.normpath(os.fsdecode(member.target))

    @contextmanager
    def open(self, name: str) -> Iterator[Region | None]:
        """Open a file; see `Source`. Links lead to other members, never outside."""
        name = os.path.normpath(name)
        for _ in range(_HOPS):
            if name in self._files:
                yield Region(self._fd, *self._files[name])
                return
            if name not in self._links:
                break
            name = self._links[name]
        yield None


class _Position(Feed):
    """A feed that jumps over what is passed over."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(iter(()))
        self._fd = fd
        self._size = size
        self.at = 0

    def exactly(self, size: int) -> bytes:
        """Return *size* bytes, or fewer at the end."""
        data = read_at(self._fd, size, self.at)
        self.at += len(data)
        return data

    def some(self, size: int) -> memoryview:
        """Return between one and *size* bytes, none only at the end."""
        return memoryview(self.exactly(size))

    def skip(self, size: int) -> None:
        """Go on behind *size* bytes; raises `BadRequest` where the archive does not have them."""
        self.at += size
        if self.at > self._size:
            raise BadRequest("the archive is damaged: it ends too early")


@contextmanager
def opened(source: Path | BinaryIO, spool: Path, report: Callable[[int], None]) -> Iterator[Source]:
    """Open an image layout or archive; a stream is kept in a nameless file in the directory *spool*.

    So is an archive that is compressed as a whole. *report* is called with the bytes of it read so far.
    Raises `NotFound`, `BadRequest` and others.
    """
    with ExitStack() as stack:
        try:
            found = _open(source, spool, report, stack)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            doing = f"keep the archive in {spool}" if full else "read the archive"
            raise from_os_error(error, doing) from None
        yield found


def _open(source: Path | BinaryIO, spool: Path, report: Callable[[int], None], stack: ExitStack) -> Source:
    if isinstance(source, Path):
        if source.is_dir():
            return Directory(source)
        stream: BinaryIO = stack.enter_context(source.open("rb", buffering=0))
    else:
        stream = source
    fd = _seekable(stream)
    if fd is None:
        file = stack.enter_context(tempfile.TemporaryFile(dir=spool))  # noqa: SIM115 (it is one)
        for piece in decompressed(_counted(stream, report), more=True):
            file.write(piece)
        file.flush()
        fd = file.fileno()
    return Archive(fd, os.fstat(fd).st_size)


def _seekable(stream: BinaryIO) -> int | None:
    """Return the descriptor of a stream that is a plain file, uncompressed, and at its beginning."""
    if not hasattr(stream, "fileno"):  # the body of a request
        return None
    try:
        fd = stream.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or os.lseek(fd, 0, os.SEEK_CUR) != 0:
            return None
    except (OSError, ValueError):
        return None
    return fd if os.pread(fd, 5, 257) == b"ustar" else None


def _counted(stream: BinaryIO, report: Callable[[int], None]) -> Read:
    done = 0

    def read(size: int) -> bytes:
        nonlocal done
        data = stream.read(size) or b""
        done += len(data)
        report(done)
        return data

    return read
