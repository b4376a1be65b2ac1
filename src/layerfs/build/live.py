"""A stage's tree, mounted for its commands: one mount for the RUNs that follow each other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.build import workplace
from layerfs.mounting.find import mount_of
from layerfs.mounting.mount import Checkpoint
from layerfs.mounting.request import MountRequest

if TYPE_CHECKING:
    from layerfs.build.workplace import Workplace
    from layerfs.store import Store

    Launch = Callable[[MountRequest], str]


class Live:
    """A mount of a step. Belongs to the thread of its store."""

    def __init__(
        self, work: Workplace, launch: Launch, store: Store, step: str, *, writable: bool = True
    ) -> None:
        """Mount the *step*. Raises `LayerfsError`; what there is of it then goes with the *work* place."""
        self._work = work
        self._store = store
        self.step = step
        """What is below the upper."""
        self.name, self.tree = work.mount_name()
        row = store.create_mount(self.name, image=None, step=step, writable=writable, config={})
        launch(
            MountRequest(mountpoint=str(self.tree), root=work.root, name=self.name, read_only=not writable)
        )
        self._mount = mount_of(store, row)

    def checkpoint(self, created_by: str, comment: str, created: datetime | None, build: str) -> str:
        """Seal what was written since the last time as a step, and return that. Raises `LayerfsError`."""
        self.step = self._mount.checkpoint(
            Checkpoint(created_by=created_by, comment=comment, created=created, build=build, pause=False)
        )
        return self.step

    def end(self) -> None:
        """Unmount it, and remove it and what was written since. In any thread. Raises `LayerfsError`."""
        workplace.take_away(self._work.root, self.name)

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.tree
