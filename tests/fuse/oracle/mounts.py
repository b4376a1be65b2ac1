"""The two mounts that are compared: the kernel's overlayfs and layerfs, each on directories of its own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from layerfs.api.server import start_mount
from layerfs.client.client import Client
from layerfs.host import rundir
from layerfs.mounting.request import MountRequest
from layerfs.store import Store
from layerfs.union import syscalls

PATIENCE = 20.0
"""Seconds after which an operation counts as hung."""
COPIES = 15.0
"""Seconds that copies of a mount in namespaces of others, such as containers of other tests, may live on."""
_END_PATIENCE = 60
"""Seconds that a daemon may take to end: mount namespaces of other tests may hold copies of its mount."""
KERNEL_OPTIONS = "redirect_dir=on,metacopy=off,xino=off,nfs_export=off"

_MS_REMOUNT = 32
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: mount -t {kind} -o {data}", os.fspath(target))


def _copy_attributes(source: Path, target: Path) -> None:
    """Give directory *target* owner, mode, times and attributes of *source*, but not overlay's own marks."""
    st = source.stat()
    os.chown(target, st.st_uid, st.st_gid)
    target.chmod(st.st_mode & 0o7777)
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay.") or name.startswith("trusted.overlay.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))


class Hung(AssertionError):
    """The filesystem did not answer in time; its daemon has been killed."""


class Side:
    """One mount of a stack: *lowers* from bottom to top under `directory/upper`, at `directory/mnt`."""

    def __init__(self, directory: Path, lowers: Sequence[Path]) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.lowers = list(lowers)
        self.upper = directory / "upper"
        self.work = directory / "work"
        self.handles: dict[int, int] = {}
        self.mounted = False
        for path in (self.mountpoint, self.work):
            path.mkdir(exist_ok=True)

    @classmethod
    def taking_over(cls, other: Side) -> Self:
        """Return a mount of this kind for the layers of *other*, which has been unmounted."""
        return cls(other.directory, other.lowers)

    def path(self, name: bytes) -> bytes:
        """Return the path below the mountpoint of *name*, a path from the mount's root."""
        return os.fsencode(self.mountpoint) + b"/" + name

    def is_removed(self, handle: int) -> bool:
        """Tell whether an open file has lost the name that it was opened by."""
        return os.readlink(f"/proc/self/fd/{self.handles[handle]}").endswith(" (deleted)")

    def shows(self, handle: int) -> bool:
        """Tell whether an open file has a name."""
        st = os.fstat(self.handles[handle])
        for directory, _, names in os.walk(self.mountpoint):
            if any(os.path.samestat(st, os.lstat(os.path.join(directory, name))) for name in names):
                return True
        return False

    def close_handles(self) -> None:
        """Close every file that the test has open."""
        for fd in self.handles.values():
            with suppress(OSError):
                os.close(fd)
        self.handles.clear()

    def mount(self) -> None:
        """Mount the stack."""
        with self.guard():
            self._mount()
        self.mounted = True

    def unmount(self) -> None:
        """Unmount; on return the layers on disk are complete."""
        self.close_handles()
        with self.guard():
            syscalls.umount(os.fsencode(self.mountpoint), lazy=False)
            self.mounted = False
            self._wait()

    def remount(self) -> None:
        """Unmount and mount again."""
        self.unmount()
        self.mount()

    def commit(self) -> None:
        """Make the upper the topmost lower layer, and go on with an empty upper."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Leave no mount and no process, whatever happened."""
        self.close_handles()
        if self.mounted:
            self.abort()
            self.mounted = False
        with suppress(OSError):
            while True:  # whatever is mounted here
                syscalls.umount(os.fsencode(self.mountpoint), lazy=True)

    def settle(self) -> None:
        """Wait for what still goes on in the layers of an unmounted side."""

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Bound the time that the calls inside may hang: raise `Hung` after `PATIENCE` seconds."""
        fired = threading.Event()

        def fire() -> None:
            fired.set()
            self.abort()

        timer = threading.Timer(PATIENCE, fire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except OSError as error:
            if fired.is_set():
                raise Hung(f"{type(self).__name__} hung") from error
            raise
        finally:
            timer.cancel()
        if fired.is_set():
            raise Hung(f"{type(self).__name__} hung")

    def abort(self) -> None:
        """Make calls that hang in the filesystem fail."""

    def _mount(self) -> None:
        raise NotImplementedError

    def _wait(self) -> None:
        """Wait until an unmounted filesystem has ended."""


class KernelSide(Side):
    """The oracle: the kernel's overlayfs. With an *index* it keeps hard links of lower layers."""

    index = False

    def _mount(self) -> None:
        lowers = ":".join(str(path) for path in reversed(self.lowers))
        index = "on" if self.index else "off"
        data = f"lowerdir={lowers},upperdir={self.upper},workdir={self.work},index={index},{KERNEL_OPTIONS}"
        deadline = time.monotonic() + COPIES
        while True:
            try:
                _mount("overlay", self.mountpoint, "overlay", data=data)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def commit(self) -> None:
        """Do what a commit means, with a new mount: the kernel has no other way.

        What is open is opened anew.
        """
        opened = {
            handle: (os.readlink(f"/proc/self/fd/{fd}"), fcntl.fcntl(fd, fcntl.F_GETFL))
            for handle, fd in self.handles.items()
        }
        self.unmount()
        lower = self.upper.with_name(f"lower{len(self.lowers)}")
        self.upper.rename(lower)
        self.lowers.append(lower)
        self.upper.mkdir()
        _copy_attributes(lower, self.upper)
        self.mount()
        for handle, (path, flags) in opened.items():
            self.handles[handle] = os.open(path, flags)


class LayerfsSide(Side):
    """layerfs, mounted as the command line does it, with a store of its own in the directory."""

    _serial = itertools.count(1)

    def __init__(self, directory: Path, lowers: Sequence[Path]) -> None:
        super().__init__(directory, lowers)
        number = next(self._serial)
        self.store = directory / f"store{number}"
        self.name = f"oracle-{os.getpid()}-{number}"
        self._pid = 0
        self._known = False

    def _mount(self) -> None:
        request = MountRequest(mountpoint=str(self.mountpoint), root=self.store, name=self.name)
        if not self._known:
            lowers = tuple(str(path) for path in reversed(self.lowers))
            request = replace(request, lowers=lowers, upper=str(self.upper), work=str(self.work))
        start_mount(request)
        self._known = True
        self._pid = rundir.running_pid(self.name) or 0

    def commit(self) -> None:
        """Commit the mount while it is mounted; learn where its layers are now."""
        Client.for_mount(self.name).request("POST", "/commit", container=self.name)
        with Store(self.store) as store:
            self.lowers = [layer.path for layer in store.layers_of(store.mount(self.name))]

    def settle(self) -> None:
        """Wait until the committed layers are measured, as processes of their own do after a commit."""
        with Store(self.store) as store:
            for path in self.lowers:
                if path.is_relative_to(self.store):
                    store.settle_layer(path.parent.name)

    def forget(self) -> None:
        """Have the kernel drop what it has cached of the mount and nobody uses: a remount does that."""
        with self.guard():
            _mount("none", self.mountpoint, "none", _MS_REMOUNT)

    def abort(self) -> None:
        """Kill the daemon: whoever waits for it gets ENOTCONN."""
        pid = rundir.running_pid(self.name) or self._pid
        if pid > 1 and pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _wait(self) -> None:
        """Reap the daemon, which `launch.start` made a child of this process."""
        deadline = time.monotonic() + _END_PATIENCE
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
                assert status == 0, f"the daemon ended with {os.waitstatus_to_exitcode(status)}: {self.log()}"
                return
            time.sleep(0.002)
        self.abort()
        raise Hung("the daemon did not end after its unmount")

    def log(self) -> str:
        """Return what the daemon has logged."""
        try:
            return rundir.log_path(self.name).read_text()
        except FileNotFoundError:
            return ""
