"""Whether the rows of the database agree with each other, and with the rules that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from layerfs.host.rundir import NAME
from layerfs.store import holds, layers, stacks
from layerfs.store.database import Database, Value
from layerfs.store.fsck.problem import Problem

_BACKUP = "restore layerfs.db from a backup; the trees below layers/ are whole and can be mounted by --lower"
_RECOVERED = "the next mount lets go of them, or 'layerfs fsck --repair'"
_FREE = "'layerfs fsck --repair' removes it"
_RELEASE_PATIENTLY = 500
"""Steps that are deleted in one transaction, so that a commit never waits long for its turn."""

_UNUSED_STEPS = """
    WITH RECURSIVE used (id) AS (
        SELECT step FROM images UNION SELECT step FROM mounts UNION SELECT step FROM checkpoints
        UNION SELECT step FROM build_cache UNION SELECT step FROM build_steps
        UNION SELECT steps.parent FROM used JOIN steps ON steps.id = used.id WHERE steps.parent IS NOT NULL
    )
    SELECT id FROM steps WHERE id NOT IN (SELECT id FROM used)
"""
_UNUSED_LAYERS = """
    SELECT id FROM layers WHERE state != 'external'
        AND id NOT IN (SELECT layer FROM steps WHERE layer IS NOT NULL)
        AND id NOT IN (SELECT upper FROM mounts WHERE upper IS NOT NULL)
"""


def check_database(db: Database) -> Iterator[Problem]:
    """Yield what SQLite itself finds wrong with the database file and the references between rows."""
    for (line,) in db.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield Problem("layerfs.db", f"SQLite says: {line}", _BACKUP)
    for table, _, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
        what = f"a row of the table {table} refers to a row of {parent} that is not there"
        yield Problem("layerfs.db", what, _BACKUP)


def check(db: Database, *, repair: bool) -> Iterator[Problem]:
    """Yield the rows that contradict each other, and those that nothing refers to, which *repair* deletes."""
    with db.snapshot():
        found = [*_steps(db), *_images(db), *_mounts(db)]
        unused = [str(row[0]) for row in db.execute(_UNUSED_STEPS)]
        loose = [str(row[0]) for row in db.execute(_UNUSED_LAYERS)]
    yield from found
    for build in holds.dead(db):
        yield Problem(f"build {build}", "its process was killed, and it still holds steps", _RECOVERED)
    for step in unused:
        yield Problem(f"step {step[:12]}", "no image, mount or build has it in its history", *_end(repair))
    for layer in loose:
        yield Problem(f"layer {layer[:12]}", "no history and no mount uses it", *_end(repair))
    if repair:
        _delete_unused(db, unused, loose)


def _end(repair: bool) -> tuple[str, bool]:
    return ("", True) if repair else (_FREE, False)


def _delete_unused(db: Database, steps: list[str], loose: list[str]) -> None:
    doomed: list[str] = []
    for start in range(0, len(steps), _RELEASE_PATIENTLY):
        with db.transaction():
            for step in steps[start : start + _RELEASE_PATIENTLY]:
                if db.scalar("SELECT 1 FROM steps WHERE id = ?", (step,)):  # not with one above it
                    doomed += stacks.release(db, step)
    with db.transaction():
        for layer in loose:
            doomed += layers.delete_unused(db, layer)
    layers.discard(db, *doomed)


def _steps(db: Database) -> Iterator[Problem]:
    query = """
        SELECT id, iif(rebased.step IS NULL, steps.parent, rebased.parent),
            iif(rebased.step IS NULL, steps.layer, rebased.layer), created, created_by, author, comment
        FROM steps LEFT JOIN rebased ON rebased.step = steps.id
    """
    for step, *values in db.execute(query):
        if stacks.digest(values) != step:
            yield Problem(f"step {step[:12]}", "its id is not the digest of what it says", _BACKUP)
    query = "SELECT steps.id, layers.id FROM steps JOIN layers ON layer = layers.id WHERE state = 'active'"
    for step, layer in db.execute(query):
        what = f"the layer {layer[:12]} in a history (step {step[:12]}) is still being written to"
        yield Problem(f"step {step[:12]}", what, _BACKUP)


def _images(db: Database) -> Iterator[Problem]:
    names = ("step", "parent", "created", "author", "comment", "architecture", "os", "config")
    query = f"SELECT id, digest, document, {', '.join(names)} FROM images"
    for image, known, document, *values in db.execute(query):
        subject = f"image {image[:12]}"
        columns = dict(zip(names, values, strict=True))
        try:
            config = json.loads(columns["config"])
        except ValueError:
            config = None
        if not isinstance(config, dict):
            yield Problem(subject, "its configuration is not a JSON object", _remove(image))
        elif image not in (known, stacks.digest({**columns, "config": config})):
            yield Problem(subject, "its id is not the digest of what it says", _remove(image))
        if document is not None and hashlib.sha256(document).hexdigest() != known:
            yield Problem(subject, "its document does not have the digest noted for it", _remove(image))


def _remove(image: str) -> str:
    return f"import or pull it again, then 'layerfs rmi -f {image[:12]}'"


def _mounts(db: Database) -> Iterator[Problem]:
    query = "SELECT mounts.id, name, options, config, state FROM mounts LEFT JOIN layers ON upper = layers.id"
    for mount, name, options, config, state in db.execute(query):
        subject = f"mount {name if NAME.fullmatch(name) else mount[:12]}"
        if not NAME.fullmatch(name):
            yield Problem(subject, f"{name!r} is no name for a mount", f"'layerfs rm -f {mount[:12]}'")
        if state not in (None, "active"):
            yield Problem(subject, f"its upper is {state}, and must not be written to", _BACKUP)
        for what, text in (("options", options), ("configuration", config)):
            if not _is_object(text):
                yield Problem(subject, f"its {what} are not a JSON object", _BACKUP)


def _is_object(text: Value) -> bool:
    try:
        return isinstance(json.loads(str(text)), dict)
    except ValueError:
        return False
