"""How the mount of this process ends: unmounted here, flushed, and, after a while, for everybody.

A filesystem lives for as long as any mount namespace has it mounted; a service with PrivateTmp, or any
`unshare --mount`, has a copy of every mount. So an unmount that has worked may end nothing. The daemon
then keeps a copy of the mount that is mounted nowhere (`Inside`), brings what was written into the upper,
gives those who still use the filesystem `GRACE` seconds, does so again, and ends. They get ENOTCONN.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

import trio

from layerfs.errors import Conflict, LayerfsError
from layerfs.fuse import session
from layerfs.fuse.inside import GoneError, Inside
from layerfs.host import holders, mounttable
from layerfs.host.notify import Notifier

_log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds that those who still use a mount get after it was unmounted under them."""
_LOOK = 0.1
"""Seconds between two looks whether they still do."""
_COLLECTING = 60.0
"""Seconds that what was written may take, once the mount is unmounted, to get into the upper."""
_PATIENCE = 10.0
"""Seconds for what takes a moment, unless a disk or another process has stopped answering."""


class Unmounting:
    """The end of the mount *name*; *flush* collects what was written, *ended* is set when it is over.

    Without *flush* nobody needs what was written any more.
    """

    def __init__(
        self,
        name: str,
        inside: Inside,
        flush: Callable[[], Awaitable[None]] | None,
        ended: trio.Event,
        notifier: Notifier,
    ) -> None:
        self._name = name
        self._inside = inside
        self._flush = flush
        self._ended = ended
        self._notifier = notifier
        self._lazily = False

    async def run(self, *, force: bool) -> None:
        """Unmount; return when the filesystem has ended.

        Raises `Conflict` for a mount in use, unless by *force*, and other `LayerfsError`s; then it is mounted
        as before. What cannot be stored is lost, as on any filesystem: whoever wrote it was told by fsync(2).
        """
        self._check_elsewhere(force)
        await self._flush_what_there_is()
        try:
            await self._unmount(force)
        except mounttable.NotMountedHereError:
            if mounttable.mounts_of(self._inside.device):
                raise self._inside.hidden() from None
            _log.info("%s was unmounted by somebody else", self._inside.place.mountpoint)
        await self._end_elsewhere()
        await self._flush_the_last()
        await self._let_go(logging.INFO if force else logging.WARNING)

    def _check_elsewhere(self, force: bool) -> None:
        here = mounttable.mounts_of(self._inside.device)
        if len(here) > 1 and not force:
            places = " and ".join(mounted.place for mounted in here)
            raise Conflict(
                f"{self._name} is mounted on {places}: unmount the other with umount(8) first, "
                f"or all of them with --force"
            )

    async def _unmount(self, force: bool) -> None:
        try:
            await self._inside.unmount(lazy=False)
        except mounttable.NotMountedHereError:
            raise
        except Conflict as error:
            who = await trio.to_thread.run_sync(self._who_uses_it)
            if not force:
                raise Conflict(f"{error}: {who}; end that, or unmount with --force") from None
            await self._inside.unmount(lazy=True)
            self._lazily = True
            text = f"{self._inside.place.mountpoint} is in use: unmounted it lazily ({who})"
            self._say(text, logging.INFO)

    def _who_uses_it(self) -> str:
        below = [
            mounted.place
            for mounted in mounttable.mounts()
            if mounted.place.startswith(f"{self._inside.place.mountpoint}/")
        ]
        if below:
            return f"{below[-1]} is mounted below it"
        users = holders.users(self._inside.device)
        return holders.describe(users) or "a process has a file or its directory there"

    async def _end_elsewhere(self) -> None:
        """Take away what else is mounted of the filesystem in this namespace: it would only hang there."""
        for _ in mounttable.mounts_of(self._inside.device):
            try:
                await self._inside.unmount(lazy=True)
            except LayerfsError as error:
                _log.warning("%s", error)
                return

    async def _flush_what_there_is(self) -> None:
        """Bring what was written until now, in whichever namespace, into the upper."""
        try:
            if self._flush is not None and not self._ended.is_set():
                await self._flush()
        except GoneError:
            pass  # at its end the kernel sends all that it has
        except LayerfsError as error:
            _log.warning("%s", error)

    async def _flush_the_last(self) -> None:
        """Do what `_flush_what_there_is` does once the mount is unmounted: it ends, and so does the wait."""
        with trio.move_on_after(_COLLECTING) as waiting:
            await self._flush_what_there_is()
        if waiting.cancelled_caught:
            what = "what was written to it to get into its upper, and some of it may be lost"
            self._gave_up(what, _COLLECTING)

    async def _let_go(self, level: int) -> None:
        """Wait until nobody uses the filesystem any more, `GRACE` seconds at most, and end it.

        Who still uses it then is logged at *level*. Raises `LayerfsError` when it does not end even so.
        """
        with trio.move_on_after(GRACE):
            said = False
            while found := await self._holders():
                if not said:
                    self._say(f"{self._name} is unmounted, but {holders.describe(found)}", logging.INFO)
                said = True
                await trio.sleep(_LOOK)
                if self._ended.is_set():
                    return
            if said:
                # What they wrote last may be on its way yet: a process that ends is seen to have no file open
                # before it has closed its files, which sends what is in the kernel's cache.
                await self._flush_what_there_is()
            await self._inside.release()
            await self._ended.wait()
            return
        users: list[holders.Holder] = []
        namespaces: list[holders.Holder] = []
        with trio.move_on_after(_PATIENCE) as waiting:
            users = await self._look(holders.users)
            namespaces = [] if users else await self._look(holders.namespaces)
        if waiting.cancelled_caught:
            self._gave_up("/proc to tell who uses it", _PATIENCE)
        who = holders.describe(users or namespaces) or "it is in use"
        self._say(f"{self._name} ends, although {who}", level if users else logging.INFO)
        await self._flush_the_last()
        with trio.move_on_after(_PATIENCE) as waiting:
            await self._inside.release()
        if waiting.cancelled_caught:
            self._gave_up("what collects its writes to let go of it", _PATIENCE)
        session.stop()
        with trio.move_on_after(_PATIENCE):
            await self._ended.wait()
            return
        raise LayerfsError(
            f"{self._name} is unmounted, but its daemon has waited {_PATIENCE:g} seconds for its requests:"
            f" see whether the disk of its layers answers, or run 'kill -9 {os.getpid()}'"
        )

    def _gave_up(self, what: str, seconds: float) -> None:
        _log.warning("%s ends: waited %g seconds for %s", self._name, seconds, what)

    def _say(self, text: str, level: int) -> None:
        _log.log(level, "%s", text)
        self._notifier.stopping(text)

    async def _holders(self) -> list[holders.Holder]:
        """Return who still uses the filesystem. Whoever has a file open is there only if that was allowed."""
        found = await self._look(holders.namespaces)
        if not found and self._lazily:
            found = await self._look(holders.users)
        return found

    async def _look(self, who: Callable[[int], list[holders.Holder]]) -> list[holders.Holder]:
        """Ask /proc, in a thread: what is said there of a process may wait for that process."""
        return await trio.to_thread.run_sync(who, self._inside.device, abandon_on_cancel=True)
