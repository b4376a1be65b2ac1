"""Stacks of layers and their histories, which images and mounts share.

Each step of a history names the step before it, so a step stands for a whole stack, and a commit adds
one row however high the stack is. A step's id is the SHA-256 of its content, the id of the step before
included. Steps that no image, mount, kept checkpoint, build, entry of the build cache or other step refers to
are deleted, and with them their layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerfs.errors import LayerfsError, NotFound
from layerfs.store import layers
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, to_datetime, to_nanoseconds

if TYPE_CHECKING:
    from layerfs.union.stack import Stack

_COLUMNS = "layer, created, created_by, author, comment"


def canonical_json(value: object) -> str:
    """Return the one JSON text of *value*: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: object) -> str:
    """Return the SHA-256 of *value* as canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def add(db: Database, parent: str | None, entry: HistoryEntry) -> str:
    """Write a step on top of the step *parent* and return its id; part of a transaction."""
    created = to_nanoseconds(entry.created)
    values = (parent, entry.layer, created, entry.created_by, entry.author, entry.comment)
    step = digest(values)
    db.execute(
        f"INSERT OR IGNORE INTO steps (id, parent, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", (step, *values)
    )
    return step


def add_all(db: Database, entries: Sequence[HistoryEntry]) -> str:
    """Write a whole history, oldest first, and return the id of its last step."""
    step = None
    for entry in entries:
        step = add(db, step, entry)
    if step is None:
        raise LayerfsError("a stack needs at least one step")
    return step


def history(db: Database, step: str) -> tuple[HistoryEntry, ...]:
    """Return the steps up to *step*, oldest first."""
    return tuple(entry for _, entry in with_ids(db, step))


def with_ids(db: Database, step: str) -> list[tuple[str, HistoryEntry]]:
    """Return the steps up to *step* and their ids, oldest first."""
    rows = db.execute(
        f"""
        WITH RECURSIVE chain (id, parent, {_COLUMNS}, depth) AS (
            SELECT id, parent, {_COLUMNS}, 0 FROM steps WHERE id = ?
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer, steps.created, steps.created_by, steps.author,
                steps.comment, depth + 1
            FROM chain JOIN steps ON steps.id = chain.parent
        )
        SELECT id, {_COLUMNS} FROM chain ORDER BY depth DESC
        """,
        (step,),
    )
    return [(row[0], _entry(row[1:])) for row in rows]


def entry(db: Database, step: str) -> HistoryEntry:
    """Return what *step* alone is; raises `NotFound`."""
    row = db.execute(f"SELECT {_COLUMNS} FROM steps WHERE id = ?", (step,)).fetchone()
    if row is None:
        raise NotFound(f"no such step: {step[:12]}: what it was part of has been removed")
    return _entry(row)


def check(db: Database, step: str) -> None:
    """Raise `NotFound` for a step that is not there (any more)."""
    if db.scalar("SELECT 1 FROM steps WHERE id = ?", (step,)) is None:
        raise NotFound(f"no such step: {step[:12]}: what it was part of has been removed")


class _Place(NamedTuple):
    """Which stack: the step, the store, and how many steps of that were squashed, which alone changes one."""

    step: str
    root: Path
    squashed: int


_chains: dict[_Place, tuple[str, ...]] = {}
"""The layers of some stacks, bottom first."""
_CHAINS = 4
_NEAR = 32
"""Steps that are read one by one until a known one is looked for no more."""


def layer_ids(db: Database, step: str) -> list[str]:
    """Return the layers of the stack that *step* stands for, topmost first."""
    return list(reversed(chain(db, step)))


def chain(db: Database, step: str) -> tuple[str, ...]:
    """Return the layers of the stack that *step* stands for, bottom first.

    What was read last is remembered, so that this costs little for a step near to one that was asked for.
    """
    squashed = db.number("SELECT count(*) FROM squashed")
    place = _Place(step, db.root, squashed)
    known = _chains.get(place)
    if known is not None:
        return known if db.scalar("SELECT 1 FROM steps WHERE id = ?", (step,)) is not None else ()
    query = """
        WITH RECURSIVE chain (id, parent, layer, depth) AS (
            SELECT id, parent, layer, 0 FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer, depth + 1
            FROM chain JOIN steps ON steps.id = chain.parent
            WHERE depth + 1 < ?2
        )
        SELECT id, layer FROM chain
    """
    found: tuple[str, ...] = ()
    above: list[str | None] = []
    for near, layer in db.execute(query, (step, _NEAR)).fetchall():
        known = _chains.get(_Place(near, db.root, squashed))
        if known is not None:
            found = known
            break
        above.append(layer)
    else:
        above = [layer for _, layer in db.execute(query, (step, 1 << 62)).fetchall()]
    found += tuple(layer for layer in reversed(above) if layer is not None)
    while len(_chains) >= _CHAINS:
        _chains.pop(next(iter(_chains)), None)
    _chains[place] = found
    return found


def to_read(db: Database, layer_ids: Sequence[str]) -> Stack:
    """Return the layers *layer_ids*, bottom first, as trees to be read; raises `NotFound`, `Conflict`."""
    from layerfs.store import external, marks  # which are made of layers

    rows = layers.get_all(db, layer_ids)
    external.complete(db, rows)
    return marks.stack(db, rows)


def all_histories(db: Database) -> dict[str, tuple[HistoryEntry, ...]]:
    """Return every step's history; for many images at once, whose stacks share most of their steps."""
    rows = db.execute(f"SELECT id, parent, {_COLUMNS} FROM steps").fetchall()
    steps = {row[0]: (row[1], _entry(row[2:])) for row in rows}
    found: dict[str, tuple[HistoryEntry, ...]] = {}
    for step in steps:
        missing = []
        below: str | None = step
        while below is not None and below not in found:
            missing.append(below)
            below = steps[below][0]
        past = found[below] if below is not None else ()
        for name in reversed(missing):
            past = found[name] = (*past, steps[name][1])
    return found


def layers_in(entries: Sequence[HistoryEntry]) -> tuple[str, ...]:
    """Return the layers that a history made, bottom first."""
    return tuple(entry.layer for entry in entries if entry.layer is not None)


def release(db: Database, step: str | None) -> list[str]:
    """Delete a step and those below it as far as nothing refers to them; part of a transaction.

    Returns the layers that went with them, topmost first: the caller then calls `layers.discard`.
    """
    used = (
        "SELECT EXISTS (SELECT 1 FROM images WHERE step = ?1)"
        " OR EXISTS (SELECT 1 FROM mounts WHERE step = ?1)"
        " OR EXISTS (SELECT 1 FROM steps WHERE parent = ?1)"
        " OR EXISTS (SELECT 1 FROM build_cache WHERE step = ?1)"
        " OR EXISTS (SELECT 1 FROM build_steps WHERE step = ?1)"
        " OR EXISTS (SELECT 1 FROM checkpoints WHERE step = ?1)"
    )
    doomed: list[str] = []
    while step is not None and not db.number(used, (step,)):
        step, layer = db.execute("DELETE FROM steps WHERE id = ? RETURNING parent, layer", (step,)).fetchone()
        if layer is not None:
            doomed += layers.delete_unused(db, layer)
    return doomed


def release_if_there(db: Database, step: str) -> list[str]:
    """Do what `release` does, for a step that may have gone with another one; part of a transaction."""
    there = db.scalar("SELECT 1 FROM steps WHERE id = ?", (step,)) is not None
    return release(db, step) if there else []


def _entry(row: tuple[str | None, int, str, str, str]) -> HistoryEntry:
    layer, created, created_by, author, comment = row
    return HistoryEntry(to_datetime(created), created_by, author, comment, layer is None, layer)
