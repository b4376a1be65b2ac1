"""The terminal of whoever runs a command: raw while a container has it, restored whatever happens."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def size(fd: int) -> tuple[int, int] | None:
    """Return the rows and columns of the terminal *fd*, None when it is none or does not know."""
    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def set_size(fd: int, rows: int, columns: int) -> None:
    """Give the terminal *fd* a size; its foreground processes get SIGWINCH. Raises `OSError`."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Pass every key on as it is typed while the block lasts; without effect where *fd* is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
