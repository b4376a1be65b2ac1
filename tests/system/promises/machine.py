"""A machine: all processes of one boot, which end together."""

from __future__ import annotations

import ctypes
import importlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_CLONE_NEWNS = 0x20000
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
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
        self._init = os.fork()
        if self._init == 0:
            try:
                os.close(self._answer)
                _be_first(init, answer)
            except BaseException:
                traceback.print_exc()
            finally:
                _end_with_all()
        os.close(answer)

    def up(self, patience: float = 60) -> str:
        """Wait until the processes are up; return the line that they sent."""
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._answer], [], [], patience)
            part = os.read(self._answer, 1) if ready else b""
            if not part:
                raise TimeoutError(f"the machine did not start: {text!r}")
            text += part
        return text.decode().strip()

    def end(self) -> None:
        """Kill all processes; on return there are none."""
        if self._init:
            # Stopped, it starts nothing more: what it did after the last look would outlive the machine.
            os.kill(self._init, signal.SIGSTOP)
            _kill_below(self._init)
            os.kill(self._init, signal.SIGKILL)
            os.waitpid(self._init, 0)
            self._init = 0
            os.close(self._answer)


def _be_first(init: Callable[[Callable[[str], None]], None], answer: int) -> None:
    """Be the process that all others of the machine descend from, as init does: it gets the orphans."""
    signal.signal(signal.SIGTERM, lambda number, frame: _end_with_all())
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1))
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM))  # should the harness be killed
    init(lambda line: _say(answer, line))
    while True:
        with suppress(ChildProcessError):
            os.wait()
            continue
        signal.pause()


def _end_with_all() -> None:
    _kill_below(os.getpid())
    os._exit(1)


def _kill_below(pid: int) -> None:
    """Kill all descendants of a process that gets the orphans among them; return when there are none."""
    while below := _descendants(pid):
        for other in below:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        time.sleep(0.001)


def _descendants(pid: int) -> list[int]:
    """Return the pids of all processes below *pid* that have not ended."""
    children: dict[int, list[int]] = {}
    ended = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(name))
                if state in "ZX" and len(os.listdir(f"/proc/{name}/task")) == 1:
                    ended.add(int(name))  # others have threads left, which have not
    found = children.get(pid, [])
    for one in found:
        found += children.get(one, [])
    return [one for one in found if one not in ended]


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
    import layerfs.mounting.daemon

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
