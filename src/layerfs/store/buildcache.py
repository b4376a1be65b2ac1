"""The build cache: steps that builds have made, by what decided about them.

A key is the builder's: the digest of all that decides what is in a step. The cache owns the steps it names,
as images and mounts own theirs, until an entry is pruned. What may not be whole since the machine stopped is
never handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from layerfs.store import holds, layers, stacks
from layerfs.store.database import Database
from layerfs.store.model import now, to_datetime

if TYPE_CHECKING:
    from layerfs.store.cacheusage import CacheUsage

_COLUMNS = "key, step, kind, description, created, used, uses"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A step that a build has made, and may be used again."""

    key: str
    step: str
    kind: str
    """What Docker calls the type of a record of its build cache: `regular`, `source.local` and others."""
    description: str
    created: datetime
    used: datetime
    """When a build made it or used it last."""
    uses: int


class BuildCache:
    """The build cache of a store, for one thread; what it hands out is held for *build*."""

    def __init__(self, db: Database, build: str | None) -> None:
        self._db = db
        self._build = build

    def get(self, key: str) -> CacheEntry | None:
        """Return the entry with this key, which counts as a use; None where there is none that is whole.

        Its step is held for the build: nobody prunes it away.
        """
        query = f"SELECT {_COLUMNS} FROM build_cache WHERE key = ?"
        if self._db.scalar("SELECT 1 FROM build_cache WHERE key = ?", (key,)) is None:
            return None
        with self._db.transaction():
            row = self._db.execute(query, (key,)).fetchone()
            if row is None or not self._is_whole(row[1]):
                return None
            used = now()
            self._db.execute("UPDATE build_cache SET used = ?, uses = uses + 1 WHERE key = ?", (used, key))
            holds.add(self._db, self._build, row[1])
        return _entry((*row[:5], used, row[6] + 1))

    def put(self, key: str, step: str, *, kind: str = "regular", description: str = "") -> None:
        """Have *key* stand for *step* from now on, whatever it stood for before.

        Atomic; idempotent; not durable: a power cut may take the entry. Raises `NotFound` for a step that is
        not there.
        """
        moment = now()
        doomed: list[str] = []
        with self._db.transaction():
            before = self._db.scalar("DELETE FROM build_cache WHERE key = ? RETURNING step", (key,))
            stacks.check(self._db, step)
            values = (key, step, kind, description, moment, moment, 0)
            self._db.execute(f"INSERT INTO build_cache ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            if before is not None and before != step:
                doomed += stacks.release_if_there(self._db, str(before))
        layers.discard(self._db, *doomed)

    def entries(self) -> list[CacheEntry]:
        """Return all entries, those first that were used last."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM build_cache ORDER BY used DESC, key")
        return [_entry(row) for row in rows]

    def usage(self) -> list[CacheUsage]:
        """Return all entries with what they take, those that were used last first; see `Store.layer_size`."""
        from layerfs.store.cacheusage import usage

        return usage(self._db, lambda layer_id: layers.size(self._db, layer_id))

    def prune(
        self,
        *,
        everything: bool = False,
        keep: int = 0,
        wanted: Callable[[CacheUsage], bool] = lambda entry: True,
        beside: Sequence[tuple[CacheUsage, Callable[[], bool]]] = (),
    ) -> tuple[list[str], int]:
        """Remove entries, of those *wanted*, that no build or other entry needs, the longest unused first.

        Those whose layers an image or a mount has too go only if *everything*: that frees nothing. With
        *keep*, no more go once the cache alone takes no more than that many bytes. Returns the keys of those
        that went, and the bytes it freed.

        *beside* are other things that builds keep, without steps, each with what removes it (and tells
        whether it is gone): they are counted and chosen like entries.
        """
        from layerfs.store.cacheusage import prune

        return prune(self._db, everything=everything, keep=keep, wanted=wanted, beside=beside)

    def _is_whole(self, step: str) -> bool:
        """Tell whether every layer of a stack is known to be what was sealed, and is there."""
        stack = stacks.layer_ids(self._db, step)
        rows = layers.get_all(self._db, stack)
        return all(not row.unverified and row.path.is_dir() for row in rows)


def forget(db: Database, layer_ids: Iterable[str]) -> int:
    """Delete the entries that have one of these layers in their stacks; return how many.

    For layers that are not what they were: what the entries owned besides goes too.
    """
    query = """
        WITH RECURSIVE spoilt (id) AS (
            SELECT id FROM steps WHERE layer = ?
            UNION SELECT steps.id FROM spoilt JOIN steps ON steps.parent = spoilt.id
        )
        DELETE FROM build_cache WHERE step IN (SELECT id FROM spoilt) RETURNING step
    """
    doomed: list[str] = []
    count = 0
    with db.transaction():
        for layer_id in layer_ids:
            for (step,) in db.execute(query, (layer_id,)).fetchall():
                count += 1
                doomed += stacks.release_if_there(db, str(step))
    layers.discard(db, *doomed)
    return count


def _entry(row: tuple[Any, ...]) -> CacheEntry:
    key, step, kind, description, created, used, uses = row
    return CacheEntry(key, step, kind, description, to_datetime(created), to_datetime(used), uses)
