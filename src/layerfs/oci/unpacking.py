"""Unpacking one layer: from its blob to its tree, its recipe and its manifest, with every digest checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from layerfs.archive.limits import Limits
from layerfs.archive.streams import Ahead, Feed, Hash, Read, decompressed, hashed
from layerfs.archive.tar import Reader
from layerfs.archive.unpack import Unpacker
from layerfs.errors import BadRequest, from_os_error
from layerfs.oci import media, recipe
from layerfs.oci.pool import Work
from layerfs.oci.source import Region
from layerfs.store import manifest
from layerfs.store.layers import measure


@dataclass(frozen=True, slots=True)
class Job:
    """A layer to unpack into the directory *layer*, which is empty but for `fs`."""

    layer: Path
    region: Region
    diff_id: str
    digest: str | None
    limits: Limits

    def encoded(self) -> str:
        """Return the job as a line of text; descriptors keep their numbers."""
        return json.dumps({**asdict(self), "layer": str(self.layer)})

    @classmethod
    def decoded(cls, line: str) -> Job:
        """Return the job that was encoded as *line*."""
        fields = json.loads(line)
        fields["layer"] = Path(fields["layer"])
        fields["region"] = Region(**fields["region"])
        fields["limits"] = Limits(**fields["limits"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: bytes of the blob that were read, bytes and files that were written."""

    read: int = 0
    size: int = 0
    files: int = 0
    left_out: int = 0
    """Device nodes that an ordinary user cannot make."""
    inheriting: bool = False
    """Whether there are directories that are as the layers below have them; see `INHERITING`."""


_SMALL = 1 << 19
"""Bytes of layers that are not worth a process."""
INHERITING = "inheriting"
"""The file in a layer's directory that names those, each path followed by a zero byte."""

Report = Callable[[Progress], None]


def do(job: Job, report: Report) -> Progress:
    """Unpack a layer, calling *report* now and then; return what came of it.

    Raises `BadRequest` for what is damaged or hostile, and others; the layer is then to be thrown away.
    """
    try:
        return _unpack(job, report)
    except BrokenPipeError:  # nobody listens to the reports any more
        raise
    except OSError as error:
        raise from_os_error(error, "unpack a layer") from None


def processes(jobs: Sequence[Job]) -> int:
    """Return in how many processes *jobs* are best done; 0 for here, where they are small."""
    small = sum(job.region.size for job in jobs) <= _SMALL
    return 0 if small else min(len(jobs), len(os.sched_getaffinity(0)))


def _unpack(job: Job, report: Report) -> Progress:
    blob = media.new_hash(job.digest) if job.digest not in (None, job.diff_id) else None
    diff = media.new_hash(job.diff_id)
    file = job.layer / recipe.NAME
    with Unpacker(job.layer / "fs", job.limits) as unpacker:

        def progress(read: int) -> Progress:
            return Progress(read, unpacker.size, unpacker.files, unpacker.left_out)

        source = _watched(job.region.reader(), blob, lambda read: report(progress(read)))
        with Ahead(hashed(decompressed(source), diff)) as pieces, recipe.Writer(file) as notes:
            _unpack_members(Feed(pieces), unpacker, notes)
        unpacker.finish()
    if blob is not None and not _has(blob, job.digest):
        raise BadRequest(f"a layer does not have the digest {job.digest}: it is damaged")
    if not _has(diff, job.diff_id):
        raise BadRequest(
            f"a layer does not have the diff ID {job.diff_id}: it is damaged, or of another image"
        )
    if unpacker.replaced:  # the tree does not have all that the archive has
        file.unlink()
        with recipe.Writer(file) as notes:
            for piece in decompressed(job.region.reader()):
                notes.raw(piece)
    manifest.write(job.layer / "fs", job.layer / "manifest", unpacker.digests)
    inheriting = unpacker.inheriting()
    if inheriting:
        (job.layer / INHERITING).write_bytes(b"".join(path + b"\0" for path in inheriting))
    done = replace(progress(job.region.size), inheriting=bool(inheriting))
    return replace(done, size=measure(job.layer / "fs")) if unpacker.replaced else done


def _unpack_members(feed: Feed, unpacker: Unpacker, notes: recipe.Writer) -> None:
    reader = Reader(feed, keep=notes.raw, needs_end=False)
    for member in reader:
        if unpacker.add(member, reader) and member.size:
            path = b"/".join(part for part in member.name.split(b"/") if part not in (b"", b"."))
            notes.file(path, member.extents if member.extents is not None else [(0, member.size)])


def _watched(read: Read, blob: Hash | None, report: Callable[[int], None]) -> Read:
    done = 0

    def watched(size: int) -> bytes:
        nonlocal done
        data = read(size)
        if blob is not None:
            blob.update(data)
        done += len(data)
        report(done)
        return data

    return watched


def _has(digest: Hash, expected: str | None) -> bool:
    return expected is not None and expected.partition(":")[2] == digest.hexdigest()


WORK = Work("unpack", Job.decoded, do, Progress, lambda job: job.region.size)
