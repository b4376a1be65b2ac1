"""References to what was: a mount, an image or a step, with `~N` and `@{WHEN}` after it, as one step.

    NAME              a mount, as it is now            ID        a step, or an image, or the beginning of one
    app:1             an image                         X~3       three steps that have a layer below X
    NAME@{10 minutes ago}, NAME@{2026-01-31 10:00}     what NAME stood on then

A mount's own name comes first, then an image's, then ids. The beginning of an id must mean one thing alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from layerfs.errors import BadRequest, NotFound
from layerfs.store import digests
from layerfs.store.database import Database
from layerfs.store.model import to_nanoseconds
from layerfs.store.references import id_prefix, normalize

_WHOLE = re.compile(r"(.*?)((?:~\d{0,9}|@\{[^{}]*\})*)", re.DOTALL)
_SUFFIX = re.compile(r"~(?P<back>\d{0,9})|@\{(?P<when>[^{}]*)\}")
_AGO = re.compile(r"(?:(\d{1,9}) ?([a-z]+) ago|(\d{1,9})([smhd]))")
_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_SECONDS |= {"d": 86400, "day": 86400, "week": 7 * 86400}
_SHOWN = 100


class Revision(NamedTuple):
    """What a reference means."""

    step: str
    mount: str | None = None
    """The id of the mount whose writes since *step* are part of it: the reference is a mount's name alone."""


class Suffix(NamedTuple):
    """One `~N` or `@{WHEN}`."""

    back: int | None
    when: str


def split(reference: str) -> tuple[str, list[Suffix]]:
    """Return what *reference* begins with, and what follows it."""
    found = _WHOLE.fullmatch(reference)
    assert found is not None
    suffixes = [
        Suffix(int(each["back"] or 1) if each["when"] is None else None, each["when"] or "")
        for each in _SUFFIX.finditer(found[2])
    ]
    return found[1], suffixes


def resolve(db: Database, reference: str) -> Revision:
    """Return what *reference* means in this store.

    Raises `NotFound` for what was never there or has been removed, and `BadRequest` for what can be no
    reference, for an id's beginning that means several things, and for a time that is none.
    """
    name, suffixes = split(reference)
    if not name:
        raise BadRequest(f"invalid reference {reference[:_SHOWN]!r}: give a mount, an image or a checkpoint")
    with db.snapshot():
        base = _named(db, name)
        return Revision(follow(db, base, suffixes, reference)) if suffixes else base


def follow(db: Database, base: Revision, suffixes: Sequence[Suffix], reference: str) -> str:
    """Return the step that *suffixes* lead to from *base*; raises `NotFound`, `BadRequest`."""
    step, mount = base.step, base.mount
    for suffix in suffixes:
        if suffix.back is not None:
            step = below(db, step, suffix.back, reference)
        else:
            step = at(db, step, mount, moment(suffix.when), reference)
        mount = None
    return step


def below(db: Database, step: str, count: int, reference: str) -> str:
    """Return the step that is *count* steps with a layer below *step*, for *reference*; raises `NotFound`."""
    query = """
        WITH RECURSIVE chain (id, parent, layer, depth) AS (
            SELECT id, parent, layer, 0 FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer, depth + (chain.layer IS NOT NULL)
            FROM chain JOIN steps ON steps.id = chain.parent WHERE depth <= ?2
        )
        SELECT id FROM chain WHERE depth = ?2 AND layer IS NOT NULL LIMIT 1
    """
    found = db.scalar(query, (step, count))
    if found is None:
        raise NotFound(f"there is no checkpoint {reference[:_SHOWN]}: its past is not that long")
    return str(found)


def at(db: Database, step: str, mount: str | None, when: int, reference: str) -> str:
    """Return the newest step of *when* or before, in nanoseconds since the epoch, at or below *step*.

    Of a mount that has gone back since, that is one below what it stood on then. Raises `NotFound`.
    """
    if mount is not None:
        query = "SELECT step FROM checkpoints WHERE mount = ? AND created > ? ORDER BY created LIMIT 1"
        step = str(db.scalar(query, (mount, when)) or step)
    query = """
        WITH RECURSIVE chain (id, parent, layer, created) AS (
            SELECT id, parent, layer, created FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer, steps.created
            FROM chain JOIN steps ON steps.id = chain.parent
        )
        SELECT id FROM chain WHERE created <= ?2 AND layer IS NOT NULL LIMIT 1
    """
    found = db.scalar(query, (step, when))
    if found is None:
        raise NotFound(f"there is no checkpoint {reference[:_SHOWN]}: all are younger than that")
    return str(found)


def moment(text: str) -> int:
    """Return the moment that *text* means, in nanoseconds since the epoch.

    "10 minutes ago", "10m", "now", "yesterday", or a time in ISO 8601, which is local without a zone. Raises
    `BadRequest`.
    """
    given = text.strip()
    try:
        if given == "now":
            found = datetime.now(UTC)
        elif given == "yesterday":
            found = datetime.now(UTC) - timedelta(days=1)
        elif ago := _AGO.fullmatch(given.lower()):
            unit = ago[2] or ago[4]
            seconds = _SECONDS[unit if unit in _SECONDS else unit.removesuffix("s")]
            found = datetime.now(UTC) - timedelta(seconds=int(ago[1] or ago[3]) * seconds)
        else:
            found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", given)).astimezone(UTC)
    except (ValueError, OverflowError, KeyError):
        raise BadRequest(
            f"invalid time {text[:_SHOWN]!r}: give one such as 10 minutes ago, 2026-01-31 10:00 or"
            " 2026-01-31T10:00:00Z"
        ) from None
    return to_nanoseconds(found)


def _named(db: Database, name: str) -> Revision:
    row = db.execute("SELECT id, step FROM mounts WHERE name = ?1 OR id = ?1", (name,)).fetchone()
    if row is not None:
        return Revision(row[1], row[0])
    digits = id_prefix(name)
    image = _image(db, name, digits)
    if image is not None:
        return Revision(str(db.scalar("SELECT step FROM images WHERE id = ?", (image,))))
    found = _by_id(db, digits) if digits else []
    if len({each.step for each in found}) > 1:
        raise BadRequest(f"several checkpoints or images have an id that begins with {name}: give more of it")
    if found:
        return found[0]
    if digits and (gone := squashed(db, digits)):
        raise gone
    raise NotFound(f"no mount, image or checkpoint is called {name[:_SHOWN]} in the store at {db.root}")


def _image(db: Database, name: str, digits: str | None) -> str | None:
    """Return the id of the image called *name*, by tag or digest; raises `BadRequest` for what is no name."""
    if digests.is_one(name):
        return digests.find(db, digests.parse(name))
    try:
        tag = normalize(name)
    except BadRequest:
        if digits is None:
            raise
        return None
    found = db.scalar("SELECT image FROM tags WHERE name = ?", (tag,))
    return str(found) if found is not None else None


def _by_id(db: Database, digits: str) -> list[Revision]:
    """Return what has an id that begins with *digits*: two at least where there are several."""
    bounds = (digits, digits + "g")
    found = [
        Revision(step)
        for table, column in (("steps", "id"), ("images", "step"))
        for (step,) in db.execute(f"SELECT {column} FROM {table} WHERE id >= ? AND id < ? LIMIT 3", bounds)
    ]
    rows = db.execute("SELECT step, id FROM mounts WHERE id >= ? AND id < ? LIMIT 3", bounds)
    return found + [Revision(step, mount) for step, mount in rows]


def squashed(db: Database, digits: str) -> NotFound | None:
    """Return the error for a squashed step whose id begins with *digits*, None where there is none."""
    query = "SELECT step, kept FROM squashed WHERE step >= ? AND step < ? LIMIT 1"
    gone = db.execute(query, (digits, digits + "g")).fetchone()
    if gone is None:
        return None
    step, kept = gone
    now = f": what it changed is in {kept[:12]} now" if kept else " or thinned out"
    return NotFound(f"the checkpoint {step[:12]} was squashed{now}")
