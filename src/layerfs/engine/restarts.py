"""What an engine takes up when it starts: containers that are to run, and do not."""

from __future__ import annotations

import logging

from layerfs.api.routes import Place
from layerfs.container import execs, lifecycle
from layerfs.container.restart import wants_to_run
from layerfs.errors import LayerfsError
from layerfs.host.record import look
from layerfs.store import Store

_log = logging.getLogger(__name__)


def take_up(place: Place) -> None:
    """Clear away after containers that have ended, and start those that are to run always. Never raises."""
    execs.clear_away()
    with Store(place.root) as store:
        rows = [row for row in store.mounts() if row.container]
    for row in rows:
        record = look(row.id)
        if record is not None and record.alive():
            continue
        try:
            lifecycle.finish(place.root, row.id)
            if wants_to_run(row) or lifecycle.restarting(place.root, row.id):
                lifecycle.start(place.root, row, place.launch)
        except LayerfsError as error:
            _log.error("cannot start %s again: %s", row.name, error)
