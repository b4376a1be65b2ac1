"""The daemon of one mount: the filesystem, its control socket, signals, and word to systemd.

All of it is one trio loop. The loop serves the filesystem, so nothing in it may touch the mount:
what must (unmounting, flushing) happens in threads, while the loop goes on answering.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound
from layerfs.fuse import bdi, busypoll, session, stale, wire
from layerfs.fuse.collector import Collector
from layerfs.fuse.direct import Direct
from layerfs.fuse.filesystem import Filesystem
from layerfs.fuse.flush import flush
from layerfs.fuse.inside import Inside
from layerfs.fuse.lost import lost
from layerfs.fuse.operations import Operations
from layerfs.fuse.syncing import StoreSync
from layerfs.host import mounttable, rundir
from layerfs.host.notify import Notifier
from layerfs.mounting import live_commit, live_rollback
from layerfs.mounting.mount import Rollback, WentBack
from layerfs.mounting.next_upper import NextUpper
from layerfs.mounting.unmounting import Unmounting
from layerfs.mounting.warmup import warm_up
from layerfs.store import Store, marks, settle
from layerfs.store.journal import Hold, Journal
from layerfs.union.changes import Change, changes
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer
from layerfs.union.marking import Marking, Trust
from layerfs.union.stack import close_all
from layerfs.union.trees import sync_path
from layerfs.union.upper import Upper
from layerfs.union.view import Union

if TYPE_CHECKING:
    from layerfs.mounting.served import Serve
    from layerfs.store.commit import Wording
    from layerfs.store.model import Image, Mount
    from layerfs.store.model import Layer as LayerRow

_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)

_NODES_A_COLLECTION = 20_000
"""Objects made between two collections: nodes are many, live long, and are in no cycles once forgotten."""
_ANSWER_FIRST = 0.05
"""Seconds from a commit to the work that follows it, so that who asked does not wait for that."""
_DESCRIPTORS = 128
"""Directories, and as many files, that are kept open: to open one again takes a tenth of a request."""
_FEWEST_DESCRIPTORS = 16


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
        self._discarded = False
        """Whether the upper is to be removed with the mount: nothing of it has to reach the disk."""
        self._to_settle = trio.Event()
        self._settling: dict[str, Layer] = {}
        """The layers of the union that are not known to be on disk yet, by id, the next to settle first."""
        self._journal = Journal(self._store.root)
        self._hold = Hold(self._store.root)
        self._next_upper = NextUpper(self._store.root)
        self._is_made_ahead = self._mount.upper is not None and not read_only and self.outside_upper is None
        """Whether the mount can be committed, and its uppers are the store's own."""
        self._new_roots: list[Path] = []
        """Roots of uppers, made ahead, whose times are those of a commit; until that is on disk."""
        self._to_discard: set[str] = set()
        """Layers that have no row any more, whose trees are in the store yet."""
        self._exchanged: list[str] = []
        """Layers that came from an upper outside the store, until that is on disk."""

    # -- life -----------------------------------------------------------------------------------

    def run(self, serve: Serve, serves: Callable[[int | None], None], ready: Callable[[], None]) -> None:
        """Mount, call *ready* when the mount answers, serve until it is unmounted, clean up.

        *serve* answers on the socket of the mount, which stays: the mount may have another name by then.
        *serves* is called with the `st_dev` of the filesystem once that is mounted, and with None once it has
        ended. Raises `LayerfsError` or `OSError` when it cannot mount.
        """
        descriptors = _raise_descriptor_limit()
        self._shelf = Shelf(self._store.database.layers)
        # It hears of all that cannot be written from here on: the system tells each open file once.
        self._watch = os.open(self._store.database.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._collector = Collector()
        place = mounttable.Place(self.mountpoint)
        self._serves = serves
        try:
            self._union = self._open_union(descriptors)
            try:
                options = self._mount.options
                self._store_sync = StoreSync(self._bring_store_to_disk)
                # A power cut takes a build as a whole, and what it has sealed is synced at its end.
                lasting = self._mount.build is None
                self._filesystem = Filesystem(
                    self._union,
                    durable=lasting and not options.get("volatile"),
                    store=self._store_sync,
                    syncs=lasting,
                )
                self._operations = Operations(self._filesystem)
                if wire.extension is not None:
                    Direct(wire.extension, self._filesystem).install()
                device = session.mount(self._operations, place, self._source, self._fuse_options())
                self._inside = Inside(self._collector, place, device)
                try:
                    serves(device)
                    with _alone():
                        trio.run(self._serve, serve, ready)
                finally:
                    session.drop_attributes(self._filesystem)
                    session.close()  # first: an unmount may wait for answers, which nobody gives any more
                    if not self._ended.is_set():
                        self._inside.unmount_now()
            finally:
                self._union.close()
                self._leave_store()
        finally:
            place.close()
            self._collector.close()
            self._journal.close()
            self._hold.close()
            os.close(self._watch)
            self._shelf.close()
            self._store.close()

    def _open_union(self, descriptors: int) -> Union:
        whole = self._store.stack_of(self._mount, upper=True)
        depth = len(self._mount.layers)
        directories = DirectoryCache(descriptors)
        lowers = whole.up_to(depth).open(self._shelf, directories)
        try:
            for row, layer in zip(self._store.layers_of(self._mount), lowers, strict=True):
                if row.state == "sealed" and not row.manifest_done:
                    layer.on_disk = False
                    self._settling[row.id] = layer
            upper = None
            if self._mount.upper is not None:
                active, trust = self._store.layer(self._mount.upper), whole.trees[depth].trust
                if self._read_only:
                    lowers.append(_upper_to_read(active.path, whole.marking, trust))
                elif active.work is None:
                    raise BadRequest(
                        f"the upper {active.path} has no work directory: give one, or mount read-only"
                    )
                else:
                    marks.check_options(trust, whole.marking, self._mount.options)
                    upper = Upper(
                        active.path,
                        active.work,
                        marking=whole.marking,
                        trust=trust,
                        shelf=self._shelf,
                        directories=directories,
                    )
            metacopy = bool(self._mount.options.get("metacopy"))
            return Union(lowers, upper, descriptors=descriptors, directories=directories, metacopy=metacopy)
        except BaseException:
            close_all(lowers)
            raise

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
            bdi.tune(self._inside.device)
            stale.can_make_names_stale()  # tried while nothing is mounted in it: that would go
            await nursery.start(serve, self, self.root, socket)
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._settle)
            await trio.to_thread.run_sync(self._set_mounted)
            self._store_sync.changed()  # the mount itself, which may be new
            ready()
            self._begin_next_upper()
            nursery.start_soon(warm_up, socket)
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

    def _set_mounted(self) -> None:
        with Store(self.root) as store:
            store.set_mounted(self.mount_id, self.mountpoint, datetime.now(UTC))

    def _leave_store(self) -> None:
        try:
            self._next_upper.close()
        except (LayerfsError, OSError) as error:
            _log.warning("the next upper is left for recovery to remove: %s", error)
        for layer_id in self._to_discard:
            try:
                live_rollback.remove_tree(self.root, layer_id)
            except (LayerfsError, OSError) as error:
                _log.warning("what was discarded is left for recovery to remove: %s", error)
        if self.removed:
            return
        with Store(self.root) as store:
            store.set_unmounted(self.mount_id)
            if self._mount.ephemeral:
                store.remove_mount(self.mount_id)
                self.removed = True
        if self._discarded and not (self._new_roots or self._exchanged):  # else a commit is still on its way
            return
        try:
            self._bring_store_to_disk()
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
            made, upper = await live_commit.commit(
                self._store,
                self._mount,
                self._union,
                self._next_upper,
                self._hold,
                write,
                still=live_commit.stillness(self.mount_id, self.flush, pause=pause),
                unchanging=self._filesystem.contents.unchanging,
            )
            if self._union.layers[1].path != path:
                self._exchanged.append(sealed)
            else:
                self._new_roots.append(Path(os.fsdecode(self._union.layers[0].path)))
            self._settling[sealed] = self._union.layers[1]
            self._store_sync.changed()
            self._mount = replace(self._mount, layers=(*self._mount.layers, sealed), upper=upper)
            trio.lowlevel.spawn_system_task(self._get_ready_for_the_next)
        if self._mount.build is None:  # a build has all its layers settled at its end
            self._to_settle.set()
        return made

    async def rollback(self, wanted: Rollback) -> WentBack:
        """Show the tree of a checkpoint from one moment on; see `Mount.rollback`."""
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
            went, prepared, old = await live_rollback.rollback(
                self._store,
                self._mount,
                self._union,
                self._next_upper,
                self._hold,
                target,
                self._inside.device,
                discard=wanted.discard,
                open_layer=self._open_layer,
                still=live_commit.stillness(self.mount_id, self.flush, pause=wanted.pause),
                unchanging=self._filesystem.contents.unchanging,
            )
            self._new_roots.append(Path(os.fsdecode(self._union.layers[0].path)))
            self._store_sync.changed()
            self._mount = replace(self._mount, layers=tuple(target.layers), upper=prepared.id, step=step)
            if went.kept is not None:
                self._settling[given_up] = old
            else:
                self._to_discard.add(given_up)
                trio.lowlevel.spawn_system_task(self._discard, given_up, old)
            trio.lowlevel.spawn_system_task(self._get_ready_for_the_next)
        self._to_settle.set()
        return WentBack(step, went.kept)

    async def _discard(self, layer_id: str, layer: Upper) -> None:
        """Remove what was discarded, once those who use it need no tree; else that is done at the end."""
        if await live_rollback.discard(self._union, self.root, layer_id, layer):
            self._to_discard.discard(layer_id)

    async def _open_layer(self, layer_id: str) -> Layer:
        """Open a layer that the union has not had yet, in a thread. Raises `LayerfsError` or `OSError`."""
        row = self._store.layer(layer_id)
        options = self._mount.options
        tree = self._store.tree_of(row, userxattr=bool(options.get("userxattr")))

        def open_it() -> Layer:
            return Layer(
                tree.path,
                aufs=tree.aufs,
                marking=self._union.marking,
                trust=tree.trust,
                shelf=self._shelf,
                directories=DirectoryCache(),
            )

        layer = await trio.to_thread.run_sync(open_it)
        if row.state == "sealed" and not row.manifest_done:
            layer.on_disk = False
            self._settling[row.id] = layer
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
        await self.flush()
        stack = self._store.stack_of(mount, upper=True)
        return await trio.to_thread.run_sync(lambda: list(changes(stack)))

    async def flush(self) -> None:
        """Bring what was written until now from the kernel's cache into the upper. Raises `LayerfsError`."""
        if self._union.upper is not None:
            await flush(self._filesystem, self._inside)

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
            "LayersToSettle": len(self._settling),
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
        flush = None if self._discarded else self.flush
        ending = Unmounting(self.name, self._inside, flush, self._ended, self._notifier)
        try:
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

    # -- in the background --------------------------------------------------------------------------

    def _bring_store_to_disk(self) -> None:
        """Bring the rows of this mount and of its layers to the disk, in any thread; see `StoreSync`."""
        while self._new_roots:
            sync_path(self._new_roots[0])
            del self._new_roots[0]
        if self._exchanged:
            with Store(self.root) as store:
                while self._exchanged:
                    store.bring_exchange_to_disk(self._exchanged[0])
                    del self._exchanged[0]
        self._journal.sync()

    async def _get_ready_for_the_next(self) -> None:
        """Do what a commit has left for later so as to take no longer, and prepare the next one."""
        await trio.sleep(_ANSWER_FIRST)
        self._begin_next_upper()
        while not wire.drop_lapsed():
            await trio.lowlevel.checkpoint()

    def _begin_next_upper(self) -> None:
        """Begin to make the upper that will follow a commit, where that is not for the commit alone to do."""
        if self._is_made_ahead:
            self._next_upper.begin(self._mount)
            trio.lowlevel.spawn_system_task(self._open_hold)

    async def _open_hold(self) -> None:
        with suppress(LayerfsError):  # the commit, which needs it, says what is wrong
            await trio.to_thread.run_sync(self._hold.open)

    async def _settle(self) -> None:
        """Measure sealed layers, write their manifests and sync them, one after the other.

        A process of its own and of low priority does it, so that the mount is not slowed down.
        """
        while True:
            while self._settling:
                layer_id, layer = next(iter(self._settling.items()))
                process = settle.start(self.root, layer_id, watch=self._watch)
                status = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
                layer.on_disk = status == 0 and not lost.has_lost()
                del self._settling[layer_id]
            self._to_settle = trio.Event()
            await self._to_settle.wait()
            with trio.CancelScope(shield=True):  # also when an unmount follows right after
                await trio.sleep(_ANSWER_FIRST)


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


def _upper_to_read(path: Path, marking: Marking, trust: Trust) -> Layer:
    """Open an upper that is not to be written to, held so that nobody writes to it. Raises `OSError`."""
    layer = Layer(path, marking=marking, trust=trust)  # on no shelf: the lock goes with the descriptor
    try:
        fcntl.flock(layer.root.fd(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        layer.close()
        raise OSError(errno.EBUSY, "already used by another mount", layer.path) from None
    return layer


def _raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system does; return how many each cache may take."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(_FEWEST_DESCRIPTORS, min(most // 8, _DESCRIPTORS))
