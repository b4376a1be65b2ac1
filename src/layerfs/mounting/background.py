"""What a daemon does beside serving its mount, so that nobody waits for it.

It makes the next upper ahead, brings the store to its disk, has sealed layers settled, one after the other,
and removes what was discarded. Whoever commits or goes back tells it here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from layerfs.errors import LayerfsError, NotFound
from layerfs.fuse import wire
from layerfs.fuse.lost import lost
from layerfs.fuse.syncing import StoreSync
from layerfs.mounting import live_rollback
from layerfs.mounting.next_upper import NextUpper
from layerfs.store import Store, settle
from layerfs.store.journal import Hold, Journal
from layerfs.union.layer import Layer
from layerfs.union.trees import sync_path
from layerfs.union.upper import Upper
from layerfs.union.view import Union

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_log = logging.getLogger(__name__)

_ANSWER_FIRST = 0.05
"""Seconds from a commit to the work that follows it, so that who asked does not wait for that."""
_TOGETHER = 32
"""Layers that one process settles: to start it takes more than most of them do."""


class Served(NamedTuple):
    """What a daemon serves at a moment."""

    mount: Mount
    union: Union


class Background:
    """The work beside one mount of the store at *root*. To be used by the loop that serves the mount."""

    def __init__(self, root: Path, layers: Path, served: Callable[[], Served], *, makes_ahead: bool) -> None:
        """Begin nothing yet. *makes_ahead*: the mount can be committed, and its uppers are the store's own.

        *layers* is the directory of the store's layers, *served* returns what is mounted now. Raises
        `OSError`.
        """
        self._root = root
        self._served = served
        self._makes_ahead = makes_ahead
        self._journal = Journal(root)
        self.hold = Hold(root)
        self.next_upper = NextUpper(root)
        self.store_sync = StoreSync(self.bring_store_to_disk)
        # It hears of all that cannot be written from here on: the system tells each open file once.
        self._watch = os.open(layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._to_settle = trio.Event()
        self.settling: dict[str, Layer] = {}
        """The layers of the union that are not known to be on disk yet, by id, the next to settle first."""
        self._new_roots: list[Path] = []
        """Roots of uppers, made ahead, whose times are those of a commit; until that is on disk."""
        self._exchanged: list[str] = []
        """Layers that came from an upper outside the store, until that is on disk."""
        self._to_discard: set[str] = set()
        """Layers that have no row any more, whose trees are in the store yet."""

    @property
    def is_committing(self) -> bool:
        """Whether a commit is on its way to the disk, which others than the mount may need."""
        return bool(self._new_roots or self._exchanged)

    # -- what it is told ----------------------------------------------------------------------------

    def has_new_upper(self, upper: Layer) -> None:
        """Note that *upper*, which was made ahead, takes the writes."""
        self._new_roots.append(Path(os.fsdecode(upper.path)))
        self.store_sync.changed()

    def has_exchanged(self, layer_id: str) -> None:
        """Note that a layer has come into the store in exchange for the tree of an upper outside."""
        self._exchanged.append(layer_id)
        self.store_sync.changed()

    def settle_soon(self) -> None:
        """Have the layers of `settling` measured and synced, a moment from now."""
        self._to_settle.set()

    def discard(self, union: Union, layer_id: str, layer: Upper) -> None:
        """Remove what was discarded, once those who use it need no tree; else that is done at the end."""
        self._to_discard.add(layer_id)
        trio.lowlevel.spawn_system_task(self._discard, union, layer_id, layer)

    def get_ready_for_the_next(self) -> None:
        """Do what a commit has left for later so as to take no longer, and prepare the next one."""
        trio.lowlevel.spawn_system_task(self._get_ready)

    def begin_next_upper(self) -> None:
        """Begin to make the upper that will follow a commit, where that is not for the commit alone to do."""
        if self._makes_ahead:
            mount, union = self._served()
            assert union.upper is not None
            self.next_upper.begin(mount, union.upper)
            trio.lowlevel.spawn_system_task(self._open_hold)

    # -- what it does -------------------------------------------------------------------------------

    def bring_store_to_disk(self) -> None:
        """Bring the rows of this mount and of its layers to the disk, in any thread; see `StoreSync`."""
        while self._new_roots:
            with suppress(FileNotFoundError):  # it was discarded meanwhile
                sync_path(self._new_roots[0])
            del self._new_roots[0]
        if self._exchanged:
            with Store(self._root) as store:
                while self._exchanged:
                    with suppress(NotFound):  # removed meanwhile: then nobody needs it
                        store.bring_exchange_to_disk(self._exchanged[0])
                    del self._exchanged[0]
        self._journal.sync()

    async def settle(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Measure sealed layers, write their manifests and sync them, in turn, until cancelled.

        A process of its own and of low priority does it, so that the mount is not slowed down. It also makes
        the indexes of runs. *settled* is called when some layers are settled.
        """
        alone = 0
        while True:
            while self.settling:
                some = list(islice(self.settling.items(), 1 if alone else _TOGETHER))
                process = settle.start(self._root, *(layer_id for layer_id, _ in some), watch=self._watch)
                status = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
                if status != 0 and len(some) > 1:
                    alone = len(some)  # which of them it is shows when each is settled by itself
                    continue
                alone = max(0, alone - 1)
                for layer_id, layer in some:
                    layer.on_disk = status == 0 and not lost.has_lost()
                    del self.settling[layer_id]
                await settled()
            self._to_settle = trio.Event()
            await self._to_settle.wait()
            with trio.CancelScope(shield=True):  # also when an unmount follows right after
                await trio.sleep(_ANSWER_FIRST)

    async def _get_ready(self) -> None:
        await trio.sleep(_ANSWER_FIRST)
        self.begin_next_upper()
        while not wire.drop_lapsed():
            await trio.lowlevel.checkpoint()

    async def _open_hold(self) -> None:
        with suppress(LayerfsError):  # the commit, which needs it, says what is wrong
            await trio.to_thread.run_sync(self.hold.open)

    async def _discard(self, union: Union, layer_id: str, layer: Upper) -> None:
        if await live_rollback.discard(union, self._root, layer_id, layer):
            self._to_discard.discard(layer_id)

    # -- its end ------------------------------------------------------------------------------------

    def clear_away(self) -> None:
        """Remove what the mount, which has ended, needs no more: the next upper, and what was discarded."""
        try:
            self.next_upper.close()
        except (LayerfsError, OSError) as error:
            _log.warning("the next upper is left for recovery to remove: %s", error)
        for layer_id in self._to_discard:
            try:
                live_rollback.remove_tree(self._root, layer_id)
            except (LayerfsError, OSError) as error:
                _log.warning("what was discarded is left for recovery to remove: %s", error)

    def close(self) -> None:
        """Close what is open."""
        self._journal.close()
        self.hold.close()
        os.close(self._watch)
