"""Settling: what a sealed layer still lacks, done in the background after the commit.

`python -m layerfs.store.settle ROOT LAYERS [WATCH]` does it in a process of its own, as nice as can be, for
ids with commas between them. It may be killed at any moment; whoever needs what is missing then settles the
layer again. WATCH is a descriptor on the store's filesystem that has been open since before the layers were
written to.

A manifest says what a layer was sealed with only if it was made in the boot of the commit, from what is in
the page cache or on disk. If the machine stopped before that, a part of the layer may never have reached the
disk. Such a layer is *unverified*, until somebody accepts it: its manifest says what was found afterwards.
So is one that was not settled when the disk refused something: the page cache shows what was written, and the
system tells of a page that it could not write once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from layerfs.errors import Conflict, LayerfsError, NotFound, from_os_error
from layerfs.host.interpreter import command
from layerfs.store import external, layers, manifest
from layerfs.store.database import Database
from layerfs.store.model import Difference, Layer
from layerfs.union.trees import sync_filesystem


class _NotWritten(OSError):
    """Something that was written to the filesystem of a layer did not get to its disk."""


def settle(db: Database, layer_id: str, watch: int | None = None) -> Layer:
    """Measure a layer, write its manifest and bring it to disk, unless that is done; return it.

    *watch* is a descriptor on the filesystem of its tree: a failure to write anything there, since that was
    opened, is not overlooked even if another process has been told of it. Then, and where the disk refuses
    something now, all layers that are not settled are unverified, and `LayerfsError` is raised.
    Waits for another process that is at it. Raises `NotFound`, `Conflict` for an upper, or another
    `LayerfsError`.
    """
    if layers.get(db, layer_id).manifest_done:
        return layers.get(db, layer_id)
    try:
        with layers.lock(layers.directory(db, layer_id)):
            layer = layers.get(db, layer_id)
            if layer.state == "active":
                raise Conflict(f"layer {layer_id[:12]} is being written to: commit its mount first")
            if layer.manifest_done:
                return layer
            own = layers.directory(db, layer_id)
            if layer.state == "sealed":
                if (own / "exchange").exists():
                    external.recover(db, layer)  # or it would be an empty tree that is vouched for
                _remove_work(own)
            if layer.size is None:
                layers.measure_once(db, layer)
            has_manifest = layer.unverified and has_its_manifest(db, layer)
            if layer.unverified and not has_manifest:
                with db.transaction():
                    db.execute("UPDATE layers SET unverified = 1 WHERE id = ?", (layer_id,))
                db.sync()  # before there is a manifest, which would otherwise be taken for that of the commit
            if not has_manifest:
                try:
                    bring_to_rest(layer.path, own, watch=watch)
                except _NotWritten:
                    _doubt_all(db)
                    raise
            (own / "manifest.tmp").unlink(missing_ok=True)
            with db.transaction():
                db.execute("UPDATE layers SET manifest_done = 1 WHERE id = ?", (layer_id,))
            db.sync()
            (own / layers.FILLING).unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            layers.get(db, layer_id)  # removed meanwhile: `NotFound`
        raise from_os_error(error, f"settle layer {layer_id[:12]}") from None
    return layers.get(db, layer_id)


def _doubt_all(db: Database) -> None:
    """Note, on the disk, that no layer is known to be whole that is not settled yet."""
    with db.transaction():
        db.execute("UPDATE layers SET unverified = 1 WHERE state = 'sealed' AND NOT manifest_done")
    db.sync()


def has_its_manifest(db: Database, layer: Layer) -> bool:
    """Tell whether an unverified layer has a manifest from before the machine stopped.

    Its settling was cut short after the manifest was on the disk. Now it can be held against that.
    """
    known = db.number("SELECT sealed_in IS NOT NULL AND NOT unverified FROM layers WHERE id = ?", (layer.id,))
    try:
        return bool(known) and sum(1 for _ in manifest.read(layers.directory(db, layer.id) / "manifest")) > 0
    except manifest.Damaged:
        return False


def bring_to_rest(
    tree: Path, directory: Path, digests: dict[int, str] | None = None, *, watch: int | None = None
) -> None:
    """Write the manifest of *tree* into a layer's *directory* and all of it to disk; raises `OSError`.

    *digests* are known already: see `manifest.records`. *watch* is as in `settle`.
    """
    manifest.write(tree, directory / "manifest", digests)
    for path in (tree, directory):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(fd)
        finally:
            os.close(fd)
    if watch is not None:
        _sync(watch)


def _sync(fd: int) -> None:
    try:
        sync_filesystem(fd)
    except OSError as error:
        raise _NotWritten(*error.args) from None


UNVERIFIED = (
    "unverified: the machine stopped, or the disk refused a write, before this layer was on disk; look at its"
    " files, then accept them (layerfs verify --accept) or replace the image"
)


def accept(db: Database, layer_id: str) -> None:
    """Take an unverified layer as it is now for what was sealed: somebody has looked at it.

    Durable on return; nothing for a layer that is verified. Raises `LayerfsError`.
    """
    settle(db, layer_id)
    with db.transaction():
        db.execute("UPDATE layers SET unverified = 0 WHERE id = ?", (layer_id,))
    db.sync()


def verify(db: Database, layer_id: str) -> Iterator[Difference]:
    """Yield what differs between a layer's tree and its manifest, which is made when there is none yet.

    An unverified layer is a difference of its own, without a path. Raises `LayerfsError` where the tree
    cannot be read.
    """
    layer = settle(db, layer_id)
    if layer.unverified:
        yield Difference(layer_id, b"", UNVERIFIED)
    file = layers.directory(db, layer_id) / "manifest"
    try:
        for path, what in manifest.compare(layer.path, file):
            yield Difference(layer_id, path, what)
    except manifest.Damaged as error:
        yield Difference(layer_id, b"", str(error))
    except OSError as error:
        raise from_os_error(error, f"verify layer {layer_id[:12]}") from None


def _remove_work(directory: Path) -> None:
    # A copy-up that outlived the commit may still have something there; it goes with the layer.
    for name in ("work/work/moves", "work/partial"):
        with suppress(OSError):
            (directory / name).unlink()
    for path in (directory / "work/work", directory / "work/index", directory / "work"):
        with suppress(OSError):
            path.rmdir()


def start(root: Path, *layer_ids: str, watch: int | None = None) -> subprocess.Popen[bytes]:
    """Settle layers in a process of its own; the caller may wait for it or leave it alone.

    *watch* is as in `settle`.
    """
    watches = [] if watch is None else [watch]
    words = [os.fspath(root), ",".join(layer_ids), *map(str, watches)]
    return subprocess.Popen(
        command("layerfs.store.settle", *words),
        pass_fds=watches,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(arguments: list[str]) -> int:
    """Settle the layers that the command line names; return the exit code: of several, the worst."""
    if len(arguments) not in (2, 3):
        print("usage: python -m layerfs.store.settle ROOT LAYERS [WATCH]", file=sys.stderr)
        return 2
    root, layer_ids, *watch = arguments
    os.nice(19)
    try:
        db = Database(Path(root), create=False)
    except LayerfsError as error:
        print(f"layerfs: {error}", file=sys.stderr)
        return 1
    try:
        works: list[Callable[[], object]] = [db.sync]  # a build waits for no disk: now its rows get there
        given = int(watch[0]) if watch else None
        works += [partial(settle, db, layer_id, given) for layer_id in layer_ids.split(",")]
        status = max([_status(work) for work in works])
        if watch:  # of a mount in use, whose chain may become long
            _index(db, layer_ids.split(","))
        return status
    finally:
        db.close()


def _index(db: Database, layer_ids: list[str]) -> None:
    """Make the indexes that the chains of these layers can have; what cannot be made is made another time."""
    from layerfs.store import runs

    seen: set[str] = set()
    for layer_id in reversed(layer_ids):
        if layer_id not in seen:
            with suppress(LayerfsError):
                runs.extend(db, layer_id)
                seen.update(runs.chain(db, layer_id, len(layer_ids)))


def _status(work: Callable[[], object]) -> int:
    """Do *work*; return 1 after a line on standard error if that cannot be done."""
    try:
        work()
    except NotFound:
        pass  # removed meanwhile: nothing is left to do
    except LayerfsError as error:
        print(f"layerfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
