"""What partial files lack, filled in behind the back of those who use them (`layerfs.union.partial`).

A task does it, one file at a time, some bytes at a time and with pauses, in threads. Of what changes a
partial file one thing happens at a time: writes, cuts and fills take turns. Whoever needs a file whole waits
for it here, and whoever needs all of them so has no new ones made meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakKeyDictionary

import trio

from layerfs.fuse.gate import Gate
from layerfs.union import syscalls
from layerfs.union.node import File
from layerfs.union.partial import Partial
from layerfs.union.unfinished import make_whole
from layerfs.union.view import Union

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20
"""Bytes filled in at a time: a write to the same file waits for no more than that."""
_FIRST = 0.1
"""Seconds from the first write to the first fill: the writer goes first, and may remove the file again."""
_LONGEST_PAUSE = 60.0
"""Seconds between two attempts where a file cannot be filled."""


class Filling:
    """Makes the partial files of *union* whole."""

    def __init__(self, union: Union, gate: Gate, *, durable: bool = True) -> None:
        """Without *durable* a file's contents need not be on the disk when its marks go."""
        self._union = union
        self._gate = gate
        self._durable = durable
        self._turns: WeakKeyDictionary[Partial, trio.Lock] = WeakKeyDictionary()
        self._needs_whole = 0
        self._running = False
        self.keeps = False
        """Whether files stay partial until somebody needs them whole."""

    @property
    def allows_partial(self) -> bool:
        """Whether files may become partial now."""
        return not self._needs_whole

    def begin(self) -> None:
        """Have what partial files there are filled, in the background, from a moment on."""
        if not self._running and self._union.partials and not self.keeps:
            self._running = True
            trio.lowlevel.spawn_system_task(self._run)

    @asynccontextmanager
    async def turn(self, node: File, partial: Partial) -> AsyncIterator[bool]:
        """Let nobody else change the partial file *node* while the block lasts.

        Yields False where it is not that partial file any more when its turn has come.
        """
        node.references += 1  # or its descriptors might be closed with it
        try:
            async with self._turns.setdefault(partial, trio.Lock()):
                yield node.partial is partial
        finally:
            self._union.forget(node, 1)

    async def make_whole(self, node: File) -> None:
        """Return when *node* is not partial. Raises `OSError` where something of it cannot be filled."""
        while node.partial is not None:
            await self._step(node, node.partial)

    @asynccontextmanager
    async def all_whole(self) -> AsyncIterator[None]:
        """Have no file of the upper be partial while the block lasts.

        Raises `OSError` with the name of one that cannot be filled.
        """
        with self.none_new():
            await self.make_all_whole()
            yield

    @contextmanager
    def none_new(self) -> Iterator[None]:
        """Have files copied whole while the block lasts."""
        self._needs_whole += 1
        try:
            yield
        finally:
            self._needs_whole -= 1

    async def make_all_whole(self) -> None:
        """Return when no file of the upper is partial. Raises `OSError` with the name of one that stays."""
        while self._union.partials:
            node = next(iter(self._union.partials))
            try:
                while node in self._union.partials and node.partial is not None:
                    await self._step(node, node.partial)
            except OSError as error:
                path = self._union.path_of(node)
                raise OSError(error.errno, error.strerror, path or b"") from error

    def finish_now(self) -> None:
        """Make all whole, while nobody else uses the union. What cannot be filled stays partial."""
        if self.keeps:
            return
        for node in list(self._union.partials):
            try:
                make_whole(self._union, node, durable=self._durable)
            except OSError as error:
                _log.error("%r stays a partial copy: %s", self._union.path_of(node), error)

    async def _run(self) -> None:
        pause = _FIRST
        try:
            while self._union.partials:
                await trio.sleep(pause)
                failed = False
                for node in list(self._union.partials):
                    try:
                        await self._fill_slowly(node)
                    except OSError as error:
                        _log.log(
                            logging.DEBUG if pause > _FIRST else logging.WARNING,
                            "%r is a partial copy yet: %s",
                            self._union.path_of(node),
                            error,
                        )
                        failed = True
                pause = min(_LONGEST_PAUSE, max(1.0, 2 * pause)) if failed else _FIRST
        finally:
            self._running = False

    async def _fill_slowly(self, node: File) -> None:
        """Make *node* whole, with a rest after each step that is as long as that took."""
        while node in self._union.partials and node.partial is not None:
            began = trio.current_time()
            await self._step(node, node.partial)
            if not self._needs_whole:
                await trio.sleep(trio.current_time() - began)

    async def _step(self, node: File, partial: Partial) -> None:
        """Fill some of what is missing, or take the marks where nothing is."""
        if partial.is_complete():
            if self._durable and self._union.upper is not None:
                make_durable, own = self._union.upper.make_durable, os.dup(partial.fd)
                try:
                    await trio.to_thread.run_sync(make_durable, own)
                finally:
                    os.close(own)
            async with self._changing(node, partial) as is_it:
                # No block can have gone meanwhile, and those that came by a longer file have nothing below.
                if is_it:
                    partial.unmark(self._union.marking.prefix)
                    self._union.made_whole(node)
            return
        async with self._changing(node, partial) as is_it:
            if is_it:
                await self._fill_some(partial)

    @asynccontextmanager
    async def _changing(self, node: File, partial: Partial) -> AsyncIterator[bool]:
        async with self.turn(node, partial) as is_it:
            if is_it:
                await self._gate.opened()
                with self._gate.change():
                    yield node.partial is partial
            else:
                yield False

    async def _fill_some(self, partial: Partial) -> None:
        """Fill a part; the file keeps the modification time that it has, or is given meanwhile."""
        partial.kept_time = os.fstat(partial.fd).st_mtime_ns
        try:
            await trio.to_thread.run_sync(_fill, partial)
        finally:
            syscalls.utimensat(partial.fd, None, None, partial.kept_time)
            partial.kept_time = None


def _fill(partial: Partial) -> None:
    for start, end in partial.left(_CHUNK):
        partial.fill(start, end)
