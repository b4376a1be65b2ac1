"""The process that uses the mount for its daemon, to get the kernel's cached writes out of it.

It cannot be the daemon, nor one of its threads: whoever starts a process (vfork(2)) while this one has a file
of the mount open has the new process close it, and closing waits for the daemon, which waits for the new
process. So there is a process that does nothing else. It is forked before /dev/fuse is opened, so that it
keeps no dead mount alive, and ends when its socket does.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from typing import NoReturn

import trio

from layerfs.errors import Conflict, LayerfsError, from_os_error
from layerfs.union import syscalls


class Collector:
    """The other process, from the daemon's side. To be made before any thread is."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_at_a_time = trio.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(other)
        other.close()

    async def write_back(self, mountpoint: str, device: int, barrier: bytes) -> None:
        """Have the kernel send what was written to the mount (`st_dev` *device*), and then *barrier*.

        *barrier* is the name of a file in the root of the mount: when a write to it has been answered, the
        daemon has heard of all that was written before. Raises `Conflict` when the mount is not to be found
        at *mountpoint*, or when something that was written could not be stored.
        """
        request = json.dumps([mountpoint, device, barrier.decode("ascii")]).encode()
        async with self._one_at_a_time:
            with trio.CancelScope(shield=True):  # the answer to this must not be taken for the next one's
                try:
                    self._socket.send(request)
                    await trio.lowlevel.wait_readable(self._socket)
                    answer = self._socket.recv(65536)
                except OSError:
                    answer = b""
        if not answer:
            raise LayerfsError("the process that collects writes has ended: unmount and mount again")
        code, text = json.loads(answer)
        if code in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise Conflict(
                f"something written to {mountpoint} before could not be stored ({text}); "
                f"try again to go on without it"
            )
        if code == errno.ESTALE:
            raise Conflict(f"{mountpoint} is hidden by another mount: unmount that one first")
        if code:
            raise from_os_error(OSError(code, text), f"collect what was written to {mountpoint}")

    def close(self) -> None:
        """End the process, and wait for that."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def _serve(daemon: socket.socket) -> NoReturn:
    """Do what the daemon asks for until it ends, whatever signals the two get together."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.closerange(3, daemon.fileno())
        os.closerange(daemon.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _do(json.dumps(["/", -1, ""]).encode())  # nothing: memory shared until now makes the first time slow
        while request := daemon.recv(65536):
            daemon.send(_do(request))
    finally:
        os._exit(0)


def _do(request: bytes) -> bytes:
    mountpoint, device, barrier = json.loads(request)
    code, text = 0, ""
    try:
        _write_back(mountpoint, device, barrier)
    except OSError as error:
        code, text = error.errno or errno.EIO, error.strerror or "unknown error"
    return json.dumps([code, text]).encode()


def _write_back(mountpoint: str, device: int, barrier: str) -> None:
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(root).st_dev != device:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        syscalls.syncfs(root)
        last = os.open(barrier, os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
        try:
            os.pwrite(last, b"\0", 0)
            syscalls.write_back(last)
        finally:
            os.close(last)
    finally:
        os.close(root)
