"""Reading and writing file contents, and the copy-ups before the first write.

Reads of what is in memory, all writes, and copy-ups of small files run in the event loop's own thread: they
take less than the way to another. What waits for a disk (cold reads, large copies) runs in threads, on
descriptors of its own.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from layerfs.fuse import wire
from layerfs.fuse.filling import Filling
from layerfs.fuse.gate import Gate
from layerfs.union import syscalls
from layerfs.union.copyup import CopyUp
from layerfs.union.fillin import FillIn
from layerfs.union.generation import refresh
from layerfs.union.node import Directory, File, Node
from layerfs.union.partial import Partial
from layerfs.union.reading import read_at
from layerfs.union.view import Union

_BUFFER = 1 << 20
_SMALL_COPY = 1 << 16
_PATIENCE = 1e-3
"""Seconds for which a copy-up in the loop may keep all others waiting for the disk."""
_SEARCHES = 10
"""Searches for renamed directories before the loop does one itself: some are renamed during each."""
_T = TypeVar("_T")


class Contents:
    """The contents of the files of one union. `copies` counts the copy-ups."""

    def __init__(self, union: Union, *, durable: bool = True) -> None:
        """Without *durable* a copy-up is not written to disk before it counts."""
        self._union = union
        self._durable = durable
        self._copying: dict[File, trio.Event] = {}
        self._writing: set[trio.Event] = set()
        self._gate = Gate(_write_out)
        self.filling = Filling(union, self._gate, durable=durable)
        self._settling = 0.0  # seconds that small copies have taken lately to get to the disk
        self._memory = memoryview(
            mmap.mmap(-1, _BUFFER)
        )  # one buffer: an answer is sent before the next read
        self.copies = 0

    def is_in_place(self, node: Node, *, metadata_only: bool = False, whole: bool = False) -> bool:
        """Tell whether *node* can be changed without a copy-up: with *whole* none that is partial."""
        refresh(self._union, node)  # the union may have gone back while the caller waited
        if isinstance(node, Directory):
            return True
        if metadata_only:
            return self._union.in_upper(node)
        return self._union.is_whole(node) if whole else self._union.is_writable(node)

    def bring_in_place(self, node: Node, length: int | None = None, *, metadata_only: bool = False) -> bool:
        """Do what `copy_up` does if that takes hardly any time; tell whether *node* is in place now.

        It does for little data that is in memory, while the disk is quick. Raises `OSError`.
        """
        if self.is_in_place(node, metadata_only=metadata_only):
            return True
        assert isinstance(node, File)
        if node in self._copying or self._union.in_upper(node):
            return False
        job = self._job(node, length, metadata_only)
        try:
            if not self._is_quick(job):
                return False
            job.copy()
            job.finish()
        finally:
            job.close()
        self._count(job)
        return True

    def _job(
        self, node: File, length: int | None, metadata_only: bool, *, thin: bool = False
    ) -> CopyUp | FillIn:
        union, durable = self._union, self._durable
        if union.in_upper(node):
            return FillIn(union, node, durable=durable, thin=thin)
        return CopyUp(union, node, length, metadata_only=metadata_only, durable=durable, thin=thin)

    def _is_quick(self, job: CopyUp | FillIn) -> bool:
        return self._settling <= _PATIENCE and isinstance(job, CopyUp) and job.is_small(_SMALL_COPY)

    def _count(self, job: CopyUp | FillIn) -> None:
        self.copies += 1
        self.filling.begin()
        if job.settling and job.length <= _SMALL_COPY:
            self._settling += (job.settling - self._settling) / 4

    async def copy_up(
        self,
        node: Node,
        length: int | None = None,
        *,
        metadata_only: bool = False,
        whole: bool = False,
    ) -> None:
        """Have *node* in the upper on return, and between here and the caller's next `await`.

        With *length* only so many bytes of it are copied: the caller is about to cut it. With
        *metadata_only* the caller changes no contents, and they may stay below. Else the file may be partial,
        unless the caller needs it *whole*.
        Several requests for one file share one copy; other files are not waited for.
        """
        while not self.is_in_place(node, metadata_only=metadata_only, whole=whole):
            assert isinstance(node, File)
            if node.partial is not None:
                await self.filling.make_whole(node)
                continue
            under_way = self._copying.get(node)
            if under_way is not None:
                await under_way.wait()
                continue
            if self._union.in_upper(node) and not self._gate.is_open:
                await self._gate.opened()
                continue
            job = self._job(node, length, metadata_only, thin=not whole and self.filling.allows_partial)
            done = self._copying[node] = trio.Event()
            try:
                if isinstance(job, FillIn):
                    with self._gate.change():
                        await trio.to_thread.run_sync(job.copy)
                        if job.is_thin and not self.filling.allows_partial:
                            await trio.to_thread.run_sync(job.fill)
                        job.finish()
                else:
                    if self._is_quick(job):
                        job.copy()
                    else:
                        await trio.to_thread.run_sync(job.copy)
                        for _ in range(_SEARCHES):
                            if job.is_ready():
                                break
                            await trio.to_thread.run_sync(job.search)
                        if job.is_late() or (job.is_thin and not self.filling.allows_partial):
                            await trio.to_thread.run_sync(job.fill)
                    job.finish()
                self._count(job)
            finally:
                job.close()
                del self._copying[node]
                done.set()

    @property
    def lets_write(self) -> bool:
        """Whether a write may begin now; `write` waits until one may."""
        return self._gate.lets_write

    async def read(self, node: File, offset: int, size: int) -> bytes | memoryview:
        """Return *size* bytes at *offset*, fewer only at the end of the file. Raises `OSError`."""
        partial = node.partial
        fd = self._union.data(node) if partial is None else partial.only_descriptor(offset, size)
        if fd is None:
            assert partial is not None
            return await self._read_partial(partial, offset, size)
        buffer = self._memory[:size]
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except (BlockingIOError, InterruptedError):
            count = -1
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            count = -1
        if count == size or (count >= 0 and offset + count >= os.fstat(fd).st_size):
            return buffer[:count]
        if partial is not None:
            return await self._read_partial(partial, offset, size)
        return await self._in_thread(fd, lambda own: read_at(own, size, offset))

    async def _read_partial(self, partial: Partial, offset: int, size: int) -> bytes:
        fd = os.dup(partial.fd)  # the others may be closed meanwhile
        try:
            return await self._in_thread(
                partial.source, lambda own: partial.read(offset, size, fd=fd, source=own)
            )
        finally:
            os.close(fd)

    async def write(self, node: File, offset: int, data: bytes) -> None:
        """Write all of *data* at *offset*."""
        done = trio.Event()
        self._writing.add(done)
        try:
            while True:
                await self.copy_up(node)  # once more where a commit has been there
                if node.partial is not None:
                    if await self._write_partial(node, node.partial, offset, data):
                        return
                elif self._gate.lets_write:
                    break
                else:
                    await self._gate.opened()
            fd = self._union.data(node, write=True)
            written = os.pwrite(fd, data, offset)
            while written < len(data):  # the next try says why
                written += os.pwrite(fd, data[written:], offset + written)
        finally:
            self._writing.remove(done)
            done.set()

    async def _write_partial(self, node: File, partial: Partial, offset: int, data: bytes) -> bool:
        """Write to a partial file; tell whether it was that when its turn had come."""
        async with self.filling.turn(node, partial) as is_it:
            if is_it:
                await self._gate.opened()
                with self._gate.change():
                    if partial.needs_below(offset, len(data)):
                        await trio.to_thread.run_sync(partial.write, offset, data)
                    else:
                        partial.write(offset, data)
            return is_it

    @asynccontextmanager
    async def cutting(self, node: Node, length: int) -> AsyncIterator[None]:
        """Have *node* in the upper, to be cut to *length* in the block, and nobody fill it meanwhile."""
        while True:
            await self.copy_up(node, length)
            partial = node.partial if isinstance(node, File) else None
            if partial is None or not isinstance(node, File):
                yield
                return
            async with self.filling.turn(node, partial) as is_it:
                if is_it:
                    await self._gate.opened()
                    yield
                    if self._durable and self._union.upper is not None and not self._union.upper.keeps_order:
                        # Its length and its limit have to be there before it grows again.
                        await trio.to_thread.run_sync(os.fsync, partial.fd)
                    return

    async def writes_under_way(self) -> None:
        """Return when the writes that threads do now, or that wait for a copy-up, have been done."""
        for done in list(self._writing):
            await done.wait()
        await wire.writes_done()

    @property
    def is_writing(self) -> bool:
        """Whether there is a write that `writes_under_way` would wait for. For any thread."""
        return bool(self._writing) or wire.is_writing()

    @asynccontextmanager
    async def unchanging(self) -> AsyncIterator[None]:
        """Have no thread change the upper while the block lasts.

        Requests that need such a change wait until after it, and so do writes: nothing in the block may wait
        for them.
        """
        async with self._gate.closed():
            yield

    async def fallocate(self, node: File, mode: int, offset: int, length: int) -> None:
        """Allocate space for a file, or punch or zero a part of it, as fallocate(2) with *mode*."""
        await self.copy_up(node, whole=True)
        while not self._gate.is_open:
            await self._gate.opened()
            await self.copy_up(node, whole=True)  # a commit has been there
        with self._gate.change():
            fd = self._union.data(node, write=True)
            await self._in_thread(fd, lambda own: syscalls.fallocate(own, mode, offset, length))

    async def _in_thread(self, fd: int, work: Callable[[int], _T]) -> _T:
        own = os.dup(fd)  # the other may be closed meanwhile
        try:
            return await trio.to_thread.run_sync(work, own)
        finally:
            os.close(own)


async def _write_out() -> None:
    """Have the extension ask for each write from now on, and return when those under way are done.

    It answers nothing by itself until the caller's next `await`.
    """
    wire.revoke_all()
    await wire.writes_done()
    wire.revoke_all()  # directories, whose attributes somebody has asked for meanwhile
