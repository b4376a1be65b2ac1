"""The gate between threads that change the upper and the commit that seals it.

A change in the loop runs to its end, so a commit is before or after it. One that a thread makes is counted
here, and the commit waits for it. The extension counts its own (`_blocking.c`): writes, which are held up
last, once no other change is under way, since people wait for them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio


class Gate:
    """Open, or closed by one task: then no change is being made, and none begins.

    *write_out* returns when the writes are done that were begun before.
    """

    def __init__(self, write_out: Callable[[], Awaitable[None]]) -> None:
        self._write_out = write_out
        self._changes = 0
        self._closed = False
        self._holds_writes = False
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def is_open(self) -> bool:
        """Whether a change may begin now."""
        return not self._closed

    @property
    def lets_write(self) -> bool:
        """Whether a write may begin now: also while a commit waits for other changes."""
        return not self._holds_writes

    async def opened(self) -> None:
        """Return when a change may begin, until the caller's next `await`."""
        while self._closed:
            await self._waiting.park()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Count as a change while the block lasts. To be entered while the gate is open."""
        assert not self._closed
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            self._waiting.unpark_all()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Wait for the changes under way, and let none begin while the block lasts."""
        assert not self._closed
        self._closed = True
        try:
            while self._changes:
                await self._waiting.park()
            self._holds_writes = True
            await self._write_out()
            yield
        finally:
            self._closed = self._holds_writes = False
            self._waiting.unpark_all()
