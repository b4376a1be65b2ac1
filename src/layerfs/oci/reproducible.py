"""Images that are the same wherever they are built: no time is later than SOURCE_DATE_EPOCH.

Such an image has the id that everybody else gives it, too: the digest of its configuration, which names its
layers by the digests of their archives. Those are found out at once; other images wait until they go out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from layerfs.oci import config as documents
from layerfs.oci import packing
from layerfs.oci.inherited import inherited
from layerfs.oci.pool import Pool
from layerfs.store import Store, clamping, elsewhere, layers
from layerfs.store.elsewhere import Built
from layerfs.store.model import Image, to_nanoseconds


def make_image(
    store: Store,
    step: str,
    config: Mapping[str, Any],
    *,
    base: str | None,
    epoch: datetime,
    platform: tuple[str, str],
    references: Sequence[str] = (),
    author: str = "",
    comment: str = "",
) -> Image:
    """Make an image of *step*, whose layers above the step *base* are a build's, and give it names.

    No file of those layers keeps a time after *epoch*, which is the image's. The same files, history and
    configuration make the same image, with the same id, in any store. *platform* is architecture and system.
    Takes as long as reading those layers, but for those of which it has been done. Atomic but for the times
    of files; idempotent; not durable. Raises `NotFound`, `BadRequest`, and `LayerfsError` for what no archive
    can hold.
    """
    db = store.database
    rows = store.steps.layers_of_step(step)
    given = {row.id for row in store.steps.layers_of_step(base)} if base is not None else set()
    history = store.steps.history_of_step(step)
    for row in rows:
        if row.diff_id is None and row.id not in given:
            clamping.clamp(db, row.id, to_nanoseconds(epoch))
    diff_ids = _diff_ids(store, tuple(row.id for row in rows))
    image = Image(
        id="",
        layers=tuple(row.id for row in rows),
        config=dict(config),
        history=history,
        created=epoch,
        author=author,
        comment=comment,
        parent=None,
        architecture=platform[0],
        os=platform[1],
        tags=(),
    )
    document = documents.build(image, diff_ids, inherited(db, image, step))
    return elsewhere.insert_built(db, Built(image, step, document), references)


def _diff_ids(store: Store, stack: tuple[str, ...]) -> list[str]:
    """Return the digests of the archives of a stack's layers, and note those that were not known."""
    db = store.database
    rows = layers.get_all(db, stack)
    found = [row.diff_id for row in rows]
    jobs = {
        at: packing.Job(db.root, stack[: at + 1], packing.DIGEST_ALONE, packing.weight(row))
        for at, row in enumerate(rows)
        if row.diff_id is None
    }
    count = packing.processes([*jobs.values()])
    made = Pool(packing.WORK, [*jobs.values()], count, [], lambda state: None).run()
    for at, packed in zip(jobs, made, strict=True):
        found[at] = packed.diff_id
        known = [diff_id for diff_id in found[: at + 1] if diff_id is not None]
        with db.transaction():
            chain_id = elsewhere.chain_ids(known)[-1]
            elsewhere.note_diff_id(db, stack[at], packed.diff_id, chain_id, alone=bool(packed.alone))
    return [diff_id for diff_id in found if diff_id is not None]
