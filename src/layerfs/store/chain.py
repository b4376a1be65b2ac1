"""The trees of a long chain of steps, for who looks at few of them: see `layerfs.union.trace.Trees`."""

from __future__ import annotations

import os
from types import TracebackType

from layerfs.store import stacks
from layerfs.store.database import Database
from layerfs.union.descriptors import Shelf
from layerfs.union.stack import Stack


class ChainOfTrees:
    """The trees of a step and those below it: of most, nothing but the id is read. A context manager.

    Raises `OSError` and `LayerfsError`.
    """

    def __init__(self, db: Database, step: str) -> None:
        """Read which steps and layers there are; to be called within a snapshot."""
        query = """
            WITH RECURSIVE chain (id, parent, layer) AS (
                SELECT id, parent, layer FROM steps WHERE id = ?1
                UNION ALL
                SELECT steps.id, steps.parent, steps.layer FROM chain JOIN steps ON steps.id = chain.parent
            )
            SELECT chain.id, layer, path IS NULL AND state = 'sealed', plain
            FROM chain JOIN layers ON layers.id = layer
        """
        rows = db.execute(query, (step,)).fetchall()[::-1]
        self.steps: list[str] = [row[0] for row in rows]
        """The steps that have a layer, the lowest first."""
        self._db = db
        self._layers: list[str] = [row[1] for row in rows]
        self._places = [os.fsencode(layer) + b"/fs" for layer in self._layers]
        self._owned: list[int] = [row[2] for row in rows]
        self._plain: list[int | None] = [row[3] for row in rows]
        self._shelf = Shelf(db.layers)

    def __enter__(self) -> ChainOfTrees:
        """Return the trees."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self._shelf.close()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.steps)

    def may_have(self, depth: int, path: bytes) -> bool:
        """See `Trees`: one system call."""
        if not self._owned[depth]:
            return True
        wanted = path if self._plain[depth] else b"/" + path.split(b"/", 2)[1]
        return self._shelf.may_have(self._places[depth] + wanted)

    def up_to(self, depth: int) -> Stack:
        """See `Trees`."""
        return stacks.to_read(self._db, self._layers[:depth])

    def tree(self, depth: int) -> Stack:
        """See `Trees`."""
        return stacks.to_read(self._db, [self._layers[depth]])
