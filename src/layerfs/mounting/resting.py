"""A mount that no process serves. It is worked on in the store, under the run lock: no daemon starts then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from layerfs.errors import Conflict, StoreBusy, from_os_error
from layerfs.host.mounttable import detach
from layerfs.host.record import look
from layerfs.host.rundir import RunLock
from layerfs.mounting.mount import Checkpoint, Commit, Committed, Rollback, WentBack, outside_warning

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.checkpoints import WentBack as Gone
    from layerfs.store.model import Layer
    from layerfs.store.model import Mount as Row
    from layerfs.union.changes import Change

_Made = TypeVar("_Made")

STORE_PATIENCE = 10.0
"""Seconds to wait for another process that writes to the store."""


class Resting:
    """A `Mount` that no daemon serves."""

    def __init__(self, store: Store, row: Row) -> None:
        """Work on the mount *row* of *store*, which belongs to the calling thread."""
        self._store = store
        self._row = row

    @property
    def name(self) -> str:
        """See `Mount`."""
        return self._row.name

    @property
    def mount_id(self) -> str:
        """See `Mount`."""
        return self._row.id

    def commit(self, wanted: Commit) -> Committed:
        """See `Mount`. Raises `Conflict` where a daemon died: what is in the upper may be incomplete."""
        self._store.check_commit(wanted.reference, wanted.changes)
        image = self._seal(
            lambda row, upper: self._store.commit(
                row,
                upper,
                reference=wanted.reference,
                comment=wanted.comment,
                author=wanted.author,
                changes=wanted.changes,
            )
        )
        outside = self._store.outside_upper(self._store.mount(self.mount_id))
        return Committed(image.id, (outside_warning(outside, image.id, self.name),) if outside else ())

    def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`. Raises as `commit`."""
        from layerfs.store.commit import Wording

        wording = Wording(wanted.created_by, wanted.comment, wanted.author, wanted.created)
        return self._seal(lambda row, upper: self._store.checkpoint(row, upper, wording, build=wanted.build))

    def rollback(self, wanted: Rollback) -> WentBack:
        """See `Mount`. Raises as `commit`."""
        from layerfs.store import settle
        from layerfs.store.commit import Wording

        store = self._store
        with RunLock(self.name):
            row = store.mount(self.mount_id)
            if row.started is not None:
                raise not_running(row)
            store.check_rollback(row)
            step = store.resolve_checkpoint(row, wanted.reference)
            keep = not wanted.discard and store.has_changes(row)
            if keep:
                self._finish_copies(row)

            def write(mount: Row, upper: Layer) -> Gone:
                store.match_root(upper, store.layers_at(mount, step)[-1])
                return store.rollback(mount, upper, step, Wording(), keep=keep)

            went = self._patiently(row, write)
        if went.discarded is not None:
            store.discard_layer(went.discarded)
        else:
            assert row.upper is not None
            settle.start(store.root, row.upper)
        return WentBack(step, went.kept)

    def _seal(self, write: Callable[[Row, Layer], _Made]) -> _Made:
        """Prepare the next upper, have *write* commit, and settle what it has sealed, in the background."""
        from layerfs.mounting import places
        from layerfs.store import settle

        with RunLock(self.name):
            row = self._store.mount(self.mount_id)
            if row.started is not None:
                raise not_running(row)
            if row.container and row.upper is not None:
                with suppress(OSError):  # as they do no harm
                    lowers = [layer.path for layer in self._store.layers_of(row)]
                    places.remove_at_rest(self._store.layer(row.upper).path, lowers)
            self._finish_copies(row)
            made = self._patiently(row, write)
        assert row.upper is not None
        settle.start(self._store.root, row.upper)
        return made

    def _patiently(self, row: Row, write: Callable[[Row, Layer], _Made]) -> _Made:
        """Have *write* commit; another process that writes to the store is waited for."""
        upper = self._store.prepare_upper(row)
        deadline = time.monotonic() + STORE_PATIENCE
        try:
            while True:
                try:
                    return write(row, upper)
                except StoreBusy:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        except BaseException:
            self._store.abandon_upper(row, upper)
            raise

    def changes(self) -> Sequence[Change]:
        """See `Mount`."""
        from layerfs.union.changes import changes

        if self._row.upper is None:
            return ()
        return list(changes(self._store.stack_of(self._row, upper=True)))

    def flush(self) -> None:
        """Finish what a killed daemon has copied up in part: nobody has anything in a cache."""
        self._finish_copies(self._row)

    def _finish_copies(self, row: Row) -> None:
        from layerfs.union.unfinished import finish_at_rest

        upper = self._store.layer(row.upper) if row.upper is not None else None
        if upper is None or upper.work is None:
            return
        try:
            finish_at_rest(self._store.stack_of(row, upper=True), upper.work)
        except OSError as error:
            raise from_os_error(error, f"finish the copy of a large file in {row.name}") from error

    def status(self) -> dict[str, Any]:
        """Raise `Conflict`: there is no daemon."""
        raise not_running(self._row)

    def unmount(self, *, force: bool, discard: bool = False) -> bool:
        """Take away what a dead daemon left; return False where there is nothing."""
        with RunLock(self.name) as lock:
            row = self._store.mount(self.mount_id)
            if row.started is None:
                return False
            if row.mountpoint is not None:
                detach(row.mountpoint, lock.device)
            if row.ephemeral:
                self._store.remove_mount(row.id)
                lock.forget()
            else:
                self._store.set_unmounted(row.id)
        return True

    def remove(self, *, force: bool, volumes: bool = False) -> None:
        """See `Mount`."""
        with RunLock(self.name) as lock:
            row = self._store.mount(self.mount_id)
            if row.started is not None and row.mountpoint is not None:
                detach(row.mountpoint, lock.device)  # its daemon is dead
            self._store.remove_mount(row.id, volumes=volumes)
            lock.forget()


def not_running(row: Row) -> Conflict:
    """Return the error for the mount *row*, whose daemon is needed and does not run."""
    if row.container:
        again = f"run 'layerfs start {row.name}' to start it again"
        if (record := look(row.id)) and record.alive():
            again = f"the daemon of its files has ended: run 'layerfs stop {row.name}', then {again[4:]}"
        return Conflict(f"{row.name} is not running; {again}")
    resume = f"run 'layerfs mount --name {row.name} {row.mountpoint or 'MOUNTPOINT'}' to resume"
    if row.started is not None:
        return Conflict(f"{row.name} is not running (its daemon ended without unmounting); {resume}")
    return Conflict(f"{row.name} is not mounted; {resume}")
