"""The union of a mount, opened for the daemon that is to serve it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from layerfs.errors import BadRequest
from layerfs.mounting import stacking
from layerfs.store import marks
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer
from layerfs.union.marking import Marking, Trust
from layerfs.union.stack import close_all
from layerfs.union.unfinished import finish_at_rest, take_up
from layerfs.union.upper import Upper
from layerfs.union.view import Union

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Layer as LayerRow
    from layerfs.store.model import Mount

_DESCRIPTORS = 128
"""Directories, and as many files, that are kept open: to open one again takes a tenth of a request."""
_FEWEST_DESCRIPTORS = 16
_LARGE = 1 << 20
"""Bytes from which on a file that is copied up is partial at first: less is copied in a millisecond."""
_KEPT = 256
"""How many files may be partial at a time where they stay so: each has two descriptors open."""


class Opened(NamedTuple):
    """A union, and which of its layers are not known to be on their disk, by id."""

    union: Union
    unsettled: dict[str, Layer]


def open_union(store: Store, mount: Mount, shelf: Shelf, *, read_only: bool) -> Opened:
    """Open the layers of *mount*; with *read_only* its upper is but read.

    Raises `LayerfsError` or `OSError`; then nothing is open.
    """
    descriptors = _raise_descriptor_limit()
    directories = DirectoryCache(descriptors)
    lowers, unsettled, marking, trust = stacking.open_layers(store, mount, shelf, directories)
    try:
        upper = None
        if mount.upper is not None:
            assert trust is not None
            active = store.layer(mount.upper)
            if read_only:
                if active.work is not None:
                    finish_at_rest(store.stack_of(mount, upper=True), active.work)
                lowers.append(_upper_to_read(active.path, marking, trust))
            elif active.work is None:
                raise BadRequest(
                    f"the upper {active.path} has no work directory: give one, or mount read-only"
                )
            else:
                marks.check_options(trust, marking, mount.options)
                upper = Upper(
                    active.path,
                    active.work,
                    marking=marking,
                    trust=trust,
                    shelf=shelf,
                    directories=directories,
                )
        metacopy = bool(mount.options.get("metacopy"))
        union = Union(lowers, upper, descriptors=descriptors, directories=directories, metacopy=metacopy)
        if upper is not None:
            least = os.environ.get("LAYERFS_PARTIAL_FROM")
            wanted = mount.options.get("partial", "fill" if least else "off")
            if wanted != "off":
                union.thin_from = int(least or _LARGE)
            if wanted == "keep":
                union.most_partial = _KEPT
            take_up(union)
        return Opened(union, unsettled)
    except BaseException:
        close_all(lowers)
        raise


async def open_layer(
    store: Store, mount: Mount, marking: Marking, shelf: Shelf, layer_id: str
) -> tuple[Layer, bool]:
    """Open a layer of the store that is not in the union of *mount*, in a thread.

    Returns it, and whether it is not known to be on its disk. Raises `LayerfsError` or `OSError`.
    """
    row = store.layer(layer_id)
    tree = store.tree_of(row, userxattr=bool(mount.options.get("userxattr")))

    def open_it() -> Layer:
        return Layer(
            tree.path,
            aufs=tree.aufs,
            marking=marking,
            trust=tree.trust,
            shelf=shelf,
            directories=DirectoryCache(),
        )

    layer = await trio.to_thread.run_sync(open_it)
    return layer, _note_state(row, layer)


def _note_state(row: LayerRow, layer: Layer) -> bool:
    """Note on *layer* whether it is known to be on its disk; tell whether it is not."""
    if row.state == "sealed" and not row.manifest_done:
        layer.on_disk = False
    return not layer.on_disk


def _upper_to_read(path: Path, marking: Marking, trust: Trust) -> Layer:
    """Open an upper that is not to be written to, held so that nobody writes to it. Raises `OSError`."""
    layer = Layer(path, marking=marking, trust=trust)  # on no shelf: the lock goes with the descriptor
    try:
        fcntl.flock(layer.root.fd(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        layer.close()
        raise OSError(errno.EBUSY, "already used by another mount", layer.path) from None
    return layer


def _raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system does; return how many each cache may take."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(_FEWEST_DESCRIPTORS, min(most // 8, _DESCRIPTORS))
