"""Waiting until a file changes: inotify(7)."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from layerfs.host.polling import readable

_IN_MODIFY = 0x2
_BUFFER = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Tells when something is written to the files of a directory; a context manager. For one thread."""

    def __init__(self, directory: Path) -> None:
        """Watch *directory*: its files, not what is below. Raises `OSError`."""
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MODIFY) < 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, os.strerror(code), os.fspath(directory))

    def wait(self, seconds: float) -> bool:
        """Wait for something to be written, *seconds* at most; return whether it was, since the last call."""
        if not readable([self._fd], seconds):
            return False
        with suppress(BlockingIOError):
            while os.read(self._fd, _BUFFER):
                pass
        return True

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def __enter__(self) -> Watch:
        """Return the watch itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        self.close()
