"""Steps that builds make: layers that are filled at rest and sealed, empty steps, and images of them.

A step needs an owner: an image, a mount, an entry of the build cache, a step above it, or a build. What a
`Store` makes that was opened for a build is held for that. Without one, give a step an owner at once; else it
stays, and `layerfs fsck` tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.errors import Conflict, NotFound, from_os_error
from layerfs.store import events, holds, images, layers, marks, stacks
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Image, Layer, to_nanoseconds
from layerfs.union.marking import Marking
from layerfs.union.trees import copy_attributes, sync_path

if TYPE_CHECKING:
    from layerfs.union.stack import Stack


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that is being filled."""

    id: str
    path: Path
    """Its tree, `layers/ID/fs`."""
    marking: Marking
    """With which attributes opaque directories and the like are marked in it."""
    lock: int
    """A descriptor that keeps the tree from being taken for rubbish; programs that write to it inherit it."""


class Steps:
    """The steps of a store, for one thread; what it makes is held for *build*."""

    def __init__(self, db: Database, build: str | None) -> None:
        self._db = db
        self._build = build

    def hold(self, step: str) -> None:
        """Keep *step* for as long as the build goes on; idempotent. Raises `NotFound`."""
        with self._db.transaction():
            stacks.check(self._db, step)
            holds.add(self._db, self._build, step)

    def step_of(self, image: Image) -> str:
        """Return the step at the top of *image*, which is held from now on; raises `NotFound`."""
        with self._db.transaction():
            step = self._db.scalar("SELECT step FROM images WHERE id = ?", (image.id,))
            if step is None:
                raise NotFound(f"no such image: {image.id}")
            holds.add(self._db, self._build, str(step))
        return str(step)

    def layers_of_step(self, step: str) -> list[Layer]:
        """Return the layers of the stack that *step* stands for, bottom first; raises `NotFound`."""
        with self._db.snapshot():
            stacks.check(self._db, step)
            return layers.get_all(self._db, stacks.layers_in(stacks.history(self._db, step)))

    def stack_of_step(self, step: str) -> Stack:
        """Return the trees of the stack that *step* stands for, to be read. Raises `NotFound`, `Conflict`."""
        stacks.check(self._db, step)
        return stacks.to_read(self._db, stacks.layer_ids(self._db, step)[::-1])

    def history_of_step(self, step: str) -> tuple[HistoryEntry, ...]:
        """Return the steps up to *step*, oldest first; raises `NotFound`."""
        with self._db.snapshot():
            stacks.check(self._db, step)
            return stacks.history(self._db, step)

    def entry(self, step: str) -> HistoryEntry:
        """Return what *step* alone is in the history; raises `NotFound`."""
        return stacks.entry(self._db, step)

    @contextmanager
    def new_layer(self, below: str | None = None) -> Iterator[NewLayer]:
        """Begin a layer on top of the step *below*, to be filled and then sealed; else it goes at the end.

        Its root has owner, mode, attributes and times of the root of the stack below. Should this process be
        killed, recovery removes it. Raises `NotFound`, `NoSpace` and others.
        """
        rows = self.layers_of_step(below) if below is not None else []
        marking = marks.of_stack(rows, userxattr=False)
        layer_id = layers.begin(self._db, "fs")
        try:
            tree = layers.directory(self._db, layer_id) / "fs"
            try:
                (tree.parent / layers.FILLING).touch()  # on the disk before anything that is in the tree
                if rows:
                    copy_attributes(rows[-1].path, tree, marking)
                for path in (tree.parent, self._db.layers):  # what is in a tree comes later, at settling
                    sync_path(path)
            except OSError as error:
                raise from_os_error(error, "begin a layer") from None
            lock = layers.held(layer_id)
            assert lock is not None
            yield NewLayer(layer_id, tree, marking, lock)
        finally:
            if layers.exists(self._db, layer_id):
                layers.keep(layer_id)
            else:
                layers.discard(self._db, layer_id)

    def seal_layer(
        self,
        new: NewLayer,
        below: str | None,
        *,
        created: datetime,
        created_by: str,
        comment: str = "",
        author: str = "",
    ) -> str:
        """Make *new*, as it is now, an immutable layer, and a step of it on top of *below*; return the step.

        One short transaction, independent of what is in the layer. Atomic; not durable: a power cut may
        undo it, or leave a layer that is unverified. Raises `NotFound`, and `Conflict` where *new* is no
        layer that this process is filling.
        """
        if layers.held(new.id) is None or layers.exists(self._db, new.id):
            raise Conflict(f"layer {new.id[:12]} is not being filled here")
        with self._db.transaction():
            layers.insert(self._db, new.id, "sealed", marks.name_of(new.marking))
            layers.seal(self._db, new.id)
            return self._add(below, HistoryEntry(created, created_by, author, comment, False, new.id))

    def empty_step(
        self, below: str | None, *, created: datetime, created_by: str, comment: str = "", author: str = ""
    ) -> str:
        """Make a step without a layer on top of *below*, and return it; the same one for the same arguments.

        Atomic; idempotent; not durable. Raises `NotFound`.
        """
        with self._db.transaction():
            return self._add(below, HistoryEntry(created, created_by, author, comment, True, None))

    def add_history(self, below: str | None, entries: Sequence[HistoryEntry]) -> str | None:
        """Make a step of each of *entries*, oldest first, on top of *below*; return the last one.

        Their layers are there already, and were made on top of the same ones: so the same files get another
        history. Atomic; idempotent; not durable. Raises `NotFound`.
        """
        with self._db.transaction():
            for entry in entries:
                if entry.layer is not None:
                    layers.get(self._db, entry.layer)
                below = self._add(below, entry)
        return below

    def make_image(
        self,
        step: str,
        config: Mapping[str, Any],
        *,
        references: Sequence[str] = (),
        parent: str | None = None,
        created: datetime | None = None,
        platform: tuple[str, str] | None = None,
        author: str = "",
        comment: str = "",
    ) -> Image:
        """Make an image of *step*, and give it the names *references*, which others lose; return it.

        It is of the time *created*, by default that of its step: so the same step, configuration and words
        make the same image again. *platform* is its architecture and system; by default they are those of
        *parent*, the id of the image it counts as made from, or this machine's. Atomic; idempotent; not
        durable (`Store.sync` makes it so). Raises `NotFound`, `BadRequest`.
        """
        with self._db.transaction():
            stacks.check(self._db, step)
            history = stacks.history(self._db, step)
            image = images.insert(
                self._db,
                step=step,
                history=history,
                config=dict(config),
                author=author,
                comment=comment,
                parent=parent,
                created=to_nanoseconds(created or history[-1].created),
                platform=platform,
            )
            name = references[0] if references else f"sha256:{image.id}"
            events.record(self._db, "image", "build", image.id, {"name": name})
            for reference in references:
                images.tag(self._db, image.id, reference)
            return images.get(self._db, image.id)

    def _add(self, below: str | None, entry: HistoryEntry) -> str:
        if below is not None:
            stacks.check(self._db, below)
        step = stacks.add(self._db, below, entry)
        holds.add(self._db, self._build, step)
        return step
