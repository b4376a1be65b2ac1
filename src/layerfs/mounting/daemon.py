"""The daemon of one mount: the filesystem, its control socket, signals, and word to systemd.

All of it is one trio loop. The loop serves the filesystem, so nothing in it may touch the mount:
what must (unmounting, flushing) happens in threads, while the loop goes on answering.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from layerfs.errors import Conflict, LayerfsError, NotFound, StoreBusy, from_os_error
from layerfs.fuse import bdi, busypoll, session, stale, wire
from layerfs.fuse.collector import Collector
from layerfs.fuse.filesystem import Filesystem
from layerfs.fuse.flush import flush, get_ready
from layerfs.fuse.handlers import Handlers
from layerfs.fuse.inside import Inside
from layerfs.fuse.operations import Operations
from layerfs.host import mounttable, rundir
from layerfs.host.notify import Notifier
from layerfs.mounting import live_commit, live_rollback, stacking
from layerfs.mounting.background import Background, Served
from layerfs.mounting.mount import Rollback, WentBack
from layerfs.mounting.opening import open_layer, open_union
from layerfs.mounting.unmounting import Unmounting
from layerfs.mounting.warmup import warm_up
from layerfs.store import Store, runs
from layerfs.union.changes import Change, changes
from layerfs.union.descriptors import Shelf
from layerfs.union.layer import Layer

if TYPE_CHECKING:
    from layerfs.mounting.served import Serve
    from layerfs.store.commit import Wording
    from layerfs.store.model import Image, Mount
    from layerfs.store.model import Layer as LayerRow

_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)

_NODES_A_COLLECTION = 20_000
"""Objects made between two collections: nodes are many, live long, and are in no cycles once forgotten."""
_MORE_LAYERS = 12
"""Layers that may come until the union is made to read them by runs, which takes a moment of everybody's."""


class Daemon:
    """Serves the mount *mount_id* of the store at *root* on the directory *mountpoint*.

    It is what the API calls a live mount (`layerfs.mounting.served.LiveMount`).
    """

    def __init__(self, root: Path, mount_id: str, mountpoint: str, source: str, read_only: bool) -> None:
        """Prepare; *source* is what the mount table shows; with *read_only* the upper is but read."""
        self._source = source
        self._read_only = read_only
        self.root = root
        self.mount_id = mount_id
        self.mountpoint = mountpoint
        self._store = Store(root, wait=False)
        """The loop's: nothing that is asked of it waits for another process."""
        self._mount = self._store.mount(mount_id)
        self.name = self._mount.name
        self._notifier = Notifier.from_environment()
        self._started = time.time()
        self._ended = trio.Event()
        self._changing = trio.Lock()
        """Held by whoever commits, unmounts or removes: one at a time."""
        self.removed = False
        """Whether the mount is in the store no more; to be read once `run` has returned."""
        self._most_layers = 0
        """From how many layers and runs on the union is worth looking for longer runs."""
        self._discarded = False
        """Whether the upper is to be removed with the mount: nothing of it has to reach the disk."""
        makes_ahead = self._mount.upper is not None and not read_only and self.outside_upper is None
        self._background = Background(
            self._store.root, self._store.database.layers, self._served, makes_ahead=makes_ahead
        )

    # -- life -----------------------------------------------------------------------------------

    def run(self, serve: Serve, serves: Callable[[int | None], None], ready: Callable[[], None]) -> None:
        """Mount, call *ready* when the mount answers, serve until it is unmounted, clean up.

        *serve* answers on the socket of the mount, which stays: the mount may have another name by then.
        *serves* is called with the `st_dev` of the filesystem once that is mounted, and with None once it has
        ended. Raises `LayerfsError` or `OSError` when it cannot mount.
        """
        self._shelf = Shelf(self._store.database.layers)
        self._collector = Collector()
        place = mounttable.Place(self.mountpoint)
        self._serves = serves
        try:
            opened = open_union(self._store, self._mount, self._shelf, read_only=self._read_only)
            self._union = opened.union
            self._background.settling.update(opened.unsettled)
            try:
                options = self._mount.options
                # A power cut takes a build as a whole, and what it has sealed is synced at its end.
                lasting = self._mount.build is None
                self._filesystem = Filesystem(
                    self._union,
                    durable=lasting and not options.get("volatile"),
                    store=self._background.store_sync,
                    syncs=lasting,
                )
                self._filesystem.contents.filling.keeps = options.get("partial") == "keep"
                handlers = Handlers(self._filesystem)
                self._operations = Operations(handlers)
                if wire.extension is not None:
                    handlers.install(wire.extension)
                device = session.mount(self._operations, place, self._source, self._fuse_options())
                self._inside = Inside(self._collector, place, device)
                self._filesystem.collect = self._collect
                try:
                    serves(device)
                    with _alone():
                        trio.run(self._serve, serve, ready)
                finally:
                    session.drop_attributes(self._filesystem)
                    session.close()  # first: an unmount may wait for answers, which nobody gives any more
                    if not self._ended.is_set():
                        self._inside.unmount_now()
                    if not self._discarded:
                        self._filesystem.contents.filling.finish_now()
            finally:
                self._union.close()
                self._leave_store()
        finally:
            place.close()
            self._collector.close()
            self._background.close()
            self._shelf.close()
            self._store.close()

    def _served(self) -> Served:
        return Served(self._mount, self._union)

    def _fuse_options(self) -> frozenset[str]:
        options = set()
        for option, value in self._mount.options.items():
            if option in ("suid", "dev", "exec", "atime"):
                options.add(option if value else f"no{option}")
            elif option == "allow_other" and value:
                options.add(option)
        if self._union.upper is None:
            options.add("ro")
        return frozenset(options)

    async def _serve(self, serve: Serve, ready: Callable[[], None]) -> None:
        gc.freeze()  # what has been imported stays, and need not be looked at again
        gc.set_threshold(_NODES_A_COLLECTION, 50, 50)
        socket = rundir.socket_path(self.name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_filesystem, nursery.cancel_scope)
            # Should serving fail, this waits for an answer that never comes: then let it wait alone.
            await self._inside.is_answered()
            if self._union.upper is not None:
                with suppress(LayerfsError):  # who flushes says what is wrong
                    await get_ready(self._filesystem, self._inside)
            bdi.tune(self._inside.device)
            stale.can_make_names_stale()  # tried while nothing is mounted in it: that would go
            await nursery.start(serve, self, self.root, socket)
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._background.settle, self._read_by_runs)
            try:
                self._set_mounted(self._store)  # nobody uses the mount yet: this may take a moment
            except StoreBusy:
                await trio.to_thread.run_sync(self._set_mounted_patiently)
            self._background.store_sync.changed()  # the mount itself, which may be new
            ready()
            self._background.begin_next_upper()
            nursery.start_soon(warm_up, socket, self._rehearse)
            self._filesystem.contents.filling.begin()  # what a killed daemon has left
            self._notifier.ready(f"{self.name} is mounted on {self.mountpoint}")
            _log.info("%s is mounted on %s", self.name, self.mountpoint)

    async def _serve_filesystem(self, everything: trio.CancelScope) -> None:
        await session.serve(self._filesystem, lambda: bool(mounttable.mounts_of(self._inside.device)))
        self._ended.set()
        try:
            self._serves(None)
        except OSError as error:  # of the run directory's disk: what is going on goes on to its end
            _log.warning("cannot note that %s has ended: %s", self.name, error)
        async with self._changing:  # who unmounted or committed finishes first, and answers
            everything.cancel()

    async def _obey_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    continue  # there is no configuration to read again
                self._notifier.stopping(f"unmounting {self.mountpoint}")
                try:
                    await self.unmount(force=True, discard=False)
                except LayerfsError as error:
                    _log.error("%s", error)
                    if not self._ended.is_set():
                        with suppress(LayerfsError):
                            await self._inside.unmount(lazy=True)
                        session.stop()

    def _set_mounted(self, store: Store) -> None:
        store.set_mounted(self.mount_id, self.mountpoint, datetime.now(UTC))

    def _set_mounted_patiently(self) -> None:
        with Store(self.root) as store:
            self._set_mounted(store)

    def _leave_store(self) -> None:
        self._background.clear_away()
        if self.removed:
            return
        with Store(self.root) as store:
            store.set_unmounted(self.mount_id)
            if self._mount.ephemeral:
                store.remove_mount(self.mount_id)
                self.removed = True
        if self._discarded and not self._background.is_committing:  # else a commit is still on its way
            return
        try:
            self._background.bring_store_to_disk()
        except (LayerfsError, OSError) as error:
            _log.error("the store cannot be written to its disk: %s", error)

    # -- what the control socket asks for -----------------------------------------------------------

    async def commit(
        self, *, reference: str | None, comment: str, author: str, changes: Sequence[str], pause: bool | None
    ) -> Image:
        """Seal the upper as the top layer of a new image; the mount goes on with an empty one.

        What was written before the call is in the layer. With *pause*, the processes of a container stand
        still meanwhile, so the layer is what they had written at one moment; with None only if they can.
        Raises `LayerfsError`; then nothing changed.
        """
        if changes:  # whose work is bounded, but more than an instant
            await trio.to_thread.run_sync(self._store.check_commit, reference, changes)
        else:
            self._store.check_commit(reference, changes)

        def write(mount: Mount, upper: LayerRow, tree: int | None) -> Image:
            return self._store.commit(
                mount,
                upper,
                reference=reference,
                comment=comment,
                author=author,
                changes=changes,
                tree=tree,
            )

        return await self._seal(write, pause)

    async def checkpoint(self, wording: Wording, *, build: str | None, pause: bool | None) -> str:
        """Seal the upper as the layer of a new step, and return that: see `commit`."""

        def write(mount: Mount, upper: LayerRow, tree: int | None) -> str:
            return self._store.checkpoint(mount, upper, wording, build=build, tree=tree)

        return await self._seal(write, pause)

    async def _seal(self, write: Callable[[Mount, LayerRow, int | None], _Made], pause: bool | None) -> _Made:
        """Seal the upper by *write*, and go on with an empty one; return what *write* returns."""
        async with self._changing:
            self._check_serving()
            sealed = self._mount.upper
            if sealed is None:
                raise Conflict(f"{self.name} is read-only: there is nothing to commit")
            if self._read_only:
                raise Conflict(
                    f"cannot commit {self.name}: it is mounted read-only; mount it without ro to commit"
                )
            path = self._union.layers[0].path
            async with self._all_whole():
                made, upper = await live_commit.commit(
                    self._store,
                    self._mount,
                    self._union,
                    self._background.next_upper,
                    self._background.hold,
                    write,
                    still=live_commit.stillness(self.mount_id, self._collect, pause=pause),
                    unchanging=self._filesystem.contents.unchanging,
                )
            if self._union.layers[1].path != path:
                self._background.has_exchanged(sealed)
            else:
                self._background.has_new_upper(self._union.layers[0])
            self._background.settling[sealed] = self._union.layers[1]
            self._mount = replace(self._mount, layers=(*self._mount.layers, sealed), upper=upper)
            self._background.get_ready_for_the_next()
        if self._mount.build is None:  # a build has all its layers settled at its end
            self._background.settle_soon()
        return made

    async def rollback(self, wanted: Rollback) -> tuple[WentBack, Callable[[], None]]:
        """Show the tree of a checkpoint from one moment on; see `Mount.rollback`.

        Returns what the calling thread has to do as well before it answers.
        """
        async with self._changing:
            self._check_serving()
            self._store.check_rollback(self._mount)
            if self._read_only:
                raise Conflict(
                    f"cannot go back with {self.name}: it is mounted read-only: mount it without ro"
                )
            step = self._store.resolve_checkpoint(self._mount, wanted.reference)
            target = live_rollback.Target(step, self._store.layers_at(self._mount, step))
            given_up = self._mount.upper
            assert given_up is not None
            async with self._all_whole():
                moved = await live_rollback.rollback(
                    self._store,
                    self._mount,
                    self._union,
                    self._background.next_upper,
                    self._background.hold,
                    target,
                    self._inside.device,
                    discard=wanted.discard,
                    open_layer=self._open_layer,
                    still=live_commit.stillness(self.mount_id, self._collect, pause=wanted.pause),
                    unchanging=self._filesystem.contents.unchanging,
                )
            self._background.has_new_upper(self._union.layers[0])
            self._mount = replace(
                self._mount, layers=tuple(target.layers), upper=moved.prepared.id, step=step
            )
            kept = moved.went.kept
            if kept is not None:
                self._background.settling[given_up] = moved.old
            else:
                self._background.discard(self._union, given_up, moved.old)
            self._background.get_ready_for_the_next()
        self._background.settle_soon()
        return WentBack(step, kept), moved.stale.drop if moved.stale is not None else _nothing

    async def _open_layer(self, layer_id: str) -> Layer:
        """Open a layer that the union has not had yet. Raises `LayerfsError` or `OSError`."""
        layer, is_unsettled = await open_layer(
            self._store, self._mount, self._union.marking, self._shelf, layer_id
        )
        if is_unsettled:
            self._background.settling[layer_id] = layer
        return layer

    @property
    def outside_upper(self) -> Path | None:
        """The directory that was brought along as the upper, None where the store has its own."""
        return self._store.outside_upper(self._mount)

    async def changes(self) -> list[Change]:
        """Return what was written since the last commit. Raises `LayerfsError`."""
        mount = self._mount
        if mount.upper is None:
            return []
        await self._collect()
        stack = self._store.stack_of(mount, upper=True)
        return await trio.to_thread.run_sync(lambda: list(changes(stack)))

    async def flush(self) -> None:
        """Bring what was written until now into the upper, for others to read it. Raises `LayerfsError`."""
        await self._collect()
        async with self._all_whole():
            pass

    async def _collect(self) -> None:
        """Bring what was written until now from the kernel's cache into the upper. Raises `LayerfsError`."""
        if self._union.upper is not None:
            await flush(self._filesystem, self._inside)

    @asynccontextmanager
    async def _all_whole(self) -> AsyncIterator[None]:
        """Have no file of the upper be partial while the block lasts. Raises `LayerfsError`."""
        filling = self._filesystem.contents.filling
        with filling.none_new():
            try:
                await filling.make_all_whole()
            except OSError as error:
                raise from_os_error(error, f"finish the copy of a large file in {self.name}") from error
            yield

    def status(self) -> dict[str, Any]:
        """Return figures about this daemon, for people and for monitoring."""
        union = self._union
        return {
            "Name": self.name,
            "Id": self.mount_id,
            "Pid": os.getpid(),
            "Mountpoint": self.mountpoint,
            "UptimeSeconds": round(time.time() - self._started, 1),
            "Layers": [os.fsdecode(layer.path) for layer in reversed(union.layers)],
            "Upper": os.fsdecode(union.upper.path) if union.upper else None,
            "Options": {name: value for name, value in self._mount.options.items() if name != "container"},
            "Extension": wire.status(),
            "BusyPolling": busypoll.status(),
            "CachedInodes": len(union.table),
            "OpenDirectories": len(union.directories),
            "CopyUps": self._filesystem.contents.copies,
            "Requests": dict(sorted(self._operations.counts().items())),
            "LayersToSettle": len(self._background.settling),
        }

    async def unmount(self, *, force: bool, discard: bool) -> None:
        """Unmount and wait until the filesystem has ended; the daemon ends after that.

        A mount in use is a `Conflict`, unless by *force*: then it is detached, who still uses it gets
        `GRACE` seconds, and what was written is kept, unless *discard* says that it is about to be removed.
        """
        async with self._changing:
            await self._unmount(force, discard=discard)

    async def remove(self, *, force: bool, volumes: bool) -> None:
        """Unmount as `unmount` does and remove the mount with its upper; see `Mount.remove`."""
        async with self._changing:
            await self._unmount(force, discard=True)
            self.removed = True
            try:
                await trio.to_thread.run_sync(self._remove_from_store, volumes)
            except NotFound:  # somebody else has removed it
                raise
            except BaseException:
                self.removed = self._discarded = False  # it is unmounted, no more
                raise

    async def _unmount(self, force: bool, *, discard: bool) -> None:
        self._check_serving()
        self._discarded = discard and self.outside_upper is None  # which its owner keeps
        flush = None if self._discarded else self._collect
        ending = Unmounting(self.name, self._inside, flush, self._ended, self._notifier)
        filling = self._filesystem.contents.filling
        try:
            with filling.none_new():
                if not (self._discarded or filling.keeps):
                    with suppress(OSError):  # at its end the daemon tries again, and says so
                        await filling.make_all_whole()
                await ending.run(force=force)
        except BaseException:
            self._discarded = False  # it may go on for years, and somebody else may unmount it
            raise

    def _remove_from_store(self, volumes: bool) -> None:
        with Store(self.root) as store:
            store.remove_mount(self.mount_id, volumes=volumes)

    def _check_serving(self) -> None:
        if self._ended.is_set():
            raise Conflict(f"{self.name} is being unmounted")

    def _rehearse(self) -> None:
        """Do what a commit does in the store, and undo it: see `warm_up`."""
        prepared = self._background.next_upper.ready
        if prepared is not None and self.outside_upper is None:
            with suppress(LayerfsError):
                self._store.rehearse_commit(self._mount, prepared.row)

    async def _read_by_runs(self) -> None:
        """Have the union read its layers by the runs that they have become part of, where it has many."""
        if len(self._union.layers) < self._most_layers:
            return
        ids = self._mount.layers
        try:
            plan = await trio.to_thread.run_sync(runs.segments, self._store.database.layers, ids)
        except OSError as error:
            _log.warning("cannot look for indexes of layers: %s", error)
            return
        async with self._changing:
            if self._mount.layers[: len(ids)] == ids:  # else it has gone back meanwhile
                stacking.read_by(self._union, ids, plan)
        self._most_layers = len(self._union.layers) + (_MORE_LAYERS if runs.forced_span() is None else 1)


def _nothing() -> None:
    pass


@contextmanager
def _alone() -> Iterator[None]:
    """Raise the `LayerfsError` that made a nursery end, instead of the group that trio makes of it."""
    try:
        yield
    except ExceptionGroup as group:
        ours: BaseException | None = group.subgroup(LayerfsError)
        while isinstance(ours, ExceptionGroup):
            ours = ours.exceptions[0]
        if ours is None:
            raise
        raise ours from None
