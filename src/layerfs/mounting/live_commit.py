"""A commit of a mount that is in use, from the request to the switch of its upper.

What takes time comes first and changes nothing yet: the next upper has been made (`next_upper`), and the
kernel's cached writes are collected. Then, without an `await` between them, one transaction seals the old
upper and the union switches to the new one. Neither touches what was written, so a commit costs the same for
any amount.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import trio

from layerfs.errors import Conflict, StoreBusy, from_os_error
from layerfs.host.freezer import Freezer, find
from layerfs.host.record import look
from layerfs.mounting import places
from layerfs.mounting.next_upper import NextUpper
from layerfs.store import Store
from layerfs.store.journal import Hold
from layerfs.union.upper import Upper
from layerfs.union.view import Union

if TYPE_CHECKING:
    from layerfs.store.model import Layer, Mount

_PAUSE = 0.002
_ANSWER_FIRST = 0.002
"""Seconds until a thread does what nobody waits for: it would keep the interpreter from the answer."""
_PATIENCE = 10.0
"""Seconds after which a commit gives up on a store that others keep busy."""
_CHANGES = 300.0
"""Seconds that writes and copies under way may take until a commit gives up."""
_FREEZE_PATIENCE = 2.0
"""Seconds that the processes of a container may take to stand still."""


_Made = TypeVar("_Made")


@asynccontextmanager
async def stillness(
    mount_id: str,
    flush: Callable[[], Awaitable[None]],
    *,
    pause: bool | None,
) -> AsyncIterator[None]:
    """Collect what was written, by *flush*, and let the switch follow while the block lasts.

    With *pause*, the processes of a container in the mount stand still from the end of their last write
    until the commit is done; most of the collecting comes before. None: if they can. Raises `LayerfsError`.
    """
    await flush()
    record = look(mount_id) if pause is not False else None
    freezer = find(record.pid, mount_id) if record and record.alive() else None
    if freezer is None:
        if pause and record and record.alive():
            raise Conflict("cannot pause the container: it has no cgroup of its own; do without --pause")
        yield
        return
    async with _frozen(freezer):
        await flush()
        yield


@asynccontextmanager
async def _frozen(freezer: Freezer) -> AsyncIterator[None]:
    """Freeze while the block lasts, and after it only what was paused before.

    Raises `Conflict` when not everything stands still in time.

    The loop goes on meanwhile: a process that waits for the filesystem is frozen once it has its answer.
    """
    paused = False
    try:
        with suppress(OSError):
            paused = freezer.stands_still()
        with trio.move_on_after(_FREEZE_PATIENCE) as waiting:
            await _freeze(freezer)
        if waiting.cancelled_caught:
            raise Conflict(
                f"the container did not stand still within {_FREEZE_PATIENCE:g} seconds: try again"
            )
        yield
    finally:
        if not paused:
            with suppress(OSError):
                freezer.thaw()


async def _freeze(freezer: Freezer) -> None:
    try:
        while True:
            freezer.freeze()  # again: version 1 forgets about processes that were being forked
            if freezer.stands_still():
                return
            await trio.sleep(_PAUSE)
    except OSError:
        if freezer.switch.exists():
            raise
        # The container has ended, and stands still for good.


class Held:
    """The journal of the database, kept from restarting until `close`: the loop's COMMIT waits for no disk.

    A thread sees to it while what was written is being collected.
    """

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._error: Exception | None = None
        self._done = trio.Event()
        trio.lowlevel.spawn_system_task(self._run)

    async def _run(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._hold.take)
        except Exception as error:  # raised where it is waited for
            self._error = error
        finally:
            self._done.set()

    async def wait(self) -> None:
        """Return once it is held; raises what that raised."""
        await self._done.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Let the journal go: the commit has come, or will not."""
        with trio.CancelScope(shield=True):
            await trio.sleep(_ANSWER_FIRST)
            await self._done.wait()
            if self._error is None:
                self._hold.let_go()  # two locks of a file: in the loop, which a thread would take turns with


async def sync_root(upper: Upper) -> None:
    """Bring the root of *upper* to the disk, not what is in it. Raises `OSError`."""
    own = os.dup(upper.root.fd())  # the other may be closed meanwhile
    try:
        await trio.to_thread.run_sync(os.fsync, own)
    finally:
        os.close(own)


async def in_one_moment(
    mount: Mount, unchanging: Callable[[], AbstractAsyncContextManager[None]], switch: Callable[[], _Made]
) -> _Made:
    """Return what *switch* does while nothing but the calling thread writes to the upper.

    It is called again while it raises `StoreBusy`, for a bounded time. Raises `Conflict` where what is being
    written takes too long.
    """
    busy_until = math.inf
    try:
        with trio.fail_after(_CHANGES):
            while True:
                async with unchanging():
                    try:
                        return switch()
                    except StoreBusy:
                        if trio.current_time() > busy_until:
                            raise StoreBusy("other processes keep the store busy: try again") from None
                        busy_until = min(busy_until, trio.current_time() + _PATIENCE)
                await trio.sleep(_PAUSE)
    except trio.TooSlowError:
        raise Conflict(
            f"waited {_CHANGES:g} seconds for what is being written to {mount.name} to get to its upper:"
            " see whether its disk answers, and try again"
        ) from None


async def commit(
    store: Store,
    mount: Mount,
    union: Union,
    next_upper: NextUpper,
    hold: Hold,
    write: Callable[[Mount, Layer, int | None], _Made],
    *,
    still: AbstractAsyncContextManager[None],
    unchanging: Callable[[], AbstractAsyncContextManager[None]],
) -> tuple[_Made, str]:
    """Seal the upper of *union* by *write*; return what that returns, and the id of the next upper.

    *write* is given the mount, its next upper and a descriptor on its tree: it is a commit or a checkpoint.
    All that was written is in the upper once *still* has been entered, and while *unchanging* is, nothing but
    the calling thread writes to it. *store* belongs to that thread, and never waits. Atomic; not durable yet.
    Raises `LayerfsError` or `OSError`; then nothing has changed.
    """
    assert union.upper is not None
    next_upper.begin(mount, union.upper)
    held = Held(hold)
    old = None
    try:
        async with still:
            prepared, upper = await next_upper.get(mount, union.upper)
            await held.wait()
            if union.match_root(upper):  # people have changed it since that was made
                await sync_root(upper)

            def switch() -> _Made:
                nonlocal old
                union.match_root(upper)
                tree = union.upper.root.fd() if union.upper is not None else None
                made = write(mount, prepared, tree)
                old = union.upper
                union.switch_upper(upper)
                next_upper.used()
                if old is not None and mount.container:
                    with suppress(OSError):
                        places.keep_out_of(old, union)
                return made

            made = await in_one_moment(mount, unchanging, switch)
    except BaseException as error:
        if old is not None:
            raise  # too late to undo anything
        await next_upper.abandon()
        if isinstance(error, OSError):
            raise from_os_error(error, f"commit {mount.name}") from error
        raise
    finally:
        trio.lowlevel.spawn_system_task(held.close)
    assert old is not None
    if old.path != os.fsencode(store.root / "layers" / str(mount.upper) / "fs"):
        here, there = old.path, upper.path  # the trees of an upper outside the store change places
        old.moved(there)
        upper.moved(here)
    return made, prepared.id
