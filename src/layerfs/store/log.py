"""What led to a step: the steps below it that have a layer, what each changed, and which changed one path.

What a step added, changed and deleted is counted by its layer's tree, against those below it, once: the
first time that somebody asks. Sizes are those of the layers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from layerfs.errors import LayerfsError, NotFound, from_os_error
from layerfs.store import layers, stacks
from layerfs.store.chain import ChainOfTrees
from layerfs.store.database import Database
from layerfs.store.model import to_datetime
from layerfs.store.revisions import Revision
from layerfs.union.changes import ADDED, CHANGED, DELETED, changes_of
from layerfs.union.snapshot import opened
from layerfs.union.trace import Touch, trace

_MANY = 200
"""Steps whose counts are written in one transaction."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A step that has a layer."""

    id: str
    parent: str | None
    """The next step below it that has a layer."""
    layer: str
    created: datetime
    created_by: str
    author: str
    comment: str
    tags: tuple[str, ...] = ()
    """The names of the images that end with it."""
    size: int = 0
    """Bytes of the regular files in its layer."""
    added: int = 0
    changed: int = 0
    deleted: int = 0
    """Names of any kind of file, as `layerfs diff` counts them."""
    touch: Touch | None = None
    """What it did to the path that was asked for."""


def log(db: Database, revision: Revision, *, most: int | None = None, graph: bool = False) -> list[LogEntry]:
    """Return the steps that led to *revision*, newest first, *most* of them.

    With *graph*, also those that the mount has been at before it went back: each before the one it stands
    on, as far as possible by time. Raises `NotFound` and other `LayerfsError`s.
    """
    with db.snapshot():
        found = _chain(db, revision.step, None if graph else most)
        if graph and revision.mount is not None:
            found = _with_branches(db, revision.mount, found)
        entries = _tagged(db, found[:most])
    return _counted(db, entries)


def log_of_path(db: Database, revision: Revision, path: bytes, *, most: int | None = None) -> list[LogEntry]:
    """Return the steps that led to *revision* and touched *path*, newest first, *most* of them.

    Names that it had before are followed: see `union.trace`. Raises `NotFound` for a path that was never
    there, and other `LayerfsError`s.
    """
    path = posixpath.normpath(b"/" + path.lstrip(b"/"))
    entries: list[LogEntry] = []
    try:
        with db.snapshot():
            trees = ChainOfTrees(db, revision.step)
        with trees:
            for touch in trace(trees, path):
                step = trees.steps[touch.depth]
                (entry,) = _chain(db, step, 1)
                entries.append(replace(entry, touch=touch))
                if len(entries) == most:
                    break
    except OSError as error:
        raise from_os_error(error, f"look for {path.decode(errors='replace')}") from None
    if not entries:
        raise NotFound(f"{path.decode(errors='replace')} was never there")
    with db.snapshot():
        entries = _tagged(db, entries)
    return _counted(db, entries)


def _chain(db: Database, step: str, most: int | None) -> list[LogEntry]:
    query = """
        WITH RECURSIVE chain (id, parent, layer, created, created_by, author, comment) AS (
            SELECT id, parent, layer, created, created_by, author, comment FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer, steps.created, steps.created_by, steps.author,
                steps.comment
            FROM chain JOIN steps ON steps.id = chain.parent
        )
        SELECT id, layer, created, created_by, author, comment FROM chain WHERE layer IS NOT NULL LIMIT ?2
    """
    rows = db.execute(query, (step, -1 if most is None else most + 1)).fetchall()
    below = [row[0] for row in rows[1:]] + [None]
    return [
        LogEntry(row[0], parent, row[1], to_datetime(row[2]), *row[3:])
        for row, parent in zip(rows, below, strict=True)
    ][:most]


def _with_branches(db: Database, mount: str, chain: list[LogEntry]) -> list[LogEntry]:
    """Return *chain* and what *mount* has been at beside it, none before one that stands on it."""
    found = {entry.id: entry for entry in chain}
    tips = db.execute("SELECT step FROM checkpoints WHERE mount = ?", (mount,)).fetchall()
    for (tip,) in tips:
        for entry in _chain(db, tip, None):
            if entry.id in found:
                break
            found[entry.id] = entry
    above: dict[str | None, int] = {}
    for entry in found.values():
        above[entry.parent] = above.get(entry.parent, 0) + 1
    ready = [entry for entry in found.values() if entry.id not in above]
    ordered = []
    while ready:
        entry = max(ready, key=lambda each: each.created)
        ready.remove(entry)
        ordered.append(entry)
        above[entry.parent] -= 1
        if entry.parent is not None and not above[entry.parent]:
            ready.append(found[entry.parent])
    return ordered


def _tagged(db: Database, entries: Sequence[LogEntry]) -> list[LogEntry]:
    query = "SELECT step, tags.name FROM tags JOIN images ON images.id = tags.image ORDER BY tags.name"
    tags: dict[str, list[str]] = {}
    for step, name in db.execute(query):
        tags.setdefault(step, []).append(name)
    return [replace(entry, tags=tuple(tags.get(entry.id, ()))) for entry in entries]


def _counted(db: Database, entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return *entries* with sizes and counts, which are found out now where nobody knows them."""
    known: dict[str, tuple[int, int, int]] = {
        row[0]: row[1:] for row in db.execute("SELECT step, added, changed, deleted FROM step_changes")
    }
    missing = {entry.id: entry for entry in entries if entry.id not in known}
    while missing:
        top = next(iter(missing.values()))  # entries come from the top
        counts = _count(db, top, missing)
        known.update(counts)
        missing = {step: entry for step, entry in missing.items() if step not in counts}
    return [
        replace(
            entry,
            size=layers.size(db, entry.layer),
            added=known[entry.id][0],
            changed=known[entry.id][1],
            deleted=known[entry.id][2],
        )
        for entry in entries
    ]


def _count(db: Database, top: LogEntry, wanted: dict[str, LogEntry]) -> dict[str, tuple[int, int, int]]:
    """Count what the steps *wanted* at and below *top* have changed, and write it down; return it by step."""
    chain = _chain(db, top.id, None)
    stack = stacks.to_read(db, [entry.layer for entry in reversed(chain)])
    counts: dict[str, tuple[int, int, int]] = {}
    try:
        with opened(stack) as tree:
            for entry, layer in zip(chain, reversed(tree.layers), strict=True):
                if entry.id not in wanted:
                    continue
                kinds = {ADDED: 0, CHANGED: 0, DELETED: 0}
                for change in changes_of(layer):
                    kinds[change.kind] += 1
                counts[entry.id] = kinds[ADDED], kinds[CHANGED], kinds[DELETED]
    except OSError as error:
        raise from_os_error(error, f"count what {top.id[:12]} changed") from None
    rows = list(counts.items())
    with suppress(LayerfsError):  # a full disk, or another who writes: they are counted again then
        for start in range(0, len(rows), _MANY):
            with db.transaction():
                for step, values in rows[start : start + _MANY]:
                    add = """
                        INSERT OR REPLACE INTO step_changes (step, added, changed, deleted)
                        SELECT id, ?2, ?3, ?4 FROM steps WHERE id = ?1
                    """
                    db.execute(add, (step, *values))
    return counts
