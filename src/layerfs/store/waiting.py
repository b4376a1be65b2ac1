"""Waiting for a lock that another process holds, within bounds."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from layerfs.errors import Conflict
from layerfs.host.rundir import is_stopped

_PAUSE = 0.002


def take(fd: int, operation: int, what: str, patience: float) -> None:
    """Lock *fd* by flock(2) *operation*, and wait for who holds it, *patience* seconds at most.

    Raises `Conflict` then, or when its holder is stopped: the message says which process that is, and *what*
    it does.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = _holder(fd)
        if pid is not None and is_stopped(pid):
            raise Conflict(f"process {pid} {what}, and is stopped: 'kill -CONT {pid}' lets it go on")
        if time.monotonic() > deadline:
            raise Conflict(f"waited {patience:g} seconds for process {pid or 'unknown'}, which {what}")
        time.sleep(_PAUSE)


def _holder(fd: int) -> int | None:
    """Return the process that has locked the file *fd*, as proc_locks(5) has it; None if it is not known."""
    inode = b":%d" % os.fstat(fd).st_ino
    try:
        lines = Path("/proc/locks").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if fields[1] == b"FLOCK" and fields[5].endswith(inode) and int(fields[4]) > 0:
            return int(fields[4])
    return None
