"""What happened to images and mounts: the newest events, for those who watch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from layerfs.store.database import Database
from layerfs.store.model import Event

KEPT = 10_000


def record(db: Database, type: str, action: str, actor: str, attributes: Mapping[str, str]) -> None:
    """Add an event; called inside the transaction that does what it tells of."""
    added = db.execute(
        "INSERT INTO events (time, type, action, actor, attributes) VALUES (?, ?, ?, ?, ?)",
        (time.time_ns(), type, action, actor, json.dumps(dict(attributes))),
    )
    db.execute("DELETE FROM events WHERE id <= ?", ((added.lastrowid or 0) - KEPT,))


def after(db: Database, event_id: int) -> list[Event]:
    """Return the events recorded after the one with *event_id* (0: all that are kept), oldest first."""
    rows = db.execute(
        "SELECT id, time, type, action, actor, attributes FROM events WHERE id > ? ORDER BY id", (event_id,)
    )
    return [
        Event(number, moment, type, action, actor, json.loads(attributes))
        for number, moment, type, action, actor, attributes in rows
    ]
