"""What is known of a container that runs: its directory, its first process, and who may change that.

`RUN/containers/ID/record` is a lock and a text. Who starts a container, or clears away after it, holds an
exclusive `flock` on the file; anybody may read it: the first process and, at the end, its exit code. Who
still has the file open when the directory has been removed reads the exit code all the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from layerfs.errors import BadRequest, Conflict
from layerfs.host import rundir
from layerfs.host.ownership import check_private, open_own

_NAME = "record"
_ID = re.compile(r"[\w-]+", re.ASCII)
_PATIENCE = 90.0
"""Seconds to wait for another process that starts a container or clears away after it."""


@dataclass(frozen=True, slots=True)
class Record:
    """The first process of a container, and how it ended."""

    pid: int
    born: int
    """When it was started, in the clock ticks of proc_pid_stat(5): nobody else has both."""
    runtime: str
    """The OCI runtime that runs it, a path."""
    exit_code: int | None = None
    """None until somebody has cleared away after it."""

    def alive(self) -> bool:
        """Return whether the process lives."""
        return self.exit_code is None and born(self.pid) == self.born

    def signal(self, number: int) -> bool:
        """Send the process a signal; return whether it lived. Raises `OSError`."""
        fd = self._open()
        if fd < 0:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the process has ended, *seconds* at most; return whether it has."""
        fd = self._open()
        if fd < 0:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(None if seconds is None else seconds * 1000))
        finally:
            os.close(fd)

    def _open(self) -> int:
        """Return a descriptor of the process, -1 when it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return -1
        if self.alive():
            return fd
        os.close(fd)
        return -1


def born(pid: int) -> int | None:
    """Return when the process *pid* was started, in clock ticks after the boot, or None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def directories() -> Path:
    """Return the directory that has one for each container that runs."""
    return rundir.run_dir() / "containers"


def directory(mount_id: str) -> Path:
    """Return the directory with what concerns the container only while it runs.

    Raises `BadRequest` for what is no id: whoever clears away removes all that is in the directory.
    """
    if not _ID.fullmatch(mount_id):
        raise BadRequest(f"invalid container id {mount_id[:100]!r}: give the full id")
    return directories() / mount_id


def look(mount_id: str) -> Record | None:
    """Return what the record of a container says now, None when it has none: it does not run."""
    try:
        with Watch(mount_id) as watch:
            return watch.read()
    except FileNotFoundError:
        return None


def is_changing(mount_id: str) -> bool:
    """Return whether somebody starts the container just now, or clears away after it."""
    try:
        with Watch(mount_id) as watch:
            return not watch.is_free()
    except FileNotFoundError:
        return False


def settled(mount_id: str) -> Record | None:
    """Return what the record of a container says, once a start of it that is going on has come to its end.

    Without this, one who stops, removes or renames a container that is being started would find that it does
    not run, and it would run a moment later. Raises `Conflict` when the start takes too long.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with Watch(mount_id) as watch:
                record = watch.read()
                if record is not None or watch.is_free():
                    return record
        except FileNotFoundError:
            return None
        if time.monotonic() > deadline:
            raise Conflict("another process is starting this container: try again")
        time.sleep(0.01)


def _parse(content: bytes) -> Record | None:
    try:
        return Record(**json.loads(content))
    except (ValueError, TypeError):  # it is being written, or the disk was full
        return None


class Lock:
    """The right to start a container and to clear away after it; a context manager.

    Waits for who has it, for so many seconds; raises `Conflict` then.
    """

    def __init__(self, mount_id: str, patience: float = _PATIENCE) -> None:
        self.path = directory(mount_id)
        deadline = time.monotonic() + patience
        while not self._try():
            if time.monotonic() > deadline:
                raise Conflict("another process is starting or stopping this container: try again")
            time.sleep(0.01)

    def _try(self) -> bool:
        """Return whether the lock is ours now."""
        rundir.make_run_dir()
        for path in (self.path.parent, self.path):
            with suppress(FileExistsError):  # and it may be gone again at once: who had the lock removes it
                os.mkdir(path, 0o700)
            check_private(path, "directory of containers", "remove it")
        try:
            self._fd = open_own(self.path / _NAME, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            return False
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._fd), os.lstat(self.path / _NAME)):
                return True
        os.close(self._fd)
        return False

    def read(self) -> Record | None:
        """Return the record, None when there is none."""
        return _parse(os.pread(self._fd, 4096, 0))

    def write(self, record: Record) -> None:
        """Replace the record."""
        text = json.dumps(asdict(record)).encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def is_empty(self) -> bool:
        """Return whether nothing but the record is in the container's directory."""
        return os.listdir(self.path) == [_NAME]

    def clear(self) -> None:
        """Remove everything but the record from the container's directory.

        Raises `OSError`, and leaves all of it, while something is mounted there.
        """
        with suppress(FileNotFoundError):
            (self.path / "rootfs").rmdir()
        for path in self.path.iterdir():
            if path.name != _NAME:
                path.unlink()

    def discard(self) -> None:
        """Remove the container's directory; those who have the record open can read it all the same."""
        self.clear()
        (self.path / _NAME).unlink()  # the last: who comes next makes a new one
        with suppress(OSError):
            self.path.rmdir()

    def __enter__(self) -> Lock:
        """Return the lock itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock up."""
        os.close(self._fd)


@contextmanager
def locked(mount_id: str) -> Iterator[Lock]:
    """Let nobody start or end a container while the block lasts, and leave no directory of one at rest."""
    with Lock(mount_id) as lock:
        try:
            yield lock
        finally:
            if lock.read() is None and lock.is_empty():
                lock.discard()


class Watch:
    """A container's record held open, to learn how the container ended; a context manager."""

    def __init__(self, mount_id: str) -> None:
        """Open the record; raises `FileNotFoundError` when the container does not run."""
        self._fd = open_own(directory(mount_id) / _NAME, os.O_RDONLY)

    def read(self) -> Record | None:
        """Return what the record says, even if its directory is gone."""
        return _parse(os.pread(self._fd, 4096, 0))

    def is_free(self) -> bool:
        """Return whether nobody starts the container now, or clears away after it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def __enter__(self) -> Watch:
        """Return the watch itself."""
        return self

    def close(self) -> None:
        """Close the record."""
        os.close(self._fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the record."""
        self.close()
