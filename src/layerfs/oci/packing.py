"""Packing one layer: its tree or its recipe becomes a blob, with the digests of both, or a digest alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.archive.layertar import LayerTar
from layerfs.errors import LayerfsError, from_os_error
from layerfs.oci import compress, recipe
from layerfs.oci.pool import Work
from layerfs.store import layers, marks
from layerfs.store.database import Database
from layerfs.store.model import Layer

if TYPE_CHECKING:
    from layerfs.oci.compress import Sink

DIGEST_ALONE = ""
"""In place of a compression: nothing is written."""
_SMALL = 8 << 20
"""Bytes of layers that are not worth a process."""
_INTERVAL = 0.1
"""Seconds between two reports."""


@dataclass(frozen=True, slots=True)
class Job:
    """The topmost of the layers *stack* (ids, bottom first) of the store at *root* to pack."""

    root: Path
    stack: tuple[str, ...]
    compression: str
    size: int
    """About how many bytes it has: how jobs are shared out."""
    descriptor: int = -1
    """Of the file that another process writes the blob to."""
    threads: int | None = None
    """How many threads compress; None for one a core."""

    def encoded(self) -> str:
        """Return the job as a line of text; descriptors keep their numbers."""
        return json.dumps({**asdict(self), "root": str(self.root)})

    @classmethod
    def decoded(cls, line: str) -> Job:
        """Return the job that was encoded as *line*."""
        fields = json.loads(line)
        return cls(**{**fields, "root": Path(fields["root"]), "stack": tuple(fields["stack"])})


@dataclass(frozen=True, slots=True)
class Packed:
    """How far a job is, and what has come of it at its end."""

    read: int = 0
    """Bytes of the archive."""
    diff_id: str = ""
    digest: str = ""
    size: int = 0
    """Bytes of the blob."""
    alone: bool | None = None
    """Whether the tree is what the archive says whatever lies below; None where that was known before."""


def do(job: Job, report: Callable[[Packed], None]) -> Packed:
    """Do a job that another process has given this one, calling *report* now and then. Raises as `pack`."""
    db = Database(job.root, create=False)
    try:
        if job.descriptor < 0:
            return pack(db, job, None, report)
        with os.fdopen(os.dup(job.descriptor), "wb") as file:
            return pack(db, job, file, report)
    except BrokenPipeError:  # nobody listens to the reports any more
        raise
    except OSError as error:
        raise from_os_error(error, "write a layer") from None
    finally:
        db.close()


def pack(db: Database, job: Job, sink: Sink | None, report: Callable[[Packed], None]) -> Packed:
    """Write a layer's archive to *sink*, compressed as *job* says, calling *report* now and then.

    The same layer gives the same bytes each time. Raises `LayerfsError` for what no archive can hold, and for
    a layer that is not what it was; and what *sink* and *report* raise.
    """
    stack = layers.get_all(db, job.stack)
    layer = stack[-1]
    notes = layers.directory(db, layer.id) / recipe.NAME
    known = layer.diff_id if notes.exists() else None
    tree = None
    if known:
        pieces: Iterator[bytes] = recipe.replay(notes, layer.path)
    else:
        tree = LayerTar(marks.stack(db, stack))
        pieces = tree.pieces()
    written = compress.write(_reported(pieces, report), job.compression, sink, known, threads=job.threads)
    if known and written.diff_id != known:
        raise LayerfsError(f"layer {layer.id[:12]} is not what it was: see 'layerfs verify'")
    alone = tree.alone if tree is not None else None
    return Packed(written.read, written.diff_id, written.digest, written.size, alone)


def _reported(pieces: Iterator[bytes], report: Callable[[Packed], None]) -> Iterator[bytes]:
    done = 0
    last = time.monotonic()
    for piece in pieces:
        done += len(piece)
        if time.monotonic() - last > _INTERVAL:
            last = time.monotonic()
            report(Packed(done))
        yield piece


def weight(layer: Layer) -> int:
    """Return about how many bytes a layer has; one that nobody has measured yet may be large."""
    return layer.size if layer.size is not None else _SMALL


def processes(jobs: Sequence[Job]) -> int:
    """Return in how many processes *jobs* are best done; 0 for here, where they are small."""
    small = sum(job.size for job in jobs) < _SMALL
    return 0 if small else min(len(jobs), len(os.sched_getaffinity(0)))


WORK = Work("pack", Job.decoded, do, Packed, lambda job: job.size)
