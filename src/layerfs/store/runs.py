"""Runs: the layers of a long chain, read by a few indexes instead of one by one.

A layer may have `runs/N` in its directory: the index of the run of N layers of which it is the topmost. It is
made in the background, four runs of one length into one of four times that, from single settled layers on. So
a chain of any length is read as a few runs of each length and a few layers, and so is each part of it, from
the bottom up to any of its checkpoints. A layer is in as many indexes as there are lengths.

An index says only what the layers say. It has no row: it is used where it is whole and of just the layers
that a stack has (`RunIndex`), goes with the directory of its topmost layer, and where it is missing the
layers, or shorter runs, are read. So a crash, a full disk or a removal needs no repair.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.store import layers, marks
from layerfs.store.database import Database
from layerfs.store.model import Layer as Row
from layerfs.union.compaction import CannotIndex, compact
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.layer import Layer
from layerfs.union.run import Run
from layerfs.union.runindex import NotWhole, OfOthers, RunIndex
from layerfs.union.stack import close_all
from layerfs.union.trees import open_directory

PLACE = "runs"
"""The directory of a layer's indexes, in the layer's own."""
_NONE = "none"
"""A file in it that says that the layer cannot be part of a run."""
SPAN = 4
"""How many runs of one length become one."""
SHORT = 16
"""Layers up to which a chain is read one by one: most images have no more."""
_WINDOW = 1024
"""Layers that are looked at each time; a run of a quarter of that has the whole chain looked at."""
_DESCRIPTORS = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers of a chain that are read together: one, or a run."""

    first: int
    """How many layers of the chain lie below them."""
    count: int
    index: RunIndex | None
    """None for a single layer."""


def representatives(db: Database, ids: Sequence[str]) -> list[str]:
    """Return those of a chain's layers by which it shows how all of them are marked, the topmost last."""
    return [ids[each.first + each.count - 1] for each in segments(db.layers, ids)]


def segments(shelf: Path, ids: Sequence[str], *, longest: int | None = None) -> list[Segment]:
    """Return how the chain of the layers *ids* (bottom first) is best read, bottom first.

    *shelf* is the directory of the store's layers. No run has more layers than *longest*, if given. The cost
    depends on the number of segments; any thread may call it. Raises `OSError`.
    """
    found = []
    end = len(ids)
    while end > 0:
        index = _longest(shelf / ids[end - 1] / PLACE, ids, end, min(end, longest or end))
        count = index.count if index is not None else 1
        end -= count
        found.append(Segment(end, count, index))
    return found[::-1]


def _longest(place: Path, ids: Sequence[str], end: int, most: int) -> RunIndex | None:
    """Return the longest index in *place* that is whole, and of the last of the first *end* layers *ids*."""
    for count in sorted(_counts(place), reverse=True):
        if count <= most:
            with suppress(FileNotFoundError, NotWhole):
                return RunIndex(place / str(count), ids[end - count : end])
    return None


def _counts(place: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(place) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_run(
    segment: Segment, ids: Sequence[str], shelf: Shelf, directories: DirectoryCache, *, above: int = 0
) -> Run:
    """Return the run that a *segment* of the layers *ids* is, which have *above* more below them."""
    assert segment.index is not None
    covered = ids[segment.first : segment.first + segment.count]
    return Run(segment.index, covered, above + segment.first, shelf=shelf, directories=directories)


def forced_span() -> int | None:
    """Return what `LAYERFS_RUNS` says: how many runs become one, in short chains too; 0 for no runs."""
    text = os.environ.get("LAYERFS_RUNS", "")
    return int(text) if text.isdecimal() and int(text) != 1 else None


# -- making them --------------------------------------------------------------------------------------


def extend(db: Database, layer_id: str, *, span: int | None = None) -> int:
    """Make the indexes that the chain up to a settled layer can have; return how many were made.

    For a process of low priority. What cannot be made now, on a full disk for example, is made another time:
    nothing is left behind. Raises `LayerfsError`.
    """
    forced = forced_span() if span is None else span
    if forced == 0:
        return 0
    span, short = (SPAN, SHORT) if forced is None else (forced, 0)
    made = 0
    window: int | None = _WINDOW
    unfit: set[str] = set()
    while True:
        ids = chain(db, layer_id, window)
        group = _next_group(db, ids, unfit, span) if len(ids) > short else None
        if group is None:
            return made
        first, count = group[0].first, sum(segment.count for segment in group)
        try:
            _make(db, ids[first : first + count], [replace(each, first=each.first - first) for each in group])
        except CannotIndex as reason:
            unfit.add(_note_unfit(db, reason))
            continue
        except (OSError, LayerfsError) as error:
            _log.info("no index of %d layers now: %s", count, error)
            return made
        made += 1
        if count >= _WINDOW // span:
            window = None


def chain(db: Database, layer_id: str, most: int | None = None) -> list[str]:
    """Return the layers of the stack of which a layer is the topmost, bottom first: the upper *most* of them.

    Of several such stacks, that of the newest step.
    """
    query = """
        WITH RECURSIVE chain (parent, layer, depth) AS (
            SELECT parent, layer, 0 FROM
                (SELECT parent, layer FROM steps WHERE layer = ?1 ORDER BY created DESC, id LIMIT 1)
            UNION ALL
            SELECT steps.parent, steps.layer, depth + 1 FROM chain JOIN steps ON steps.id = chain.parent
        )
        SELECT layer FROM chain WHERE layer IS NOT NULL LIMIT ?2
    """
    limit = -1 if most is None else most
    return [str(layer) for (layer,) in db.execute(query, (layer_id, limit)).fetchall()][::-1]


def _next_group(db: Database, ids: Sequence[str], unfit: set[str], span: int) -> list[Segment] | None:
    """Return the lowest *span* segments of one length that follow each other and can become one."""
    group: list[Segment] = []
    for segment in segments(db.layers, ids):
        name = ids[segment.first]
        if segment.count == 1 and (name in unfit or (db.layers / name / PLACE / _NONE).exists()):
            group = []
            continue
        if group and group[-1].count != segment.count:
            group = []
        group.append(segment)
        if len(group) == span:
            if segment.count > 1 or _are_fit(db, [ids[each.first] for each in group]):
                return group
            del group[0]
    return None


def _are_fit(db: Database, ids: Sequence[str]) -> bool:
    """Tell whether single layers are whole and on the disk, and the store's own from the beginning."""
    rows = layers.get_all(db, ids)
    return all(_is_fit(row) for row in rows) and len({row.prefix for row in rows}) == 1


def _is_fit(row: Row) -> bool:
    return (
        row.state == "sealed"
        and row.manifest_done
        and not row.unverified
        and not row.outside
        and row.prefix is not None
    )


def _make(db: Database, ids: Sequence[str], group: Sequence[Segment]) -> None:
    """Make the index of the layers *ids*, which *group* reads."""
    data = _compacted(db, ids, group)
    place = db.layers / ids[-1] / PLACE
    with layers.lock(db.layers / ids[-1]):  # a removal of the layer, or whoever else makes it, has its turn
        layers.get(db, ids[-1])
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            _write(place / str(len(ids)), data)
        except BaseException:
            with suppress(OSError):
                place.rmdir()
            raise


def _write(path: Path, data: bytes) -> None:
    """Make the file *path* of *data*, on the disk before it has its name; nothing is left of half a one."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    temporary = path.with_suffix(".tmp")
    with open_directory(path.parent) as directory:
        try:
            fd = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=directory)
            source = f"/proc/self/fd/{fd}"
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
            fd = os.open(temporary, flags | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            source = os.fspath(temporary)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(fd)
            path.unlink(missing_ok=True)  # one that is not whole, or of other layers
            os.link(source, path.name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)


def _compacted(db: Database, ids: Sequence[str], group: Sequence[Segment]) -> bytes:
    shelf = Shelf(db.layers)
    directories = DirectoryCache(_DESCRIPTORS)
    opened: list[Layer] = []
    try:
        for segment in group:
            if segment.index is not None:
                layer: Layer = open_run(segment, ids, shelf, directories)
            else:
                row = layers.get(db, ids[segment.first])
                marking = marks.of_layer(row)
                layer = Layer(row.path, marking=marking, shelf=shelf, directories=directories)
            layer.below = tuple(reversed(opened))
            opened.append(layer)
        data, _ = compact(opened, ids)
        return data
    finally:
        close_all(opened)
        shelf.close()


def _note_unfit(db: Database, reason: CannotIndex) -> str:
    """Note that a layer can be part of no run, and return its id."""
    path = Path(os.fsdecode(reason.layer.path)).parent
    with suppress(OSError):
        (path / PLACE).mkdir(mode=0o700, exist_ok=True)
        (path / PLACE / _NONE).touch()
    return path.name


# -- holding them against their layers ------------------------------------------------------------------


def problems(db: Database, layer_id: str, *, contents: bool) -> Iterator[tuple[str, str]]:
    """Yield the names of the files among a layer's indexes that are not what they should be, and why.

    With *contents* each index is made anew from the layers themselves and compared. One of layers that are
    not the layer's stack any more is no mistake, and is not used.
    """
    place = db.layers / layer_id / PLACE
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return
    for name in names:
        if name == _NONE:
            continue
        if not name.isdecimal():
            with layers.lock(db.layers / layer_id, wait=False) as locked:
                left = locked and (place / name).exists()
            if left:
                yield name, "is left from making an index"
            continue
        ids = chain(db, layer_id, int(name))
        try:
            data = (place / name).read_bytes()
            RunIndex(place / name, ids)
        except OfOthers:
            continue
        except NotWhole:
            yield name, "is an index that is not whole"
            continue
        except FileNotFoundError:
            continue
        if not contents:
            continue
        try:
            made = _compacted(db, ids, [Segment(first, 1, None) for first in range(len(ids))])
        except (CannotIndex, OSError) as error:
            yield name, f"is an index of layers that cannot have one: {error}"
            continue
        if made != data:
            yield name, "is an index that says something else than its layers"
