"""Uppers that people bring along (`--upper DIR --work DIR`).

Such an upper is an active layer whose row has a path. On a commit its tree moves into the store and a
fresh, empty one takes its place: the two directories are exchanged in one system call inside the
transaction, so both must be on the store's filesystem. Before that, `layers/ID/exchange` notes the
inode numbers of the two; after a crash it tells whether the exchange took place. A power cut may leave either
of transaction and exchange on the disk without the other, so the note stays until both are there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from layerfs.errors import BadRequest, Conflict, from_os_error
from layerfs.store import layers, marks
from layerfs.store.database import Database
from layerfs.store.model import Layer, Mount, now
from layerfs.union.trees import copy_attributes, exchange, remove_trees, sync_filesystem, sync_path

COMMITTED = "upper"
"""The attribute of a commit's event that says from which directory outside the store the layer came."""


def place_of(directory: Path) -> Path:
    """Return where an upper that somebody names lies: absolute, and not a link to it.

    A commit puts another directory in its place, and must not put one in the place of a link.
    """
    return directory.resolve() if directory.is_symlink() else directory.absolute()


def check_upper(db: Database, upper: Path, work: Path | None, *, writable: bool) -> None:
    """Raise the `LayerfsError` for directories that cannot serve as an upper and its work directory.

    One that is not to be written to needs no work directory.
    """
    _check_directory(upper.absolute(), "upper", writable=writable)
    if writable:
        _check_work(upper.absolute(), work and work.absolute())
    _check_unused(db, upper, work)


def _check_directory(path: Path, what: str, *, writable: bool) -> None:
    if not path.is_dir():
        raise BadRequest(f"the {what} directory {path} is not a directory")
    if not os.access(path, os.R_OK | os.X_OK | (os.W_OK if writable else 0)):
        verb = "write to" if writable else "read"
        raise from_os_error(PermissionError(13, "Permission denied", str(path)), f"{verb} the {what}")


def _check_work(upper: Path, work: Path | None) -> None:
    if work is None:
        raise BadRequest(f"the upper {upper} has no work directory: give one, or mount read-only")
    _check_directory(work, "work", writable=True)
    if upper.stat().st_dev != work.stat().st_dev:
        raise BadRequest(f"the work directory {work} is not on the filesystem of the upper {upper}")
    real_upper, real_work = upper.resolve(), work.resolve()
    if real_upper.is_relative_to(real_work) or real_work.is_relative_to(real_upper):
        raise BadRequest(f"the upper {upper} and the work directory {work} must lie side by side")


def _check_unused(db: Database, upper: Path, work: Path | None) -> None:
    upper = upper.absolute()
    for path in (upper, work.absolute()) if work else (upper,):
        name = db.scalar(
            "SELECT name FROM mounts JOIN layers ON upper = layers.id WHERE ?1 IN (path, work)",
            (os.fsencode(path),),
        )
        if name is not None:
            raise Conflict(f"{path} is in use by the mount {name!s}: remove it first (layerfs rm {name!s})")
    if db.scalar("SELECT id FROM layers WHERE path = ?", (os.fsencode(upper),)) is not None:
        raise Conflict(f"{upper} is in use as a layer below another mount or image: use another upper")


def insert_upper(db: Database, layer_id: str, upper: Path, work: Path | None, prefix: str) -> None:
    """Write the row of an upper outside the store, marked with *prefix*; part of a transaction.

    Raises `Conflict`.
    """
    _check_unused(db, upper, work)
    beside = os.fsencode(work.absolute()) if work else None
    db.execute(
        "INSERT INTO layers (id, state, path, work, created, prefix, outside)"
        " VALUES (?, 'active', ?, ?, ?, ?, 1)",
        (layer_id, os.fsencode(upper.absolute()), beside, now(), prefix),
    )


def outside(db: Database, mount: Mount) -> Path | None:
    """Return the directory that was given as the upper of *mount*, None where the store has its own."""
    if mount.upper is None:
        return None
    upper = layers.get(db, mount.upper)
    return upper.path if is_outside(db, upper) else None


def committed_from(db: Database, path: Path) -> str | None:
    """Return the id of the newest image that was committed from an upper at *path*, if the store has it.

    What that image holds is no longer in the directory. Only the events that are kept are looked at.
    """
    query = "SELECT attributes FROM events WHERE action = 'commit' AND attributes LIKE ? ORDER BY id DESC"
    for (text,) in db.execute(query, (f'%"{COMMITTED}"%',)):
        attributes = json.loads(text)
        if attributes.get(COMMITTED) == str(path.absolute()):
            image = str(attributes["imageID"]).removeprefix("sha256:")
            if db.scalar("SELECT id FROM images WHERE id = ?", (image,)) is not None:
                return image
    return None


def set_work(db: Database, upper: Layer, work: Path | None) -> None:
    """Note the work directory (None: as it is) of an upper to write to; raises as `check_upper`."""
    work = work.absolute() if work else upper.work
    _check_directory(upper.path, "upper", writable=True)
    _check_work(upper.path, work)
    with db.transaction():
        db.execute("UPDATE layers SET work = ? WHERE id = ?", (os.fsencode(str(work)), upper.id))


def is_outside(db: Database, upper: Layer) -> bool:
    """Tell whether the tree of an active layer is not the store's own."""
    return upper.path != layers.directory(db, upper.id) / "fs"


def prepare(db: Database, upper: Layer) -> None:
    """Make the fresh tree that will take the place of an upper outside the store.

    Raises `Conflict` where the two cannot be exchanged.
    """
    if upper.path.stat().st_dev != db.layers.stat().st_dev:
        raise Conflict(
            f"cannot commit {upper.path}: it is not on the filesystem of the store {db.root};"
            " use an upper that is, or mount without --upper"
        )
    if upper.path.is_symlink():  # of a mount that an older layerfs made
        raise Conflict(
            f"cannot commit {upper.path}: it is a link; mount {upper.path.resolve()} under another name"
        )
    own = layers.directory(db, upper.id)
    recover(db, upper)
    (own / "fs").mkdir(mode=0o755)
    copy_attributes(upper.path, own / "fs", marks.of_layer(upper))
    note = own / "exchange.tmp"
    fresh, old = (path.stat().st_ino for path in (own / "fs", upper.path))
    note.write_bytes(b"%d\n%d\n%s" % (fresh, old, os.fsencode(upper.path)))
    sync_path(note)
    note.rename(own / "exchange")
    layers.bring_to_disk(db, upper.id)


class _Note(NamedTuple):
    """What `prepare` noted of an exchange: the two trees, and where the old one is before it."""

    fresh: int
    old: int | None
    path: Path | None

    def took_place(self, own: Path) -> bool:
        """Tell whether the directory *own* of the layer has the old tree."""
        return (own / "fs").stat().st_ino != self.fresh


def _noted(own: Path) -> _Note | None:
    """Return the note in a layer's directory; None where there is none, or none that says anything."""
    try:
        fresh, *more = (own / "exchange").read_bytes().split(b"\n", 2)
    except FileNotFoundError:
        return None
    if not fresh.isdigit():
        return None  # of an older layerfs, which left its writing to the system
    if len(more) < 2 or not more[0].isdigit():
        return _Note(int(fresh), None, None)
    return _Note(int(fresh), int(more[0]), Path(os.fsdecode(more[1])))


def seal(db: Database, upper: Layer, new_id: str) -> None:
    """Write what a commit makes of an upper outside and of the one that follows it there."""
    layers.seal(db, upper.id)
    db.execute(
        "INSERT INTO layers (id, state, path, work, created, prefix, outside)"
        " VALUES (?, 'active', ?, ?, ?, ?, ?)",
        (
            new_id,
            os.fsencode(upper.path),
            os.fsencode(upper.work or b""),
            now(),
            upper.prefix,
            upper.outside,
        ),
    )


def swap(db: Database, upper: Layer, tree: int | None = None) -> None:
    """Exchange an upper's tree and the fresh one; raises `LayerfsError`. Done twice, it undoes itself.

    *tree* is a descriptor on the tree, if it is mounted: whoever owns a directory above may have put another
    one in its place, or a link to one of the machine's own, and that must stay where it is.
    """
    mounted = None if tree is None else os.fstat(tree)

    def is_it(found: os.stat_result) -> bool:
        return mounted is None or os.path.samestat(found, mounted)

    try:
        done = _trade(upper.path, layers.directory(db, upper.id) / "fs", is_it)
    except OSError as error:
        raise from_os_error(error, f"move {upper.path} into the store") from None
    if not done:
        raise Conflict(
            f"cannot commit {upper.path}: it is not the directory that was mounted any more; "
            "move that one back there"
        )


def swap_back(db: Database, upper: Layer) -> None:
    """Undo `swap`, if what it put in the upper's place is still there; `recover` sees to the rest.

    Raises `LayerfsError`.
    """
    own = layers.directory(db, upper.id)
    note = _noted(own)
    try:
        if note is not None:
            _trade(upper.path, own / "fs", lambda found: found.st_ino == note.fresh)
    except OSError as error:
        raise from_os_error(error, f"move {upper.path} back out of the store") from None


def _trade(place: Path, tree: Path, is_wanted: Callable[[os.stat_result], bool]) -> bool:
    """Exchange the directory at *place*, outside the store, and *tree*; tell whether that was done.

    It is not where something else is at *place* by now: whoever owns a directory above could otherwise have
    any directory of the machine moved. Raises `OSError`.
    """
    parent = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.stat(place.name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or not is_wanted(found):
            return False
        exchange(Path(f"/proc/self/fd/{parent}", place.name), tree)
        return True
    finally:
        os.close(parent)


def bring_to_disk(db: Database, layer_id: str) -> None:
    """Bring the exchange that a commit made to the disk, and the commit; then forget what was noted.

    Durable on return. Nothing where there was no exchange. Raises `OSError` or `LayerfsError`.
    """
    own = layers.directory(db, layer_id)
    note = _noted(own)
    if note is not None and note.path is not None:
        _sync_parent(note.path, own)
        sync_path(own)
        db.sync()
    (own / "exchange").unlink(missing_ok=True)


def _sync_parent(path: Path, own: Path) -> None:
    """Bring to the disk what the directory above *path* has as *path*; *own* lies on the same filesystem."""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # somebody has removed or replaced it since, or we may not read it: then all there is
        fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        sync = sync_filesystem
    else:
        sync = os.fsync
    try:
        sync(fd)
    finally:
        os.close(fd)


def recover(db: Database, layer: Layer) -> str | None:
    """Undo a commit that is not in the database, or finish one that is; the caller holds the layer's lock.

    Returns a line that says what was done, if anything. Raises `OSError` or `LayerfsError`.
    """
    own = layers.directory(db, layer.id)
    note = _noted(own)
    if layer.state != "active":
        redone = _redo(own, note) if note is not None else None
        bring_to_disk(db, layer.id)
        return redone
    tree = own / "fs"
    done: list[str] = []
    if note is not None and tree.exists() and note.took_place(own):
        if _give_back(layer.path, tree, note.fresh):
            done.append(f"gave {layer.path} its tree back: its commit was cut short")
        else:
            what = "its tree, whose commit was cut short"
            done.append(f"something else is at {layer.path}: {what}, is in {_keep(db, tree)}")
    if tree.exists():
        if any(tree.iterdir()):
            done.append(f"what was written after that is in {_keep(db, tree)}")
        else:
            remove_trees(tree)
    for name in ("exchange", "exchange.tmp"):
        (own / name).unlink(missing_ok=True)
    return "; ".join(done) or None


def complete(db: Database, rows: Iterable[Layer]) -> None:
    """Finish the commits of layers that are about to be read, where a power cut has left only their rows.

    Their trees are empty until then. Nothing for layers of this boot, whose exchange is made. Raises
    `LayerfsError`.
    """
    for layer in rows:
        own = layers.directory(db, layer.id)
        if layer.state == "sealed" and layer.unverified and (own / "exchange").exists():
            try:
                with layers.lock(own):
                    recover(db, layers.get(db, layer.id))
            except OSError as error:
                raise from_os_error(error, f"finish the commit of layer {layer.id[:12]}") from None


def _give_back(place: Path, tree: Path, fresh: int) -> bool:
    """Exchange the tree *fresh* (`st_ino`) at *place* and *tree*; False where it is not there any more."""
    try:
        return _trade(place, tree, lambda found: found.st_ino == fresh)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _redo(own: Path, note: _Note) -> str | None:
    """Make the exchange of a commit that is in the database, where a power cut has left only that."""
    if note.path is None or note.took_place(own):
        return None
    if note.old is None or not _give_back(note.path, own / "fs", note.old):
        return f"the layer {own.name[:12]} is empty: what was in {note.path} is not there any more"
    return f"moved what was in {note.path} into the store: its commit was cut short"


def _keep(db: Database, tree: Path) -> Path:
    """Set a tree aside that nobody knows any more, as recovery does it with others; return where it is."""
    place = db.layers / (os.urandom(32).hex() + layers.LOST)
    place.mkdir(mode=0o700)
    return tree.rename(place / "fs")
