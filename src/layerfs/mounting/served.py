"""A mount that this process serves: what is asked of it, in a thread, is done by the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from trio import from_thread

from layerfs.errors import Conflict
from layerfs.mounting.mount import Checkpoint, Commit, Committed, Rollback, WentBack, outside_warning

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from layerfs.store.commit import Wording
    from layerfs.store.model import Image
    from layerfs.union.changes import Change


class LiveMount(Protocol):
    """A mount that this process serves, as its loop sees it: the daemon.

    Every method raises `LayerfsError` with one line for people, and leaves the mount as it was then.
    """

    @property
    def name(self) -> str:
        """The name of the mount."""

    @property
    def mount_id(self) -> str:
        """The id of the mount in the store, 64 hexadecimal digits."""

    @property
    def mountpoint(self) -> str:
        """Where it is mounted, an absolute path."""

    @property
    def outside_upper(self) -> Path | None:
        """The directory that was brought along to take the writes, None where the store has its own."""

    async def commit(
        self, *, reference: str | None, comment: str, author: str, changes: Sequence[str], pause: bool | None
    ) -> Image:
        """See `Mount.commit`."""

    async def checkpoint(self, wording: Wording, *, build: str | None, pause: bool | None) -> str:
        """See `Mount.checkpoint`."""

    async def rollback(self, wanted: Rollback) -> tuple[WentBack, Callable[[], None]]:
        """See `Mount.rollback`. What is returned besides is to be done by the caller, before it answers."""

    async def changes(self) -> list[Change]:
        """See `Mount.changes`."""

    async def flush(self) -> None:
        """See `Mount.flush`."""

    def status(self) -> dict[str, Any]:
        """See `Mount.status`."""

    async def unmount(self, *, force: bool, discard: bool) -> None:
        """See `Mount.unmount`. The process ends by itself after the answer has been sent."""

    async def remove(self, *, force: bool, volumes: bool) -> None:
        """See `Mount.remove`. The process ends by itself after the answer has been sent."""


class Serve(Protocol):
    """Answers on the socket of a mount."""

    async def __call__(
        self, live: LiveMount, root: Path, path: Path, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Answer on the socket *path* for *live*, a mount of the store at *root*, until cancelled."""


class InLoop:
    """A `LoopMount` that this loop serves."""

    def __init__(self, live: LiveMount) -> None:
        """Have *live* do what is asked."""
        self._live = live

    async def commit(self, wanted: Commit) -> Committed:
        """See `Mount`."""
        image = await self._live.commit(
            reference=wanted.reference,
            comment=wanted.comment,
            author=wanted.author,
            changes=wanted.changes,
            pause=wanted.pause,
        )
        outside = self._live.outside_upper
        warnings = (outside_warning(outside, image.id, self._live.name),) if outside else ()
        return Committed(image.id, warnings)

    async def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""
        from layerfs.store.commit import Wording

        wording = Wording(wanted.created_by, wanted.comment, wanted.author, wanted.created)
        return await self._live.checkpoint(wording, build=wanted.build, pause=wanted.pause)

    async def flush(self) -> None:
        """See `Mount`."""
        await self._live.flush()

    async def status(self) -> dict[str, Any]:
        """See `Mount`."""
        return self._live.status()


class Served:
    """A `Mount` that the loop of this process serves; for the threads that this loop has started."""

    def __init__(self, live: LiveMount) -> None:
        """Have *live* do what is asked."""
        self._live = live
        self.name = live.name
        self.mount_id = live.mount_id

    def commit(self, wanted: Commit) -> Committed:
        """See `Mount`."""
        return from_thread.run(InLoop(self._live).commit, wanted)

    def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""
        return from_thread.run(InLoop(self._live).checkpoint, wanted)

    def rollback(self, wanted: Rollback) -> WentBack:
        """See `Mount`."""

        async def rollback() -> tuple[WentBack, Callable[[], None]]:
            return await self._live.rollback(wanted)

        went, finish = from_thread.run(rollback)
        finish()
        return went

    def changes(self) -> Sequence[Change]:
        """See `Mount`."""
        return from_thread.run(self._live.changes)

    def flush(self) -> None:
        """See `Mount`."""
        from_thread.run(self._live.flush)

    def status(self) -> dict[str, Any]:
        """See `Mount`."""
        return from_thread.run_sync(self._live.status)

    def unmount(self, *, force: bool, discard: bool = False) -> bool:
        """See `Mount`. This process ends after it."""

        async def unmount() -> None:
            await self._live.unmount(force=force, discard=discard)

        from_thread.run(unmount)
        return True

    def remove(self, *, force: bool, volumes: bool = False) -> None:
        """See `Mount`. This process ends after it."""
        if not force:
            why = f"it is mounted on {self._live.mountpoint}; unmount it first, or force its removal"
            raise Conflict(f"cannot remove {self.name}: {why}")

        async def remove() -> None:
            await self._live.remove(force=True, volumes=volumes)

        from_thread.run(remove)
