"""Turns: what clients send is looked at a little at a time, so that the filesystem is served in between.

The loop that reads requests of the control API also answers the kernel. All connections of a server together
get half of its time at most, and never more than about `SLICE` at once, whatever they send and however many
they are.
"""

from __future__ import annotations

import time

import trio

SLICE = 500e-6
"""Seconds of work for clients between two turns of the filesystem: more than a usual request takes."""
_LONGEST_PAUSE = 0.05


class Turns:
    """A lock around work for clients. Whoever leaves it after a slice waits for as long as that has taken.

    Work of less than that in all costs no pass through the scheduler. Nothing that waits belongs inside.
    """

    def __init__(self) -> None:
        """Begin with nothing spent."""
        self._lock = trio.Lock()
        self._spent = 0.0
        self._began = 0.0
        self._left = 0.0

    async def __aenter__(self) -> Turns:
        """Wait until no other connection works, or pauses after its work."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        self._began = time.perf_counter()
        if self._began - self._left > SLICE:
            self._spent = 0.0  # the filesystem has had its turn since
        return self

    def is_over(self) -> bool:
        """Return whether this turn has lasted long enough."""
        return self._spent + time.perf_counter() - self._began > SLICE

    async def __aexit__(self, *error: object) -> None:
        """End the turn, with a pause for the filesystem if one is due."""
        try:
            self._left = time.perf_counter()
            self._spent += self._left - self._began
            if self._spent > SLICE:
                pause, self._spent = min(self._spent, _LONGEST_PAUSE), 0.0
                await trio.sleep(pause)
        finally:
            self._lock.release()
