"""How the mount of this process ends: unmounted here, flushed, and, after a while, for everybody.

A filesystem lives for as long as any mount namespace has it mounted; a service with PrivateTmp, or any
`unshare --mount`, has a copy of every mount. So an unmount that has worked may end nothing. The daemon
then keeps a copy of the mount that is mounted nowhere (`Inside`), brings what was written into the upper,
gives those who still use the filesystem `GRACE` seconds, does so again, and ends. They get ENOTCONN.
"""

from __future__ import annotations

import logging
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


class Unmounting:
    """The end of the mount *name*; *flush* collects what was written, *ended* is set when it is over."""

    def __init__(
        self,
        name: str,
        inside: Inside,
        flush: Callable[[], Awaitable[None]],
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
        await self._flush_what_there_is()
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
            if not self._ended.is_set():
                await self._flush()
        except GoneError:
            pass  # at its end the kernel sends all that it has
        except LayerfsError as error:
            _log.warning("%s", error)

    async def _let_go(self, level: int) -> None:
        """Wait until nobody uses the filesystem any more, `GRACE` seconds at most, and end it.

        Who still uses it then is logged at *level*.
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
        users = await trio.to_thread.run_sync(holders.users, self._inside.device)
        who = holders.describe(users or await self._holders()) or "it is in use"
        self._say(f"{self._name} ends, although {who}", level if users else logging.INFO)
        await self._flush_what_there_is()
        await self._inside.release()
        session.stop()
        await self._ended.wait()

    def _say(self, text: str, level: int) -> None:
        _log.log(level, "%s", text)
        self._notifier.stopping(text)

    async def _holders(self) -> list[holders.Holder]:
        """Return who still uses the filesystem. Whoever has a file open is there only if that was allowed."""
        device = self._inside.device
        found = await trio.to_thread.run_sync(holders.namespaces, device)
        if not found and self._lazily:
            found = await trio.to_thread.run_sync(holders.users, device)
        return found
