"""Recovery: what a crash left behind is removed, or put right.

The rows are the truth. A directory below `layers/` without a row belongs to whoever holds its lock. When
nobody does it is removed if that loses nothing: the table `removable` names it (a copy that was cut short, a
layer whose rows are gone but whose tree is not yet), or nobody has ever written to it (a next upper whose
commit never came). Otherwise a power cut may have taken its rows, so it is set aside for a person, and
never touched again. Scratch directories that nobody holds are removed. A row whose tree is missing goes when
nothing uses it, and a mount without a name goes with its daemon, however that ended.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from layerfs.errors import from_os_error
from layerfs.store import buildcache, external, holds, layers, scratch, volumes
from layerfs.store.database import Database
from layerfs.store.model import Layer, now, to_nanoseconds
from layerfs.store.prune import forget_mounts
from layerfs.union.trees import open_directory, remove_trees

_IDLE = 600 * 10**9
"""Nanoseconds for which an external layer may wait for the mount that it was registered for."""


def recover(db: Database) -> list[str]:
    """Put right what crashes left; return a line for each thing done. Raises `LayerfsError`."""
    done = holds.recover(db)
    done += forget_mounts(db)
    try:
        with layers.making(db, alone=True):  # nobody can be between making a directory and locking it
            owned = {str(layer_id) for (layer_id,) in db.execute("SELECT id FROM layers")}
            removable = {str(layer_id) for (layer_id,) in db.execute("SELECT layer FROM removable")}
            found = set(os.listdir(db.layers))
            strange = [path for name in sorted(found - owned) if not is_kept(path := db.layers / name)]
            aside = [new for path in strange if (new := _set_aside(db, path))]
            if outlived := [name for name in removable if not {name, name + layers.GONE} & found]:
                with db.transaction():
                    for name in outlived:
                        db.execute("DELETE FROM removable WHERE layer = ?", (name,))
            unfinished = scratch.abandoned(db)
        rubbish = [path for path in aside if not path.name.endswith(layers.LOST)]
        if rubbish:
            db.sync()  # that their rows are gone, if they ever had any
        done += [
            f"set aside {path}: the database does not know it; `layerfs fsck` says what it is"
            for path in aside
            if path not in rubbish
        ]
        done += _check_rows(db)
        for path in unfinished:
            remove_trees(path)
            done.append(f"removed {path}: what was put together there was not finished")
        for path in forgotten(db):
            remove_trees(path)
            done.append(f"removed {path}: its container is gone")
        done += volumes.recover(db)
        for path in rubbish:
            was_used = not _is_unused(path)  # a next upper that was ready is nothing to tell of
            remove_trees(path)
            if was_used:
                done.append(f"removed {path.name.removesuffix(layers.GONE)[:12]}: a layer that nothing uses")
    except OSError as error:
        raise from_os_error(error, f"clean up the store {db.root}") from None
    return done


def forgotten(db: Database) -> list[Path]:
    """Return the directories of containers that are none any more: each is made after the mount's row."""
    try:
        found = sorted((db.root / "containers").iterdir())
    except FileNotFoundError:
        return []
    return [path for path in found if db.scalar("SELECT 1 FROM mounts WHERE id = ?", (path.name,)) is None]


def _check_rows(db: Database) -> list[str]:
    done: list[str] = []
    with db.snapshot():
        rows = layers.get_all(db, _to_look_at(db))
    spoilt = [row.id for row in rows if row.unverified or (row.state == "sealed" and not row.path.is_dir())]
    if spoilt and (count := buildcache.forget(db, spoilt)):
        done.append(f"forgot {count} entries of the build cache: their layers may not be whole")
    for layer in rows:
        own = layers.directory(db, layer.id)
        if (own / "exchange").exists() or (layer.state == "active" and external.is_outside(db, layer)):
            with suppress(FileNotFoundError), layers.lock(own, wait=False) as locked:
                line = _recover_outside(db, layers.get(db, layer.id)) if locked else None
                done += [line] if line else []
        elif layer.state == "external":
            if to_nanoseconds(layer.created) < now() - _IDLE and _forget(db, layer):
                done.append(f"forgot the layer {layer.path}, which nothing uses")
            else:  # a power cut can take what is only its lock
                own.mkdir(mode=0o700, exist_ok=True)
        elif not layer.path.is_dir() and own == layer.path.parent:
            if _forget(db, layer):
                done.append(f"forgot layer {layer.id[:12]}, which has no tree")
            elif layers.exists(db, layer.id):  # not removed meanwhile
                done.append(
                    f"layer {layer.id[:12]} has lost its tree {layer.path}: what uses it cannot be mounted"
                )
    return done


def _to_look_at(db: Database) -> list[str]:
    """Return the layers without those, most of a store, that are settled and have their tree."""
    settled = "path IS NULL AND state = 'sealed' AND manifest_done AND NOT unverified"
    query = f"SELECT id, {settled} FROM layers ORDER BY created"
    with open_directory(db.layers) as shelf:
        return [
            str(layer_id)
            for layer_id, is_settled in db.execute(query).fetchall()
            if not (is_settled and _has_tree(shelf, layer_id))
        ]


def _has_tree(shelf: int, layer_id: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(f"{layer_id}/fs", dir_fd=shelf).st_mode)
    except OSError:
        return False


def _recover_outside(db: Database, layer: Layer) -> str | None:
    """Do `external.recover`; an upper that cannot be reached keeps nobody from mounting others."""
    try:
        return external.recover(db, layer)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP):
            raise
        return f"cannot see to the commit of {layer.path}, which was cut short: {error.strerror}"


def _forget(db: Database, layer: Layer) -> bool:
    with db.transaction():
        unused = layers.delete_unused(db, layer.id)
    if unused:
        layers.discard(db, layer.id)
    return bool(unused)


def _set_aside(db: Database, path: Path) -> Path | None:
    """Rename what nobody owns and nobody is making, so that it is no layer any more; return where it is."""
    if path.name.endswith(layers.GONE):
        return path
    try:
        with layers.lock(path, wait=False) as locked:
            # The row is written before the lock is given up, so only now does its absence mean anything.
            if locked and not layers.exists(db, path.name):
                suffix = layers.GONE if is_rubbish(db, path) else layers.LOST
                return path.rename(path.with_name(path.name + suffix))
    except (FileNotFoundError, NotADirectoryError):
        pass  # another process removed it; or it is no layer
    return None


def is_kept(path: Path) -> bool:
    """Tell whether *path*, below `layers/`, is nothing that recovery touches, whatever the rows say."""
    return path.name.endswith(layers.LOST) or path.name == "lost+found" or not path.is_dir()


def is_rubbish(db: Database, path: Path) -> bool:
    """Tell whether a directory below `layers/` that has no row may be removed: that loses nothing."""
    if path.name.endswith(layers.GONE) or (path / layers.FILLING).exists():
        return True
    return db.scalar("SELECT 1 FROM removable WHERE layer = ?", (path.name,)) is not None or _is_unused(path)


def _is_unused(own: Path) -> bool:
    """Tell whether nothing was ever written to the tree of a layer's directory, as far as can be seen."""
    allowed: dict[str, set[str]] = {
        ".": {"fs", "work", "exchange", "exchange.tmp"},
        "fs": set(),
        "work": {"work", "index"},
        "work/work": set(),
        "work/index": set(),
    }
    for place, names in allowed.items():
        try:
            if not set(os.listdir(own / place)) <= names:
                return False
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
