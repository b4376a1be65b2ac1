"""The database's journal (SQLite's write-ahead log), for a process whose COMMITs must not wait for a disk.

A transaction that finds the whole journal folded into the database starts it anew, and syncs its header
before anything else (wal.c, walFrames: without that an old frame could count again after a power cut). That
takes some milliseconds, and is not for the loop that serves a mount.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from layerfs.store.database import Database


class Journal:
    """Brings the journal of the store at *root* to the disk, again and again; any one thread at a time may.

    It keeps the journal open: so it hears of every page that could not be written since, even where another
    process has been told already (the kernel tells each open file once).
    """

    def __init__(self, root: Path) -> None:
        """Open the journal of a database that is open and stays so. Raises `OSError`."""
        self._root = root
        self._directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._log = os.open(root / "layerfs.db-wal", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            os.close(self._directory)
            raise
        self._damaged = False

    def sync(self) -> None:
        """Bring all that was committed so far to the disk: durable on return.

        Raises `OSError` or `LayerfsError` where it is not known to be. After a failure it is once the whole
        journal has been folded into the database file.
        """
        if self._damaged:
            db = Database(self._root, create=False)
            try:
                db.fold_in()
            finally:
                db.close()
        try:
            os.fdatasync(self._log)
            os.fsync(self._directory)
        except OSError:
            self._damaged = True
            raise
        self._damaged = False

    def close(self) -> None:
        """Close the journal."""
        os.close(self._log)
        os.close(self._directory)


class Hold:
    """Keeps the journal of the store at *root* from restarting until `close`: no COMMIT syncs meanwhile.

    Made in a thread that may wait, since it restarts a journal whose turn that is; closed in any. A reader of
    a state that is in the journal alone keeps the journal as it is. But where all is folded in, a reader
    takes the newest state from the database file, and only keeps others from folding in more. So there are
    two: one holds the state as it is found, the other what is written on top of that.
    """

    def __init__(self, root: Path) -> None:
        """Raises `LayerfsError`; `StoreBusy` where others write all the time."""
        self._readers: list[Database] = []
        try:
            for is_first in (True, False):
                reader = Database(root, create=False, shared=True)
                self._readers.append(reader)
                if not is_first:
                    with reader.transaction():  # a page is written, the same as before
                        version = reader.number("PRAGMA user_version")
                        reader.execute(f"PRAGMA user_version = {version}")
                reader.execute("BEGIN")
                reader.number("SELECT count(*) FROM tags WHERE name = ''")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the journal go."""
        while self._readers:
            with suppress(sqlite3.Error):
                self._readers.pop().close()
