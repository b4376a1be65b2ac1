"""The store's database: opening and migrating it, transactions, and its errors in plain words.

SQLite's write-ahead log with `synchronous = NORMAL`: a COMMIT writes to the log and waits for no disk. A
transaction is on the disk once the log has been synced (`sync`) or folded into the database file by a
checkpoint, which syncs both. A restarted log is the one place where a COMMIT syncs: see `journal.Hold`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layerfs.errors import Conflict, Forbidden, LayerfsError, NoSpace, NotFound, StoreBusy, from_os_error
from layerfs.host.ownership import check_private
from layerfs.store import reserve
from layerfs.store.schema import COMPATIBLE, MIGRATIONS
from layerfs.union.trees import sync_path

WAIT = 10.0
"""Seconds that a patient transaction waits for the writer before it."""

Value = str | bytes | int | None


class _Cursor(sqlite3.Cursor):
    """A cursor that explains its errors: a damaged page is met only when a row of it is fetched."""

    explained: Callable[[sqlite3.Error], LayerfsError]

    def _end(self, error: sqlite3.Error) -> LayerfsError:
        """Explain an error; a statement that lives on with its traceback would keep the database open."""
        self.close()
        return self.explained(error)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error as error:
            raise self._end(error) from error

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except sqlite3.Error as error:
            raise self._end(error) from error

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except sqlite3.Error as error:
            raise self._end(error) from error


class Database:
    """A connection to the database of the store at *root*; used by the thread that made it.

    With *create*, a store that is not there is made. Without *wait*, what finds the database locked
    raises `StoreBusy` at once, once the connection is open. One that is *shared* is used by one thread at a
    time, not always the same. Raises `NotFound` when there is no store,
    `Conflict` when a newer layerfs wrote it, `Forbidden` also for a store that somebody else owns or can
    write to, `NoSpace` or `StoreBusy` as the names say.
    """

    def __init__(self, root: Path, *, create: bool = True, wait: bool = True, shared: bool = False) -> None:
        self.root = root.absolute()
        self.layers = self.root / "layers"
        file = self.root / "layerfs.db"
        try:
            if create:
                _make_directory(self.root, 0o700)
            advice = "give a store of your own with --root, or run 'chmod 700' on it if it is yours"
            check_private(self.root, "store", advice, links=True)
            if create:
                _make_directory(self.layers, 0o700)
            elif not file.exists():
                raise NotFound(f"no store at {self.root}: import an image to make one")
        except OSError as error:
            raise from_os_error(error, f"open the store {self.root}") from None
        try:
            self.connection = sqlite3.connect(
                file, timeout=WAIT, isolation_level=None, check_same_thread=not shared
            )
        except sqlite3.Error as error:
            raise self._explained(error) from None
        try:
            self.execute("PRAGMA synchronous = NORMAL")
            self.execute("PRAGMA foreign_keys = ON")
            self._waits = True
            self._migrate()
            if not wait:
                self._waits = False
                self._set_patience(wait=False)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def execute(self, sql: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
        """Run one statement; database errors, those of fetching rows too, come as `LayerfsError`."""
        cursor = self.connection.cursor(_Cursor)
        cursor.explained = self._explained
        try:
            return cursor.execute(sql, values)
        except sqlite3.Error as error:
            cursor.close()
            raise self._explained(error) from error

    @contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[None]:
        """Do what follows wholly or, when it raises, not at all.

        Without *wait* nothing here waits for another process or for the disk: `StoreBusy` comes at
        once when another process is writing, and the journal is left for others to fold in.
        """
        differs = self._waits and not wait
        if differs:
            self._set_patience(wait=False)
        try:
            self.execute("BEGIN IMMEDIATE")
            with self._finished("COMMIT"):
                yield
        finally:
            if differs:
                self._set_patience(wait=True)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let the queries that follow see the same state, whatever others write meanwhile."""
        if self.connection.in_transaction:
            yield
            return
        self.execute("BEGIN")
        with self._finished("ROLLBACK"):
            yield

    def sync(self) -> None:
        """Bring all that was committed so far, by whomever, to the disk: durable on return.

        Syncs the log, from which SQLite recovers what is not in the database file yet. No reader or writer
        stands in its way, and it stands in nobody's. Raises `LayerfsError` where the disk refuses it.
        """
        try:
            sync_log(self.root)
        except OSError as error:
            raise from_os_error(error, f"write the store {self.root} to its disk") from None

    def fold_in(self) -> None:
        """Write the whole log into the database file and bring that to the disk.

        For when a sync of the log has failed: the system tells of a page that it could not write once, and a
        second sync would find nothing to complain of. Raises `LayerfsError` unless all of it is on the disk;
        `StoreBusy` while somebody reads an older state.
        """
        busy, in_log, done = self.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if busy or in_log != done:
            raise StoreBusy(f"store {self.root} cannot be written to its disk while others use it: try again")

    def scalar(self, sql: str, values: Sequence[Value] = ()) -> Value:
        """Return the first column of the first row, or None when there is no row."""
        row = self.execute(sql, values).fetchone()
        value: Value = row[0] if row else None
        return value

    def number(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Return `scalar` where it is a number; nothing counts as 0."""
        value = self.scalar(sql, values)
        return value if isinstance(value, int) else 0

    def _set_patience(self, *, wait: bool) -> None:
        self.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000) if wait else 0}")
        self.execute(f"PRAGMA wal_autocheckpoint = {1000 if wait else 0}")

    @contextmanager
    def _finished(self, end: str) -> Iterator[None]:
        try:
            yield
            self.execute(end)
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def _migrate(self) -> None:
        known = len(MIGRATIONS)
        version = self.number("PRAGMA user_version")
        if version < known:
            self._set_wal()
            with self.transaction():
                version = self.number("PRAGMA user_version")  # another process may have been first
                for statements in MIGRATIONS[version:]:
                    for statement in statements:
                        self.execute(statement)
                if version < known:
                    self.execute("DELETE FROM compatible")
                    self.execute("INSERT INTO compatible (version) VALUES (?)", (COMPATIBLE,))
                    self.execute(f"PRAGMA user_version = {known}")
            reserve.keep(self.root)
        self.check_version()

    def check_version(self) -> None:
        """Raise `Conflict` where the store has seen migrations that this code must know to use it.

        It has been asked when the store was opened. Who has it open for long asks again before it writes:
        layerfs may have been upgraded meanwhile.
        """
        known = len(MIGRATIONS)
        version = self.number("PRAGMA user_version")
        if version > known and self.number("SELECT version FROM compatible") > known:
            raise Conflict(
                f"store {self.root} is of version {version}, this layerfs knows {known}: upgrade layerfs"
                " (a mount of an older one goes on; unmount it and mount it again to commit)"
            )

    def _set_wal(self) -> None:
        # SQLite does not wait for the lock that changing the journal mode needs.
        deadline = time.monotonic() + WAIT
        while True:
            with suppress(StoreBusy):
                self.execute("PRAGMA journal_mode = WAL").fetchall()
                return
            if time.monotonic() > deadline:
                raise StoreBusy(f"store {self.root} is busy: try again")
            time.sleep(0.01)

    def _explained(self, error: sqlite3.Error) -> LayerfsError:
        detail = getattr(error, "sqlite_errorcode", 0)
        code = detail & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusy(f"store {self.root} is busy: another process is writing to it, try again")
        # The index of the log is made when the first one opens the store, and on a full disk it cannot grow.
        if code == sqlite3.SQLITE_FULL or detail == sqlite3.SQLITE_IOERR_SHMSIZE:
            return NoSpace(f"cannot write to store {self.root}: no space left on its filesystem")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return Forbidden(f"cannot open {self.root}/layerfs.db for writing: {error}")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return LayerfsError(f"{self.root}/layerfs.db is damaged: {error}")
        return LayerfsError(f"store {self.root}: {error}")


def sync_log(root: Path) -> None:
    """Do what `Database.sync` does for the store at *root*; raises `OSError`."""
    with suppress(FileNotFoundError):  # without a log every COMMIT syncs
        sync_path(root / "layerfs.db-wal", data_only=True)
    sync_path(root)


def _make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it where they are missing, with their names on the disk."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=mode, exist_ok=True)
    sync_path(path.parent)
