"""The thread that uses the mount for its daemon: it opens files of it, and waits for the daemon's answers.

No other thread may, for two reasons. A process that is started (vfork(2)) closes the files it got from its
parent; closing a file of the mount waits for the daemon, whose loop waits for that process. And a killed
daemon ends its connection to the kernel by closing /dev/fuse, which happens once every thread has ended that
has it open; a thread that waits for an answer would wait for ever. So this thread has a descriptor table of
its own (CLOSE_RANGE_UNSHARE), with one end of a socket in it and what it opens: that is in no other process,
and /dev/fuse is not in it.

A descriptor of the daemon means nothing in this thread, and the other way round. So the thread takes no
signals (Python's handler writes to a descriptor), and the garbage collector rests while it works: what that
finds may own descriptors.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

import trio

from layerfs.host import mountcalls

_T = TypeVar("_T")
_GO = b"!"
_PATIENCE = 2.0
"""Seconds that the thread may take to end once it was told to; it ends with the process anyway."""


class Collector:
    """That thread, and how work gets into it. To be made before /dev/fuse is opened."""

    def __init__(self) -> None:
        """Start the thread; raises `OSError`."""
        self._ours, theirs = socket.socketpair()
        self._one_at_a_time = trio.Lock()
        self._work: Callable[[], object] = lambda: None
        self._result: object = None
        self._error: BaseException | None = None
        self._busy = False
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            # The thread's table has its own descriptor of that end, of the same number.
            self._thread = threading.Thread(
                target=self._serve, args=(theirs.fileno(),), name="collector", daemon=True
            )
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._ours.recv(1)
        theirs.close()
        if self._error is not None:
            raise self._error

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what *work* does in the thread, or raise what it raises; when cancelled, it goes on."""
        async with self._one_at_a_time:
            if self._busy:
                await trio.lowlevel.wait_readable(self._ours)
                with suppress(Exception):  # nobody waits for that any more
                    self._take()
            self._begin(work)
            await trio.lowlevel.wait_readable(self._ours)
            return cast(_T, self._take())

    def _begin(self, work: Callable[[], object]) -> None:
        self._work = work
        self._busy = True
        self._ours.send(_GO)

    def _take(self) -> object:
        self._ours.recv(1)
        self._busy = False
        result, error, self._result, self._error = self._result, self._error, None, None
        self._work = lambda: None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread, if it does not wait for anything."""
        self._ours.close()
        self._thread.join(_PATIENCE)

    # -- in the thread --------------------------------------------------------------------------------

    def _serve(self, theirs: int) -> None:
        try:
            mountcalls.keep_only(theirs)
        except OSError as error:
            self._error = error
            os.write(theirs, _GO)
            return
        while True:
            os.write(theirs, _GO)
            if not os.read(theirs, 1):
                return
            collecting = gc.isenabled()
            gc.disable()
            try:
                self._result = self._work()
            except BaseException as error:
                self._error = error.with_traceback(None)
            finally:
                if collecting:
                    gc.enable()
