"""The next upper of a mount, made ahead of the commit that it is for.

To make it takes a few directories, and those are brought to the disk: which takes tens of milliseconds where
thousands of files have just been written there. So a mount in use has one ready, held by its lock, which no
row names. It is empty: where a daemon is killed, recovery removes it.

An upper outside the store stays where it is: what its commit needs is made for that commit alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Layer, Mount


class NextUpper:
    """The next upper of one mount of the store at *root*; used by one trio loop, made in threads."""

    def __init__(self, root: Path) -> None:
        """Nothing is made yet."""
        self._root = root
        self._mount: Mount | None = None
        self._layer: Layer | None = None
        self._error: Exception | None = None
        self._made = trio.Event()
        """Set while none is being made."""
        self._made.set()

    def begin(self, mount: Mount) -> None:
        """Begin to make it, unless it is there or being made; what goes wrong is told by `get`."""
        if self._layer is None and self._made.is_set():
            self._mount, self._error, self._made = mount, None, trio.Event()
            trio.lowlevel.spawn_system_task(self._make, mount)

    async def get(self, mount: Mount) -> Layer:
        """Return it, once it is made; raises what making it for *mount* raised. It stays until `used`."""
        await self._made.wait()
        if self._layer is None:  # what was begun ahead may have failed long ago, on a disk that was full then
            self.begin(mount)
            await self._made.wait()
        if self._layer is None:
            assert self._error is not None
            raise self._error
        return self._layer

    def used(self) -> None:
        """Forget it: a commit has made it the upper."""
        self._layer = None

    async def abandon(self) -> None:
        """Remove it, if it is there or being made: the commit will not come. Raises `LayerfsError`."""
        with trio.CancelScope(shield=True):
            await self._made.wait()
            if self._layer is not None:
                await trio.to_thread.run_sync(self.close)

    def close(self) -> None:
        """Remove it, if it is there and none is being made. Raises `LayerfsError`."""
        layer, self._layer = self._layer, None
        if layer is not None:
            assert self._mount is not None
            with Store(self._root) as store:
                store.abandon_upper(self._mount, layer)

    async def _make(self, mount: Mount) -> None:
        try:
            with trio.CancelScope(shield=True):
                self._layer = await trio.to_thread.run_sync(self._make_now, mount)
        except Exception as error:
            self._error = error
        finally:
            self._made.set()

    def _make_now(self, mount: Mount) -> Layer:
        with Store(self._root) as store:
            return store.prepare_upper(mount)
