"""What follows the end of a container's process: clearing away, and another run if its policy says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import lifecycle
from layerfs.container.restart import pause, wants_restart
from layerfs.errors import LayerfsError
from layerfs.host.record import look
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.container.lifecycle import Launch

_log = logging.getLogger(__name__)
_LONGEST = 0.5
"""Seconds that pass at most between two yields while the next run is waited for."""


def follow_up(root: Path, mount_id: str, launch: Launch) -> Iterator[None]:
    """Clear away after the container *mount_id*, and start it again by *launch* if its policy says so.

    May be repeated and cut short at any point, and done by several at once: what there is to do is in the
    store, and the next call goes on. Yields now and then while it waits, so that the caller can give up.
    Raises `LayerfsError` and `OSError`.
    """
    lifecycle.finish(root, mount_id)
    while (row := lifecycle.restarting(root, mount_id)) is not None and look(mount_id) is None:
        again = time.monotonic() + pause(row)
        while (left := again - time.monotonic()) > 0:
            yield
            time.sleep(min(left, _LONGEST))
        try:
            lifecycle.start(root, row, launch, again=True)  # unless somebody has stopped it meanwhile
        except LayerfsError as error:
            counted = lifecycle.restarting(root, mount_id)
            if counted is None:
                raise
            _log.error("cannot start %s again: %s", row.name, error)
            if not wants_restart(counted, lifecycle.NOT_STARTED):
                with Store(root) as store:
                    store.update_container(mount_id, None, Restarting=False)
                return
        else:
            return
