"""Going back: a union that shows other layers from one moment on, and nodes that follow when touched.

`go_back` assigns the union its new layers and a new generation, and visits no node. A node of an older
generation is resolved again when somebody touches it (`refresh`):

- If its object is in the tree, it stays the node of that object, whatever its name is now: what is kept of
  it, here and in the kernel, holds. An object is known by its layer and its place there, never by a number,
  and layers that a union goes back to do not change.
- Else it *lapses*. It is like a deleted file or a removed directory that is in use: a descriptor shows what
  it did, and the first write gives it a copy that has no name. Nothing that is written to it gets into a
  layer. A node that comes for another object of the same number has a number of its own for the kernel, which
  has kept pages of the lapsed one, and the same for people (`node.shown_number`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from layerfs.union import links, merge
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import Marking
from layerfs.union.node import Directory, File, Node, Object
from layerfs.union.run import Run, RunDir
from layerfs.union.whiteout import DIRECTORY

if TYPE_CHECKING:
    from layerfs.union.upper import Upper
    from layerfs.union.view import Union

_OUT_OF_REACH = (errno.EPERM, errno.EINVAL, errno.EACCES)
_PAST = 256
"""How many layers that are in the union no more are kept to be the same ones when it goes there again."""


def names_that_may_change(
    union: Union, lowers: Sequence[Layer], common: int | None = None
) -> list[tuple[Directory, bytes, Node | None]]:
    """Return the names that may mean something else once the union shows *lowers*: of directories in use.

    Each with the node that it has now, if any. To be called before `go_back`, with the same arguments. The
    cost depends on what the layers hold that come and go, in those directories. Raises `OSError`.
    """
    change = _Change(union, lowers, common)
    found = []
    for directory in _with_parts_in(union, change.gone, change.common):
        for part in directory.dirs:
            if part.layer in change.gone:
                found += [(directory, name) for name in _names_since(part, change.common)]
    for layer in change.come:
        pending = [(union.root, layer.root)]
        for directory, part in pending:
            for name in _names_since(part, change.common):
                found.append((directory, name))
                child = directory.children.get(name)
                if isinstance(child, Directory) and part.kind(name) == DIRECTORY:
                    pending.append((child, part.child(name)))
    return [(directory, name, directory.children.get(name)) for directory, name in dict.fromkeys(found)]


def _names_since(part: LayerDir, depth: int) -> Iterable[bytes]:
    """Return the names of which *part* says something in a layer with *depth* layers below it, or more."""
    return part.names_since(depth) if isinstance(part, RunDir) else part.kinds()


class _Change:
    """What becomes of the layers of a union that is to show *lowers*, bottom first.

    The lowest *common* layers are the same ones now and then, though they may be read by other runs. By
    default those count that are the same objects.
    """

    def __init__(self, union: Union, lowers: Sequence[Layer], common: int | None) -> None:
        present = [layer for layer in reversed(union.layers) if layer is not union.upper]
        if common is None:
            common = 0
            for one, other in zip(present, lowers, strict=False):
                if one is not other:
                    break
                common += depth_of(one)
        self.common = common
        before, stays = set(present), set(lowers)
        self.dropped = [layer for layer in present if layer not in stays]
        self.added = [layer for layer in lowers if layer not in before]
        self.gone = [layer for layer, top in _tops(present) if layer not in stays and top > common]
        """Those dropped that hold, or are, layers that are not common; so with `come` and those added."""
        self.come = [layer for layer, top in _tops(lowers) if layer not in before and top > common]
        if union.upper is not None:
            self.gone.append(union.upper)
            self.dropped.append(union.upper)


def depth_of(layer: Layer) -> int:
    """Return how many layers *layer* stands for: more than one if it is a run."""
    return layer.count if isinstance(layer, Run) else 1


def _tops(layers: Sequence[Layer]) -> Iterator[tuple[Layer, int]]:
    """Yield each of *layers*, bottom first, and how many layers there are up to the top of it."""
    total = 0
    for layer in layers:
        total += depth_of(layer)
        yield layer, total


class Gone(NamedTuple):
    """What going back has changed for those who keep something of the tree."""

    directories: list[Directory]
    """The directories that are known whose attributes or names may be others now."""
    files: list[File]
    """The files that are the same, but for the number of their names."""


def go_back(union: Union, lowers: Sequence[Layer], upper: Upper, common: int | None = None) -> Gone:
    """Show *lowers* (bottom first) under *upper*, which is empty, in place of the layers of now.

    The layers of the union that stay must be the same objects (`reuse`), but for those of a run. *common* is
    how many of the lowest are layers of now as well, runs or not; by default that is what the objects say.
    The cost depends on the number of layers and runs, and of directories in use that they change, alone. What
    was the upper is sealed. It all happens between two operations, and cannot fail.
    """
    assert union.upper is not None
    assert not union.partials
    union.upper.has_no_partial()
    union.upper.seal()
    change = _Change(union, lowers, common)
    changed = _with_parts_in(union, change.gone, change.common)
    for layer in change.come:
        changed += _known_in(union, layer, change.common)
    if union.upper.hides:
        union.hiding.append(union.upper)
    _exchange(union, lowers, upper, change)
    union.went_back = union.generation
    union.root.default_acl = None
    union.listings.drop_all()
    hidden, union.hidden = union.hidden, _hidden_by(union)
    things = {thing for thing in {*hidden, *union.hidden} if hidden.get(thing) != union.hidden.get(thing)}
    files = _files_of(union, things)
    return Gone([union.root, *(each for each in dict.fromkeys(changed) if each is not union.root)], files)


def restack(union: Union, lowers: Sequence[Layer]) -> None:
    """Read the layers of now, without the upper, as *lowers* (bottom first): by other runs.

    Nothing changes for anybody: what is known of the tree stays known, here and in the kernel. The cost
    depends on the number of layers and runs alone. It all happens between two operations, and cannot fail.
    """
    present = sum(depth_of(layer) for layer in union.layers if layer is not union.upper)
    assert present == sum(depth_of(layer) for layer in lowers)
    _exchange(union, lowers, union.upper, _Change(union, lowers, present))


def _exchange(union: Union, lowers: Sequence[Layer], upper: Upper | None, change: _Change) -> None:
    """Have the union show *lowers* and *upper* from now on."""
    for layer in change.added:
        union.past.pop(layer.path, None)
        layer.share(union.directories)
        if layer.tops is None:
            layer.tops = WeakSet()
    stays = [*lowers, *([upper] if upper is not None else [])]
    came = False
    for depth, layer in enumerate(stays):
        came = came or layer in change.added or layer is upper
        if came:
            layer.below = tuple(reversed(lowers[:depth]))
    for layer in change.dropped:
        if layer is upper:
            continue
        if not isinstance(layer, Run):
            layer.below = layer.below[
                -1:
            ]  # it is no part of a stack: only whether there was any below counts
            union.past[layer.path] = layer
    while len(union.past) > _PAST:
        del union.past[next(iter(union.past))]
    if upper is not None:
        upper.share(union.directories)
    union.upper = upper
    union.layers = stays[::-1]
    union.generation += 1
    union.root.dirs = [layer.root for layer in union.layers]
    union.root.generation = union.generation
    union.note_top(union.root)


def is_as_below(upper: int, below: int, marking: Marking) -> bool:
    """Tell whether nothing was written to an upper, given descriptors of its root and of the one below it."""
    with os.scandir(upper) as entries:
        if next(entries, None) is not None:
            return False
    one, other = os.fstat(upper), os.fstat(below)
    same = (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns) == (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_mtime_ns,
    )
    return same and marking.shown_values(upper) == marking.shown_values(below)


def reuse(union: Union, path: bytes) -> Layer | None:
    """Return the layer at *path* if the union has or had it, by itself or in a run."""
    shelf = union.layers[0].shelf
    layer = union.past.get(path) or (shelf.known.get(path) if shelf is not None else None)
    return layer or next((each for each in union.layers if each.path == path), None)


def is_in(union: Union, layer: Layer) -> bool:
    """Tell whether *layer* is in the union, by itself or in a run."""
    return layer in union.layers or any(
        isinstance(each, Run) and each.number_of(layer) is not None for each in union.layers
    )


def _hidden_by(union: Union) -> dict[Object, int]:
    total: dict[Object, int] = {}
    for layer in union.hiding:
        if is_in(union, layer):
            for thing, count in layer.hides.items():
                total[thing] = total.get(thing, 0) + count
    return total


def _files_of(union: Union, things: set[Object]) -> list[File]:
    found = []
    for layer, device, inode in things:
        number = union.table.lasting_number(device, inode)
        nodes = [union.table.aliases.get((layer, device, inode))]
        if number is not None:
            nodes += [node for node in union.table.holders(number) if isinstance(node, File)]
        found += [node for node in nodes if node is not None]
    return found


def _with_parts_in(union: Union, gone: Sequence[Layer], common: int) -> list[Directory]:
    """Return the directories in use that have a part in one of the layers *gone* that is not *common*."""
    found: dict[Directory, None] = {}
    layers = [layer for layer in gone if not isinstance(layer, Run)]
    if all(layer.tops is not None for layer in layers):
        found.update((directory, None) for layer in layers for directory in layer.tops or ())
    else:  # layers of before the union was opened
        known = [node for node in union.table.nodes.values() if isinstance(node, Directory)]
        found.update((node, None) for node in known if any(part.layer in layers for part in node.dirs))
    if len(layers) < len(gone):
        found.update((directory, None) for directory in _in_runs(union, set(gone), common))
    return list(found)


def _in_runs(union: Union, gone: set[Layer], common: int) -> Iterator[Directory]:
    """Yield the directories with a part in a run of *gone* in which a layer has one that is not *common*.

    Such a layer has a part in the directories above, too.
    """
    pending = [union.root]
    while pending:
        directory = pending.pop()
        yield directory
        pending += [
            child
            for child in directory.children.values()
            if isinstance(child, Directory)
            and any(
                part.layer in gone and (not isinstance(part, RunDir) or part.depth >= common)
                for part in child.dirs
            )
        ]


def _known_in(union: Union, layer: Layer, common: int) -> list[Directory]:
    """Return the directories in use that get a part in *layer*, by the names that they have now.

    In a run, those alone in which a layer that is not *common* has one. Nobody has those in use that this
    does not find: the kernel knows a directory by those above it.
    """
    found: list[Directory] = []
    pending = [(union.root, layer.root)]
    while pending:
        directory, part = pending.pop()
        found.append(directory)
        before = len(layer.directories)
        try:
            names = [name for name, child in directory.children.items() if isinstance(child, Directory)]
            inside = [name for name in names if _says_since(part, name, common)] if names else []
        except OSError:
            continue
        finally:
            layer.directories.settle(before)
        for name in inside:
            child = directory.children[name]
            assert isinstance(child, Directory)
            if part.kind(name) == DIRECTORY:
                pending.append((child, part.child(name)))
            else:  # it may have been renamed, with all that is in it
                found += _at_and_below(child)
    return found


def _says_since(part: LayerDir, name: bytes, depth: int) -> bool:
    """Tell whether *part* says something of *name* in a layer with *depth* layers below it, or more."""
    if part.kind(name) is None:
        return False
    return not isinstance(part, RunDir) or part.depth_of_name(name) >= depth


def _at_and_below(directory: Directory) -> list[Directory]:
    found = [directory]
    for each in found:
        found += [child for child in each.children.values() if isinstance(child, Directory)]
    return found


# -- nodes ------------------------------------------------------------------------------------------


def refresh(union: Union, node: Node) -> None:
    """Have *node* be what it is in the union of now: at its place, at another one, or lapsed.

    Raises `OSError` where a layer cannot be read; the next call tries again.
    """
    if node.generation == union.generation:
        return
    if isinstance(node, Directory):
        _refresh_directories(union, node)
    elif node.generation >= union.went_back:  # its layer is read by a run, or by another one: it is the same
        node.generation = union.generation
    else:
        for parent, _ in node.names:
            _refresh_directories(union, parent)
        if node.generation != union.generation:
            _refresh_file(union, node)


def _refresh_directories(union: Union, directory: Directory) -> None:
    """Refresh *directory* and those above it, from the top."""
    stale: list[Directory] = []
    for each in directory.ancestors():
        if each.generation == union.generation:
            break
        stale.append(each)
    for each in reversed(stale):
        if each.generation != union.generation:  # not found on the way to another one
            _refresh_directory(union, each)


def _refresh_directory(union: Union, directory: Directory) -> None:
    parent = directory.parent
    assert parent is not None
    if directory.removed and directory.generation >= union.went_back:
        directory.generation = union.generation
        return
    if not directory.removed:
        target = None if parent.removed else merge.resolve(parent.dirs, directory.name)
        if isinstance(target, list) and is_same_directory(target[-1], directory.dirs[-1]):
            _adopt(union, directory, target)
            return
        if parent.children.get(directory.name) is directory:
            del parent.children[directory.name]
    elif directory.ino not in union.table.lapsed:
        union.table.dead.add(directory.ino)
    union.listings.drop(directory)
    directory.removed = True
    directory.generation = union.generation
    union.table.lapsed.add(directory.ino)
    if directory.dirs[-1].pinned or directory.ino in union.table.dead:
        return
    lowest = directory.dirs[-1].lowest()
    if is_in(union, lowest.layer):
        # Where it is now, it is found by its object.
        _walk_to(union, _today(union, lowest.layer, lowest.place()))


def _adopt(union: Union, directory: Directory, dirs: list[LayerDir]) -> None:
    """Give *directory* the parts *dirs*; those that it has stay the same objects, with what they remember."""
    known = {part.layer: part for part in directory.dirs}
    directory.dirs = [
        old
        if (old := known.get(part.layer)) is not None
        and old.name == part.name
        and old.parent is part.parent
        and old.redirect == part.redirect
        else part
        for part in dirs
    ]
    union.listings.drop(directory)
    directory.default_acl = None
    directory.generation = union.generation
    union.note_top(directory)


def revive(union: Union, directory: Directory, parent: Directory, name: bytes, dirs: list[LayerDir]) -> None:
    """Note that *directory*, which had lapsed, is in the tree as *name* in *parent*."""
    union.table.lapsed.discard(directory.ino)
    directory.parent, directory.name, directory.removed = parent, name, False
    parent.children[name] = directory
    _adopt(union, directory, dirs)


def _refresh_file(union: Union, file: File) -> None:
    kept = []
    for parent, name in file.names:
        if _leads_to(parent, name, file):
            kept.append((parent, name))
    for parent, name in set(file.names) - set(kept):
        if parent.children.get(name) is file:
            del parent.children[name]
    file.set_names(kept)
    file.generation = union.generation
    if kept or file.orphan:
        return
    file.removed = True
    union.table.lapsed.add(file.ino)
    union.on_change(file)
    if file.entry and is_in(union, file.home.layer):
        place = _today(union, file.home.layer, (*file.home.place(), file.entry))
        directory = _walk_to(union, place[:-1])
        if directory is not None:
            _find(union, directory, place[-1])


def _leads_to(parent: Directory, name: bytes, file: File) -> bool:
    """Tell whether *name* in *parent* is that of the object that *file* stands for."""
    target = None if parent.removed else merge.resolve(parent.dirs, name)
    if not isinstance(target, LayerDir) or target.layer is not file.home.layer:
        return False
    if file.entry == name and file.home.place() == target.place():
        return True
    st, own = os.stat(name, dir_fd=target.fd(), follow_symlinks=False), file.stat()
    return (st.st_dev, st.st_ino) == (own.st_dev, own.st_ino)


def is_same_directory(one: LayerDir, other: LayerDir) -> bool:
    """Tell whether the lowest parts of two directories are one: then they are the same directory."""
    if one is other:
        return True
    if one.pinned or other.pinned:
        return False
    one, other = one.lowest(), other.lowest()
    return one.layer is other.layer and one.place() == other.place()


def above(union: Union, layer: Layer) -> Sequence[Layer | links.Renamed]:
    """Return the layers over *layer*, top-most first; none for one that is in the union no more."""
    found: list[Layer | links.Renamed] = []
    for each in union.layers:
        if each is layer:
            return found
        if isinstance(each, Run):
            number = each.number_of(layer)
            if number is not None:
                found.append(links.Renamed(each.moves_above(number)))
                return found
        found.append(each)
    return ()


def _today(union: Union, layer: Layer, place: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return where in the tree what is at *place* in *layer* would be, unless it was removed."""
    return links.today(place, above(union, layer))


def _walk_to(union: Union, path: Sequence[bytes]) -> Directory | None:
    """Return the directory with that path, None where there is none."""
    directory = union.root
    for name in path:
        node = _find(union, directory, name)
        if not isinstance(node, Directory):
            return None
        directory = node
    return directory


def _find(union: Union, directory: Directory, name: bytes) -> Node | None:
    try:
        node = union.lookup(directory, name)
    except OSError as error:
        if error.errno not in _OUT_OF_REACH:
            raise
        node = None
    if node is None:
        union.release(directory)  # the kernel may never have heard of it
    return node


def hold(union: Union, node: Node, layer: Layer) -> None:
    """Have *node*, which lapsed with *layer*, need no name in that: the tree is about to go.

    Raises `OSError`.
    """
    refresh(union, node)
    if isinstance(node, Directory):
        for part in node.dirs:
            if part.layer is layer and node.removed:
                part.pin()
    elif node.home.layer is layer and not node.orphan:
        node.pin_object()
        node.orphan = True
