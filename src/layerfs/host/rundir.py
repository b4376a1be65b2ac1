"""Where layerfs keeps things: the store's root, and the sockets, locks and logs of running mounts.

A running mount holds an exclusive `flock` on `RUN/NAME.lock` for as long as its daemon lives; the
file's text is the daemon's pid and, once it is mounted, the filesystem's device number: `PID\nMAJOR:MINOR\n`.
The kernel drops the lock with the process, however it ends, so a lock that can be taken means that no daemon
runs, and a socket left beside it is stale.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from layerfs.errors import BadRequest, Conflict
from layerfs.host.ownership import check_private, home, open_own

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def store_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the store's root: *given*, else `$LAYERFS_ROOT`, else the user's default."""
    if given is not None:
        return Path(given).absolute()
    if from_environment := os.environ.get("LAYERFS_ROOT"):
        return Path(from_environment).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/layerfs")
    return (_absolute("XDG_DATA_HOME") or home() / ".local/share") / "layerfs"


def run_dir() -> Path:
    """Return the directory of sockets, locks and logs, which may not be there yet.

    `$LAYERFS_RUN` overrides `/run/layerfs` (root) and `$XDG_RUNTIME_DIR/layerfs` (others). Without either of
    them it is below `/tmp`, where anybody may have been first. Raises `Forbidden` for a directory that
    somebody else owns or can write to, and for a symbolic link.
    """
    elsewhere = "set LAYERFS_RUN to a directory of your own"
    if given := os.environ.get("LAYERFS_RUN"):
        path = Path(given).absolute()
        elsewhere = "set LAYERFS_RUN to another one, or run 'chmod 700' on it if it is yours"
    elif os.geteuid() == 0:
        path = Path("/run/layerfs")
    elif base := _absolute("XDG_RUNTIME_DIR"):
        check_private(base, "directory in XDG_RUNTIME_DIR,", elsewhere, links=True)
        path = base / "layerfs"
    else:
        base = Path(f"/tmp/layerfs-{os.geteuid()}")
        check_private(base, "run directory", elsewhere)
        path = base / "layerfs"
    check_private(path, "run directory", elsewhere)
    return path


def _absolute(variable: str) -> Path | None:
    """Return the directory in an environment *variable*; the XDG specification ignores a relative one."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def make_run_dir() -> Path:
    """Return `run_dir`, made (for its owner alone) where it is not there.

    Raises `Forbidden` and `OSError`.
    """
    _make_private(run_dir())
    return run_dir()  # checked again: somebody may have been quicker


def _make_private(path: Path) -> None:
    """Make the directory *path*, and those above it that are missing, for their owner alone."""
    if not path.is_dir():
        _make_private(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)


def check_name(name: str) -> str:
    """Return *name* if it can name a mount (Docker's rule for container names), else raise `BadRequest`."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"invalid name {name[:150]!r}: use letters, digits, '_', '.' and '-', 1 to 128 of them"
        )
    return name


def socket_path(name: str) -> Path:
    """Return the path of the control socket of the mount called *name*."""
    return run_dir() / f"{check_name(name)}.sock"


def engine_socket() -> Path:
    """Return the path of the socket of the engine, where it is not told another one."""
    return run_dir() / "engine.sock"


def log_path(name: str) -> Path:
    """Return the path of the log of the mount called *name*."""
    return run_dir() / f"{check_name(name)}.log"


class RunLock:
    """The lock that a mount's daemon holds while it runs; a context manager.

    Raises `Conflict` when another process holds it.
    """

    def __init__(self, name: str) -> None:
        self.path = make_run_dir() / f"{check_name(name)}.lock"
        self.fd = -1
        self.device: int | None = None
        """The filesystem (`st_dev`) of the daemon that had the lock last, if it is known."""
        for _ in range(20):
            self.fd = open_own(self.path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_the_file():
                    self.device = _holder(self.fd)[1]
                    return
            except BlockingIOError:
                time.sleep(0.005)  # `running_pid` holds it shared for an instant
            os.close(self.fd)
        self.fd = -1
        raise Conflict(f"{name} is already running (process {running_pid(name) or 'unknown'})")

    def _is_the_file(self) -> bool:
        """Tell whether what we have locked is still the file of that name: see `forget`."""
        try:
            return os.path.samestat(os.fstat(self.fd), self.path.lstat())
        except FileNotFoundError:
            return False

    def set_pid(self, pid: int) -> None:
        """Record *pid* as the holder. Raises `OSError`; what was recorded before stays then."""
        self._record(b"%d\n" % pid)

    def set_device(self, device: int | None) -> None:
        """Record that the holder serves the filesystem *device* (`st_dev`), or none; as `set_pid`."""
        text = b"%d\n" % os.getpid()
        if device is not None:
            text += b"%d:%d\n" % (os.major(device), os.minor(device))
        self._record(text)

    def _record(self, text: bytes) -> None:
        os.pwrite(self.fd, text, 0)  # first: what is cut off on a full disk may not be had again
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        """Give the lock up; the file stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def remove_socket(self) -> None:
        """Remove the socket of the mount."""
        if path := self._now():
            path.with_suffix(".sock").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all that is here of the mount, the lock's file last: there is none of that name any more."""
        if path := self._now():
            for suffix in (".sock", ".log", ".lock"):
                path.with_suffix(suffix).unlink(missing_ok=True)

    def _now(self) -> Path | None:
        """Return where the lock's file is now, None if nowhere: `rename` may have given it another name.

        By the old name there may be another mount since.
        """
        path = self.path.with_name(os.path.basename(os.readlink(f"/proc/self/fd/{self.fd}")))
        try:
            return path if os.path.samestat(os.fstat(self.fd), path.lstat()) else None
        except FileNotFoundError:
            return None

    def __enter__(self) -> RunLock:
        """Return the lock itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.release()


def forget(name: str) -> None:
    """Remove what is left here of the mount called *name*, which is gone, unless there is a new one."""
    with suppress(Conflict), RunLock(name) as lock:
        lock.forget()


def rename(old: str, new: str) -> None:
    """Let all that is here of the mount *old* go by the name *new*; its daemon, if one runs, goes on.

    Not atomic: for an instant neither name seems to run. Raises `Conflict` if a daemon has the new name.
    """
    if running_pid(new) is not None:
        raise Conflict(f"the name {new} is in use by a mount of another store: choose another one")
    directory = run_dir()
    for suffix in (".sock", ".log", ".lock"):  # who finds the lock finds the others
        with suppress(FileNotFoundError):
            (directory / f"{check_name(old)}{suffix}").rename(directory / f"{check_name(new)}{suffix}")


def running_pid(name: str) -> int | None:
    """Return the pid of the daemon that runs the mount called *name*, or None when none does."""
    return running(name)[0]


def running(name: str) -> tuple[int | None, int | None]:
    """Return the pid of the daemon that runs the mount called *name*, and the `st_dev` of its filesystem.

    The first is None when no daemon runs it, 0 when one is just starting. The second is that of the last
    daemon if none runs, and None where it is not known (yet).
    """
    try:
        fd = open_own(run_dir() / f"{check_name(name)}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None, None
    try:
        pid, device = _holder(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, device = _holder(fd)
        return pid or 0, device
    finally:
        os.close(fd)
    return None, device


def _holder(fd: int) -> tuple[int | None, int | None]:
    """Return what is written in a lock's file: a pid and a device number, None for what is not."""
    found = re.fullmatch(rb"(\d+)\n(?:(\d+):(\d+)\n)?", os.pread(fd, 64, 0))
    if not found:
        return None, None
    return int(found[1]), os.makedev(int(found[2]), int(found[3])) if found[2] else None


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped (SIGSTOP): nothing is to be had from it until it is let go on."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            state = os.read(fd, 4096).rpartition(b")")[2].split()[0]
        finally:
            os.close(fd)
    except OSError:
        return False
    return state in (b"T", b"t")


def owner(device: int) -> tuple[str, int | None] | None:
    """Return the name of the mount whose filesystem is *device* (`st_dev`), and its daemon's pid.

    The pid is None when its daemon has ended. None: it is no mount of this run directory.
    """
    dead = None
    with suppress(FileNotFoundError):
        for file in os.listdir(run_dir()):
            name = file.removesuffix(".lock")
            if name != file and NAME.fullmatch(name):
                pid, served = running(name)
                if served == device and pid is not None:
                    return name, pid
                if served == device:
                    dead = name, None  # its number may have been given to another one since
    return dead
