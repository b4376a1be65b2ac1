"""Where images are saved: a layout directory, or an archive of one, in a file or a stream."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from layerfs.archive import tarformat
from layerfs.archive.tar import Member
from layerfs.errors import Conflict
from layerfs.host.umask import umask
from layerfs.oci.compress import Sink

Name = Callable[[str], None]
"""Says by its digest what the blob is that has been written."""


class Output(Protocol):
    """A layout that is being written."""

    @property
    def is_directory(self) -> bool:
        """Whether it is one, not an archive."""

    def blob(self) -> AbstractContextManager[tuple[Sink, Name]]:
        """Begin a blob: it is written to the sink, then named by its digest."""

    def aside(self) -> AbstractContextManager[tuple[BinaryIO, Name]]:
        """Begin a blob as `blob` does, beside others: a process may write it, to the file's descriptor."""

    def file(self, name: str, data: bytes) -> None:
        """Write one of the files at the layout's top."""

    def read(self, name: str) -> bytes | None:
        """Return a file that the layout had before, None where it had none."""


def blob_name(digest: str) -> str:
    """Return where in a layout the blob with this digest is."""
    return "blobs/" + digest.replace(":", "/")


def write_blob(output: Output, data: bytes, digest: str) -> None:
    """Write a small blob."""
    with output.blob() as (sink, name):
        sink.write(data)
        name(digest)


class DirectoryOutput:
    """A layout in a directory, new or with images in it already. Each file appears whole or not at all."""

    is_directory = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blobs = path / "blobs" / "sha256"
        if path.is_dir() and not (path / "oci-layout").exists() and any(path.iterdir()):
            raise Conflict(f"{path} is a directory with other things in it: name a new one")
        self._blobs.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def blob(self) -> Iterator[tuple[Sink, Name]]:
        """Begin a blob; see `Output`."""
        with self._new(self._blobs) as (file, place):
            yield file, lambda digest: place(self._path / blob_name(digest))

    @contextmanager
    def aside(self) -> Iterator[tuple[BinaryIO, Name]]:
        """Begin a blob beside others; see `Output`."""
        with self._new(self._blobs) as (file, place):
            yield file, lambda digest: place(self._path / blob_name(digest))

    def file(self, name: str, data: bytes) -> None:
        """Write a file at the top; see `Output`."""
        with self._new(self._path) as (file, place):
            file.write(data)
            place(self._path / name)

    def read(self, name: str) -> bytes | None:
        """Return a file that was there before; see `Output`."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def _new(self, directory: Path) -> Iterator[tuple[BinaryIO, Callable[[Path], None]]]:
        fd, name = tempfile.mkstemp(prefix=".new-", dir=directory)
        try:
            with os.fdopen(fd, "wb") as file:

                def place(target: Path) -> None:
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)
                    Path(name).rename(target)

                yield file, place
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)


class ArchiveOutput:
    """A layout in a tar archive that can be written to anywhere: each blob's header comes after it.

    Blobs beside others are kept in nameless files in the directory *spool* until they have a name.
    """

    is_directory = False

    def __init__(self, file: BinaryIO, spool: Path) -> None:
        self._file = file
        self._spool = spool
        self._written: set[str] = set()
        for name in (b"blobs", b"blobs/sha256"):
            file.write(tarformat.header(Member(name, "directory", 0o755, 0, 0, 0)))

    @contextmanager
    def blob(self) -> Iterator[tuple[Sink, Name]]:
        """Begin a blob; see `Output`."""
        start = self._file.tell()
        self._file.write(_header("", 0))
        yield self._file, lambda digest: self._finish(start, blob_name(digest))

    @contextmanager
    def aside(self) -> Iterator[tuple[BinaryIO, Name]]:
        """Begin a blob beside others; see `Output`."""
        with tempfile.TemporaryFile(dir=self._spool) as file:

            def name(digest: str) -> None:
                file.seek(0)
                with self.blob() as (sink, finish):
                    shutil.copyfileobj(file, cast(BinaryIO, sink), 1 << 20)
                    finish(digest)

            yield file, name

    def _finish(self, start: int, name: str) -> None:
        end = self._file.tell()
        self._file.seek(start)
        if name in self._written:
            self._file.truncate()
            return
        self._written.add(name)
        header = _header(name, 0)
        size = end - start - len(header)
        self._file.write(_header(name, size))
        self._file.seek(end)
        self._file.write(tarformat.padding(size))

    def file(self, name: str, data: bytes) -> None:
        """Write a file at the top; see `Output`."""
        self._file.write(_header(name, len(data)) + data + tarformat.padding(len(data)))

    def read(self, name: str) -> bytes | None:
        """Return None: an archive begins empty."""
        return None

    def end(self) -> None:
        """Write the archive's end."""
        self._file.write(tarformat.END)


def _header(name: str, size: int) -> bytes:
    return tarformat.header(Member(name.encode(), "file", 0o644, 0, 0, 0, size=size))


@contextmanager
def opened(output: Path | BinaryIO, spool: Path, *, directory: bool) -> Iterator[Output]:
    """Open an output: a directory, a file that appears when it is whole, or a stream.

    What goes to a stream is kept in a nameless file in the directory *spool* until it is whole, unless the
    stream is such a file itself: one that can be read, too.
    """
    if directory:
        if not isinstance(output, Path):
            raise Conflict("a layout directory cannot go to a stream: name a directory")
        yield DirectoryOutput(output)
    elif isinstance(output, Path) and (output.is_file() or not output.exists()):
        with new_file(output) as file:
            archive = ArchiveOutput(file, spool)
            yield archive
            archive.end()
    elif isinstance(output, io.BufferedRandom):
        archive = ArchiveOutput(output, spool)
        yield archive
        archive.end()
    else:
        with tempfile.TemporaryFile(dir=spool) as file:
            archive = ArchiveOutput(file, spool)
            yield archive
            archive.end()
            file.seek(0)
            if isinstance(output, Path):
                with output.open("wb") as device:
                    shutil.copyfileobj(file, device, 1 << 20)
            else:
                shutil.copyfileobj(file, output, 1 << 20)
                output.flush()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under another name first, so that a failure leaves the one that was there."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:200]}-", dir=path.parent)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            os.fchmod(fd, 0o666 & ~umask())
        Path(name).rename(path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
