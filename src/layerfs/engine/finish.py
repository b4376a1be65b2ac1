"""What clears away after a container where no engine does: `python -m layerfs.engine.finish ROOT ID`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.host.ownership import open_own
from layerfs.host.rundir import make_run_dir


def main(root: str, mount_id: str) -> int:
    """Clear away after the container *mount_id* of the store at *root*; return the exit status.

    Nobody reads what it prints: what goes wrong is written to `RUN/containers.log`.
    """
    from layerfs.api.routes import launch_here
    from layerfs.container.afterwards import follow_up

    logging.basicConfig(handlers=[_ContainersLog()], format="%(asctime)s %(levelname)s: %(message)s")
    try:
        for _ in follow_up(Path(root), mount_id, launch_here):
            pass
    except (LayerfsError, OSError) as error:
        logging.getLogger(__name__).error("cannot clear away after %s: %s", mount_id[:12], error)
        return 1
    return 0


class _ContainersLog(logging.Handler):
    """Appends to the log of all containers, which is there once something has gone wrong."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = open_own(make_run_dir() / "containers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(log, "a", errors="backslashreplace") as file:
                file.write(f"{self.format(record)}\n")
        except (LayerfsError, OSError):
            self.handleError(record)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
