"""Mounts: a name, a stack of layers, and an upper to write to."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from layerfs.errors import BadRequest, Conflict, NotFound, from_os_error
from layerfs.runtime import check_name
from layerfs.store import events, external, images, layers
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Image, Mount, now, to_datetime, to_nanoseconds
from layerfs.store.system import copy_attributes


def create(
    db: Database,
    name: str,
    *,
    image: Image | None,
    layer_ids: Sequence[str],
    writable: bool,
    external_upper: tuple[Path, Path] | None,
    options: dict[str, Any],
    ephemeral: bool,
) -> Mount:
    """Write a mount's row and make its upper; see `Store.create_mount`."""
    check_name(name)
    stack = tuple(layer_ids) or (image.layers if image else ())
    if not stack:
        raise BadRequest("a mount needs an image or at least one layer below")
    if external_upper and not writable:
        raise BadRequest("a read-only mount has no upper")
    _check_free(db, name)
    top = layers.get_all(db, stack)[-1]
    upper = None
    if external_upper:
        external.check_upper(db, *external_upper)
        upper = layers.begin(db)
    elif writable:
        upper = layers.begin(db, "fs", "work")
    try:
        if upper and not external_upper:
            copy_attributes(top.path, layers.directory(db, upper) / "fs")
        with db.transaction():
            _check_free(db, name)
            if upper and external_upper:
                external.insert_upper(db, upper, *external_upper)
            elif upper:
                layers.insert(db, upper, "active")
            mount_id = _insert(db, name, image, stack, upper, options, ephemeral)
    except BaseException as error:
        if upper:
            layers.discard(db, upper)
        if isinstance(error, OSError):
            raise from_os_error(error, f"make an upper for {name}") from None
        raise
    if upper:
        layers.keep(upper)
    return get(db, mount_id)


def _insert(
    db: Database,
    name: str,
    image: Image | None,
    stack: Sequence[str],
    upper: str | None,
    options: dict[str, Any],
    ephemeral: bool,
) -> str:
    mount_id = secrets.token_hex(32)
    parent = image.id if image and stack == image.layers else None
    db.execute(
        "INSERT INTO mounts (id, name, image, parent, config, upper, options, created, ephemeral)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            mount_id,
            name,
            image.id if image else None,
            parent,
            images.canonical_json(image.config if image else {}),
            upper,
            images.canonical_json(options),
            now(),
            ephemeral,
        ),
    )
    past = image.history if image and parent else _plain_history(db, stack)
    images.insert_stack(db, "mount", mount_id, stack, past)
    attributes = {"name": name, "image": image.id if image else ""}
    events.record(db, "container", "create", mount_id, attributes)
    return mount_id


def _plain_history(db: Database, stack: Sequence[str]) -> list[HistoryEntry]:
    return [
        HistoryEntry(
            layer.created,
            f"layer {os.fsencode(layer.path).decode(errors='replace')}",
            "",
            "",
            False,
            layer.id,
        )
        for layer in layers.get_all(db, stack)
    ]


def _check_free(db: Database, name: str) -> None:
    if db.scalar("SELECT id FROM mounts WHERE name = ?", (name,)) is not None:
        raise Conflict(
            f"the name {name} is taken by another mount: remove it (layerfs rm {name}) or use another"
        )


def find(db: Database, reference: str) -> Mount:
    """Return the mount with this name, id, or beginning of an id; raises `NotFound` or `BadRequest`."""
    with db.snapshot():
        wanted = reference.removeprefix("/")
        row = db.execute("SELECT * FROM mounts WHERE name = ?1 OR id = ?1", (wanted,)).fetchone()
        if row is None and wanted and not set(wanted) - set("0123456789abcdef"):
            rows = db.execute("SELECT * FROM mounts WHERE id GLOB ? LIMIT 2", (wanted + "*",)).fetchall()
            if len(rows) > 1:
                raise BadRequest(f"several mounts have an id that begins with {wanted}: give more of it")
            row = rows[0] if rows else None
        if row is None:
            raise NotFound(f"no such mount: {reference}")
        return _from_row(db, row)


def get(db: Database, mount_id: str) -> Mount:
    """Return the mount with exactly this id; raises `NotFound`."""
    with db.snapshot():
        row = db.execute("SELECT * FROM mounts WHERE id = ?", (mount_id,)).fetchone()
        if row is None:
            raise NotFound(f"no such mount: {mount_id}")
        return _from_row(db, row)


def every(db: Database) -> list[Mount]:
    """Return all mounts, newest first."""
    with db.snapshot():
        rows = db.execute("SELECT * FROM mounts ORDER BY created DESC, id").fetchall()
        return [_from_row(db, row) for row in rows]


def set_mounted(db: Database, mount_id: str, mountpoint: str, started: datetime) -> None:
    """Note that the mount is up, where, and since when; raises `NotFound`."""
    with db.transaction():
        mount = get(db, mount_id)
        db.execute(
            "UPDATE mounts SET mountpoint = ?, started = ? WHERE id = ?",
            (os.fsencode(mountpoint), to_nanoseconds(started), mount_id),
        )
        events.record(db, "container", "mount", mount_id, {"name": mount.name, "image": mount.image or ""})


def set_unmounted(db: Database, mount_id: str) -> None:
    """Note that the mount is down; where it was stays known. Raises `NotFound`."""
    with db.transaction():
        mount = get(db, mount_id)
        db.execute("UPDATE mounts SET started = NULL WHERE id = ?", (mount_id,))
        events.record(db, "container", "unmount", mount_id, {"name": mount.name, "image": mount.image or ""})


def remove(db: Database, mount_id: str) -> None:
    """Remove a mount and its upper, and the layers that only it used; raises `NotFound`.

    Trees outside the store stay where they are.
    """
    with db.transaction():
        mount = get(db, mount_id)
        db.execute("DELETE FROM mounts WHERE id = ?", (mount_id,))
        events.record(db, "container", "destroy", mount_id, {"name": mount.name, "image": mount.image or ""})
        doomed = layers.delete_unused(db, [*mount.layers, *([mount.upper] if mount.upper else [])])
    for layer_id in doomed:
        layers.discard(db, layer_id)


def _from_row(db: Database, row: sqlite3.Row) -> Mount:
    mount_id, name, image, _, config, upper, mountpoint, options, created, started, ephemeral = row
    return Mount(
        mount_id,
        name,
        image,
        json.loads(config),
        images.stack_layers(db, "mount", mount_id),
        upper,
        os.fsdecode(mountpoint) if mountpoint is not None else None,
        json.loads(options),
        to_datetime(created),
        to_datetime(started) if started is not None else None,
        bool(ephemeral),
    )
