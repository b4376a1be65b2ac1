"""Scratch directories: where an image is put together on its way in or out, on the store's filesystem.

One lies below `tmp/` in the store's root and is held by a `flock` for as long as its maker, or a program
that inherited the lock, lives. One that nobody holds was left by a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from layerfs.errors import from_os_error
from layerfs.store import layers
from layerfs.store.database import Database
from layerfs.union.trees import remove_trees


class Scratch(NamedTuple):
    """A directory for its maker alone, and the descriptor that holds it.

    Programs that write there inherit the descriptor.
    """

    path: Path
    lock: int


@contextmanager
def scratch(db: Database) -> Iterator[Scratch]:
    """Make a scratch directory, and remove it with all that is in it when the block ends, however it ends.

    Raises `LayerfsError` where it cannot be made or removed.
    """
    path = db.root / "tmp" / os.urandom(8).hex()
    try:
        with layers.making(db):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise from_os_error(error, f"make a scratch directory in {db.root}") from None
    try:
        yield Scratch(path, lock)
    finally:
        try:
            remove_trees(path)
        finally:
            os.close(lock)


def abandoned(db: Database) -> list[Path]:
    """Return the scratch directories that nobody holds; the caller keeps new ones from being made."""
    found = []
    with suppress(FileNotFoundError):
        for path in sorted((db.root / "tmp").iterdir()):
            with suppress(FileNotFoundError, NotADirectoryError), layers.lock(path, wait=False) as free:
                found += [path] if free else []
    return found
