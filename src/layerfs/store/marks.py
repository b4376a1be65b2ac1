"""How the layers of a stack are marked, and so how the stack is read: decided once, when it is opened.

A layer's row says which prefix its tree was written with: root writes `trusted.overlay.` attributes, others
`user.overlay.` ones, and so does root on a mount with the option "userxattr". Rows of before that was noted
say nothing: their trees were written by the user whose store it is. A directory outside the store is read
with what the rest of the stack, or who mounts it, says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from layerfs.errors import BadRequest, Conflict
from layerfs.store.database import Database
from layerfs.store.model import Layer
from layerfs.union.marking import TRUSTED, USER, Marking, Trust, of_this_process, trust_in_others

if TYPE_CHECKING:
    from layerfs.union.stack import Stack

_BY_NAME = {"trusted": TRUSTED, "user": USER}


def name_of(marking: Marking) -> str:
    """Return what a layer's row calls *marking*."""
    return next(name for name, known in _BY_NAME.items() if known == marking)


def of_layer(layer: Layer) -> Marking:
    """Return how the tree of a layer is marked; of one that says nothing, how this process marks."""
    return _BY_NAME[layer.prefix] if layer.prefix is not None else of_this_process()


def of_stack(rows: Sequence[Layer], *, userxattr: bool) -> Marking:
    """Return how the layers *rows* are read together, by somebody who wants `user.` attributes or not.

    Raises `Conflict` where they were written in two ways, or in one that this process cannot read.
    """
    written = {of_layer(row) for row in rows if row.prefix is not None or not _is_brought(row)}
    if not written:
        return USER if userxattr else of_this_process()
    if len(written) > 1 or (userxattr and USER not in written):
        raise Conflict(
            "its layers are marked with trusted. attributes and with user. ones, and a mount reads only one"
            " kind: mount it without userxattr, and layers of both kinds apart"
        )
    (marking,) = written
    if marking == TRUSTED and of_this_process() != TRUSTED:
        raise Conflict("its layers were written by root, with attributes that only root can read: use sudo")
    return marking


def stack(
    db: Database, rows: Sequence[Layer], *, userxattr: bool = False, marking: Marking | None = None
) -> Stack:
    """Return the layers *rows*, bottom first, as trees to be read; raises `Conflict`.

    *marking* is how they are marked, where that is known already.
    """
    from layerfs.union.stack import Stack, Tree  # most commands open none, and it takes some time to load

    if marking is None:
        marking = of_stack(rows, userxattr=userxattr)
    trees = (Tree(row.path, row.state == "external", trust(row, marking), row.plain) for row in rows)
    return Stack(tuple(trees), marking, db.layers)


def trust(row: Layer, marking: Marking) -> Trust:
    """Return how far the marks in a layer's tree are to be trusted in a stack marked with *marking*.

    Only root sets `trusted.` attributes, and only layerfs writes to the trees of the store.
    """
    return trust_in_others() if marking == USER and (_is_brought(row) or row.outside) else Trust.ALL


def check_options(upper: Trust, marking: Marking, options: Mapping[str, object]) -> None:
    """Raise `BadRequest` for *options* of a mount that its marks have no safe way for."""
    if marking == USER and upper is Trust.NONE and options.get("metacopy"):
        raise BadRequest(
            "metacopy=on does not go with user. attributes, which others may set: leave one of the two out"
        )


def _is_brought(row: Layer) -> bool:
    """Tell whether the tree of a layer is a directory that somebody has brought along."""
    return row.state == "external" or (row.outside and row.state == "active")
