"""A program that a build has started: what it writes comes through pipes, and its end can be waited for."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from layerfs.host.polling import readable

_PIECE = 1 << 16


class Child:
    """The process of a program. For one thread."""

    def __init__(self, words: list[str], *more: int, owner: int = -1) -> None:
        """Start it with *words*. Raises `OSError`.

        If there are *more* descriptors, it has them as its 3 and so on, and after them its pipes once more.
        Those belong to *owner*, who may open them by name. It reads nothing, and leads a session of its own:
        a terminal's Ctrl-C is for the build, which ends it.
        """
        self.code: int | None = None
        """Its exit code, once it has ended, the negative number of a signal that has killed it."""
        self._pipes: list[int] = []
        theirs: list[int] = []
        try:
            for _ in range(2):
                ours, its = os.pipe()
                self._pipes.append(ours)
                theirs.append(its)
                os.set_blocking(ours, False)
                os.fchown(its, owner, -1)
            self._errors = self._pipes[1]
            self.pid = _spawn(words, *theirs, *more, *(theirs if more else ()))
            self.fd = os.pidfd_open(self.pid)
            """A descriptor that can be read once it has ended."""
        except BaseException:
            for fd in self._pipes:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    @property
    def pipes(self) -> Sequence[int]:
        """The descriptors of what it writes, as far as they are not at their end."""
        return self._pipes

    def pass_on(self, take: Callable[[bytes, bool], None]) -> bool:
        """Have *take* one piece of each pipe, and whether it is an error; return whether there was any."""
        found = False
        for pipe in list(self._pipes):
            with suppress(BlockingIOError):
                if piece := os.read(pipe, _PIECE):
                    found = True
                    take(piece, pipe == self._errors)
                else:
                    self._pipes.remove(pipe)
                    os.close(pipe)
        return found

    def wait(self, seconds: float) -> bool:
        """Wait for its end, at most *seconds*; return whether that has come."""
        if self.code is None and readable((self.fd,), seconds):
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code is not None

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it, so that it has cleared nothing away."""
        return self.code is not None and self.code < 0

    def kill(self) -> None:
        """Kill it, and what it has started in its session."""
        if self.code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the descriptors of a program that has ended."""
        for fd in (*self._pipes, self.fd):
            os.close(fd)
        self._pipes.clear()


def _spawn(words: list[str], *descriptors: int) -> int:
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    # Above the numbers that they are to get, so that none is overwritten before it is copied.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (nothing, *descriptors)]
    os.close(nothing)
    try:
        return os.posix_spawn(
            words[0],
            words,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
            setsid=True,
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    finally:
        for fd in moved:
            os.close(fd)
