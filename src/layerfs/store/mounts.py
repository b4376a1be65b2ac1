"""Mounts: a name, a stack of layers, and an upper to write to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from layerfs.errors import BadRequest, Conflict, NotFound, from_os_error
from layerfs.host.rundir import check_name
from layerfs.store import checkpoints, events, external, images, layers, marks, stacks
from layerfs.store.database import Database, Value
from layerfs.store.model import HistoryEntry, Image, Layer, Mount, now, to_datetime, to_nanoseconds
from layerfs.union.marking import Trust, trust_in_others
from layerfs.union.trees import copy_attributes, remove_trees

_COLUMNS = "id, name, step, image, config, upper, mountpoint, options, created, started, ephemeral, build"


def create(
    db: Database,
    name: str,
    *,
    image: Image | None,
    layer_ids: Sequence[str],
    step: str | None,
    build: str | None,
    writable: bool,
    external_upper: tuple[Path, Path | None] | None,
    options: dict[str, Any],
    config: Mapping[str, Any] | None,
    ephemeral: bool,
) -> Mount:
    """Write a mount's row and make its upper; see `Store.create_mount`."""
    check_name(name)
    stack = tuple(layer_ids) or (image.layers if image else ())
    if step is not None:
        stacks.check(db, step)
        stack = stacks.chain(db, step)
    if not stack:
        raise BadRequest("a mount needs an image or at least one layer below")
    _check_free(db, name)
    rows = _representatives(db, stack)
    marking = marks.of_stack(rows, userxattr=bool(options.get("userxattr")))
    prefix = marks.name_of(marking)
    marks.check_options(trust_in_others() if external_upper else Trust.ALL, marking, options)
    upper = None
    if external_upper:
        external_upper = external.place_of(external_upper[0]), external_upper[1]
        external.check_upper(db, *external_upper, writable=writable)
        upper = layers.begin(db)
    elif writable:
        upper = layers.begin(db, "fs", "work")
    try:
        if upper and not external_upper:
            copy_attributes(rows[-1].path, layers.directory(db, upper) / "fs", marking)
        if upper:
            layers.bring_to_disk(db, upper)
        with db.transaction():
            _check_free(db, name)
            if upper and external_upper:
                external.insert_upper(db, upper, *external_upper, prefix)
            elif upper:
                layers.insert(db, upper, "active", prefix)
            made_from = _From(image, stack, step, build)
            mount_id = _insert(db, name, made_from, upper, options, config, ephemeral)
    except BaseException as error:
        if upper:
            layers.discard(db, upper)
        if isinstance(error, OSError):
            raise from_os_error(error, f"make an upper for {name}") from None
        raise
    if upper:
        layers.keep(upper)
    return get(db, mount_id)


def _representatives(db: Database, stack: Sequence[str]) -> list[Layer]:
    """Return those of the layers *stack* that say how all are marked, the topmost last."""
    from layerfs.store import runs  # which takes some time to load

    return layers.get_all(db, runs.representatives(db, stack))


class _From(NamedTuple):
    """What a mount is made from, and for which build."""

    image: Image | None
    stack: Sequence[str]
    step: str | None
    build: str | None


def _insert(
    db: Database,
    name: str,
    made_from: _From,
    upper: str | None,
    options: dict[str, Any],
    config: Mapping[str, Any] | None,
    ephemeral: bool,
) -> str:
    mount_id = os.urandom(32).hex()
    image, stack, given, build = made_from
    if config is None:
        config = image.config if image else {}
    parent: str | None = None
    step: Value = given
    if given is not None:
        stacks.check(db, given)
        parent = images.nearest(db, given)
    elif image and tuple(stack) == image.layers:
        parent, step = image.id, db.scalar("SELECT step FROM images WHERE id = ?", (image.id,))
        if step is None:
            raise NotFound(f"no such image: {image.id}")
    columns = {
        "id": mount_id,
        "name": name,
        "step": step or stacks.add_all(db, _plain_history(db, stack)),
        "image": image.id if image else None,
        "parent": parent,
        "config": stacks.canonical_json(dict(config)),
        "upper": upper,
        "options": stacks.canonical_json(options),
        "created": now(),
        "ephemeral": ephemeral,
        "build": build,
    }
    names = ", ".join(columns)
    db.execute(
        f"INSERT INTO mounts ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(columns.values())
    )
    events.record(db, "container", "create", mount_id, {"name": name, "image": image.id if image else ""})
    return mount_id


def _plain_history(db: Database, stack: Sequence[str]) -> list[HistoryEntry]:
    """Return a history for layers that nobody knows one of."""
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
        row = db.execute(f"SELECT {_COLUMNS} FROM mounts WHERE name = ?1 OR id = ?1", (wanted,)).fetchone()
        if row is None and wanted and not set(wanted) - set("0123456789abcdef"):
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM mounts WHERE id GLOB ? LIMIT 2", (wanted + "*",)
            ).fetchall()
            if len(rows) > 1:
                raise BadRequest(f"several mounts have an id that begins with {wanted}: give more of it")
            row = rows[0] if rows else None
        if row is None:
            raise NotFound(f"no such mount: {reference}")
        return _from_row(db, row)


def identify(db: Database, name: str) -> tuple[str, str] | None:
    """Return the id and the name of the mount with exactly this name or id, None where there is none."""
    found = db.execute("SELECT id, name FROM mounts WHERE name = ?1 OR id = ?1", (name,)).fetchone()
    return (str(found[0]), str(found[1])) if found else None


def get(db: Database, mount_id: str) -> Mount:
    """Return the mount with exactly this id; raises `NotFound`."""
    with db.snapshot():
        row = db.execute(f"SELECT {_COLUMNS} FROM mounts WHERE id = ?", (mount_id,)).fetchone()
        if row is None:
            raise NotFound(f"no such mount: {mount_id}")
        return _from_row(db, row)


def mountpoint_of(db: Database, name: str) -> str | None:
    """Return where the mount of this name is mounted, or was the last time; None if that is nowhere."""
    found = db.execute("SELECT mountpoint FROM mounts WHERE name = ?", (name,)).fetchone()
    return os.fsdecode(found[0]) if found is not None and found[0] is not None else None


def _names(db: Database, mount_id: str) -> dict[str, str]:
    """Return what events say of a mount: its name, and the image that it was made from; or `NotFound`."""
    found = db.execute("SELECT name, image FROM mounts WHERE id = ?", (mount_id,)).fetchone()
    if found is None:
        raise NotFound(f"no such mount: {mount_id}")
    return {"name": found[0], "image": found[1] or ""}


def every(db: Database) -> list[Mount]:
    """Return all mounts, newest first."""
    with db.snapshot():
        rows = db.execute(f"SELECT {_COLUMNS} FROM mounts ORDER BY created DESC, id").fetchall()
        return [_from_row(db, row) for row in rows]


def set_mounted(db: Database, mount_id: str, mountpoint: str, started: datetime) -> None:
    """Note that the mount is up, where, and since when; raises `NotFound`."""
    with db.transaction():
        names = _names(db, mount_id)
        db.execute(
            "UPDATE mounts SET mountpoint = ?, started = ? WHERE id = ?",
            (os.fsencode(mountpoint), to_nanoseconds(started), mount_id),
        )
        events.record(db, "container", "mount", mount_id, names)


def set_unmounted(db: Database, mount_id: str) -> None:
    """Note that the mount is down; where it was stays known. Raises `NotFound`."""
    with db.transaction():
        names = _names(db, mount_id)
        db.execute("UPDATE mounts SET started = NULL WHERE id = ?", (mount_id,))
        events.record(db, "container", "unmount", mount_id, names)


def set_mountpoint(db: Database, mount_id: str, mountpoint: str | None) -> None:
    """Note where a mount was last, after it has been somewhere else for a moment; raises `NotFound`."""
    with db.transaction():
        get(db, mount_id)
        encoded = os.fsencode(mountpoint) if mountpoint is not None else None
        db.execute("UPDATE mounts SET mountpoint = ? WHERE id = ?", (encoded, mount_id))


def set_options(db: Database, mount_id: str, options: Mapping[str, Any], work: Path | None) -> None:
    """Have a mount use *options* from now on; see `Store.set_options`."""
    mount = get(db, mount_id)
    read_only = bool(options.get("ro"))
    if mount.image is not None and mount.upper is None and not read_only:
        raise Conflict(
            f"{mount.name} was made read-only: remove it (layerfs rm {mount.name}) or use another name"
        )
    rows = _representatives(db, mount.layers)
    upper = layers.get(db, mount.upper) if mount.upper else None
    if upper:
        marking = marks.of_stack([*rows, upper], userxattr=bool(options.get("userxattr")))
        marks.check_options(marks.trust(upper, marking), marking, options)
    if upper and external.is_outside(db, upper) and not read_only:
        external.set_work(db, upper, work)
    with db.transaction():
        kept = {name: value for name, value in get(db, mount_id).options.items() if name == "container"}
        text = stacks.canonical_json({**options, **kept})
        db.execute("UPDATE mounts SET options = ? WHERE id = ?", (text, mount_id))


def rename(db: Database, mount_id: str, name: str) -> None:
    """Give a mount another name. Raises `NotFound`, `BadRequest`, and `Conflict` if the name is taken."""
    check_name(name)
    with db.transaction():
        mount = get(db, mount_id)
        _check_free(db, name)
        db.execute("UPDATE mounts SET name = ? WHERE id = ?", (name, mount_id))
        attributes = {"name": name, "oldName": f"/{mount.name}", "image": mount.image or ""}
        events.record(db, "container", "rename", mount_id, attributes)


def update_container(db: Database, mount_id: str, action: str | None, values: Mapping[str, Any]) -> None:
    """Note *values* about a container, with an event called *action* if any; raises `NotFound`."""
    with db.transaction():
        mount = get(db, mount_id)
        options = {**mount.options, "container": {**mount.container, **values}}
        db.execute("UPDATE mounts SET options = ? WHERE id = ?", (stacks.canonical_json(options), mount_id))
        if action is None:
            return
        attributes = {"name": mount.name, "image": mount.image or ""}
        if values.get("ExitCode") is not None and action == "die":
            attributes["exitCode"] = str(values["ExitCode"])
        events.record(db, "container", action, mount_id, attributes)


def remove(db: Database, mount_id: str) -> None:
    """Remove a mount and its upper, and the layers that only it used; raises `NotFound`.

    Trees outside the store stay where they are: one that a commit which was cut short has taken goes back.
    """
    _end_commit(db, mount_id)
    with db.transaction():
        mount = get(db, mount_id)
        steps = checkpoints.forget(db, mount_id)
        steps.append(str(db.scalar("DELETE FROM mounts WHERE id = ? RETURNING step", (mount_id,))))
        events.record(db, "container", "destroy", mount_id, {"name": mount.name, "image": mount.image or ""})
        doomed = layers.delete_unused(db, mount.upper) if mount.upper else []
        for step in steps:
            doomed += stacks.release_if_there(db, step)
    layers.discard(db, *doomed)
    if (own := db.root / "containers" / mount_id).exists():  # a container's log and volumes
        remove_trees(own)


def _end_commit(db: Database, mount_id: str) -> None:
    """Put right what a commit that was cut short has left of an upper outside the store; or `Conflict`."""
    upper_id = get(db, mount_id).upper
    own = layers.directory(db, upper_id) if upper_id else None
    if upper_id and own and (own / "exchange").exists():
        try:
            with layers.lock(own):
                external.recover(db, layers.get(db, upper_id))
        except OSError as error:
            path = layers.get(db, upper_id).path
            raise Conflict(
                f"its commit was cut short, and {path} cannot get its tree back: {error.strerror}"
            ) from None


def _from_row(db: Database, row: tuple[Any, ...]) -> Mount:
    mount_id, name, step, image, config, upper, mountpoint, options, created, started, ephemeral, build = row
    return Mount(
        id=mount_id,
        name=name,
        image=image,
        config=json.loads(config),
        layers=stacks.chain(db, step),
        upper=upper,
        mountpoint=os.fsdecode(mountpoint) if mountpoint is not None else None,
        options=json.loads(options),
        created=to_datetime(created),
        started=to_datetime(started) if started is not None else None,
        ephemeral=bool(ephemeral),
        step=step,
        build=build,
    )
