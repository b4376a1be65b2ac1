"""Mounts that nobody runs, held so that nobody starts them meanwhile."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from layerfs.errors import Conflict, NotFound
from layerfs.host import mounttable
from layerfs.host.rundir import RunLock, owner, running_pid
from layerfs.store import layers, mounts
from layerfs.store.database import Database
from layerfs.store.model import Mount


@contextmanager
def at_rest(db: Database, mount_id: str) -> Iterator[Mount | None]:
    """Keep daemons away from a mount while the block lasts; yield it, or None if one runs it or it is gone.

    The run lock tells of daemons of this run directory. Another one's is told by its lock on the upper's
    tree and, where the mount is read-only, by an answer from its mountpoint.
    """
    with ExitStack() as locks:
        try:
            mount = mounts.get(db, mount_id)
            # An upper that was committed meanwhile had another daemon, which holds the next one.
            free = _take(db, mount, locks) and mounts.get(db, mount_id).upper == mount.upper
        except NotFound:
            free = False
        yield mount if free else None


def _take(db: Database, mount: Mount, locks: ExitStack) -> bool:
    if running_pid(mount.name) is not None:
        return False
    try:
        locks.enter_context(RunLock(mount.name))
    except Conflict:
        return False
    if mount.upper is None:
        return not _answers(mount)
    try:
        tree = os.open(layers.get(db, mount.upper).path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # nobody can mount it without its tree
    except OSError:
        return False  # something else is in the way: who has the tree cannot be told
    locks.callback(os.close, tree)
    try:
        fcntl.flock(tree, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(mount: Mount) -> bool:
    """Tell whether a daemon of another run directory may serve the mount, which has no upper to tell by."""
    place = mount.mountpoint
    if place is None or mount.started is None:
        return False
    there = mounttable.mounted_at(place)
    if there is None or there.type != mounttable.TYPE:
        return False
    known = owner(there.device)
    return (known is None or known[0] == mount.name) and not mounttable.is_dead(place)
