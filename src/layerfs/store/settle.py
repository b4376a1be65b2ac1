"""Settling: what a sealed layer still lacks, done in the background after the commit.

`python -m layerfs.store.settle ROOT LAYER` does it in a process of its own, as nice as can be. It may be
killed at any moment; whoever needs what is missing then settles the layer again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from layerfs.errors import Conflict, LayerfsError, NotFound, from_os_error
from layerfs.store import layers, manifest
from layerfs.store.database import Database
from layerfs.store.model import Difference, Layer
from layerfs.store.system import sync_filesystem


def settle(db: Database, layer_id: str) -> Layer:
    """Measure a layer, write its manifest and bring it to disk, unless that is done; return it.

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
            if layer.state == "sealed":
                _remove_work(layers.directory(db, layer_id))
            if layer.size is None:
                layers.measure_once(db, layer)
            bring_to_rest(layer.path, layers.directory(db, layer_id))
            with db.transaction():
                db.execute("UPDATE layers SET manifest_done = 1 WHERE id = ?", (layer_id,))
            db.sync()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            layers.get(db, layer_id)  # removed meanwhile: `NotFound`
        raise from_os_error(error, f"settle layer {layer_id[:12]}") from None
    return layers.get(db, layer_id)


def bring_to_rest(tree: Path, directory: Path, digests: dict[int, str] | None = None) -> None:
    """Write the manifest of *tree* into a layer's *directory* and all of it to disk; raises `OSError`.

    *digests* are known already: see `manifest.records`.
    """
    manifest.write(tree, directory / "manifest", digests)
    for path in (tree, directory):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)


def verify(db: Database, layer_id: str) -> Iterator[Difference]:
    """Yield what differs between a layer's tree and its manifest, which is made when there is none yet.

    Raises `LayerfsError` where the tree cannot be read.
    """
    layer = settle(db, layer_id)
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
    for path in (directory / "work/work", directory / "work/index", directory / "work"):
        with suppress(OSError):
            path.rmdir()


def start(root: Path, layer_id: str) -> subprocess.Popen[bytes]:
    """Settle a layer in a process of its own; the caller may wait for it or leave it alone."""
    return subprocess.Popen(
        [sys.executable, "-m", "layerfs.store.settle", os.fspath(root), layer_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(arguments: list[str]) -> int:
    """Settle the layer that the command line names; return the exit code."""
    if len(arguments) != 2:
        print("usage: python -m layerfs.store.settle ROOT LAYER", file=sys.stderr)
        return 2
    root, layer_id = arguments
    os.nice(19)
    try:
        db = Database(Path(root), create=False)
        try:
            settle(db, layer_id)
        finally:
            db.close()
    except NotFound:
        return 0  # removed meanwhile: nothing is left to do
    except LayerfsError as error:
        print(f"layerfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
