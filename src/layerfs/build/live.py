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
        row = store.create_mount(self.name, image=None, layers=self._layers(), writable=writable, config={})
        launch(
            MountRequest(mountpoint=str(self.tree), root=work.root, name=self.name, read_only=not writable)
        )
        self._mount = mount_of(store, row)

    def _layers(self) -> list[str]:
        """Return the layers to mount: those of the step, and below them one with places to mount on.

        A runtime then has to make none in the tree, from where they would have to be taken out of every layer
        again, and the container of the next command can be made while this one's runs.
        """
        places = self._store.external_layer(_places(self._work.root))
        return [places.id, *(layer.id for layer in self._store.steps.layers_of_step(self.step))]

    def checkpoint(self, created_by: str, comment: str, created: datetime | None, build: str) -> str:
        """Seal what was written since the last time as a step, and return that. Raises `LayerfsError`."""
        made = self._mount.checkpoint(
            Checkpoint(created_by=created_by, comment=comment, created=created, build=build, pause=False)
        )
        entry = self._store.steps.entry(made)
        step = self._store.steps.add_history(self.step, [entry])  # without the places below
        assert step is not None
        self.step = step
        return step

    def end(self) -> None:
        """Unmount it, and remove it and what was written since. In any thread. Raises `LayerfsError`."""
        workplace.take_away(self._work.root, self.name)

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.tree


def _places(root: Path) -> Path:
    """Return a tree of the store with the places that every container has something mounted on."""
    tree = root / "cache" / "places"
    if not (tree / "etc" / "resolv.conf").exists():
        for name in ("dev", "etc", "proc", "sys"):
            (tree / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("hosts", "resolv.conf"):  # the latter comes last
            (tree / "etc" / name).touch(mode=0o644)
    return tree
