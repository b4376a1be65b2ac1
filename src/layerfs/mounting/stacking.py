"""How a mount reads the layers of its chain: those that are part of a run by its index, others one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from layerfs.store import runs
from layerfs.union.generation import depth_of, restack, reuse
from layerfs.union.layer import Layer
from layerfs.union.run import Run
from layerfs.union.stack import close_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from layerfs.store import Store
    from layerfs.store.model import Mount
    from layerfs.store.runs import Segment
    from layerfs.union.descriptors import DirectoryCache, Shelf
    from layerfs.union.marking import Marking, Trust
    from layerfs.union.view import Union


class Opened(NamedTuple):
    """The layers of a mount, without its upper."""

    layers: list[Layer]
    """Bottom first."""
    unsettled: dict[str, Layer]
    """Those that are not known to be on the disk, by id."""
    marking: Marking
    upper: Trust | None
    """How far what the upper says is to be trusted; None if the mount has none."""


def open_layers(store: Store, mount: Mount, shelf: Shelf, directories: DirectoryCache) -> Opened:
    """Open the layers of *mount*. The cost depends on how many runs and single layers they are.

    Raises `LayerfsError`, `OSError`; then nothing is open.
    """
    ids = mount.layers
    plan = runs.segments(store.database.layers, ids)
    singles = [ids[each.first] for each in plan if each.index is None]
    tops = [ids[each.first + each.count - 1] for each in plan if each.index is not None]
    rows, stack = store.some_of_stack(mount, singles, tops)
    if any(each.index is not None and each.index.marking != stack.marking for each in plan):
        raise AssertionError("the layers of a stack are marked in one way")
    trees = dict(zip(singles, stack.trees, strict=False))
    found: list[Layer] = []
    unsettled = {}
    try:
        for each in plan:
            if each.index is not None:
                layer: Layer = runs.open_run(each, ids, shelf, directories)
            else:
                tree = trees[ids[each.first]]
                layer = Layer(
                    tree.path,
                    aufs=tree.aufs,
                    marking=stack.marking,
                    trust=tree.trust,
                    shelf=shelf,
                    directories=directories,
                )
                row = rows[ids[each.first]]
                if row.state == "sealed" and not row.manifest_done:
                    layer.on_disk = False
                    unsettled[row.id] = layer
            layer.below = tuple(reversed(found))
            found.append(layer)
    except BaseException:
        close_all(found)
        raise
    return Opened(found, unsettled, stack.marking, stack.trees[-1].trust if mount.upper is not None else None)


async def layers_of(
    union: Union,
    present: Sequence[str],
    wanted: Sequence[str],
    plan: Callable[[Sequence[str]], Awaitable[list[Segment]]],
    open_layer: Callable[[str], Awaitable[Layer]],
    opened: list[Layer],
) -> tuple[list[Layer], int]:
    """Return the layers *wanted*, bottom first: those that the union has, or had, and others newly *opened*.

    It has the layers *present*, bottom first, now; the second value is how many of the lowest are the same.
    """
    common = _common(present, wanted)
    found: list[Layer] = []
    depth = 0
    for layer in reversed(union.layers):
        if layer is union.upper or depth + depth_of(layer) > common:
            break
        found.append(layer)
        depth += depth_of(layer)
    rest = wanted[depth:]
    for each in await plan(rest) if rest else ():
        layer_id = rest[each.first]
        known = None
        if each.index is not None:
            assert union.upper is not None
            assert union.upper.shelf is not None
            layer = runs.open_run(each, rest, union.upper.shelf, union.directories, above=depth)
        else:
            shelf = union.layers[0].shelf
            known = reuse(union, shelf.tree_of(layer_id)) if shelf is not None else None
            layer = known if known is not None and known not in found else await open_layer(layer_id)
        if layer is not known:
            opened.append(layer)
            layer.below = tuple(reversed(found))
        found.append(layer)
    return found, common


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many of the first of two sequences are the same."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if tuple(one[least:middle]) == tuple(other[least:middle]):
            least = middle
        else:
            most = middle - 1
    return least


def read_by(union: Union, ids: Sequence[str], plan: Sequence[Segment]) -> bool:
    """Have *union*, whose lowest layers are *ids*, read those by *plan* from now on, if that takes fewer.

    Nothing changes for anybody. Returns whether it does.
    """
    present: dict[int, Layer] = {}
    depth = 0
    for layer in reversed(union.layers):
        if layer is not union.upper:
            present[depth] = layer
            depth += depth_of(layer)
    rest = [layer for first, layer in present.items() if first >= len(ids)]
    if len(plan) + len(rest) >= len(present):
        return False
    shelf = union.layers[0].shelf
    if shelf is None:
        return False
    lowers: list[Layer] = []
    for each in plan:
        there = present.get(each.first)
        if there is not None and depth_of(there) == each.count and (each.count == 1 or _is(there, each)):
            lowers.append(there)
        elif each.index is None or each.index.marking != union.marking:
            return False  # it has gone meanwhile
        else:
            covered = (present.get(first) for first in range(each.first, each.first + each.count))
            if any(layer is not None and not layer.on_disk for layer in covered):
                return False
            lowers.append(runs.open_run(each, ids, shelf, union.directories))
    restack(union, [*lowers, *rest])
    return True


def _is(layer: Layer, segment: Segment) -> bool:
    return isinstance(layer, Run) and segment.index is not None and layer.path == segment.index.path
