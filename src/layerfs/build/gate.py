"""The gate of a container: what it runs until its command may begin (`gate.c`), and the word to it.

A runtime does all of its work before that, while the step before goes on: from the word to the command it is
a fraction of a millisecond. Where the program has not been built, no containers are made ahead.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from layerfs.host.polling import readable

PROGRAM = Path(__file__).with_name("gate")
WORDS = ("/proc/self/fd/3",)
"""The program, in the container, before the words of the command."""
OPTIONS = ("--preserve-fds", "4")
"""What a runtime is told, so that the program has its descriptors."""
_CREDENTIALS = struct.Struct("3i")
_ERROR = struct.Struct("i")
_LONGEST = 4000
"""Bytes of a directory that the word can tell."""
_ANSWER = 10.0
"""Seconds that it may take to enter a directory, which a filesystem has to answer for."""


def is_there() -> bool:
    """Return whether the program has been built."""
    return os.access(PROGRAM, os.X_OK)


def takes(directory: str) -> bool:
    """Return whether a gate can be told to enter *directory*."""
    return len(os.fsencode(directory)) <= _LONGEST


class Gate:
    """The gate of one container: our end of its socket."""

    def __init__(self) -> None:
        """Open it. Raises `OSError`, as where the program has not been built."""
        self._program = os.open(PROGRAM, os.O_RDONLY | os.O_CLOEXEC)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.process = -1
        """A descriptor of the first process in the container, once `is_ready`. It can be read when that has
        ended, and with it all that it had started."""

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a runtime is to be started with as its descriptors 3 and 4, before two to write to."""
        return self._program, self._theirs.fileno()

    def started(self) -> None:
        """Close what a runtime has been started with: it has its own."""
        self._theirs.close()
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    def is_ready(self, other: int, seconds: float) -> bool:
        """Wait until the program runs in the container, at most *seconds*, or until *other* can be read."""
        deadline = time.monotonic() + seconds
        while self.process < 0:
            found = readable((self._ours.fileno(), other), max(0.0, deadline - time.monotonic()))
            if self._ours.fileno() not in found:
                return False
            message, told, _, _ = self._ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not message:
                return False
            for level, kind, data in told:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    with suppress(ProcessLookupError):  # it has been killed
                        self.process = os.pidfd_open(_CREDENTIALS.unpack(data)[0])
        return True

    def go(self, directory: str) -> bool:
        """Let the command begin in *directory*, "" for the one of the container; return whether it does so.

        If it does not, the directory could not be entered, the container has ended, or it takes too long, and
        is to be ended.
        """
        with suppress(OSError):
            self._ours.send(b"g" + os.fsencode(directory))
            if self._ours.fileno() in readable((self._ours.fileno(), self.process), _ANSWER):
                return self._ours.recv(1) == b"e"
        return False

    def refusal(self) -> int:
        """Return the error with which the system refused to execute the command, 0 if it did not.

        For a container that has ended.
        """
        with suppress(OSError):
            message = self._ours.recv(1 + _ERROR.size, socket.MSG_DONTWAIT)
            if message[:1] == b"x":
                return int(_ERROR.unpack(message[1:])[0])
        return 0

    def close(self) -> None:
        """Give it up: a command that has not begun never will. May be repeated."""
        self.started()
        self._ours.close()
        if self.process >= 0:
            os.close(self.process)
            self.process = -1
