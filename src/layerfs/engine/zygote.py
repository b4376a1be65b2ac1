"""A process that has imported everything and does nothing but fork: mounts begin in milliseconds.

The engine has threads, and a process with threads cannot be forked safely. So it starts this one, once. For
each mount the zygote forks a child, which does what `layerfs mount` does, but becomes the daemon itself, and
answers over a socket of its own.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from layerfs import errors
from layerfs.errors import LayerfsError
from layerfs.host.interpreter import command
from layerfs.host.polling import readable
from layerfs.mounting.request import MountRequest
from layerfs.store import Store

_MODULE = "layerfs.engine.zygote"
_PATIENCE = 150.0
"""Seconds that a mount may take: more than `launch.start` waits for anything."""
_LARGEST = 1 << 20
_PAUSE = 0.4
"""Seconds after which a forked one gets ready without having been asked: most commands have ended by then."""


class Zygote:
    """The engine's side: starts the zygote, and asks it to mount. For any thread."""

    def __init__(self, root: Path) -> None:
        """Start it for the store at *root*; it ends when `close` is called, or with this process."""
        self._lock = threading.Lock()
        self._ask, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                command(_MODULE, str(theirs.fileno()), str(root)),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    def launch(self, request: MountRequest) -> str:
        """Mount what *request* asks for; return its name once the mount answers. Raises `LayerfsError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            fields = asdict(request) | {"root": str(request.root), "recover": False}
            message = json.dumps(fields).encode()
            try:
                with self._lock:
                    socket.send_fds(self._ask, [message], [theirs.fileno()])
            except OSError as error:
                raise LayerfsError(
                    f"the process that mounts has ended: restart the engine ({error})"
                ) from None
            theirs.close()
            ours.settimeout(_PATIENCE)
            try:
                answer = ours.recv(_LARGEST)
            except TimeoutError:
                raise LayerfsError(f"waited {_PATIENCE:g} seconds for the mount to answer") from None
        if not answer:
            raise LayerfsError("the process that mounts ended before the mount answered: see the log")
        kind, text = json.loads(answer)
        if kind:
            raise getattr(errors, kind, LayerfsError)(text)
        return str(text)

    def close(self) -> None:
        """End it; mounts go on."""
        self._ask.close()
        self._process.wait(10)


class Forked(Zygote):
    """One for a command that has no engine, and is about to start threads: forked from the command itself.

    It imports what a mount needs once something is asked of it, or once the command has gone on for so long
    that something will be.
    """

    def __init__(self, root: Path) -> None:
        """Start it; the calling process has no threads yet."""
        self._lock = threading.Lock()
        self._is_used = False
        self._ask, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._ask.close()
            self._serve(theirs.detach(), root)
        theirs.close()

    @staticmethod
    def _serve(number: int, root: Path) -> NoReturn:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the command ends in its own way
            for signal_number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(signal_number, signal.SIG_DFL)
            readable([number], _PAUSE)
            main(number, root)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def close(self) -> None:
        """End it; mounts go on."""
        self._ask.close()
        if not self._is_used:
            os.kill(self._pid, signal.SIGKILL)  # it may just be getting ready, for nothing
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def launch(self, request: MountRequest) -> str:
        """See `Zygote`."""
        self._is_used = True
        return super().launch(request)


def main(number: int, root: Path) -> None:
    """Serve requests on the socket with this *number* until its other end is closed."""
    # What a mount needs is imported here, once, and shared by all daemons.
    import layerfs.mounting.daemon  # noqa: F401
    from layerfs.api.server import become_mount

    with suppress(LayerfsError), Store(root):  # opened once, so that everything for it is in memory
        pass
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for what is forked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the engine ends in its own way
    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=number)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _LARGEST, 1)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            _answer(message, descriptors[0], become_mount)
        for descriptor in descriptors:
            os.close(descriptor)


def _answer(message: bytes, reply: int, become: Callable[[MountRequest, int], NoReturn]) -> NoReturn:
    """Be the daemon of the mount that *message* asks for, and say on *reply* what becomes of that."""
    try:
        fields = json.loads(message)
        fields["root"] = Path(fields["root"])
        fields["lowers"] = tuple(fields["lowers"])
        become(MountRequest(**fields), reply)
    except LayerfsError as error:
        answer = [type(error).__name__, str(error)]
    except BaseException as error:
        answer = ["LayerfsError", f"internal error: {type(error).__name__}: {error}"]
    with suppress(OSError):
        os.write(reply, json.dumps(answer).encode())
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
