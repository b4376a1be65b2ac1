"""fsync and fsyncdir: what has to be on a disk before they are answered, and how it gets there.

What somebody syncs lies in the upper, in a layer that a commit has sealed but that is not on the disk as a
whole yet, or partly in both. After a power cut it has to be there, and the store has to know the layer that
it is in. Layers that are on their disk (`Layer.on_disk`) need nothing: they do not change. What could not be
written is told again and again (`lost`); the layer of such a file does not count as on its disk any more.

O_SYNC writes, msync(2) and fdatasync(2) come as FSYNC, too. syncfs(2) and sync(2) do not come at all: the
kernel does not tell a FUSE filesystem of them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import trio

from layerfs.errors import LayerfsError
from layerfs.fuse.lost import Lost, lost
from layerfs.union import durability
from layerfs.union.layer import LayerDir
from layerfs.union.node import Directory, File, Node
from layerfs.union.view import Union

_log = logging.getLogger(__name__)

_ANSWER_FIRST = 0.002
"""Seconds from a change to the sync of it, which would keep the interpreter from the answer to the change."""


class StoreSync:
    """Whether the store, on its disk, knows the layers of this mount, and the way to bring it there.

    `changed` says that it was told something new, a commit for example, and has that brought to the disk in
    the background; `wait` waits for it. One trio loop calls them; *bring* runs in a thread, one at a time.
    """

    def __init__(self, bring: Callable[[], None] = lambda: None) -> None:
        """*bring* has all that the store was told so far on disk; raises `OSError` or `LayerfsError`."""
        self._bring = bring
        self._wanted = 0
        self._done = 0
        self._attempt: _Attempt | None = None
        self._failing = False

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._done >= self._wanted

    def changed(self) -> None:
        """Note that the store was told something new, and begin to bring it to the disk."""
        self._wanted += 1
        if self._attempt is None:
            trio.lowlevel.spawn_system_task(self._begin_soon)

    async def wait(self) -> None:
        """Return when all that the store had been told at the call is on its disk.

        Raises EIO where the disk does not take it. The next call tries again.
        """
        wanted = self._wanted
        while self._done < wanted:
            attempt = self._attempt or self._begin()
            await attempt.ended.wait()
            if attempt.failed and attempt.goal >= wanted:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def _begin_soon(self) -> None:
        await trio.sleep(_ANSWER_FIRST)
        if self._attempt is None and not self.is_done:
            self._begin()

    def _begin(self) -> _Attempt:
        attempt = self._attempt = _Attempt(self._wanted)
        trio.lowlevel.spawn_system_task(self._run, attempt)
        return attempt

    async def _run(self, attempt: _Attempt) -> None:
        try:
            with trio.CancelScope(shield=True):  # also when the daemon is told to end
                await trio.to_thread.run_sync(self._bring)
        except (LayerfsError, OSError) as error:
            attempt.failed = True
            if not self._failing:
                _log.error("the store cannot be written to its disk, so fsync fails with EIO: %s", error)
            self._failing = True
        else:
            self._done = attempt.goal
            if self._failing:
                _log.warning("the store is on its disk again")
            self._failing = False
        finally:
            self._attempt = None
            attempt.ended.set()
        if not attempt.failed and not self.is_done:  # a commit came meanwhile
            self._begin()


class _Attempt:
    """One try to bring the store to its disk."""

    def __init__(self, goal: int) -> None:
        self.goal = goal
        self.failed = False
        self.ended = trio.Event()


class Syncing:
    """Answers fsync and fsyncdir for the nodes of *union*; `store` is to be on disk as well."""

    def __init__(self, union: Union, store: StoreSync, lost: Lost = lost, *, syncs: bool = True) -> None:
        """*lost* does the syncs, and keeps those that fail.

        Without *syncs* the answer is ENOSYS: the kernel then takes all of it for done, and asks no more.
        """
        self._syncs = syncs
        self._union = union
        self.store = store
        self._lost = lost
        self._syncs_names: dict[int, bool] = {}

    def descriptor(self, node: Node) -> int | None:
        """Return the one descriptor whose fsync is all there is to do for *node*; None where there is more.

        Nothing is synced yet. The descriptor is good until the next `Union.trim`. Raises `OSError`.
        """
        if not self._syncs:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if not self.store.is_done:
            return None
        if isinstance(node, Directory):
            parts = _unsynced_parts(node)
            return parts[0].fd() if len(parts) == 1 and self._names_follow(parts[0].fd()) else None
        if not node.is_regular or node.contents is not None or _is_on_disk(node):
            return None
        fd = self._union.data(node)
        return fd if node.synced or (node.synced is None and self._names_follow(fd)) else None

    async def sync(self, node: Node, *, data_only: bool) -> None:
        """Bring *node* to its disk, the names that lead to it, and the store: durable on return.

        *data_only* is fdatasync(2). Raises `OSError`, EIO where the store could not be written.
        """
        if not self._syncs:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        files = self._files(node)
        try:
            if files:
                thorough = isinstance(node, Directory) or not node.synced
                place = _place(node)
                await trio.to_thread.run_sync(self._sync_all, files, data_only and not thorough)
                if isinstance(node, File) and _place(node) == place:  # not copied up meanwhile
                    node.synced = True
        finally:
            for fd in files:
                os.close(fd)
        await self.store.wait()

    def cut_to_nothing(self, node: File) -> None:
        """Note that *node* has been cut to nothing: what of it could not be written is given up."""
        if self._lost.has_lost():
            self._lost.forgive(self._union.data(node) if node.partial is None else node.partial.fd)

    def _sync_all(self, files: list[int], data_only: bool) -> None:
        for fd in files:
            self._lost.sync(fd, data_only)

    def _files(self, node: Node) -> list[int]:
        """Return descriptors of their own on all that is to be synced for *node*, deepest first."""
        found: list[int] = []
        try:
            if isinstance(node, Directory):
                for part in _unsynced_parts(node):
                    self._add(found, part)
            elif node.is_regular:
                if node.contents is not None and not node.contents[0].layer.on_disk:
                    below = self._union.data(node) if node.partial is None else node.partial.source
                    found.append(os.dup(below))
                    self._add_names(found, node.contents[0])
                if not _is_on_disk(node):
                    own = node.contents is None
                    if node.partial is not None:
                        found.append(os.dup(node.partial.fd))
                    else:
                        found.append(os.dup(self._union.data(node)) if own else node.open(os.O_RDONLY))
                    if not node.synced and not node.orphan:
                        self._add_names(found, node.home)
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        return found

    def _add(self, found: list[int], directory: LayerDir) -> None:
        found.append(os.dup(directory.fd()))
        if directory.parent is not None:
            self._add_names(found, directory.parent)

    def _add_names(self, found: list[int], directory: LayerDir | None) -> None:
        """Add *directory* and those above it, where the sync of what is in it does not bring them along."""
        while directory is not None and not self._names_follow(directory.fd()):
            found.append(os.dup(directory.fd()))
            directory = directory.parent

    def _names_follow(self, fd: int) -> bool:
        device = os.fstat(fd).st_dev
        if device not in self._syncs_names:
            self._syncs_names[device] = durability.syncs_names(fd)
        return self._syncs_names[device]


def _place(node: Node) -> object:
    return (node.home, node.contents) if isinstance(node, File) else None


def _is_on_disk(node: File) -> bool:
    return node.home.layer.on_disk and not node.orphan


def _unsynced_parts(directory: Directory) -> list[LayerDir]:
    return [part for part in directory.dirs if not part.layer.on_disk]
