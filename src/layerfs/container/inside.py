"""Mounting in the mount namespace of a process that is about to begin."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable

from layerfs.container.rootfs import open_beneath
from layerfs.host import mountcalls

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_libc = ctypes.CDLL(None, use_errno=True)


def mount_files(process: int, files: Iterable[tuple[str, str]]) -> None:
    """Mount *files*, pairs of one of ours and a path in the tree of the *process*, which is a descriptor.

    A link in that tree is not followed, and nothing is made in it. Raises `OSError`.
    """
    sources: list[tuple[int, bytes]] = []
    wrong: list[OSError] = []

    def run() -> None:
        try:
            _check(_libc.unshare(_CLONE_FS))  # a thread's own root and directory: else it may not enter
            _check(_libc.setns(process, _CLONE_NEWNS))
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for source, path in sources:
                    place = open_beneath(root, path, os.O_PATH)
                    try:
                        mountcalls.attach(source, place)
                    finally:
                        os.close(place)
            finally:
                os.close(root)
        except OSError as error:
            wrong.append(error)

    try:
        for source, destination in files:
            sources.append((mountcalls.clone_tree(os.fsencode(source)), os.fsencode(destination.lstrip("/"))))
        if sources:
            thread = threading.Thread(target=run, name="mounting inside")
            thread.start()
            thread.join()
    finally:
        for fd, _ in sources:
            os.close(fd)
    if wrong:
        raise wrong[0]


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
