"""How the loop of an engine finds the mount that a request is about: without a thread.

The store stays open for that: to open it takes a tenth of a commit. What is read of it is in memory, or on a
disk that a loop which serves no filesystem may wait for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from layerfs.api.routes import Call
from layerfs.errors import LayerfsError
from layerfs.mounting.mount import LoopMount
from layerfs.mounting.relayed import Relayed
from layerfs.store import Store


class Relay:
    """Finds the mounts of the store at *root*; for one thread."""

    def __init__(self, root: Path) -> None:
        """Nothing is opened yet."""
        self._root = root
        self._store: Store | None = None
        self._identity = (0, 0)

    def find(self, call: Call) -> LoopMount | None:
        """Return the mount that *call* is about; None where a thread is to look, or to say what is wrong.

        Waits for no other process.
        """
        given = [name for name in (call.query.get("container"), call.query.get("name")) if name]
        if len(given) != 1:
            return None
        try:
            found = self._opened().identify(given[0].removeprefix("/"))
        except (LayerfsError, OSError):
            self.close()
            return None
        if found is None:
            return None
        mount_id, name = found
        return Relayed(self._root, name, mount_id)

    def get_ready(self) -> None:
        """Open the store and look for a mount, so that the first request finds all of that in memory."""
        with suppress(LayerfsError, OSError):
            self._opened().identify("none")

    def close(self) -> None:
        """Close the store; the next `find` opens it again."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _opened(self) -> Store:
        """Return the store, which is open and the one that is there now. Raises `LayerfsError`, `OSError`."""
        status = os.stat(self._root / "layerfs.db")
        if self._store is not None and self._identity != (status.st_dev, status.st_ino):
            self.close()
        if self._store is None:
            self._store = Store(self._root, create=False, wait=False)
            self._identity = status.st_dev, status.st_ino
        self._store.database.check_version()
        return self._store
