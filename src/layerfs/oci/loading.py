"""Load: images of a layout or archive become images of the store, wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from layerfs.archive.limits import Limits
from layerfs.errors import BadRequest, from_os_error
from layerfs.oci import contents, unpacking
from layerfs.oci.contents import Blob, Found
from layerfs.oci.inherit import inherit
from layerfs.oci.pool import Pool
from layerfs.oci.source import Source, opened
from layerfs.oci.unpacking import Job, Progress
from layerfs.store import Store, elsewhere, layers
from layerfs.store.database import Database
from layerfs.store.elsewhere import NewImage, NewLayer
from layerfs.store.model import Image, to_nanoseconds
from layerfs.store.references import normalize
from layerfs.union.marking import of_this_process
from layerfs.union.stack import Stack, Tree
from layerfs.union.trees import sync_filesystem

Report = Callable[[int, int], None]
"""Called now and then with the bytes read so far, and those to read in all (0 while not known)."""

ReportLayers = Callable[[Sequence[tuple[str, int, int]]], None]
"""Called now and then, in any thread, with the digest, the bytes read so far and the size of each blob being
unpacked; with the diff ID for one whose digest is not known. What it raises ends all."""

_DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that is in the store now."""

    image: Image
    references: tuple[str, ...]
    """The names it was given, as `repository:tag`."""
    left_out: int = 0
    """Device nodes that are not in its layers, because an ordinary user cannot make them."""


def load(
    store: Store,
    source: Path | BinaryIO,
    *,
    platform: str | None = None,
    references: Sequence[str] | None = None,
    digests: Sequence[str] = (),
    limits: Limits = _DEFAULT,
    progress: Report | None = None,
    layer_progress: ReportLayers | None = None,
) -> list[Loaded]:
    """Load the images of an OCI layout, an OCI archive or an archive of `docker save`.

    *source* is a directory, a file, or a stream; *platform* (OS/ARCHITECTURE[/VARIANT]) chooses from an
    index, by default for this machine. *references* are names for the image instead of those it brings along,
    *digests* names that it has in a registry.
    Layers that the store has already are shared. Durable on return; on failure the store is as it was.
    Raises `NotFound`, `BadRequest` for what is damaged, hostile or more than *limits*, `NoSpace` and others.
    """
    names = tuple(normalize(reference) for reference in references) if references is not None else None
    report = progress or (lambda done, total: None)
    with opened(source, store.root, lambda done: report(done, 0)) as files:
        found = contents.images(files, platform)
        if names is not None and len(found) > 1:
            raise BadRequest(f"it holds {len(found)} images: load them under their own names")
        wanted = [(it, _new_image(it, it.names if names is None else names, digests)) for it in found]
        return _load(store.database, files, wanted, limits, report, layer_progress)


def _load(
    db: Database,
    source: Source,
    wanted: Sequence[tuple[Found, NewImage]],
    limits: Limits,
    report: Report,
    report_layers: ReportLayers | None,
) -> list[Loaded]:
    """Unpack what the store has not, then write the rows of all images in one transaction."""
    made: list[NewLayer] = []
    used: list[str] = []
    left_out = [0] * len(wanted)
    try:
        while True:
            for at, (found, new) in enumerate(wanted):
                left_out[at] += _unpack_missing(
                    db, source, found.layers, new, made, limits, report, report_layers
                )
            try:
                with db.transaction():
                    loaded = [elsewhere.insert(db, new, made) for _, new in wanted]
                used = [layer_id for _, layer_ids in loaded for layer_id in layer_ids]
                break
            except elsewhere.Vanished:  # somebody has just removed an image that had it
                continue
    finally:
        layers.discard(db, *(layer.id for layer in made if layer.id not in used))
        for layer_id in used:
            layers.keep(layer_id)
    db.sync()
    return [
        Loaded(image, new.tags, count)
        for (image, _), (_, new), count in zip(loaded, wanted, left_out, strict=True)
    ]


def _new_image(found: Found, names: tuple[str, ...], digests: Sequence[str]) -> NewImage:
    config = found.config
    return NewImage(
        config.data,
        config.diff_ids,
        config.history,
        config.fields.get("config") or {},
        to_nanoseconds(config.created),
        config.author,
        config.text("architecture", "unknown"),
        config.text("os", "linux"),
        names,
        tuple(digests),
    )


def _unpack_missing(
    db: Database,
    source: Source,
    blobs: Sequence[Blob],
    new: NewImage,
    made: list[NewLayer],
    limits: Limits,
    report: Report,
    report_layers: ReportLayers | None,
) -> int:
    """Unpack the layers that the store has not, and note them in *made*; return what was left out of them."""
    if elsewhere.find_image(db, new.document) is not None:
        return 0
    chain = elsewhere.chain_ids(new.diff_ids)
    present = {
        **elsewhere.shared_layers(db, new.diff_ids),
        **{layer.chain_id: layer.id for layer in made},
    }
    missing = [
        (chain_id, blob) for chain_id, blob in zip(chain, blobs, strict=True) if chain_id not in present
    ]
    with ExitStack() as stack:
        jobs = []
        started: list[str] = []
        try:
            for _, blob in missing:
                region = stack.enter_context(source.open(blob.name))
                if region is None:
                    raise BadRequest(f"a layer is missing: there is no {blob.name}")
                if blob.size is not None and region.size != blob.size:
                    raise BadRequest(f"{blob.name} has {region.size} bytes, not {blob.size}: it is damaged")
                layer_id = layers.begin(db, "fs", filling=True)
                started.append(layer_id)
                directory = layers.directory(db, layer_id)
                jobs.append(Job(directory, region, blob.diff_id, blob.digest, limits))
            done = _run(jobs, started, limits, report, report_layers)
            new_layers = [
                NewLayer(layer_id, job.diff_id, chain_id, result.size, alone=not result.inheriting)
                for layer_id, job, result, (chain_id, _) in zip(started, jobs, done, missing, strict=True)
            ]
            present.update({layer.chain_id: layer.id for layer in new_layers})
            _inherit(db, [present[chain_id] for chain_id in chain], new_layers)
            _sync(db)
        except BaseException:
            layers.discard(db, *started)
            raise
    made += new_layers
    return sum(result.left_out for result in done)


def _inherit(db: Database, stack: Sequence[str], new: Sequence[NewLayer]) -> None:
    """Complete those *new* layers of a *stack* whose archives left it to the layers below."""
    waiting = {layer.id for layer in new if not layer.alone}
    trees = tuple(Tree(layers.directory(db, layer_id) / "fs") for layer_id in stack)
    whole = Stack(trees, of_this_process(), db.layers)
    try:
        for depth, layer_id in enumerate(stack):
            if layer_id in waiting:
                inherit(layers.directory(db, layer_id), whole.up_to(depth))
    except OSError as error:
        raise from_os_error(error, "complete a layer") from None


def _run(
    jobs: Sequence[Job],
    layer_ids: Sequence[str],
    limits: Limits,
    report: Report,
    report_layers: ReportLayers | None,
) -> list[Progress]:
    total = sum(job.region.size for job in jobs)

    def watch(state: Sequence[Progress]) -> None:
        limits.check(sum(job.size for job in state), sum(job.files for job in state))
        report(sum(job.read for job in state), total)
        if report_layers is not None:
            report_layers(
                [
                    (job.digest or job.diff_id, done.read, job.region.size)
                    for job, done in zip(jobs, state, strict=True)
                ]
            )

    locks = [fd for layer_id in layer_ids if (fd := layers.held(layer_id)) is not None]
    descriptors = [*{job.region.fd for job in jobs}, *locks]
    return Pool(unpacking.WORK, jobs, unpacking.processes(jobs), descriptors, watch).run()


def _sync(db: Database) -> None:
    """Bring what was unpacked to the disk before a row says that it is there."""
    fd = os.open(db.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd)
    except OSError as error:
        raise from_os_error(error, f"write to {db.layers}") from None
    finally:
        os.close(fd)
