"""What the tests with real mounts share: the command line, stacks of directories, small filesystems.

Every test has its own store, run directory and mounts below its own directory. Whatever a test does,
and however it ends, what it started is killed and unmounted after it; a test that waits for a daemon
that has stopped answering is freed by a timer that kills the daemon. After each test the store is held
against itself (`layerfs fsck`), and its daemons must have logged nothing but what the test expects.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from layerfs.store import Store

PATIENCE = 60
"""Seconds after which a daemon is killed, and with it every request that still waits for it."""
NOBODY = 65534
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need root where we are not."""
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        pytest.skip("needs root")


def wait_until(true: Callable[[], object], patience: float = 10) -> None:
    """Return when *true* is; fail when that takes longer than *patience* seconds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"waited {patience} s in vain"
        time.sleep(0.01)


def mounts_below(directory: Path) -> list[Path]:
    """Return the mountpoints at and below *directory*, the last mounted first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        escaped = [line.split()[4] for line in lines]
    paths = [Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text)) for text in escaped]
    return [path for path in reversed(paths) if path.is_relative_to(directory)]


def detach(mountpoint: Path) -> None:
    """Unmount *mountpoint* lazily, whether or not it still answers."""
    _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH)


def as_user(uid: int, action: Callable[[], object], *, where: Path, groups: Sequence[int] = ()) -> int:
    """Do *action* as user and group *uid*, in the directory *where*; return its errno, 0 if it works.

    Paths are relative to *where*: those of the tests' directories are closed to others.
    """
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.chdir(where)
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            action()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != 255, "the action failed in a way of its own"
    return status


def errno_of(action: Callable[[], object]) -> int:
    """Return the errno with which *action* fails, 0 if it works."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


class Layerfs:
    """The command line, on a store and with a run directory of its own below *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "store"
        self.run = directory / "run"
        self.environment = {
            **os.environ,
            "LAYERFS_ROOT": str(self.root),
            "LAYERFS_RUN": str(self.run),
        }
        self.words = [sys.executable, "-m", "layerfs"]
        self.store_is_damaged = False
        """Whether the test has damaged the store on purpose: then nobody holds it against itself."""
        self._kept_logs = directory / "kept-logs"
        self._expected = [
            # The kernel has given the request up: nobody waits for the answer any more.
            r"pyfuse3: fuse_release\(\): fuse_reply_\* failed with No such file or directory",
            r" ERROR layerfs\.launch: ",  # a daemon that does not come up: the command has said the same
        ]

    def expect_log(self, *patterns: str) -> None:
        """Have the daemons of this test log lines that match one of *patterns* (regular expressions)."""
        self._expected += patterns

    def __call__(
        self, *arguments: str | os.PathLike[str], timeout: float = PATIENCE, cwd: Path | None = None
    ) -> CompletedProcess[str]:
        """Run `layerfs ARGUMENTS` to its end, whatever that is."""
        try:
            return subprocess.run(
                [*self.words, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=timeout,
                check=False,
                cwd=cwd,
            )
        finally:
            self._keep_logs()

    def ok(self, *arguments: str | os.PathLike[str]) -> str:
        """Run `layerfs ARGUMENTS`, which must work and have nothing to complain of; return its output."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done.stderr)
        return done.stdout.rstrip("\n")

    def refused(self, *arguments: str | os.PathLike[str], status: int = 1) -> str:
        """Run `layerfs ARGUMENTS`, which must fail with *status* and one line; return that line."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (status, ""), (arguments, done)
        line = done.stderr.removesuffix("\n")
        assert line.startswith("layerfs: "), line
        assert "\n" not in line, line
        return line.removeprefix("layerfs: ")

    def pid(self, name: str) -> int:
        """Return the pid of the daemon of the mount called *name*."""
        return int((self.run / f"{name}.lock").read_text().split()[0])

    def kill(self, name: str) -> None:
        """Kill the daemon of the mount called *name*, and wait until it is gone."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _is_alive(pid))

    def socket(self, name: str) -> Path:
        """Return the path of the control socket of the mount called *name*."""
        return self.run / f"{name}.sock"

    def ask(self, name: str, method: str, target: str) -> tuple[int, bytes]:
        """Send one request to the control socket of the mount called *name*; return status and body."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(str(self.socket(name)))
            peer.sendall(
                f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
            )
            answer = HTTPResponse(peer, method=method)
            answer.begin()
            return answer.status, answer.read()

    def processes(self) -> list[int]:
        """Return the pids of everything that this command line started and that still lives."""
        mark = f"LAYERFS_RUN={self.run}".encode()
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(OSError):
                if pid != os.getpid() and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def end(self) -> None:
        """Kill all that was started and unmount all that was mounted below the directory."""
        self.kill_all()
        for mountpoint in mounts_below(self.directory):
            detach(mountpoint)
        wait_until(lambda: not self.processes())

    def kill_all(self) -> None:
        """Kill all that was started."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _keep_logs(self) -> None:
        """Keep hold of the daemons' logs: removing a mount removes its log."""
        for log in self.run.glob("*.log"):
            with suppress(FileNotFoundError, FileExistsError):
                self._kept_logs.mkdir(exist_ok=True)
                os.link(log, self._kept_logs / f"{log.stat().st_ino}.log")

    def check_logs(self) -> None:
        """Fail where a daemon has logged a warning, an error or a traceback that the test does not expect."""
        self._keep_logs()
        for log in self._kept_logs.glob("*.log"):
            for line in log.read_text(errors="replace").splitlines():
                unusual = not re.match(r"[-\d]+ [:,\d]+ (INFO|DEBUG) ", line)
                if unusual and not any(re.search(pattern, line) for pattern in self._expected):
                    pytest.fail(f"a daemon has logged: {line}")

    def check_store(self) -> None:
        """Fail where the store contradicts itself, once it has been recovered from what the test did."""
        if self.store_is_damaged or not (self.root / "layerfs.db").exists():
            return
        with pytest.MonkeyPatch.context() as patch, Store(self.root) as store:
            patch.setenv("LAYERFS_RUN", str(self.run))
            for _ in range(100):
                store.recover()
                problems = list(store.check())
                if not problems:
                    break
                time.sleep(0.05)  # a daemon that was killed holds what it was making until it has ended
            assert problems == []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Stack:
    """Plain directories to mount: two lower ones (`top` over `bottom`) and an upper.

    Fill them, then `mount`; `mnt` is where the union appears.
    """

    name = "stack"

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        self.directory = layerfs.directory / self.name
        self.top, self.bottom, self.upper, self.work, self.mnt = (
            self.directory / name for name in ("top", "bottom", "upper", "work", "mnt")
        )
        for path in (self.top, self.bottom, self.upper, self.work, self.mnt):
            path.mkdir(parents=True, exist_ok=True)

    def mount(self, *options: str) -> Path:
        """Mount the stack with more *options* for the command; return the mountpoint."""
        lowers = (f"--lower={self.top}", f"--lower={self.bottom}")
        uppers = (f"--upper={self.upper}", f"--work={self.work}")
        self.layerfs.ok("mount", "--name", self.name, *lowers, *uppers, *options, self.mnt)
        return self.mnt

    def umount(self) -> None:
        """Unmount, and wait until the daemon has ended."""
        pid = self.layerfs.pid(self.name)
        assert self.layerfs.ask(self.name, "POST", "/layerfs/unmount") == (204, b"")
        wait_until(lambda: not _is_alive(pid))

    def remount(self) -> Path:
        """Unmount and mount again: nothing is remembered but what is on disk."""
        self.umount()
        self.layerfs.ok("mount", "--name", self.name, self.mnt)
        return self.mnt

    def commit(self) -> None:
        """Commit what was written so far."""
        status, answer = self.layerfs.ask(self.name, "POST", f"/commit?container={self.name}")
        assert status == 201, answer


@pytest.fixture
def layerfs(tmp_path: Path) -> Iterator[Layerfs]:
    """The command line with a store of its own; nothing it started outlives the test."""
    yield from _bounded(Layerfs(tmp_path))


@pytest.fixture(scope="module")
def shared_layerfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layerfs]:
    """The same, for the tests of a module that only look at one mount."""
    yield from _bounded(Layerfs(tmp_path_factory.mktemp("shared")))


def _bounded(command: Layerfs) -> Iterator[Layerfs]:
    timer = threading.Timer(PATIENCE, command.end)
    timer.daemon = True
    timer.start()
    try:
        yield command
        command.kill_all()
        command.check_logs()
        command.check_store()  # while the filesystems that its trees lie on are still mounted
    finally:
        timer.cancel()
        command.end()


@pytest.fixture
def stack(layerfs: Layerfs) -> Stack:
    """Directories to mount, all empty yet."""
    return Stack(layerfs)


@pytest.fixture
def mnt(stack: Stack) -> Path:
    """A mount with nothing in it."""
    return stack.mount()


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, layerfs: Layerfs, tmp_path: Path) -> Path:
    """A filesystem of 16 MiB, to be filled up; `layerfs` takes it away with everything else."""
    path = tmp_path / "small"
    path.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True, timeout=10)
        return path
    image = tmp_path / "small.ext4"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m0", image], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", image, path], check=True, timeout=10)
    return path


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Fill the filesystem of *directory* up but for *leave* bytes; return the file that does it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 8):
            with suppress(OSError):
                while True:
                    written = file.write(bytes(size))
                    if written < size:
                        break
        os.fsync(file)
        file.truncate(max(0, file.tell() - leave))
    full = errno_of(lambda: (directory / "probe").write_bytes(bytes(leave + (1 << 16))))
    (directory / "probe").unlink(missing_ok=True)
    assert full == errno.ENOSPC
    return ballast
