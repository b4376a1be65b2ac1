"""What images a layout or an archive holds: from the index down to configurations and layers, all checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layerfs.errors import BadRequest
from layerfs.oci import media, platforms
from layerfs.oci.config import Config
from layerfs.oci.media import Descriptor
from layerfs.oci.platforms import Platform
from layerfs.oci.source import Source, read
from layerfs.store.references import normalize

_DEPTH = 8
"""The most indexes that may be nested."""
_MOST_NAMES = 1000
"""The most images of a layout, each of which may take reading an index anew."""


class _NoImage(BadRequest):
    """What was looked at is something else, as a layout may hold too."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer's archive as it is stored: where, and what it has to be if that was said."""

    name: str
    diff_id: str
    digest: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An image that can be loaded."""

    config: Config
    layers: tuple[Blob, ...]
    names: tuple[str, ...] = ()


def images(source: Source, platform: str | None) -> list[Found]:
    """Return the images in *source*, one for each name, of *platform* (this machine's by default).

    Where there is no choice of platforms, the one there is is taken, unless another one was asked for.
    Raises `BadRequest` for what is no image.
    """
    wanted = platforms.parse(platform)
    layout = read(source, "oci-layout", media.JSON_LIMIT)
    if layout is not None:
        found = _in_layout(source, layout, wanted)
    else:
        listing = read(source, "manifest.json", media.JSON_LIMIT)
        if listing is None:
            raise BadRequest(
                "not an image: it has neither an oci-layout nor a manifest.json"
                " (for an archive of a root filesystem, use 'layerfs import')"
            )
        found = list(_in_docker_archive(source, media.parse_any(listing, "manifest.json")))
    if platform is not None:
        for image in found:
            offered = platforms.of(image.config.fields)
            if offered is None or platforms.rank(wanted, offered) is None:
                raise BadRequest(f"the image is for {offered}, not for {wanted}")
    return found


def _in_layout(source: Source, layout: bytes, wanted: Platform) -> list[Found]:
    version = media.parse(layout, "oci-layout").get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise BadRequest(f"the image layout is of version {version!r}, which is not known")
    index = read(source, "index.json", media.JSON_LIMIT)
    if index is None:
        raise BadRequest("the image layout has no index.json")
    groups: dict[str | None, list[Descriptor]] = {}
    for entry in _entries(media.parse(index, "index.json"), "index.json"):
        groups.setdefault(_name(entry), []).append(entry)
    if len(groups) > _MOST_NAMES:
        raise BadRequest(f"the image layout names more than {_MOST_NAMES} images: load fewer at a time")
    images: dict[str, Found] = {}
    problem: BadRequest = _NoImage("the image layout is empty")
    for name, entries in groups.items():
        try:
            manifest = _choose(source, entries, wanted)
            image = images.get(manifest.digest) or _from_manifest(source, manifest)
        except BadRequest as error:
            if name is not None and not isinstance(error, _NoImage):
                raise
            problem = error  # something about an image, and none itself, if there is one
            continue
        names = (*image.names, name) if name else image.names
        images[manifest.digest] = replace(image, names=names)
    if not images:
        raise problem
    return list(images.values())


def _name(entry: Descriptor) -> str | None:
    """Return the name of an entry of index.json; None where it has none that could be an image's."""
    for key in (media.CONTAINERD_NAME, media.REF_NAME):
        if name := entry.annotations.get(key):
            try:
                return normalize(name)
            except BadRequest:
                continue
    return None


def _entries(index: dict[str, Any], what: str) -> list[Descriptor]:
    if index.get("schemaVersion", 2) != 2:
        raise BadRequest(f"{what} is of schema version {index.get('schemaVersion')!r}, not 2")
    manifests = media.sequence(index.get("manifests"), f"the manifests of {what}")
    return [media.descriptor(entry, f"an entry of {what}") for entry in manifests]


def _choose(source: Source, entries: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """Return the manifest for the platform that is *wanted* among *entries* and the indexes they name."""
    manifests = [entry for entry in _flattened(source, entries, 0, set()) if not _is_attestation(entry)]
    if not manifests:
        raise _NoImage("the image index names no image")
    if len({entry.digest for entry in manifests}) == 1:
        return manifests[0]
    offers = [platforms.of(entry.platform) or _platform_of(source, entry) for entry in manifests]
    known = [(entry, offer) for entry, offer in zip(manifests, offers, strict=True) if offer is not None]
    best = platforms.best(wanted, [offer for _, offer in known])
    if best is None:
        names = ", ".join(dict.fromkeys(str(offer) for _, offer in known)) or "none that is known"
        raise BadRequest(f"there is no image for {wanted}: choose another --platform, of {names}")
    return known[best][0]


def _flattened(
    source: Source, entries: Sequence[Descriptor], depth: int, seen: set[str]
) -> Iterator[Descriptor]:
    """Yield the manifests in *entries* and in the indexes they name, each index once; add those to *seen*.

    Else an index that names one index a thousand times, which does the same, would never end.
    """
    for entry in entries:
        media.refuse_schema_1(entry.media_type)
        if entry.media_type in media.INDEXES:
            if depth == _DEPTH:
                raise BadRequest(f"image indexes are nested more than {_DEPTH} deep")
            if entry.digest in seen:
                continue
            seen.add(entry.digest)
            index = media.parse(_document(source, entry, "an image index"), "an image index")
            yield from _flattened(source, _entries(index, "an image index"), depth + 1, seen)
        elif entry.media_type in media.MANIFESTS:
            yield entry
        elif depth == 0 and not entry.media_type:
            raise BadRequest("an entry of index.json has no media type")


def _is_attestation(entry: Descriptor) -> bool:
    """Tell whether an entry is about an image (BuildKit's provenance), and none itself."""
    return entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest"


def _platform_of(source: Source, entry: Descriptor) -> Platform | None:
    """Return the platform of an image whose index does not say it."""
    try:
        return platforms.of(_from_manifest(source, entry).config.fields)
    except BadRequest:
        return None


def _from_manifest(source: Source, entry: Descriptor) -> Found:
    manifest = media.parse(_document(source, entry, "the manifest"), "the manifest")
    if manifest.get("schemaVersion") != 2:
        raise BadRequest(f"the manifest is of schema version {manifest.get('schemaVersion')!r}, not 2")
    if manifest.get("mediaType", entry.media_type) != entry.media_type:
        raise BadRequest(f"the manifest says that it is {manifest['mediaType']!r}, not {entry.media_type!r}")
    described = media.descriptor(manifest.get("config"), "the configuration")
    if described.media_type not in media.CONFIGS:
        kind = manifest.get("artifactType") or described.media_type
        raise _NoImage(f"it is no image but an artifact of type {kind!r}")
    config = Config.parse(_document(source, described, "the configuration"))
    layers = media.sequence(manifest.get("layers"), "the layers of the manifest")
    stored = [media.descriptor(layer, f"layer {at}") for at, layer in enumerate(layers, 1)]
    config.check_layers(len(stored))
    for layer in stored:
        media.check_layer_type(layer.media_type)
    blobs = [
        Blob(_blob_name(layer.digest), diff_id, layer.digest, layer.size)
        for layer, diff_id in zip(stored, config.diff_ids, strict=True)
    ]
    return Found(config, tuple(blobs))


def _document(source: Source, entry: Descriptor, what: str) -> bytes:
    """Return the document that *entry* describes, if it is that."""
    if entry.size > media.JSON_LIMIT:
        raise BadRequest(f"{what} is larger than {media.JSON_LIMIT >> 20} MiB")
    data = read(source, _blob_name(entry.digest), media.JSON_LIMIT)
    if data is None:
        data = entry.data
    if data is None:
        raise BadRequest(f"{what} is missing: there is no {_blob_name(entry.digest)}")
    if len(data) != entry.size:
        raise BadRequest(f"{what} has {len(data)} bytes, not {entry.size}")
    if not media.matches(data, entry.digest):
        raise BadRequest(f"{what} does not have the digest {entry.digest}: it is damaged")
    return data


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _in_docker_archive(source: Source, listing: object) -> Iterator[Found]:
    """Yield the images of an archive of `docker save`, which says no digests but in configurations."""
    items = media.sequence(listing, "manifest.json")
    if not items:
        raise BadRequest("the archive holds no image")
    for item in items:
        fields = media.mapping(item, "an entry of manifest.json")
        name = media.text(fields.get("Config"), "the configuration's name in manifest.json")
        data = read(source, name, media.JSON_LIMIT)
        if data is None:
            raise BadRequest(f"the configuration is missing: there is no {name}")
        digest = os.path.basename(name).removesuffix(".json")
        if len(digest) == 64 and not media.matches(data, f"sha256:{digest}"):
            raise BadRequest(f"the configuration {name} does not have the digest that it is called by")
        config = Config.parse(data)
        layers = media.sequence(fields.get("Layers"), "the layers in manifest.json")
        names = [media.text(layer, "a layer's name in manifest.json") for layer in layers]
        config.check_layers(len(names))
        blobs = [Blob(layer, diff_id) for layer, diff_id in zip(names, config.diff_ids, strict=True)]
        tags = media.sequence(fields.get("RepoTags"), "the tags in manifest.json")
        yield Found(config, tuple(blobs), tuple(normalize(media.text(tag, "a tag")) for tag in tags))
