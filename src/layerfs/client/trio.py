"""`layerfs.client.sandbox` for programs that run on trio: the same methods, to be awaited.

    layerfs = Layerfs()
    sandbox = await layerfs.mount("debian:12", "/srv/agent", name="agent")
    async with sandbox.checkpoint("before the risky step"):
        ...  # goes back when an exception leaves the block, cancellation too

Each request is made by a thread. Cancelling one does not undo it: it goes on by itself, but for a checkpoint
and going back, which are waited for. The contracts are those of the methods of the same names there.
"""

from __future__ import annotations

import os
from functools import partial
from types import TracebackType
from typing import TypeVar

import trio

from layerfs.client import answers, sandbox
from layerfs.client.answers import Ask, Difference, FileEntry, LogEntry, Restored, Thinned, WentBack
from layerfs.errors import LayerfsError

_A = TypeVar("_A")
_PATIENCE = 60.0
"""Seconds for which going back is waited for although the task is cancelled."""


class Layerfs:
    """A store; see `sandbox.Layerfs`."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        """Use the store at *root*: by default that of `$LAYERFS_ROOT`, or of the user."""
        self._store = sandbox.Layerfs(root)

    async def run(self, ask: Ask[_A], *, to_the_end: bool = False) -> _A:
        """Send a request, and return what its answer means; *to_the_end* it is waited for when cancelled."""
        return await trio.to_thread.run_sync(partial(self._store.run, ask), abandon_on_cancel=not to_the_end)

    def sandbox(self, name: str) -> Sandbox:
        """Return the mount called *name*, or with that id. Nobody looks whether there is one."""
        return Sandbox(self, name)

    async def mount(
        self,
        image: str | None,
        mountpoint: str | os.PathLike[str],
        *,
        name: str | None = None,
        read_only: bool = False,
    ) -> Sandbox:
        """See `sandbox.Layerfs.mount`. Waited for when cancelled, so that the caller knows of the mount."""
        ask = answers.mount(mountpoint, image, name, read_only=read_only)
        return Sandbox(self, await self.run(ask, to_the_end=True))

    async def log(self, ref: str, path: str | None = None, *, most: int | None = None) -> list[LogEntry]:
        """See `sandbox.Layerfs.log`."""
        return await self.run(answers.log(ref, path, most))

    async def ls(self, ref: str, path: str = "/") -> list[FileEntry]:
        """See `sandbox.Layerfs.ls`."""
        return await self.run(answers.ls(ref, path))

    async def read(self, ref: str, path: str) -> bytes:
        """See `sandbox.Layerfs.read`."""
        return await self.run(answers.read(ref, path))

    async def diff(self, a: str, b: str, path: str | None = None) -> list[Difference]:
        """See `sandbox.Layerfs.diff`."""
        return await self.run(answers.diff(a, b, path))

    async def squash(self, ref: str) -> str:
        """See `sandbox.Layerfs.squash`."""
        return await self.run(answers.squash(ref))


class Sandbox:
    """A mount of a store, in use or at rest; see `sandbox.Sandbox`."""

    def __init__(self, store: Layerfs, name: str) -> None:
        """Name the mount *name* of *store*."""
        self._store = store
        self.name = name

    def checkpoint(self, message: str = "", *, pause: bool | None = None) -> Pending:
        """Return a checkpoint to be made: await it, or enter it with `async with`. See `sandbox.Sandbox`."""
        return Pending(self, answers.checkpoint(self.name, message, pause=pause))

    async def rollback(self, ref: str = "", *, discard: bool = False, pause: bool | None = None) -> WentBack:
        """See `sandbox.Sandbox.rollback`. Waited for when cancelled."""
        ask = answers.rollback(self.name, ref, discard=discard, pause=pause)
        return await self._store.run(ask, to_the_end=True)

    async def fork(self, name: str, mountpoint: str | os.PathLike[str]) -> Sandbox:
        """See `sandbox.Sandbox.fork`. Waited for when cancelled."""
        ask = answers.fork(self.name, name, mountpoint, None)
        return Sandbox(self._store, (await self._store.run(ask, to_the_end=True))[0])

    async def forks(self, name: str, directory: str | os.PathLike[str], count: int) -> list[Sandbox]:
        """See `sandbox.Sandbox.forks`. Waited for when cancelled."""
        ask = answers.fork(self.name, name, directory, count)
        return [Sandbox(self._store, each) for each in await self._store.run(ask, to_the_end=True)]

    async def restore(self, ref: str, *paths: str) -> Restored:
        """See `sandbox.Sandbox.restore`."""
        return await self._store.run(answers.restore(self.name, ref, paths))

    async def keep(
        self, *, every: str | None = None, last: int | None = None, daily: int | None = None
    ) -> Thinned:
        """See `sandbox.Sandbox.keep`."""
        return await self._store.run(answers.keep(self.name, every, last, daily))

    async def log(self, path: str | None = None, *, most: int | None = None) -> list[LogEntry]:
        """See `sandbox.Sandbox.log`."""
        return await self._store.log(self.name, path, most=most)

    async def ls(self, path: str = "/") -> list[FileEntry]:
        """See `sandbox.Sandbox.ls`."""
        return await self._store.ls(self.name, path)

    async def read(self, path: str) -> bytes:
        """See `sandbox.Sandbox.read`."""
        return await self._store.read(self.name, path)

    async def unmount(self, *, force: bool = False) -> None:
        """See `sandbox.Sandbox.unmount`."""
        await self._store.run(answers.unmount(self.name, force=force))

    async def remove(self, *, force: bool = False) -> None:
        """See `sandbox.Sandbox.remove`."""
        await self._store.run(answers.remove(self.name, force=force))


class Checkpoint:
    """A checkpoint of a sandbox that was made."""

    def __init__(self, sandbox: Sandbox, step: str) -> None:
        """Name the checkpoint *step* of *sandbox*."""
        self.sandbox = sandbox
        self.id = step
        self.went_back: WentBack | None = None
        """What going back at the end of the block has done, None where the block ended in order."""

    async def rollback(self, *, discard: bool = False) -> WentBack:
        """Have the sandbox be what it was then; see `Sandbox.rollback`."""
        return await self.sandbox.rollback(self.id, discard=discard)


class Pending:
    """A checkpoint that is made when it is awaited, or entered: then an exception that leaves goes back."""

    def __init__(self, sandbox: Sandbox, ask: Ask[str]) -> None:
        """Be about to send *ask*."""
        self._sandbox = sandbox
        self._ask = ask
        self._made: Checkpoint | None = None

    async def _make(self) -> Checkpoint:
        step = await self._sandbox._store.run(self._ask, to_the_end=True)
        return Checkpoint(self._sandbox, step)

    def __await__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204 - what a coroutine gives
        """Make the checkpoint, and return it."""
        return self._make().__await__()

    async def __aenter__(self) -> Checkpoint:
        """Make the checkpoint, and return it."""
        self._made = await self._make()
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back if the block was left by an exception, also when the task is cancelled."""
        if error is None or self._made is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _PATIENCE) as scope:
            self._made.went_back = await self._made.rollback()
        if scope.cancelled_caught:
            raise LayerfsError(f"going back with {self._sandbox.name} took more than {_PATIENCE:.0f} s")
