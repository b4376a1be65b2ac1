"""Whether the directories of a store are those that its rows speak of, and the layers what they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from layerfs.store import external, gc, layers, manifest, runs, scratch, settle
from layerfs.store.database import Database
from layerfs.store.fsck.problem import Problem
from layerfs.store.model import Layer
from layerfs.union.trees import remove_trees, walk

_IN_LAYER = {
    "fs",
    "work",
    "manifest",
    "recipe",
    "origin",
    "exchange",
    "inheriting",
    runs.PLACE,
    layers.FILLING,
}
"""What may be in a layer's directory: see docs/on-disk-format.md, "The store's root"."""
_FREE = "the next mount removes it, or 'layerfs fsck --repair'"
_ASIDE = "the next mount sets it aside for you to look at, or 'layerfs fsck --repair'"
_LOOK = "look into it, save what you need, and remove it"


def check(db: Database, *, repair: bool, contents: bool) -> Iterator[Problem]:
    """Yield what is wrong with the directories; see `layerfs.store.fsck.check`."""
    yield from _roots(db)
    yield from _strangers(db)
    for layer in layers.every(db):
        for problem in _layer(db, layer, repair, contents):
            if layers.exists(db, layer.id):  # not removed meanwhile
                yield problem


def _roots(db: Database) -> Iterator[Problem]:
    """Yield the directories of the store itself that others than its owner may change."""
    for path in (db.root, db.layers):
        status = os.stat(path, follow_symlinks=False)
        if status.st_uid not in (0, os.geteuid()):
            yield Problem(str(path), f"belongs to user {status.st_uid}", f"chown it to {os.geteuid()}")
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield Problem(str(path), "others than its owner may change it", f"chmod 700 {path}")


def _strangers(db: Database) -> Iterator[Problem]:
    """Yield what lies in the store and belongs to nobody, but for what somebody is making."""
    with layers.making(db, alone=True):  # nobody is between making a directory and locking it
        owned = {layer.id for layer in layers.every(db)}
        unknown = [path for path in sorted(db.layers.iterdir()) if path.name not in {*owned, "lost+found"}]
        free = [path for path in unknown if path.name.endswith(layers.LOST) or _is_free(db, path)]
        unfinished = scratch.abandoned(db)
    for path in free:
        if path.name.endswith(layers.LOST):
            yield _lost(path)
        elif path.exists():  # a removal may have come to its end meanwhile
            remedy = _LOOK if gc.is_kept(path) else _FREE if gc.is_rubbish(db, path) else _ASIDE
            yield Problem(f"layers/{path.name}", "no row names it", remedy)
    for path in unfinished:
        yield Problem(f"tmp/{path.name}", "what was put together there was not finished", _FREE)
    for path in gc.forgotten(db):
        yield Problem(f"containers/{path.name}", "its container is gone", _FREE)


def _is_free(db: Database, path: Path) -> bool:
    """Tell whether nobody makes or removes *path*, and still no row names it."""
    try:
        with layers.lock(path, wait=False) as locked:
            return locked and not layers.exists(db, path.name)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def _lost(path: Path) -> Problem:
    """Describe a tree that recovery has set aside."""
    files = newest = 0
    with suppress(OSError):
        fd = os.open(path / "fs", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for _, status in walk(fd):
                files += not stat.S_ISDIR(status.st_mode)
                newest = max(newest, int(status.st_mtime))
        finally:
            os.close(fd)
    what = (
        f"set aside after a crash: a layer that no row names, of {files} files, the newest of {_date(newest)}"
    )
    return Problem(str(path), what, f"{_LOOK}: 'layerfs mount --lower {path}/fs DIR', 'rm -r {path}'")


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"{seconds} s after 1970"


def _layer(db: Database, layer: Layer, repair: bool, contents: bool) -> Iterator[Problem]:
    subject = f"layer {layer.id[:12]}"
    own = layers.directory(db, layer.id)
    if not own.is_dir():
        yield Problem(subject, f"{own} is missing", "what uses it cannot be mounted: see 'layerfs df -v'")
        return
    outside = external.is_outside(db, layer)
    if not _is_directory(layer.path, links=outside):
        yield Problem(
            subject, f"its tree {layer.path} is missing", "restore it, or remove what uses the layer"
        )
        return
    # One that is but read has none: see `external.check_upper`.
    if layer.state == "active" and layer.work and not _is_directory(layer.work, links=outside):
        yield Problem(subject, f"its work directory {layer.work} is missing", f"mkdir {layer.work}")
    if layer.unverified and not settle.has_its_manifest(db, layer):
        what = (
            "was not known to be on disk when the machine stopped or the disk refused a write, so parts of it"
            " may be lost"
        )
        yield Problem(subject, what, "look at its files, then 'layerfs verify --accept' an image that has it")
    yield from _leftovers(own, subject, repair, settled=layer.manifest_done)
    for name, what in runs.problems(db, layer.id, contents=contents):
        if repair:
            remove_trees(own / runs.PLACE / name)
        remedy = "" if repair else "'layerfs fsck --repair' removes it: it is made again"
        yield Problem(subject, f"{runs.PLACE}/{name} {what}", remedy, repair)
    if layer.manifest_done:
        yield from _manifest(db, layer, subject, contents)
    if contents and layer.size is not None and layer.state != "active":
        size = layers.measure(layer.path)
        if size != layer.size:
            yield Problem(subject, f"has {size} bytes, and had {layer.size}", "see 'layerfs verify'")


def _is_directory(path: Path, *, links: bool) -> bool:
    """Tell whether *path* is a directory, or with *links*, for one that somebody has named, leads to one."""
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=links).st_mode)
    except OSError:
        return False


def _leftovers(own: Path, subject: str, repair: bool, *, settled: bool) -> Iterator[Problem]:
    """Yield what lies in a layer's directory and has no place there, unless somebody is at work there.

    A manifest that was cut short is made again when the layer is *settled*.
    """
    with layers.lock(own, wait=False) as locked:
        if not locked:
            return
        for path in sorted(own.iterdir()):
            if path.name in _IN_LAYER or (path.name == "manifest.tmp" and not settled):
                continue
            ours = path.suffix == ".tmp" and path.stem in _IN_LAYER
            if ours and repair:
                remove_trees(path)
            remedy = "" if ours and repair else "'layerfs fsck --repair' removes it" if ours else _LOOK
            yield Problem(subject, f"{path.name} has no place in its directory", remedy, ours and repair)


def _manifest(db: Database, layer: Layer, subject: str, contents: bool) -> Iterator[Problem]:
    file = layers.directory(db, layer.id) / "manifest"
    try:
        if not contents:
            for _ in manifest.read(file):
                pass
            return
        for path, what in manifest.compare(layer.path, file):
            name = path.decode("utf-8", "backslashreplace")
            yield Problem(subject, f"{name}: {what}", "restore the file, or the image, from elsewhere")
    except manifest.Damaged as error:
        if not external.is_outside(db, layer):
            yield Problem(
                subject, str(error), "nothing vouches for its files any more: compare them yourself"
            )
    except OSError as error:
        yield Problem(subject, f"cannot be read: {error.strerror}: {error.filename}", "see the kernel's log")
