"""Digests of what a build copies (XXH3-128), and the memory that saves reading what has not changed.

A digest is of names, types, modes, owners, targets of links, attributes and data: not of times, nor of where
things lie, so a context that comes as an archive has the one of the directory that it was made from.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import xxhash

from layerfs.build.sources import DEEPEST, Item, Source, SourceDirectory, too_deep

NAME = "digests.db"
"""The memory's file, below `cache/` in the store's root."""
_CHUNK = 1 << 20
_TICK_NS = 20_000_000
"""How far apart two changes may be and have the same time: two ticks of the kernel's clock at 100 Hz."""
LONGEST_NS = 2_000_000_000
"""The same where times are whole seconds."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What a COPY or ADD would copy."""

    text: str
    """32 hexadecimal digits, for the key of the cache."""
    newest_ns: int
    """The last change (ctime) of what was read, as far as others may change it."""
    settles_ns: int
    """For how long since it began a change may have had no later time than one that was seen; 0: never."""


def _settled(change_ns: int) -> int:
    """Return when a later change has surely another time than that at *change_ns*, by a file's ctime."""
    return change_ns + (_TICK_NS if change_ns % 1_000_000_000 else LONGEST_NS)


class Hasher:
    """Makes one digest of several things."""

    def __init__(self, memory: Memory | None, check: Callable[[], None]) -> None:
        self._begun_ns = time.time_ns()
        self._memory = memory
        self._check = check
        self._newest_ns = 0
        self._hash = xxhash.xxh3_128()

    def finish(self) -> Digest:
        """Return the digest of all that was added."""
        settles_ns = max(0, _settled(self._newest_ns) - self._begun_ns)
        return Digest(self._hash.hexdigest(), self._newest_ns, settles_ns)

    def add_file(
        self, directory: SourceDirectory, item: Item, name: bytes, source: Source, *, owners: bool
    ) -> None:
        """Add *item* of *directory*, to be called *name*. Raises `OSError`."""
        contents = _Contents(directory, source, self._memory, self._check)
        self._hash.update(b"file " + _header(name, item.st, source, owners=owners) + contents.of(item))
        if source.may_change:
            self._newest_ns = max(self._newest_ns, item.st.st_ctime_ns)
        contents.remember()

    def add_directory(self, directory: SourceDirectory, source: Source, *, owners: bool) -> None:
        """Add all that is in *directory*; what it is itself does not count. Raises `OSError`."""
        self._hash.update(b"directory ")
        self._add_contents(directory, source, owners, 0)

    def _add_contents(self, directory: SourceDirectory, source: Source, owners: bool, depth: int) -> None:
        self._check()
        contents = _Contents(directory, source, self._memory, self._check)
        contents_of = contents.of
        with_owners = owners and source.keeps_owners
        parts: list[bytes] = []
        add = parts.append
        newest_ns = directory.st.st_ctime_ns
        for item in directory.items():
            name, st = item
            mode = st.st_mode
            if with_owners:
                add(b"%b\0%o %d %d " % (name, mode, st.st_uid, st.st_gid))
            else:
                add(b"%b\0%o " % (name, mode))
            if stat.S_ISDIR(mode):
                if depth > DEEPEST:
                    raise too_deep(name)
                with closing(directory.enter(name)) as inside:
                    add(_of_attributes(inside.xattrs(b"", -1)))
                    self._hash.update(b"".join(parts))
                    parts.clear()
                    self._add_contents(inside, source, owners, depth + 1)
            else:
                add(contents_of(item))
                if st.st_ctime_ns > newest_ns:
                    newest_ns = st.st_ctime_ns
        if source.may_change:
            self._newest_ns = max(self._newest_ns, newest_ns)
        add(b"/")  # no name begins so
        self._hash.update(b"".join(parts))
        contents.remember()


def _header(name: bytes, st: os.stat_result, source: Source, *, owners: bool) -> bytes:
    if owners and source.keeps_owners:
        return b"%b\0%o %d %d " % (name, st.st_mode, st.st_uid, st.st_gid)
    return b"%b\0%o " % (name, st.st_mode)


def _of_attributes(xattrs: dict[bytes, bytes]) -> bytes:
    """Return 16 bytes that stand for extended attributes, or none for none."""
    if not xattrs:
        return b""
    digest = xxhash.xxh3_128()
    for name, value in sorted(xattrs.items()):
        digest.update(b"%b\0%d %b" % (name, len(value), value))
    return digest.digest()


class _Contents:
    """The digests of what is in one directory: of data, targets, numbers of devices, with the attributes."""

    def __init__(
        self,
        directory: SourceDirectory,
        source: Source,
        memory: Memory | None,
        check: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._check = check
        self._given = source.digests
        self._memory = memory if source.lasting else None
        st = directory.st
        self._device = st.st_dev
        self._key = st.st_dev, st.st_ino
        self._known = self._memory.load(self._key) if self._memory is not None else {}
        self._new: dict[int, Record] = {}
        self._count = 0

    def of(self, item: Item) -> bytes:
        """Return 16 bytes that stand for *item*, no directory, without its name, mode and owner."""
        self._count += 1
        st = item.st
        known = self._known.get(st.st_ino)
        if (
            known is not None
            and known[2] == st.st_ctime_ns
            and known[1] == st.st_mtime_ns
            and known[0] == st.st_size
            and st.st_dev == self._device
        ):
            return known[3]
        now_ns = time.time_ns()
        found, after = self._read(item)
        if self._memory is not None and _settled(st.st_ctime_ns) < now_ns and _is_same(st, after):
            self._new[st.st_ino] = (st.st_size, st.st_mtime_ns, st.st_ctime_ns, found)
        return found

    def _read(self, item: Item) -> tuple[bytes, os.stat_result]:
        """Return the digest of *item*, and its stat when it had been read."""
        name, st = item
        directory = self._directory
        if stat.S_ISREG(st.st_mode):
            given = self._given.get((st.st_dev, st.st_ino))
            if given is not None:
                return _joined(given, directory.xattrs(name, -1)), st
            fd, _ = directory.open(item)  # what is only a part of a file has its digest given
            try:
                data = xxhash.xxh3_128()
                while piece := os.read(fd, _CHUNK):
                    data.update(piece)
                    if len(piece) < _CHUNK and st.st_size < _CHUNK:
                        break
                    self._check()
                return _joined(data.digest(), directory.xattrs(name, fd)), os.fstat(fd)
            finally:
                os.close(fd)
        text = directory.readlink(name) if stat.S_ISLNK(st.st_mode) else b"%d" % st.st_rdev
        found = _joined(xxhash.xxh3_128_digest(text), directory.xattrs(name, -1))
        return found, directory.find(name) or st

    def remember(self) -> None:
        """Have the memory keep what it did not know."""
        if self._memory is not None and self._new:
            known = self._known | self._new
            # What is gone cannot be told from what a filter leaves out: it stays until it is the larger part.
            self._memory.save(self._key, known if len(known) < 2 * self._count + 1000 else self._new)


def _joined(data: bytes, xattrs: dict[bytes, bytes]) -> bytes:
    return xxhash.xxh3_128_digest(data + _of_attributes(xattrs)) if xattrs else data


def _is_same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


Record = tuple[int, int, int, bytes]
"""Size, mtime and ctime of something, and its digest."""
_KEY = struct.Struct("<QQ")
_RECORD = struct.Struct("<QQqq16s")
_CHECKSUM_SIZE = 16
_VERSION = 1
_DAY = 86_400
_MOST_DIRECTORIES = 200_000
_SCHEMA = """
    CREATE TABLE directories (key BLOB PRIMARY KEY, used INTEGER NOT NULL, records BLOB NOT NULL) STRICT;
    CREATE INDEX by_use ON directories (used);
"""


class Memory:
    """Digests of files, known by (device, inode, size, mtime, ctime) over builds; a context manager.

    A file that is damaged, or of another version, is made anew; where none can be written, nothing is kept.
    Belongs to one thread; several processes and threads may each have one on the same file. Not durable: what
    a power cut takes is read again.
    """

    def __init__(self, file: Path) -> None:
        """Open *file*, in a directory that is made if it is not there. Raises nothing."""
        self._file = file
        self._today = int(time.time()) // _DAY
        self._saved: dict[bytes, bytes] = {}
        self._used: list[bytes] = []
        self._db: sqlite3.Connection | None = None
        try:
            self._db = self._opened()
        except (sqlite3.OperationalError, OSError):
            pass  # locked, not to be written, no room
        except sqlite3.DatabaseError:
            self._renew()

    def _opened(self) -> sqlite3.Connection:
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        db = sqlite3.connect(self._file, timeout=5, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                if version:
                    raise sqlite3.DatabaseError("another version")
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'directories'").fetchone():
                raise sqlite3.DatabaseError("no table")
        except BaseException:
            db.close()
            raise
        return db

    def _renew(self) -> None:
        """Begin a file anew in place of one that is of no use."""
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{self._file}{suffix}").unlink()
        with suppress(sqlite3.Error, OSError):
            self._db = self._opened()

    def __enter__(self) -> Memory:
        """Return the memory."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is new, whatever happened since, and close."""
        for _ in range(2):
            if self._db is None or not (self._saved or self._used):
                break
            try:
                self._write(self._db)
                break
            except sqlite3.OperationalError:  # a full disk, or somebody else is writing
                break
            except sqlite3.DatabaseError:
                self._renew()
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            rows = [(key, self._today, blob) for key, blob in self._saved.items()]
            db.executemany("INSERT OR REPLACE INTO directories VALUES (?, ?, ?)", rows)
            used = [(self._today, key) for key in self._used]
            db.executemany("UPDATE directories SET used = ? WHERE key = ?", used)
            (count,) = db.execute("SELECT count(*) FROM directories").fetchone()
            if count > _MOST_DIRECTORIES:
                unused = "SELECT key FROM directories ORDER BY used LIMIT ?"
                db.execute(f"DELETE FROM directories WHERE key IN ({unused})", (count // 4,))
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def load(self, directory: tuple[int, int]) -> dict[int, Record]:
        """Return what is known of what is in *directory* (device, inode), by inode number."""
        key = _KEY.pack(*directory)
        blob = self._saved.get(key)
        if blob is None and self._db is not None:
            try:
                row = self._db.execute(
                    "SELECT used, records FROM directories WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.OperationalError:
                return {}
            except sqlite3.DatabaseError:
                self._renew()
                return {}
            if row is not None:
                used, blob = row
                if used != self._today:
                    self._used.append(key)
        if not isinstance(blob, bytes):
            return {}
        records = blob[:-_CHECKSUM_SIZE]
        if len(records) % _RECORD.size or blob[-_CHECKSUM_SIZE:] != xxhash.xxh3_128_digest(key + records):
            return {}
        return {row[0]: row[1:] for row in _RECORD.iter_unpack(records)}

    def save(self, directory: tuple[int, int], known: dict[int, Record]) -> None:
        """Note what is known of what is in *directory*; it is written at the end."""
        records = b"".join([_RECORD.pack(inode, *record) for inode, record in known.items()])
        key = _KEY.pack(*directory)
        self._saved[key] = records + xxhash.xxh3_128_digest(key + records)
