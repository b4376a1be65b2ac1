"""Reading a file so that an error is never taken for its end."""

from __future__ import annotations

import errno
import os

_TRIES = 3


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return *size* bytes at *offset* of a regular file, fewer only where it ends.

    pread(2) returns what it has read before an error, and only the next call says which. Raises `OSError`:
    that error, or EIO where nothing can be read although the file is longer by its stat.
    """
    data = os.pread(fd, size, offset)
    if len(data) == size:
        return data
    pieces, done, tries = [data], len(data), 0
    while done < size:
        data = os.pread(fd, size - done, offset + done)
        pieces.append(data)
        done += len(data)
        if not data:
            if os.fstat(fd).st_size <= offset + done:
                break
            tries += 1  # it may just have grown
            if tries == _TRIES:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
    return b"".join(pieces)
