"""From what a name was resolved to, to the node for it: one that is known already, or a new one.

A node is known again by the object that it stands for (its layer, and its place or number there), whatever
name it had: as another link, or from before the union went back.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from layerfs.union import merge
from layerfs.union.generation import is_same_directory, refresh, revive
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import FileMarks
from layerfs.union.node import Directory, File, Node, object_of
from layerfs.union.partial import open_partial

if TYPE_CHECKING:
    from layerfs.union.view import Union


def enter(
    union: Union, parent: Directory, name: bytes, target: list[LayerDir] | LayerDir
) -> tuple[Node, os.stat_result]:
    """Return the node for a name that was resolved to *target*, new or known by another name, and its stat.

    Raises `OSError`.
    """
    if isinstance(target, list):
        return _enter_parts(union, parent, name, target)
    st = target.stat_file(name)
    if not target.layer.below:
        return enter_file(union, parent, name, target, st), st
    marks = target.file_marks(name, st)
    ino = None if marks.inode is None else union.table.recorded_number(marks.inode, st.st_ino)
    contents = None
    if marks.metacopy and stat.S_ISREG(st.st_mode):
        below = parent.dirs[parent.dirs.index(target) + 1 :]  # no layer of a run has such a file
        contents = merge.contents(below, target.layer, name, marks.redirect)
    node = enter_file(union, parent, name, target, st, ino)
    node.contents = contents
    if contents is not None and marks.partial is not None and node.partial is None:
        _enter_partial(union, node, target, name, marks)
    return node, st


def _enter_partial(union: Union, node: File, home: LayerDir, name: bytes, marks: FileMarks) -> None:
    """Take up a partial file that could not be finished after its daemon was killed. Raises `OSError`.

    In another layer than the upper there is none, unless that was never finished: it has EIO then.
    """
    try:
        if home.layer is not union.upper:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        partial = open_partial(home, name, marks)
    except OSError:
        union.release(node)
        raise
    union.add_partial(node, partial)


def enter_new(union: Union, parent: Directory, name: bytes, home: LayerDir, ino: int, kind: int) -> File:
    """Make a node for the file *name* of *home*, of type *kind*, without private marks.

    Its lasting number *ino* is not taken, and nothing is kept of the object (`Union.is_known_object`).
    """
    node = File(ino, kind, home, name)
    node.generation = union.generation
    union.table.nodes[ino] = parent.children[name] = node
    node.add_name(parent, name)
    return node


def enter_directory(
    union: Union, parent: Directory, name: bytes, dirs: list[LayerDir], number: int
) -> Directory:
    """Make a node for the directory *name* with these parts, of that number if it is not taken."""
    _check_holders(union, number)
    node = Directory(number, dirs, parent, name)
    node.generation = union.generation
    union.table.add(node)
    parent.children[name] = node
    union.note_top(node)
    return node


def enter_file(
    union: Union, parent: Directory, name: bytes, home: LayerDir, st: os.stat_result, ino: int | None = None
) -> File:
    """Return the node for the object *name* of *home*, known by another name already or new.

    A new one gets the number *ino*, or the object's own, or if that is taken one that no other has.
    """
    table = union.table
    if ino is None:
        ino = table.number(st.st_dev, st.st_ino)
    node = _holder(union, ino, home.layer, st) or table.aliases.get(object_of(home.layer, st))
    if node is None:
        _check_holders(union, ino)
        node = File(ino, stat.S_IFMT(st.st_mode), home, name)
        node.generation = union.generation
        table.add(node)
        table.identify(node, home.layer, st)
    else:
        if node.generation != union.generation:
            refresh(union, node)
            if parent.children.get(name) is node:
                return node
        if node.ino in table.lapsed:
            table.lapsed.discard(node.ino)
            node.removed = False
        if node.pin >= 0:
            node.place(home, name)
    node.add_name(parent, name)
    parent.children[name] = node
    return node


def _enter_parts(
    union: Union, parent: Directory, name: bytes, dirs: list[LayerDir]
) -> tuple[Directory, os.stat_result]:
    lowest = os.fstat(dirs[-1].lowest().fd())  # it stays the lowest when parts are added on top
    number = union.table.number(lowest.st_dev, lowest.st_ino)
    node = _known_directory(union, number, parent, name, dirs)
    if node is None:
        node = enter_directory(union, parent, name, dirs, number)
    return node, os.fstat(dirs[0].fd()) if len(dirs) > 1 or dirs[0].is_merged else lowest


def _known_directory(
    union: Union, number: int, parent: Directory, name: bytes, dirs: list[LayerDir]
) -> Directory | None:
    """Return the node of *dirs* if it is one of before the union went back, maybe by another name."""
    if union.went_back == 0:
        return None
    _check_holders(union, number)
    for node in union.table.holders(number):
        if isinstance(node, Directory) and is_same_directory(node.dirs[-1], dirs[-1]):
            if node.ino in union.table.lapsed and node.ino not in union.table.dead:
                revive(union, node, parent, name, dirs)
            if parent.children.get(name) is node:
                return node
    return None


def _check_holders(union: Union, number: int) -> None:
    """Find out of the nodes that have *number* whether they lapsed when the union went back."""
    for node in union.table.holders(number):
        if node.generation != union.generation:
            refresh(union, node)


def _holder(union: Union, ino: int, layer: Layer, st: os.stat_result) -> File | None:
    """Return the node with number *ino* that stands for the object *st* of *layer*, lapsed or not."""
    for node in union.table.holders(ino):
        if isinstance(node, File) and _is_object(node, layer, st):
            return node
    return None


def _is_object(node: File, layer: Layer, st: os.stat_result) -> bool:
    """Tell whether *node* stands for the object *st* of *layer*: by looking, not by number."""
    if node.home.layer is not layer:
        return False
    try:
        own = node.stat()
    except OSError:
        return False
    return (own.st_dev, own.st_ino) == (st.st_dev, st.st_ino)
