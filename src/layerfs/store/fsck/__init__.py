"""`layerfs fsck`: the store held against itself.

`check` compares the database with its own rules (`rows`), and the directories with the database (`trees`,
and `outside` for networks and volumes).
It may run while daemons and commands work: what somebody is making, or has just removed, is no problem.
"""

from __future__ import annotations

from collections.abc import Iterator

from layerfs.store import gc
from layerfs.store.database import Database
from layerfs.store.fsck import outside, rows, trees
from layerfs.store.fsck.problem import Problem

__all__ = ["Problem", "check"]


def check(db: Database, *, repair: bool = False, contents: bool = False) -> Iterator[Problem]:
    """Yield what is wrong with the store, each problem with what to do about it.

    With *repair*, what can be put right without losing anything is put right first: leftovers of killed
    processes go, rows and layers that nothing refers to go. Those are yielded too, marked as repaired. With
    *contents*, every file of every layer is read and held against its manifest, and sizes are measured: that
    takes as long as reading the store.

    Not atomic, and may be repeated. Raises `LayerfsError` where the store cannot be read at all.
    """
    damage = list(rows.check_database(db))
    yield from damage
    if damage:
        return  # what a damaged database says of the rest means nothing
    if repair:
        for line in gc.recover(db):
            yield Problem("store", line, "", repaired=True)
    yield from rows.check(db, repair=repair)
    yield from trees.check(db, repair=repair, contents=contents)
    yield from outside.check(db)
