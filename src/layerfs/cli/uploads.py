"""What a command sends: a file, a directory as an archive, or standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerfs.errors import BadRequest, NotFound, from_os_error

if TYPE_CHECKING:
    from layerfs.cli.progress import Progress
    from layerfs.unixhttp.message import Upload

_WHITEOUT = ".wh."


class Pieces:
    """Pieces as an `Upload`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, nothing at the end."""
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece = piece
        start, self._piece = self._piece[:size], self._piece[size:]
        return start


class _Counted:
    """An `Upload` that shows how much of it was read."""

    def __init__(self, upload: Upload, progress: Progress, total: int) -> None:
        self._upload = upload
        self._progress = progress
        self._total = total
        self._done = 0

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, nothing at the end."""
        data = self._upload.read(size)
        self._done += len(data)
        self._progress.bytes_done(self._done, self._total)
        return data


@contextmanager
def opened(name: str, progress: Progress, doing: str) -> Iterator[tuple[Upload, Path | BinaryIO]]:
    """Open what is called *name*, - for standard input: as an upload, and as what that is made of.

    A directory is sent as an archive of it. Raises `LayerfsError`; *doing* something is what fails.
    """
    with ExitStack() as stack:
        if name == "-":
            yield _Counted(sys.stdin.buffer, progress, 0), sys.stdin.buffer
            return
        path = Path(name)
        if not path.exists():
            raise NotFound(f"no such file or directory: {name}")
        try:
            if path.is_dir():
                upload: Upload = Pieces(stack.enter_context(closing(_archive(path))))
                total = 0
            else:
                file = stack.enter_context(path.open("rb", buffering=0))
                status = os.fstat(file.fileno())
                upload, total = file, status.st_size if stat.S_ISREG(status.st_mode) else 0
            yield _Counted(upload, progress, total), path
        except OSError as error:
            raise from_os_error(error, doing) from None


def _archive(path: Path) -> Generator[bytes, None, None]:
    """Yield an archive of a directory. Raises `BadRequest` for a name that means another thing there."""
    from layerfs.container import copying

    for directory, directories, files in os.walk(path):
        for found in (*directories, *files):
            if found.startswith(_WHITEOUT):
                raise BadRequest(
                    f"{os.path.join(directory, found)} cannot be sent to the engine: in an archive a name "
                    "that begins with .wh. means a deleted file"
                )
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with closing(copying.archive(fd, os.fspath(path), ".")) as pieces:
            yield from pieces
    finally:
        os.close(fd)
