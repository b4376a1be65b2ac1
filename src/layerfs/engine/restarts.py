"""What an engine takes up when it starts: containers that are to run, and do not."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from layerfs.container import execs, lifecycle
from layerfs.container.afterwards import follow_up
from layerfs.container.restart import wants_to_run
from layerfs.errors import LayerfsError
from layerfs.host.record import look
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.api.routes import Place
    from layerfs.store.model import Mount

_log = logging.getLogger(__name__)


def take_up(place: Place) -> None:
    """Clear away after containers that have ended, and start those that are to run always. Never raises.

    Returns before those run that pause between two runs.
    """
    try:
        execs.clear_away()
        with Store(place.root) as store:
            rows = [row for row in store.mounts() if row.container]
    except (LayerfsError, OSError) as error:
        _log.error("cannot look for containers that are to run: %s", error)
        return
    for row in rows:
        try:
            _take_up(place, row)
        except Exception as error:  # none may keep the others from running, or end the engine
            expected = isinstance(error, LayerfsError | OSError)
            _log.error("cannot start %s again: %s", row.name, error, exc_info=None if expected else error)


def _take_up(place: Place, row: Mount) -> None:
    """Do what there is to do about the container *row*, if its process does not live."""
    record = look(row.id)
    if record is not None and record.alive():
        return
    lifecycle.finish(place.root, row.id)
    if lifecycle.restarting(place.root, row.id) is not None:
        threading.Thread(target=_go_on, args=(place, row), name=f"restarts {row.name}", daemon=True).start()
    elif wants_to_run(row):
        lifecycle.start(place.root, row, place.launch)


def _go_on(place: Place, row: Mount) -> None:
    """Do what a supervisor would have had done that was killed, or whose machine stopped, in a pause."""
    try:
        for _ in follow_up(place.root, row.id, place.launch):
            pass
    except (LayerfsError, OSError) as error:
        _log.error("cannot start %s again: %s", row.name, error)
