"""The next upper of a mount, made ahead of the commit that it is for.

To make it takes a few directories, and those are brought to the disk: which takes tens of milliseconds where
thousands of files have just been written there. So a mount in use has one ready and open, held by its lock,
which no row names. It is empty: where a daemon is killed, recovery removes it.

An upper outside the store stays where it is: what its commit needs is made for that commit alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from layerfs.store import Store
from layerfs.union.upper import Upper

if TYPE_CHECKING:
    from layerfs.store.model import Layer, Mount


class Prepared(NamedTuple):
    """An upper that is ready: what the store knows of it, and its tree, open."""

    row: Layer
    upper: Upper


class NextUpper:
    """The next upper of one mount of the store at *root*; used by one trio loop, made in threads."""

    def __init__(self, root: Path) -> None:
        """Nothing is made yet."""
        self._root = root
        self._mount: Mount | None = None
        self._prepared: Prepared | None = None
        self._error: Exception | None = None
        self._made = trio.Event()
        """Set while none is being made."""
        self._made.set()

    @property
    def ready(self) -> Prepared | None:
        """The next upper, if it has been made."""
        return self._prepared

    def begin(self, mount: Mount, after: Upper) -> None:
        """Begin to make it, unless it is there or being made; what goes wrong is told by `get`.

        It is to follow the upper *after* of *mount*, which stays that until it is made.
        """
        if self._prepared is None and self._made.is_set():
            self._mount, self._error, self._made = mount, None, trio.Event()
            trio.lowlevel.spawn_system_task(self._make, mount, after)

    async def get(self, mount: Mount, after: Upper) -> Prepared:
        """Return it, once it is made; raises what making it for *mount* raised. It stays until `used`."""
        await self._made.wait()
        if self._prepared is None:  # what was begun ahead may have failed long ago, on a full disk
            self.begin(mount, after)
            await self._made.wait()
        if self._prepared is None:
            assert self._error is not None
            raise self._error
        return self._prepared

    def used(self) -> None:
        """Forget it: a commit has made it the upper."""
        self._prepared = None

    async def abandon(self) -> None:
        """Remove it, if it is there or being made: the commit will not come. Raises `LayerfsError`."""
        with trio.CancelScope(shield=True):
            await self._made.wait()
            row = self._give_up()
            if row is not None:
                await trio.to_thread.run_sync(self._remove, row)

    def close(self) -> None:
        """Remove it, if it is there and none is being made. Raises `LayerfsError`."""
        row = self._give_up()
        if row is not None:
            self._remove(row)

    def _give_up(self) -> Layer | None:
        """Close its tree, and return what is to be removed."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return None
        prepared.upper.give_up()
        return prepared.row

    def _remove(self, row: Layer) -> None:
        assert self._mount is not None
        with Store(self._root) as store:
            store.abandon_upper(self._mount, row)

    async def _make(self, mount: Mount, after: Upper) -> None:
        try:
            with trio.CancelScope(shield=True):
                self._prepared = await trio.to_thread.run_sync(self._make_now, mount, after)
        except Exception as error:
            self._error = error
        finally:
            self._made.set()

    def _make_now(self, mount: Mount, after: Upper) -> Prepared:
        with Store(self._root) as store:
            row = store.prepare_upper(mount)
            assert row.work is not None
            try:
                return Prepared(row, Upper(row.path, row.work, after=after))
            except BaseException:
                store.abandon_upper(mount, row)
                raise
