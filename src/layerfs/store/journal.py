"""The database's journal (SQLite's write-ahead log), for a process whose COMMITs must not wait for a disk.

A transaction that finds the whole journal folded into the database starts it anew, and syncs its header
before anything else (wal.c, walFrames: without that an old frame could count again after a power cut). That
takes some milliseconds, and is not for the loop that serves a mount.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from layerfs.errors import LayerfsError
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
    """Keeps the journal of the store at *root* from restarting while `held`: no COMMIT syncs meanwhile.

    A reader of a state that is in the journal alone keeps the journal as it is. But where all is folded in,
    a reader takes the newest state from the database file, and only keeps others from folding in more. So
    there are two: one holds the state as it is found, the other what is written on top of that. Their
    connections stay open from one time to the next: SQLite reads the definitions of all tables for each.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is opened or held yet."""
        self._root = root
        self._readers: list[Database] = []
        self._turn = threading.Lock()
        """Held from `take` to `let_go`, which different threads may call."""

    def open(self) -> None:
        """Open the connections, so that `take` need not. Idempotent. Raises `LayerfsError`."""
        with self._turn:
            self._open()

    def take(self) -> None:
        """Hold the journal until `let_go`; waits until others have let go.

        For a thread that may wait: it restarts a journal whose turn that is. Raises `LayerfsError`, and
        `StoreBusy` where others write all the time, `Conflict` for a store that newer code has changed since
        it was opened; then nothing is held.
        """
        self._turn.acquire()
        try:
            self._open()
            for reader in self._readers:
                if reader is not self._readers[0]:
                    with reader.transaction():  # a page is written, the same as before
                        reader.check_version()
                        version = reader.number("PRAGMA user_version")
                        reader.execute(f"PRAGMA user_version = {version}")
                reader.execute("BEGIN")
                reader.number("SELECT count(*) FROM tags WHERE name = ''")
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """Let the journal go, after `take`."""
        try:
            for reader in self._readers:
                if reader.connection.in_transaction:
                    reader.execute("ROLLBACK")
        except LayerfsError:
            self._close()  # which ends what it reads, too
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close the connections; nothing may be held. The next `take` opens new ones."""
        with self._turn:
            self._close()

    def _open(self) -> None:
        try:
            while len(self._readers) < 2:
                reader = Database(self._root, create=False, shared=True)
                self._readers.append(reader)
                reader.number("SELECT count(*) FROM tags WHERE name = ''")
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        while self._readers:
            with suppress(sqlite3.Error):
                self._readers.pop().close()
