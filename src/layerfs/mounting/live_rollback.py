"""Going back with a mount that is in use: from the request to the moment in which its tree is another one.

As with a commit (`live_commit`), what takes time comes first and changes nothing: the next upper is made,
the layers of then are opened, and the kernel's cached writes are collected, which belong to what is given up.
Then, without an `await` between them, one transaction has the mount stand on another step, the kernel is told
that what it knows is stale, and the union shows the other layers. None of this touches a file.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from layerfs.errors import LayerfsError, from_os_error
from layerfs.fuse import stale, wire
from layerfs.host import submounts
from layerfs.mounting import places
from layerfs.mounting.live_commit import Held, in_one_moment, sync_root
from layerfs.mounting.stacking import layers_of
from layerfs.store import Store
from layerfs.store.commit import Wording
from layerfs.store.runs import segments
from layerfs.union.generation import (
    Gone,
    go_back,
    hold,
    is_as_below,
    names_that_may_change,
    refresh,
)
from layerfs.union.node import Directory, File, Node
from layerfs.union.upper import Upper
from layerfs.union.view import Union, copy_attributes

if TYPE_CHECKING:
    from pathlib import Path

    from layerfs.mounting.next_upper import NextUpper
    from layerfs.store.checkpoints import WentBack
    from layerfs.store.journal import Hold
    from layerfs.store.model import Layer as Row
    from layerfs.store.model import Mount
    from layerfs.store.runs import Segment
    from layerfs.union.layer import Layer

_log = logging.getLogger(__name__)


class Target(NamedTuple):
    """Where a mount is to go back to."""

    step: str
    layers: Sequence[str]
    """The layers of that step, bottom first."""


class Moved(NamedTuple):
    """What going back has come to."""

    went: WentBack
    prepared: Row
    """The upper that takes the writes now."""
    old: Upper
    """The one that did before."""
    stale: Stale | None
    """What the kernel is still to be told, by a thread, before anybody relies on it."""


class Stale(NamedTuple):
    """What the kernel knows that holds no more, besides the names that it asks for again anyway."""

    names: Sequence[stale.Name]
    directories: Sequence[int]
    files: Sequence[int]

    def drop(self) -> None:
        """Have the kernel forget it. For a thread: it may wait for answers of the mount."""
        stale.drop(self.names, self.directories, self.files)


async def rollback(
    store: Store,
    mount: Mount,
    union: Union,
    next_upper: NextUpper,
    hold: Hold,
    target: Target,
    device: int,
    *,
    discard: bool,
    open_layer: Callable[[str], Awaitable[Layer]],
    still: AbstractAsyncContextManager[None],
    unchanging: Callable[[], AbstractAsyncContextManager[None]],
) -> Moved:
    """Have *mount* stand on *target*.

    *open_layer* opens one of its layers by id. *device* is the `st_dev` of the filesystem. The rest is as
    with `live_commit.commit`. Raises `LayerfsError`; then nothing has changed.
    """
    assert union.upper is not None
    next_upper.begin(mount, union.upper)
    held = Held(hold)
    opened: list[Layer] = []
    old: Upper | None = None

    async def plan(ids: Sequence[str]) -> list[Segment]:
        return await trio.to_thread.run_sync(segments, store.database.layers, ids)

    try:
        lowers, common = await layers_of(union, mount.layers, target.layers, plan, open_layer, opened)
        look = _Look(device)
        async with still:
            prepared, upper = await next_upper.get(mount, union.upper)
            await held.wait()
            one_by_one = not stale.can_make_names_stale() or await look.found()
            if copy_attributes(lowers[-1].root.fd(), upper.root.fd(), union.marking):
                await sync_root(upper)
                copy_attributes(lowers[-1].root.fd(), upper.root.fd(), union.marking)

            def switch() -> tuple[WentBack, Gone, list[_Known]]:
                nonlocal old
                assert union.upper is not None
                keep = not discard and not is_as_below(
                    union.upper.root.fd(), union.layers[1].root.fd(), union.marking
                )
                names = names_that_may_change(union, lowers, common) if one_by_one else []
                went = store.rollback(mount, prepared, target.step, Wording(), keep=keep)
                # Nothing below may fail: the store has another tree, and here it has to be that one too.
                if not one_by_one:
                    stale.make_names_stale()
                wire.revoke_all()
                kept_places = places.of(union) if mount.container else []
                old = union.upper
                gone = go_back(union, lowers, upper, common)
                next_upper.used()
                with suppress(OSError):
                    places.put_back(kept_places, union)
                if went.discarded is not None:
                    union.past.pop(old.path, None)
                return went, gone, names

            went, gone, names = await in_one_moment(mount, unchanging, switch)
            rest: Stale | None = Stale(
                await _differing(union, names),
                [directory.ino for directory in gone.directories],
                [file.ino for file in gone.files],
            )
            if one_by_one:  # processes stand still until the kernel knows
                assert rest is not None
                await trio.to_thread.run_sync(rest.drop)
                rest = None
    except BaseException as error:
        if old is not None:
            raise  # too late to undo anything
        for layer in opened:
            layer.close()
        await next_upper.abandon()
        if isinstance(error, OSError):
            raise from_os_error(error, f"go back with {mount.name}") from error
        raise
    finally:
        trio.lowlevel.spawn_system_task(held.close)
    assert old is not None
    return Moved(went, prepared, old, rest)


class _Look:
    """A look for what is mounted in the mount, by a thread, while what was written is being collected."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._done = trio.Event()
        self._found = True
        trio.lowlevel.spawn_system_task(self._run)

    async def _run(self) -> None:
        try:
            if stale.can_make_names_stale():
                self._found = await trio.to_thread.run_sync(submounts.has_submounts, self._device)
        except OSError as error:  # names then go one by one, which is right in any case
            _log.warning("cannot see what is mounted in the mount: %s", error)
        finally:
            self._done.set()

    async def found(self) -> bool:
        await self._done.wait()
        return self._found


_Known = tuple[Directory, bytes, Node | None]


async def _differing(union: Union, names: Sequence[_Known]) -> list[stale.Name]:
    """Return those of *names* that mean something else now; others are answered between."""
    found = []
    for count, (directory, name, before) in enumerate(names):
        if count % _AT_A_TIME == 0:
            await trio.lowlevel.checkpoint()
        if _differs(union, directory, name, before):
            found.append((directory.ino, name))
    return found


def _differs(union: Union, directory: Directory, name: bytes, before: Node | None) -> bool:
    """Tell whether a name means something else now than to those who know it as *before*."""
    if before is None:
        return True
    try:
        refresh(union, before)
    except OSError:
        return True
    return directory.children.get(name) is not before


_LET_GO = 0.1
"""Seconds that the kernel may take to forget what nobody uses."""
_AT_A_TIME = 200


async def discard(union: Union, root: Path, layer_id: str, layer: Upper) -> bool:
    """Remove the tree of *layer*, which no row names any more, once nobody needs it who uses a file of it.

    These files are held by a descriptor each, as deleted ones are. Returns False where there are too many:
    then the tree has to stay. Should the daemon be killed, recovery removes it.
    """
    await trio.sleep(_LET_GO)
    while layer.copies:  # noqa: ASYNC110 - they are few, and end soon
        await trio.sleep(_LET_GO)
    await trio.to_thread.run_sync(stale.prune, [node.ino for node in _in_layer(union, layer)])
    await trio.sleep(_LET_GO)
    try:
        for count, node in enumerate(_in_layer(union, layer)):
            if count % _AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            if union.table.nodes.get(node.ino) is node:
                hold(union, node, layer)
        await trio.to_thread.run_sync(remove_tree, root, layer_id)
    except (OSError, LayerfsError) as error:
        _log.warning("what was discarded is removed at the end of the mount: %s", error)
        return False
    return True


def _in_layer(union: Union, layer: Layer) -> list[Node]:
    return [
        node
        for node in union.table.nodes.values()
        if (node.home.layer is layer if isinstance(node, File) else node.dirs[0].layer is layer)
    ]


def remove_tree(root: Path, layer_id: str) -> None:
    """Remove the tree of a layer that no row names any more. For any thread. Raises `LayerfsError`."""
    with Store(root) as store:
        store.discard_layer(layer_id)
