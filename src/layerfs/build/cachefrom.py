"""`--cache-from`: steps of an image that was pulled, which no cache knows, found by its history.

What is built must have the same history so far, with the same layers. Then the image's layer is taken for a
RUN, and for a COPY if that makes the same files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import LayerfsError
from layerfs.union.trees import list_xattrs, walk

if TYPE_CHECKING:
    from layerfs.build.building import Building
    from layerfs.build.outcome import Entry
    from layerfs.store import Store
    from layerfs.store.model import HistoryEntry

_PIECE = 1 << 20


class Candidates:
    """The images that steps may be taken from, looked up at the first question. Its owner has a lock."""

    def __init__(self, building: Building) -> None:
        self._building = building
        self._histories: list[tuple[HistoryEntry, ...]] | None = None

    def find(
        self, store: Store, base: str | None, entries: Sequence[Entry], created_by: str
    ) -> HistoryEntry | None:
        """Return the step that comes next in an image that begins like this, if it is *created_by* that."""
        if self._histories is None:
            self._histories = list(self._load(store))
        if not self._histories:
            return None
        below = store.steps.history_of_step(base) if base is not None else ()
        past = [(it.created_by, it.layer) for it in below]
        past += [(it.created_by, it.layer) for it in entries]
        for history in self._histories:
            same = [(it.created_by, it.layer) for it in history[: len(past)]] == past
            if same and len(history) > len(past) and history[len(past)].created_by == created_by:
                return history[len(past)]
        return None

    def _load(self, store: Store) -> list[tuple[HistoryEntry, ...]]:
        found = []
        building = self._building
        for name in building.options.cache_from:
            try:
                base = building.images.base(
                    store, name, building.options.platform, building.progress, building.check
                )
                if base.step is not None:
                    found.append(store.steps.history_of_step(base.step))
            except LayerfsError as error:
                building.progress.warn(f"nothing is taken from {name}: {error}")
        return found


def is_same_tree(one: Path, other: Path) -> bool:
    """Return whether two trees have the same files in all but their times. Raises `OSError`."""
    first, second = (os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (one, other))
    try:
        left, right = walk(first), walk(second)
        for (path, status), (name, there) in zip(left, right, strict=True):
            if path != name or not _is_same(os.fsencode(one), os.fsencode(other), path, status, there):
                return False
    except ValueError:  # one has more
        return False
    finally:
        os.close(first)
        os.close(second)
    return True


def _is_same(one: bytes, other: bytes, path: bytes, status: os.stat_result, there: os.stat_result) -> bool:
    first, second = os.path.join(one, path), os.path.join(other, path)
    kept = ("st_mode", "st_uid", "st_gid")
    if any(getattr(status, name) != getattr(there, name) for name in kept):
        return False
    names = list_xattrs(first)
    if names != list_xattrs(second):
        return False
    for name in names:
        values = (os.getxattr(it, name, follow_symlinks=False) for it in (first, second))
        if len(set(values)) != 1:
            return False
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(first) == os.readlink(second)
    if stat.S_ISREG(status.st_mode):
        return status.st_size == there.st_size and _has_same_data(first, second)
    return status.st_rdev == there.st_rdev


def _has_same_data(one: bytes, other: bytes) -> bool:
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            piece = first.read(_PIECE)
            if piece != second.read(_PIECE):
                return False
            if not piece:
                return True
