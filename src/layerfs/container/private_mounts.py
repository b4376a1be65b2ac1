"""A mount namespace with one thread in it: a tree with things mounted on it that nobody else sees.

When the thread ends so does the namespace, and everything mounted in it alone, even if the process is killed.
Descriptors that were opened there may be used by every thread until then.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.container.rootfs import open_inside
from layerfs.errors import LayerfsError, NotFound

_CLONE_NEWNS = 0x20000
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host that is to be seen at *destination* in the tree."""

    source: str
    destination: str
    writable: bool


class PrivateMounts:
    """The mounted *tree* with *binds* on it; a context manager that yields an O_PATH descriptor of its root.

    No link in the tree leads outside, in a bind's destination either. A directory that is missing there is
    made in the tree. Raises `LayerfsError` and `OSError`.
    """

    def __init__(self, tree: Path, binds: Sequence[Bind]) -> None:
        self._tree = tree
        self._binds = binds
        self._ready = threading.Event()
        self._over = threading.Event()
        self._fd = -1
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mount namespace", daemon=True)

    def __enter__(self) -> int:
        """Make the namespace."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self._fd

    def __exit__(self, *error: object) -> None:
        """End it. Whatever was opened there is to be closed before."""
        os.close(self._fd)
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._build()
        except BaseException as error:
            self._error = error
        self._ready.set()
        if self._error is None:
            self._over.wait()

    def _build(self) -> None:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        # What is mounted and unmounted outside goes on to be seen here, and nothing of ours is seen there.
        _mount(None, "/", _MS_REC | _MS_SLAVE)
        for bind in self._binds:
            self._bind(bind)
        # Nothing else is to be kept in use by being mounted here as well.
        os.chdir(self._tree)
        _mount(None, ".", _MS_PRIVATE)
        if _libc.pivot_root(b".", b".") == 0:
            _check(_libc.umount2(b".", _MNT_DETACH), "umount")
        fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fd = fd

    def _bind(self, bind: Bind) -> None:
        try:
            source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the volume of {bind.destination} is missing: {bind.source}") from None
        try:
            is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
            target = self._target(bind, is_directory)
            try:
                _mount(_name(source), _name(target), _MS_BIND | _MS_REC)
            finally:
                os.close(target)
        finally:
            os.close(source)
        top = open_inside(self._tree, bind.destination, os.O_PATH)
        try:
            if not bind.writable:
                _mount(None, _name(top), _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
        finally:
            os.close(top)

    def _target(self, bind: Bind, is_directory: bool) -> int:
        flags = os.O_PATH | (os.O_DIRECTORY if is_directory else 0)
        with suppress(FileNotFoundError):
            return open_inside(self._tree, bind.destination, flags)
        if not is_directory:
            raise LayerfsError(f"there is no file {bind.destination} for a volume to be mounted on")
        made = ""
        for part in bind.destination.strip("/").split("/"):
            above = open_inside(self._tree, made or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=above)
            finally:
                os.close(above)
            made += f"/{part}"
        return open_inside(self._tree, bind.destination, flags)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _mount(source: str | None, target: str, flags: int) -> None:
    given = os.fsencode(source) if source is not None else None
    _check(_libc.mount(given, os.fsencode(target), None, ctypes.c_ulong(flags), None), "mount")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
