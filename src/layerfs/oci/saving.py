"""Save: images of the store as an OCI layout, an OCI archive, or an archive that `docker load` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from layerfs.errors import BadRequest, from_os_error
from layerfs.oci import compress, config, media, packing
from layerfs.oci.inherited import inherited
from layerfs.oci.outputs import Output, blob_name, opened, write_blob
from layerfs.oci.pool import Pool
from layerfs.store import Store, elsewhere, external, images, layers
from layerfs.store.database import Database
from layerfs.store.model import Image, Layer
from layerfs.store.references import normalize
from layerfs.store.stacks import canonical_json

FORMATS = ("docker-archive", "oci-archive", "oci-dir")


@dataclass(frozen=True, slots=True)
class Known:
    """A blob that holds a layer, which whoever reads the output has already."""

    media_type: str
    digest: str
    size: int


Knows = Callable[[Layer], Known | None]
"""Tells of a layer, which has a diff ID, whether there is such a blob."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the output: its diff ID, and its descriptor."""

    diff_id: str
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Saved:
    """An image that is in the output, all but its names."""

    manifest: dict[str, Any]
    platform: dict[str, str]
    config: str
    layers: tuple[str, ...]


def save(
    store: Store,
    references: Sequence[str],
    output: Path | BinaryIO,
    *,
    format: str = "docker-archive",
    compression: str | None = None,
    knows: Knows = lambda layer: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Save images to a file, a directory (`oci-dir`) or a stream.

    `docker-archive` is what Docker writes since version 25: an OCI layout with a manifest.json, in a tar
    archive; its layers are plain by default, those of the other formats gzipped. The same image gives the
    same bytes each time. Layers that the reader *knows* are described, not written. *check* is called now and
    then, in any thread: what it raises ends all. Raises `NotFound`, `BadRequest`, `Conflict`, `NoSpace` and
    others.
    """
    if format not in FORMATS:
        raise BadRequest(f"{format!r} is no format: use {', '.join(FORMATS)}")
    compression = compression or ("none" if format == "docker-archive" else "gzip")
    if compression not in compress.SUFFIXES:
        raise BadRequest(f"{compression!r} is no compression: use {', '.join(compress.SUFFIXES)}")
    names: dict[str, list[str]] = {}
    wanted: dict[str, Image] = {}
    for reference in references:
        image = store.resolve(reference)
        wanted[image.id] = image
        tags = names.setdefault(image.id, [])
        if not images.named_by_id(image, reference) and (tag := normalize(reference)) not in tags:
            tags.append(tag)
    try:
        with opened(output, store.root, directory=format == "oci-dir") as out:
            saver = _Saver(store.database, out, compression, knows, check)
            saver.layers(wanted.values())
            saved = [(saver.image(image), names[image.id]) for image in wanted.values()]
            _write_index(out, saved)
            if format == "docker-archive":
                _write_listing(out, saved)
    except OSError as error:
        raise from_os_error(error, "save") from None


class _Saver:
    """Writes the blobs of images, each layer once."""

    def __init__(
        self, db: Database, output: Output, compression: str, knows: Knows, check: Callable[[], None]
    ) -> None:
        self._db = db
        self._output = output
        self._compression = compression
        self._knows = knows
        self._check = check
        self._done: dict[tuple[str, ...], _Layer] = {}

    def layers(self, wanted: Iterable[Image]) -> None:
        """Write the layers of these images that the reader does not know, side by side."""
        jobs: dict[tuple[str, ...], packing.Job] = {}
        for image in wanted:
            stack = layers.get_all(self._db, image.layers)
            external.complete(self._db, stack)
            for depth, layer in enumerate(stack, 1):
                key = image.layers[:depth]
                if key in self._done or key in jobs:
                    continue
                blob = self._knows(layer) if layer.diff_id else None
                if layer.diff_id and blob is not None:
                    self._done[key] = _Layer(
                        layer.diff_id, _describe(blob.media_type, blob.digest, blob.size)
                    )
                    continue
                jobs[key] = packing.Job(self._db.root, key, self._compression, packing.weight(layer))
        for key, packed in self._packed(jobs).items():
            about = _describe(compress.media_type(self._compression), packed.digest, packed.size)
            self._done[key] = _Layer(packed.diff_id, about)
            if packed.alone is not None and layers.get(self._db, key[-1]).state == "sealed":
                diff_ids = [self._done[key[:depth]].diff_id for depth in range(1, len(key) + 1)]
                chain_id = elsewhere.chain_ids(diff_ids)[-1]
                with self._db.transaction():
                    elsewhere.note_diff_id(self._db, key[-1], packed.diff_id, chain_id, alone=packed.alone)

    def _packed(self, jobs: Mapping[tuple[str, ...], packing.Job]) -> dict[tuple[str, ...], packing.Packed]:
        """Do *jobs*, lower layers first in what is returned."""
        count = packing.processes([*jobs.values()])

        def report(_: object) -> None:
            self._check()

        # Plain layers go straight into an archive: copying them there once more would take what this saves.
        if not count or (self._compression == "none" and not self._output.is_directory):
            done = {}
            for key, job in jobs.items():
                with self._output.blob() as (sink, name):
                    done[key] = packing.pack(self._db, job, sink, report)
                    name(done[key].digest)
            return done
        with ExitStack() as files:
            begun = [files.enter_context(self._output.aside()) for _ in jobs]
            threads = max(1, len(os.sched_getaffinity(0)) // count)
            given = [
                replace(job, descriptor=file.fileno(), threads=threads)
                for job, (file, _) in zip(jobs.values(), begun, strict=True)
            ]
            descriptors = [file.fileno() for file, _ in begun]
            made = Pool(packing.WORK, given, count, descriptors, report).run()
            for packed, (_, name) in zip(made, begun, strict=True):
                name(packed.digest)
        return dict(zip(jobs, made, strict=True))

    def image(self, image: Image) -> _Saved:
        """Write an image's configuration and manifest; its layers are written already."""
        written = [self._done[image.layers[:depth]] for depth in range(1, len(image.layers) + 1)]
        document = self._document(image, [layer.diff_id for layer in written])
        about_config = _describe(media.OCI_CONFIG, media.digest_of(document), len(document))
        write_blob(self._output, document, about_config["digest"])
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": media.OCI_MANIFEST,
                "config": about_config,
                "layers": [layer.about for layer in written],
            }
        )
        about_manifest = _describe(media.OCI_MANIFEST, media.digest_of(manifest), len(manifest))
        write_blob(self._output, manifest, about_manifest["digest"])
        fields = json.loads(document)
        platform = {key: fields[key] for key in ("architecture", "os", "variant") if fields.get(key)}
        blobs = tuple(layer.about["digest"] for layer in written)
        return _Saved(about_manifest, platform, about_config["digest"], blobs)

    def _document(self, image: Image, diff_ids: Sequence[str]) -> bytes:
        """Return an image's configuration: as it came or went out before, or a new one."""
        before = elsewhere.document(self._db, image)
        if before is not None and json.loads(before)["rootfs"]["diff_ids"] == list(diff_ids):
            return before
        step = images.row(self._db, image.id).step
        document = config.build(image, diff_ids, inherited(self._db, image, step))
        with self._db.transaction():
            elsewhere.note_document(self._db, image, document)
        return document


def _write_index(out: Output, saved: Sequence[tuple[_Saved, list[str]]]) -> None:
    entries: list[dict[str, Any]] = []
    for image, tags in saved:
        about = {**image.manifest, "platform": image.platform}
        entries += [{**about, "annotations": _annotations(tag)} for tag in tags] or [about]
    write_index(out, entries)


def write_index(out: Output, entries: Sequence[dict[str, Any]]) -> None:
    """Write index.json with *entries*, and those that a layout has under other names."""
    before = out.read("index.json")
    if before is not None:
        entries = [*_kept(before, entries), *entries]
    index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries}
    out.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    out.file("index.json", _json(index))


def _kept(before: bytes, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of an index that others do not replace."""
    new = [(entry["digest"], _ref_name(entry)) for entry in entries]
    names = [name for _, name in new if name]
    old = media.sequence(media.parse(before, "index.json").get("manifests"), "the manifests of index.json")
    return [
        entry
        for entry in old
        if _ref_name(entry) not in names and (entry.get("digest"), _ref_name(entry)) not in new
    ]


def _ref_name(entry: dict[str, Any]) -> str | None:
    name: str | None = (entry.get("annotations") or {}).get(media.REF_NAME)
    return name


def _annotations(tag: str) -> dict[str, str]:
    repository, _, label = tag.rpartition(":")
    first, slash, _ = repository.partition("/")
    if not slash:
        repository = f"docker.io/library/{repository}"
    elif "." not in first and ":" not in first and first != "localhost":
        repository = f"docker.io/{repository}"
    return {media.CONTAINERD_NAME: f"{repository}:{label}", media.REF_NAME: label}


def _write_listing(out: Output, saved: Sequence[tuple[_Saved, list[str]]]) -> None:
    """Write manifest.json, from which Docker and others read."""
    listing = [
        {
            "Config": blob_name(image.config),
            "RepoTags": tags or None,
            "Layers": [blob_name(layer) for layer in image.layers],
        }
        for image, tags in saved
    ]
    out.file("manifest.json", _json(listing))


def _describe(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json(value: object) -> bytes:
    return canonical_json(value).encode("ascii")
