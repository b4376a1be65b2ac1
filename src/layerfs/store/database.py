"""The store's database: opening and migrating it, transactions, and its errors in plain words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layerfs.errors import Conflict, Forbidden, LayerfsError, NoSpace, NotFound, StoreBusy, from_os_error
from layerfs.store.schema import MIGRATIONS

WAIT = 10.0
"""Seconds that a patient transaction waits for the writer before it."""

Value = str | bytes | int | None


class _Cursor(sqlite3.Cursor):
    """A cursor that explains its errors: a damaged page is met only when a row of it is fetched."""

    explained: Callable[[sqlite3.Error], LayerfsError]

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except sqlite3.Error as error:
            raise self.explained(error) from error


class Database:
    """A connection to the database of the store at *root*; used by the thread that made it.

    With *create*, a store that is not there is made. Raises `NotFound` when there is none, `Conflict`
    when a newer layerfs wrote it, `Forbidden`, `NoSpace` or `StoreBusy` as the names say.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root.absolute()
        self.layers = self.root / "layers"
        file = self.root / "layerfs.db"
        try:
            if create:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.layers.mkdir(mode=0o700, exist_ok=True)
            elif not file.exists():
                raise NotFound(f"no store at {self.root}: import an image to make one")
        except OSError as error:
            raise from_os_error(error, f"open the store {self.root}") from None
        try:
            self.connection = sqlite3.connect(file, timeout=WAIT, isolation_level=None)
        except sqlite3.Error as error:
            raise self._explained(error) from None
        try:
            self.execute("PRAGMA synchronous = NORMAL")
            self.execute("PRAGMA foreign_keys = ON")
            self._migrate()
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
            raise self._explained(error) from error

    @contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[None]:
        """Do what follows wholly or, when it raises, not at all.

        Without *wait* nothing here waits for another process or for the disk: `StoreBusy` comes at
        once when another process is writing, and the journal is left for others to fold in.
        """
        if not wait:
            self.execute("PRAGMA busy_timeout = 0")
            self.execute("PRAGMA wal_autocheckpoint = 0")
        try:
            self.execute("BEGIN IMMEDIATE")
            with self._finished("COMMIT"):
                yield
        finally:
            if not wait:
                self.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")
                self.execute("PRAGMA wal_autocheckpoint = 1000")

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
        """Bring all that was committed to the disk."""
        self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def scalar(self, sql: str, values: Sequence[Value] = ()) -> Value:
        """Return the first column of the first row, or None when there is no row."""
        row = self.execute(sql, values).fetchone()
        value: Value = row[0] if row else None
        return value

    def number(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Return `scalar` where it is a number; nothing counts as 0."""
        value = self.scalar(sql, values)
        return value if isinstance(value, int) else 0

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
                    self.execute(f"PRAGMA user_version = {known}")
        if version > known:
            raise Conflict(
                f"store {self.root} is of version {version}, this layerfs knows {known}: upgrade layerfs"
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
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest is detail
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusy(f"store {self.root} is busy: another process is writing to it, try again")
        if code == sqlite3.SQLITE_FULL:
            return NoSpace(f"cannot write to store {self.root}: no space left on its filesystem")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return Forbidden(f"cannot open {self.root}/layerfs.db for writing: {error}")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return LayerfsError(f"{self.root}/layerfs.db is damaged: {error}")
        return LayerfsError(f"store {self.root}: {error}")
