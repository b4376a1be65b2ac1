"""`Store`: the one door to the store for everybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from layerfs.store import events, external, images, layers, marks, mounts, removal, stacks
from layerfs.store.database import Database
from layerfs.store.facade_mounts import MountsOfStore
from layerfs.store.facade_past import PastOfStore
from layerfs.store.model import Difference, Event, HistoryRow, Image, Layer, Mount, Removal
from layerfs.store.references import normalize

if TYPE_CHECKING:
    from layerfs.store.buildcache import BuildCache
    from layerfs.store.builds import Build
    from layerfs.store.fsck import Problem
    from layerfs.store.images import ImageRow
    from layerfs.store.networks import Networks
    from layerfs.store.revisions import Revision
    from layerfs.store.scratch import Scratch
    from layerfs.store.steps import Steps
    from layerfs.store.usage import Usage
    from layerfs.store.volumes import Volumes
    from layerfs.union.stack import Stack

# What few commands need is imported where it is used: hashing, unpacking and their libraries.


class Store(MountsOfStore, PastOfStore):
    """The store at *root*: layers, images, mounts and what happened to them.

    A `Store` is cheap to open and belongs to the thread that opened it. It is a context manager. Any
    method may raise `StoreBusy`, `NoSpace`, `Forbidden` or, for a damaged database, `LayerfsError`.

    With *create* (the default) a store that is not there is made, else `NotFound` is raised; a store
    that a newer layerfs wrote is a `Conflict`.
    """

    def __init__(
        self, root: Path, *, create: bool = True, wait: bool = True, build: str | None = None
    ) -> None:
        """Open the store; without *wait* what finds it busy raises `StoreBusy` at once, from then on.

        What is made or found for a *build* is held for that: see `building`.
        """
        self._db = Database(root, create=create, wait=wait)
        self._build = build
        self.root = self._db.root

    @property
    def database(self) -> Database:
        """The database, for the rooms that load and save images."""
        return self._db

    def close(self) -> None:
        """Close the database; closing twice is fine."""
        self._db.close()

    def __enter__(self) -> Store:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    @property
    def networks(self) -> Networks:
        """The networks, and which containers are in them."""
        from layerfs.store.networks import Networks

        return Networks(self._db)

    @property
    def volumes(self) -> Volumes:
        """The volumes, and which containers have them."""
        from layerfs.store.volumes import Volumes

        return Volumes(self._db)

    # Builds

    @contextmanager
    def building(self) -> Iterator[Build]:
        """Begin a build; when the block ends, however it ends, what was held for it is let go.

        The store is one of that build meanwhile. Those of its other threads are opened with its id. Should
        this process be killed, `recover` lets go.
        """
        from layerfs.store.builds import building

        with building(self._db) as build:
            self._build = build.id
            try:
                yield build
            finally:
                self._build = None

    @property
    def steps(self) -> Steps:
        """The steps: layers filled at rest, and images of them."""
        from layerfs.store.steps import Steps

        return Steps(self._db, self._build)

    @property
    def build_cache(self) -> BuildCache:
        """The steps that builds have made, by what decided about them."""
        from layerfs.store.buildcache import BuildCache

        return BuildCache(self._db, self._build)

    # Layers

    def layer(self, layer_id: str) -> Layer:
        """Return the layer with this id; raises `NotFound`."""
        return layers.get(self._db, layer_id)

    def layers_of(self, owner: Image | Mount) -> list[Layer]:
        """Return the layers of an image or a mount (without its upper), bottom first."""
        return layers.get_all(self._db, owner.layers)

    def stack_of(self, owner: Image | Mount, *, upper: bool = False) -> Stack:
        """Return the layers of an image or a mount as trees to be read; with *upper*, a mount's too, if any.

        Raises `Conflict` where they cannot be read together, or not by this process.
        """
        rows = self.layers_of(owner)
        userxattr = False
        if isinstance(owner, Mount):
            userxattr = bool(owner.options.get("userxattr"))
            if upper and owner.upper is not None:
                rows.append(self.layer(owner.upper))
        external.complete(self._db, rows)
        return marks.stack(self._db, rows, userxattr=userxattr)

    def stack_at(self, revision: Revision) -> Stack:
        """Return the trees of what a reference means, to be read: of a mount, its upper is the topmost.

        Raises `NotFound` where it has been removed meanwhile, and `Conflict`.
        """
        if revision.mount is not None:
            return self.stack_of(mounts.get(self._db, revision.mount), upper=True)
        return stacks.to_read(self._db, stacks.layer_ids(self._db, revision.step)[::-1])

    def some_of_stack(
        self, mount: Mount, singles: Sequence[str], others: Sequence[str]
    ) -> tuple[dict[str, Layer], Stack]:
        """Return those layers of a mount that have the ids *singles*, and their trees with that of the upper.

        The upper's comes last, if the mount has one. How they are marked is decided with *others* as well.
        Raises `Conflict` where they cannot be read together, or not by this process.
        """
        rows = layers.get_all(self._db, singles)
        more = layers.get_all(self._db, others)
        upper = [self.layer(mount.upper)] if mount.upper is not None else []
        external.complete(self._db, [*rows, *upper])
        userxattr = bool(mount.options.get("userxattr"))
        marking = marks.of_stack([*rows, *more, *upper], userxattr=userxattr)
        stack = marks.stack(self._db, [*rows, *upper], marking=marking)
        return {row.id: row for row in rows}, stack

    def external_layer(self, path: Path) -> Layer:
        """Return the layer for a plain directory, registering it when it is new.

        layerfs never writes to its tree or removes it. Raises `NotFound`, `BadRequest`, `Forbidden`.
        """
        return layers.external(self._db, path)

    def layer_size(self, layer_id: str) -> int:
        """Return the bytes of a layer's regular files, hard links counted once.

        Measures, or waits for who is measuring, when it is not known; an upper is measured each time.
        """
        return layers.size(self._db, layer_id)

    # Images

    def resolve(self, reference: str) -> Image:
        """Return the image with this name, id (`sha256:` or not) or beginning of an id.

        Raises `NotFound`; `BadRequest` when it can be no reference or is ambiguous.
        """
        return images.resolve(self._db, reference)

    def images(self) -> list[Image]:
        """Return all images, newest first."""
        return images.every(self._db)

    def image_size(self, image: Image) -> int:
        """Return the bytes of all layers of an image; see `layer_size`."""
        return images.size(self._db, image)

    def history(self, image: Image) -> list[HistoryRow]:
        """Return the steps that made an image, newest first, with their sizes; see `layer_size`."""
        return images.history(self._db, image)

    def tag(self, image_id: str, reference: str) -> str:
        """Give an image a name, which another image loses; return it as `repository:tag`.

        Raises `BadRequest` for a bad reference, `NotFound` for an image that is not there.
        """
        with self._db.transaction():
            return images.tag(self._db, image_id, reference)

    def note_digest(self, image_id: str, name: str) -> None:
        """Note that an image is called *name* (`repository@digest`) in a registry; raises `NotFound`."""
        from layerfs.store import digests

        with self._db.transaction():
            digests.note(self._db, image_id, name)

    def untag(self, reference: str) -> None:
        """Take a name away from its image, which stays; raises `NotFound`, `BadRequest`."""
        with self._db.transaction():
            images.untag(self._db, normalize(reference))

    def remove_image(self, reference: str, *, force: bool = False, prune: bool = True) -> list[Removal]:
        """Remove a name, and the image when that was its last and nothing else needs it.

        Says what went, in order. Raises `NotFound`, and `Conflict` while a mount or an image made from it
        needs the image; *force* overrides stopped mounts and several names. With *prune*, parents
        that nothing names or needs any more go too. Layers that a mount or image uses always stay.
        """
        return removal.remove_image(self._db, reference, force=force, prune=prune)

    def import_image(
        self,
        source: Path | BinaryIO,
        reference: str | None,
        *,
        message: str = "",
        changes: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        called: str | None = None,
    ) -> Image:
        """Make an image of one layer from a directory, a tar archive or a stream of one.

        Archives may be compressed (gzip, zstd, bzip2, xz). *changes* are Dockerfile instructions,
        *progress* is called with the bytes done; the history says that it came from what is *called* so.
        Durable on return; on failure the store is as it was. Raises
        `NotFound`,
        `Forbidden`, `BadRequest` (also for hostile or damaged archives), `NoSpace`.
        """
        from layerfs.store.importer import import_image

        return import_image(
            self._db, source, reference, message=message, changes=changes, progress=progress, called=called
        )

    # Room

    def usage(self) -> Usage:
        """Return what is in the store, what its bytes are for, and what could be freed; see `layer_size`."""
        from layerfs.store.usage import usage

        return usage(self._db)

    def prune_images(
        self, *, tagged: bool, wanted: Callable[[ImageRow], bool] = lambda image: True
    ) -> tuple[list[Removal], int]:
        """Remove the images, of those *wanted*, that no mount was made from and no other image.

        Those that have a tag go only if *tagged*. Returns what went, in order, and the bytes it freed.
        """
        from layerfs.store.prune import prune_images

        return prune_images(self._db, tagged=tagged, wanted=wanted)

    def prune_mounts(
        self, *, wanted: Callable[[Mount], bool] = lambda mount: True
    ) -> tuple[list[Mount], int]:
        """Remove the mounts, of those *wanted*, that no daemon runs, and what was written to them.

        Returns those that went, and the bytes it freed.
        """
        from layerfs.store.prune import prune_mounts

        return prune_mounts(self._db, wanted=wanted)

    def scratch(self) -> AbstractContextManager[Scratch]:
        """Return a context manager that makes a directory in the store, and removes it at its end.

        Should this process be killed, `recover` removes it, once no program holds its lock any more.
        """
        from layerfs.store.scratch import scratch

        return scratch(self._db)

    # Durability

    def sync(self) -> None:
        """Bring all that was committed so far to the disk: durable on return.

        The rows alone: what is in a sealed layer is on disk once it is settled. Raises `LayerfsError`.
        """
        self._db.sync()

    def bring_exchange_to_disk(self, layer_id: str) -> None:
        """Bring to the disk that a commit took the tree of this layer from outside the store.

        Durable on return; nothing for other layers. Raises `OSError` or `LayerfsError`.
        """
        external.bring_to_disk(self._db, layer_id)

    # Afterwards

    def settle_layer(self, layer_id: str) -> None:
        """Measure a sealed layer, write its manifest, bring it to disk; at once when that is done already.

        Takes as long as reading the layer; see `layerfs.store.settle.start` for a process that does it.
        Raises `NotFound`, `Conflict` for an upper.
        """
        from layerfs.store.settle import settle

        settle(self._db, layer_id)

    def verify(self, reference: str) -> Iterator[Difference]:
        """Compare the layers of an image with their manifests and yield every file that differs.

        A layer without a manifest gets it first. One that was not on disk yet when the machine stopped is a
        difference of its own, without a path, until `accept`. Raises `NotFound`, `BadRequest` and others.
        """
        from layerfs.store.settle import verify

        for layer_id in self.resolve(reference).layers:
            yield from verify(self._db, layer_id)

    def accept(self, reference: str) -> None:
        """Take the unverified layers of an image as they are now for what was sealed. Durable on return.

        For somebody who has looked at them. Raises as `verify`.
        """
        from layerfs.store.settle import accept

        for layer_id in self.resolve(reference).layers:
            accept(self._db, layer_id)

    def recover(self) -> list[str]:
        """Remove or put right what crashes left behind; return a line for each thing done.

        Cheap when there is nothing to do; leaves alone what a live process is making. A tree with files in it
        that the database does not know is set aside, not removed.
        """
        from layerfs.store.gc import recover

        return recover(self._db)

    def check(self, *, repair: bool = False, contents: bool = False) -> Iterator[Problem]:
        """Hold the store against itself and yield what is wrong; see `layerfs.store.fsck.check`."""
        from layerfs.store.fsck import check

        return check(self._db, repair=repair, contents=contents)

    # Events

    def events(self, since: int = 0) -> list[Event]:
        """Return the events with ids above *since*, oldest first; the newest 10,000 are kept."""
        return events.after(self._db, since)

    def record_event(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Record an event of its own; those of the store's own changes are recorded with them."""
        with self._db.transaction():
            events.record(self._db, type, action, actor_id, attributes)

    def data_version(self) -> int:
        """Return a number that changes when another connection has changed the database."""
        return self._db.number("PRAGMA data_version")
