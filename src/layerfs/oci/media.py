"""The documents of an image: media types, digests, descriptors, and JSON that nobody has checked yet.

OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md, media-types.md), and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from layerfs.archive.streams import Hash
from layerfs.errors import BadRequest
from layerfs.store.imageconfig import check_shape

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"

INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

JSON_LIMIT = 4 << 20
"""Bytes of a manifest or configuration: what registries take."""

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+(gzip|zstd))?"
    r"|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)"
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one document says of another, or of a layer."""

    media_type: str
    digest: str
    size: int
    platform: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    """The content itself, where the descriptor brings it along."""


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*; *what* it is stands in errors. Raises `BadRequest`."""
    found = parse_any(data, what)
    if not isinstance(found, dict):
        raise BadRequest(f"{what} is not a JSON object")
    return found


def parse_any(data: bytes, what: str) -> object:
    """Return the JSON value in *data*. Raises `BadRequest`."""
    if len(data) > JSON_LIMIT:
        raise BadRequest(f"{what} is larger than {JSON_LIMIT >> 20} MiB")
    try:
        found: object = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BadRequest(f"{what} is not JSON") from None
    if isinstance(found, (dict, list)):
        check_shape(found, what)
    return found


def _refuse(constant: str) -> NoReturn:
    """Raise for `NaN` and its like, which Python reads, but JSON does not have."""
    raise ValueError(constant)


def text(value: object, what: str) -> str:
    """Return *value*, which must be a string without surprises. Raises `BadRequest`."""
    if not isinstance(value, str):
        raise BadRequest(f"{what} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} has half a character in it") from None
    return value


def mapping(value: object, what: str) -> dict[str, Any]:
    """Return *value*, which must be an object, or nothing at all. Raises `BadRequest`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{what} is not an object")
    return value


def sequence(value: object, what: str) -> list[Any]:
    """Return *value*, which must be an array, or nothing at all. Raises `BadRequest`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest(f"{what} is not an array")
    return value


def descriptor(value: object, what: str) -> Descriptor:
    """Return the descriptor *value*. Raises `BadRequest`."""
    fields = mapping(value, what)
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise BadRequest(f"{what} has no size")
    annotations = mapping(fields.get("annotations"), f"the annotations of {what}")
    data = fields.get("data")
    return Descriptor(
        text(fields.get("mediaType", ""), f"the media type of {what}"),
        check_digest(fields.get("digest"), what),
        size,
        mapping(fields.get("platform"), f"the platform of {what}"),
        {name: text(note, f"an annotation of {what}") for name, note in annotations.items()},
        _embedded(data, what) if data is not None else None,
    )


def _embedded(data: object, what: str) -> bytes:
    try:
        return base64.b64decode(text(data, what), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{what} has data that is not base64") from None


def check_digest(value: object, what: str) -> str:
    """Return *value*, which must be a SHA-256 or SHA-512 digest. Raises `BadRequest`."""
    digest = text(value, f"the digest of {what}")
    if not _DIGEST.fullmatch(digest):
        raise BadRequest(f"{what} has no digest that is known (sha256 or sha512): {digest[:80]!r}")
    return digest


def check_layer_type(media_type: str) -> None:
    """Raise `BadRequest` unless a layer of this media type can be unpacked."""
    if not _LAYER.fullmatch(media_type):
        raise BadRequest(
            f"a layer has the media type {media_type!r}, which is not known: use tar, tar+gzip or tar+zstd"
        )


def refuse_schema_1(media_type: str) -> None:
    """Raise `BadRequest` for the manifests of before 2016, which name no configuration."""
    if media_type.startswith(_DOCKER_SCHEMA_1):
        raise BadRequest("the image has a manifest of Docker's schema 1: push it again with a newer Docker")


def new_hash(digest: str) -> Hash:
    """Return a hash object of the algorithm of *digest*."""
    made: Hash = hashlib.new(digest.partition(":")[0])
    return made


def digest_of(data: bytes) -> str:
    """Return the SHA-256 digest of *data*."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def matches(data: bytes, digest: str) -> bool:
    """Tell whether *data* has this *digest*."""
    algorithm, _, expected = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == expected
