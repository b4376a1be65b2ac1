"""What a supervisor runs when its container has ended: `python -m layerfs.engine.finish ROOT ID`."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.host.ownership import open_own
from layerfs.host.rundir import make_run_dir


def main(root: str, mount_id: str) -> int:
    """Clear away after the container *mount_id* of the store at *root*; return the exit status.

    Nobody reads what it prints: what goes wrong is written to `RUN/containers.log`.
    """
    from layerfs.container.lifecycle import finish

    try:
        finish(Path(root), mount_id)
        _restart(Path(root), mount_id)
    except (LayerfsError, OSError) as error:
        log = open_own(make_run_dir() / "containers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        logging.basicConfig(
            stream=os.fdopen(log, "a", errors="backslashreplace"),
            format="%(asctime)s %(levelname)s: %(message)s",
        )
        logging.getLogger(__name__).error("cannot clear away after %s: %s", mount_id[:12], error)
        return 1
    return 0


def _restart(root: Path, mount_id: str) -> None:
    """Start the container again if its restart policy says so and nobody has stopped it."""
    from layerfs.api.server import start_mount
    from layerfs.container import lifecycle
    from layerfs.container.restart import pause
    from layerfs.host.record import look
    from layerfs.store import Store

    while (row := lifecycle.restarting(root, mount_id)) is not None and look(mount_id) is None:
        time.sleep(pause(row))
        row = lifecycle.restarting(root, mount_id)
        if row is None:
            return  # somebody has stopped it meanwhile
        with Store(root) as store:
            store.update_container(mount_id, None, RestartCount=row.container.get("RestartCount", 0) + 1)
        try:
            lifecycle.start(root, row, start_mount, again=True)
        except LayerfsError as error:
            if lifecycle.restarting(root, mount_id) is None:
                raise
            logging.getLogger(__name__).error("cannot start %s again: %s", row.name, error)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
