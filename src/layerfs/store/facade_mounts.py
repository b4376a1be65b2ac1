"""What `Store` does about mounts: their rows, and how their uppers become layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.errors import Conflict, NotFound
from layerfs.store import commit, external, mounts
from layerfs.store.database import Database
from layerfs.store.model import Image, Layer, Mount

if TYPE_CHECKING:
    from layerfs.store.commit import Wording


class MountsOfStore:
    """The part of a `Store` that is about mounts."""

    _db: Database
    _build: str | None

    # Mounts

    def mount(self, reference: str) -> Mount:
        """Return the mount with this name, id or beginning of an id; raises `NotFound`, `BadRequest`."""
        return mounts.find(self._db, reference)

    def identify(self, name: str) -> tuple[str, str] | None:
        """Return the id and the name of the mount with exactly this name or id, None where there is none."""
        return mounts.identify(self._db, name)

    def mountpoint_of(self, name: str) -> str | None:
        """Return where the mount of exactly this name is, or was the last time; None if that is nowhere."""
        return mounts.mountpoint_of(self._db, name)

    def mounts(self) -> list[Mount]:
        """Return all mounts, newest first."""
        return mounts.every(self._db)

    def create_mount(
        self,
        name: str,
        *,
        image: Image | None,
        layers: Sequence[str] = (),
        step: str | None = None,
        writable: bool = True,
        external_upper: tuple[Path, Path | None] | None = None,
        options: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ephemeral: bool = False,
    ) -> Mount:
        """Make a mount of *image*, *layers* (ids, bottom first) or a *step*, and, if *writable*, its upper.

        Its configuration is the image's, or *config*, and is what a commit starts from.
        The upper's root gets owner, mode, attributes and times of the root of the topmost layer.
        *external_upper* are directories that serve as the upper and for its work instead; if the mount is not
        *writable*, nothing is written to the upper, and no work directory is needed. Raises `Conflict` for a
        name or upper in use, `BadRequest` for a bad name or directory, `NotFound`.
        """
        return mounts.create(
            self._db,
            name,
            image=image,
            layer_ids=layers,
            step=step,
            build=self._build,
            writable=writable,
            external_upper=external_upper,
            options=dict(options or {}),
            config=config,
            ephemeral=ephemeral,
        )

    def outside_upper(self, mount: Mount) -> Path | None:
        """Return the directory that was given as the upper of *mount*, None where the store has its own."""
        return external.outside(self._db, mount)

    def committed_from(self, path: Path) -> str | None:
        """Return the id of the newest image that was committed from an upper at *path*, if it is there."""
        return external.committed_from(self._db, external.place_of(path))

    def rename_mount(self, mount_id: str, name: str) -> None:
        """Give a mount another name; atomic. Raises `NotFound`, `BadRequest`, `Conflict` for a taken name."""
        mounts.rename(self._db, mount_id, name)

    def update_container(self, mount_id: str, action: str | None, **values: Any) -> None:
        """Note *values* about a container, with an event called *action* if any; raises `NotFound`."""
        mounts.update_container(self._db, mount_id, action, values)

    def set_options(self, mount_id: str, options: Mapping[str, Any], work: Path | None) -> None:
        """Have a mount use *options* instead of those it had, from the next time it is mounted.

        With "ro" among them it takes no writes. Without, *work* becomes the work directory of an upper
        outside the store; None leaves that as it is. Atomic; may be repeated; not durable: a power cut may
        undo it.
        Raises `NotFound`, and `Conflict` or `BadRequest` where the layers of the mount do not go with the
        options.
        """
        mounts.set_options(self._db, mount_id, options, work)

    def set_mounted(self, mount_id: str, mountpoint: str, started: datetime) -> None:
        """Note where a mount is mounted, and since when (aware); raises `NotFound`."""
        mounts.set_mounted(self._db, mount_id, mountpoint, started)

    def set_unmounted(self, mount_id: str) -> None:
        """Note that a mount is not mounted any more; raises `NotFound`."""
        mounts.set_unmounted(self._db, mount_id)

    def set_mountpoint(self, mount_id: str, mountpoint: str | None) -> None:
        """Note where a mount was last, after it has been somewhere else for a moment; raises `NotFound`."""
        mounts.set_mountpoint(self._db, mount_id, mountpoint)

    def remove_mount(self, mount_id: str, *, volumes: bool = False) -> None:
        """Remove a mount and its upper; images and trees outside the store stay. Raises `NotFound`.

        With *volumes*, those that nobody named and nobody else has go too.
        """
        from layerfs.store.volumes import Volumes

        own = Volumes(self._db)
        doomed = own.anonymous_of(mount_id) if volumes else []
        mounts.remove(self._db, mount_id)
        for name in doomed:
            with suppress(Conflict, NotFound):  # somebody else has it by now, or has removed it
                own.remove(name)

    # Commit

    def check_commit(self, reference: str | None, changes: Sequence[str]) -> None:
        """Raise `BadRequest` for a reference or changes that `commit` would refuse."""
        commit.check(reference, changes)

    def prepare_upper(self, mount: Mount) -> Layer:
        """Make the next upper of a mount, for `commit` or `abandon_upper`; slow work goes here.

        Its directories are on disk on return. It is held by this process, in any thread. Raises `Conflict`
        when the mount cannot be committed.
        """
        return commit.prepare(self._db, mount)

    def abandon_upper(self, mount: Mount, new_upper: Layer) -> None:
        """Remove a prepared upper whose commit will not come."""
        commit.abandon(self._db, mount, new_upper)

    def commit(
        self,
        mount: Mount,
        new_upper: Layer,
        *,
        reference: str | None,
        comment: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        created_by: str = "",
        tree: int | None = None,
    ) -> Image:
        """Seal the upper of *mount* as the top layer of a new image; *new_upper* takes its place.

        *tree* is a descriptor on the upper's tree, if it is mounted: no other one is sealed in its place.
        One short transaction, independent of what the upper holds. Atomic; not durable: a power cut may undo
        it until `sync` has returned, and what is in the layer is on disk once it is settled. Raises
        `StoreBusy` at once when another process is writing (call again), `BadRequest`, `Conflict` or
        `NotFound`; then nothing changed.
        """
        return commit.commit(
            self._db,
            mount,
            new_upper,
            reference=reference,
            comment=comment,
            author=author,
            changes=changes,
            created_by=created_by,
            tree=tree,
        )

    def rehearse_commit(self, mount: Mount, new_upper: Layer) -> None:
        """Do all that `commit` does, and undo it, so that the next one finds everything read and compiled.

        Nothing has changed on return, and nothing was written. Raises as `commit`.
        """
        commit.rehearse(self._db, mount, new_upper)

    def checkpoint(
        self,
        mount: Mount,
        new_upper: Layer,
        wording: Wording,
        *,
        build: str | None = None,
        tree: int | None = None,
    ) -> str:
        """Seal the upper of *mount* as the layer of a new step, and return that: a `commit` without an image.

        The mount owns the step for as long as it is on its stack. With *build* it is held for that too.
        """
        return commit.checkpoint(self._db, mount, new_upper, wording, build=build, tree=tree)
