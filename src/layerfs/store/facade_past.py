"""What `Store` does about the past of mounts: where they have been, and how they go back there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerfs.store import checkpoints, layers, marks
from layerfs.store.database import Database
from layerfs.store.model import Layer, Mount

if TYPE_CHECKING:
    from layerfs.store.checkpoints import WentBack
    from layerfs.store.commit import Wording
    from layerfs.store.log import LogEntry
    from layerfs.store.revisions import Revision
    from layerfs.store.squash import Squashed
    from layerfs.store.thinning import Rules, Thinned
    from layerfs.union.stack import Tree


class PastOfStore:
    """The part of a `Store` that is about the past of its mounts."""

    _db: Database

    def resolve_checkpoint(self, mount: Mount, reference: str) -> str:
        """Return the step in the past of *mount* that *reference* means; see `checkpoints.resolve`.

        Raises `NotFound`, and `BadRequest` for one that is ambiguous.
        """
        return checkpoints.resolve(self._db, mount, reference)

    def revision(self, reference: str) -> Revision:
        """Return what *reference* means in this store; see `revisions`. Raises `NotFound`, `BadRequest`."""
        from layerfs.store import revisions

        return revisions.resolve(self._db, reference)

    def log(
        self, revision: Revision, path: bytes | None = None, *, most: int | None = None, graph: bool = False
    ) -> list[LogEntry]:
        """Return the steps that led to a revision, newest first, *most* of them, with what each changed.

        With *path*, those that touched it, under its former names too; with *graph*, also those that the
        mount was at before it went back. May write down what it has counted. Raises `NotFound` and others.
        """
        from layerfs.store import log

        if path is not None:
            return log.log_of_path(self._db, revision, path, most=most)
        return log.log(self._db, revision, most=most, graph=graph)

    def squash(self, step: str) -> Squashed:
        """Join *step* with the one that stands on it, which keeps its id; see `layerfs.store.squash`.

        Atomic, and durable on return. Takes time in proportion to the names in the two layers. Raises
        `Conflict` where an image, a mount or a build needs it, and while a mount that has it is in use;
        `NotFound`, `NoSpace`.
        """
        from layerfs.store import squash

        return squash.squash(self._db, step)

    def keep(self, mount: Mount, rules: Rules) -> Thinned:
        """Thin out what *mount* has been at: what no rule wants is squashed, or removed where it is a top.

        What images, mounts and builds need stays. Every step of it is atomic. May be repeated. Raises
        `BadRequest` for no rule, `Conflict` while the mount is in use, `NoSpace` and others.
        """
        from layerfs.store import thinning

        return thinning.keep(self._db, mount.id, rules)

    def layers_at(self, mount: Mount, step: str) -> Sequence[str]:
        """Return the layers that *mount* stands on at *step*, bottom first; raises `NotFound`, `Conflict`."""
        return checkpoints.layers_at(self._db, mount, step)

    def check_rollback(self, mount: Mount) -> None:
        """Raise `Conflict` where *mount* cannot go back: it is read-only, or its upper outside the store."""
        checkpoints.check(self._db, mount)

    def rollback(
        self, mount: Mount, new_upper: Layer, step: str, wording: Wording, *, keep: bool
    ) -> WentBack:
        """Have *mount* stand on *step*, with the empty *new_upper* from `prepare_upper`.

        What was written since its last checkpoint is one more, with that *wording*, if *keep*; else the layer
        is nobody's any more, and the caller removes its tree by `discard_layer`. What the mount stood on
        stays until it is removed. One short transaction, independent of what was written. Atomic; not
        durable. Raises as `commit`; then nothing has changed.
        """
        return checkpoints.rollback(self._db, mount, new_upper, step, wording, keep=keep)

    def tree_of(self, layer: Layer, *, userxattr: bool) -> Tree:
        """Return the tree of a layer, as one to be read among those of a mount. Raises `Conflict`."""
        return marks.stack(self._db, [layer], userxattr=userxattr).trees[0]

    def has_changes(self, mount: Mount) -> bool:
        """Tell whether anything was written to a mount since its last checkpoint. Raises `LayerfsError`."""
        return checkpoints.has_changes(self._db, mount)

    def match_root(self, upper: Layer, layer_id: str) -> None:
        """Give the root of *upper*, which is empty, what that of a layer has; on the disk on return."""
        checkpoints.match_root(self._db, upper, layer_id)

    def discard_layer(self, layer_id: str) -> None:
        """Remove the tree of a layer whose row has gone. May be repeated. Raises `LayerfsError`."""
        layers.discard(self._db, layer_id)
