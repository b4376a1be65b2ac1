"""A machine: all processes of one boot, in a PID namespace of their own, so that all end at one moment."""

from __future__ import annotations

import ctypes
import importlib
import os
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_CLONE_NEWNS = 0x20000
_CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG = 1
_MS_REC_PRIVATE = 0x44000
_MS_BIND = 0x1000
_BOOT_ID = b"/proc/sys/kernel/random/boot_id"
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def in_own_mount_table() -> None:
    """Give this process a mount table of its own: what it mounts is seen by no other, and ends with it."""
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))


def new_boot_id(file: Path) -> None:
    """Have the kernel's boot id be another one from now on, for those who look in this mount table."""
    _libc.umount2(_BOOT_ID, 2)
    text = os.urandom(16).hex()
    file.write_text(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}\n")
    _checked(_libc.mount(os.fsencode(file), _BOOT_ID, None, _MS_BIND, None))


class Machine:
    """The processes that *init* starts. It is given a function to call with a line once they are up."""

    def __init__(self, init: Callable[[Callable[[str], None]], None]) -> None:
        self._answer, answer = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                os.close(self._answer)
                self._be_keeper(init, answer)
            finally:
                os._exit(1)
        os.close(answer)
        self._init = int(self._line(10))

    def _be_keeper(self, init: Callable[[Callable[[str], None]], None], answer: int) -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _checked(_libc.unshare(_CLONE_NEWPID))
        wait, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.read(wait, 1)  # its pid is the first that is said
            try:
                init(lambda line: _say(answer, line))
                while True:
                    with suppress(ChildProcessError):
                        os.wait()
                        continue
                    signal.pause()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _say(answer, str(pid))
        os.write(go, b"!")
        os.waitpid(pid, 0)
        os._exit(0)

    def _line(self, patience: float) -> str:
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._answer], [], [], patience)
            part = os.read(self._answer, 1) if ready else b""
            if not part:
                raise TimeoutError(f"the machine did not start: {text!r}")
            text += part
        return text.decode().strip()

    def up(self, patience: float = 60) -> str:
        """Wait until the processes are up; return the line that they sent."""
        return self._line(patience)

    def end(self) -> None:
        """Kill all processes; on return there are none."""
        if self._keeper:
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            os.waitpid(self._keeper, 0)
            self._keeper = 0
            os.close(self._answer)


def _say(pipe: int, line: str) -> None:
    os.write(pipe, line.encode() + b"\n")


def run(action: Callable[[], int], output: Path) -> int:
    """Do *action* in a child, its output going to *output*; return the exit status."""
    pid = start(action, output)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(action: Callable[[], object], output: Path) -> int:
    """Begin *action* in a child, its output going to *output*, and return its pid."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            done = action()
            status = done if isinstance(done, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def import_all() -> None:
    """Import what the commands import when they are called, so that no child has to."""
    import layerfs.cli
    import layerfs.daemon

    for module in {*layerfs.cli.COMMANDS.values()}:
        importlib.import_module(f"layerfs.cli.{module}")


def layerfs(arguments: Sequence[str], output: Path) -> int:
    """Run `layerfs ARGUMENTS` in a child, which has imported everything already; return the exit status."""

    def act() -> int:
        import sys

        from layerfs.cli import main

        status = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    return run(act, output)
