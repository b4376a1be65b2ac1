"""Waiting for the next request: first for a moment with open eyes, then asleep.

Most of what a small request costs is not its work but waking up for it: a task switch in trio, epoll, and
the processor coming back from idle. While requests follow each other closely the next one is therefore
polled for, for a moment, before the loop goes to sleep. When polling does not pay, it stops
until it would have paid again; an idle mount uses no processor.

pyfuse3 reads its event loop through its module attribute `trio` (its own asyncio mode replaces it in the
same way), so `install` puts a namespace there that waits as described and is trio otherwise. Setting
`LAYERFS_BUSYPOLL=0` does without.
"""

from __future__ import annotations

import os
import select
import time
from types import SimpleNamespace, TracebackType

import pyfuse3
import trio

from layerfs.fuse import wire
from layerfs.fuse.reply import later

SPIN = 200e-6
"""Seconds to poll for the next request in the extension: about twice what waking up costs."""
_SPIN_HERE = 50e-6
"""The same for polling in Python, which keeps others from running."""
TURN = 500e-6
"""Seconds after which other tasks get their turn, however closely requests come."""
_MOST_CREDIT = 8

_now = time.perf_counter


class _Lock:
    """A lock that costs no trip through the scheduler when nobody else has it (trio's does)."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        self._waiting.unpark()


class _Scheduled(trio.abc.Instrument):
    """Knows the tasks that are to run and have not had their turn: trio's own count leaves some out."""

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


class Beside:
    """Lets the extension wait for requests beside the event loop, while that has nothing to do.

    A turn of the loop is most of what a request costs that comes after a pause. The extension comes back
    when the loop has something to do, or when no request has come for some milliseconds.
    """

    def __init__(self, extension: wire.Wire) -> None:
        self._extension = extension
        self._scheduled = _Scheduled()
        self._loop = -1

    async def wait_readable(self, fd: int) -> None:
        """Return when *fd* may have a request; takes the place of `trio.lowlevel.wait_readable`."""
        if self._extension.is_idle():
            await trio.lowlevel.wait_readable(fd)
        else:
            await trio.lowlevel.checkpoint()
        while later.beginning:
            await trio.lowlevel.checkpoint()
        if self._loop < 0:
            self._loop = _loop_descriptor()
            trio.lowlevel.add_instrument(self._scheduled)
            return
        if not self._scheduled.tasks:
            state = trio.lowlevel.current_statistics()
            if not state.run_sync_soon_queue_size:
                self._extension.wait_beside(self._loop, state.seconds_to_next_deadline)


def _loop_descriptor() -> int:
    """Return the descriptor that is readable when trio's loop has something to do; -1 where there is none."""
    try:
        from trio._core import _run

        return int(_run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (ImportError, AttributeError):
        return -1


class Waiter:
    """Waits for requests. `polled` and `slept` count how the wait for each ended."""

    def __init__(self) -> None:
        self.polled = 0
        self.slept = 0
        self._credit = 0
        self._turn_ends = 0.0
        self._poll: select.poll | None = None

    async def wait_readable(self, fd: int) -> None:
        """Return when *fd* has a request; takes the place of `trio.lowlevel.wait_readable`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        start = _now()
        if start > self._turn_ends:
            await trio.lowlevel.checkpoint()
            start = _now()
            self._turn_ends = start + TURN
        poll = self._poll.poll
        if self._credit > 0:
            while True:
                if poll(0):
                    self.polled += 1
                    if self._credit < _MOST_CREDIT:
                        self._credit += 1
                    return
                if _now() - start > _SPIN_HERE:
                    break
            self._credit -= 1
        await trio.lowlevel.wait_readable(fd)
        self.slept += 1
        now = _now()
        self._turn_ends = now + TURN
        if self._credit == 0 and now - start < 2 * _SPIN_HERE:
            self._credit = 1  # it came so soon that polling would have met it


def why_not() -> str:
    """Return why there is no polling, "" if there is."""
    if os.environ.get("LAYERFS_BUSYPOLL") == "0":
        return "switched off by LAYERFS_BUSYPOLL=0"
    if len(os.sched_getaffinity(0)) < 2:
        return "there is only one processor, and who asks needs it"
    return ""


def status() -> str:
    """Return in a few words whether requests are polled for, and if not why."""
    reason = why_not()
    if reason:
        return f"not active: {reason}"
    return "active while requests stream"


def install() -> None:
    """Have pyfuse3 wait for requests as described: in the extension where that is at work, else here."""
    namespace = SimpleNamespace(**vars(trio))
    namespace.Lock = _Lock
    namespace.lowlevel = lowlevel = SimpleNamespace(**vars(trio.lowlevel))
    if wire.extension is not None and wire.is_active():
        wire.extension.set_spin(0 if why_not() else int(SPIN * 1e9))
        lowlevel.wait_readable = Beside(wire.extension).wait_readable
    elif not why_not():
        lowlevel.wait_readable = Waiter().wait_readable
    pyfuse3.trio = namespace  # type: ignore[attr-defined]  # it is how pyfuse3 finds its event loop
