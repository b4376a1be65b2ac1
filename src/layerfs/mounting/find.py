"""Who has a mount: from its row in the store to what can be asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfs.host.rundir import running_pid
from layerfs.mounting.remote import Remote
from layerfs.mounting.resting import Resting

if TYPE_CHECKING:
    from layerfs.mounting.mount import Mount
    from layerfs.store import Store
    from layerfs.store.model import Mount as Row


def mount_of(store: Store, row: Row) -> Mount:
    """Return the mount *row*, as its daemon has it or at rest. It belongs to the thread of *store*."""

    def at_rest() -> Resting:
        return Resting(store, store.mount(row.id))

    if running_pid(row.name) is None:
        return at_rest()
    return Remote(store.root, row.name, row.id, at_rest)
