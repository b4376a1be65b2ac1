"""What a registry has under a name: its manifest, and the image in it for one platform."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from layerfs.distribution import skopeo
from layerfs.distribution.named import Named
from layerfs.distribution.skopeo import Options
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.oci import media, platforms
from layerfs.oci.config import Config
from layerfs.oci.media import Descriptor
from layerfs.oci.platforms import Platform
from layerfs.store.scratch import Scratch

_PATIENCE = 60.0
"""Seconds that a registry may take to send a manifest or a configuration."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a name stands for in a registry."""

    descriptor: Descriptor
    """Of the manifest, or of the index of several."""
    image: Named
    """The image for the platform, by the digest of its manifest."""
    config: Config
    layers: tuple[Descriptor, ...]


class Registry:
    """Asks a registry about *named*, for somebody who is *doing* something ("pull debian:12").

    *check* is called now and then, and what it raises ends the question.
    """

    def __init__(
        self, named: Named, options: Options, scratch: Scratch, doing: str, check: Callable[[], None]
    ) -> None:
        self._named = named
        self._options = options
        self._scratch = scratch
        self._doing = doing
        self._check = check

    def describe(self) -> tuple[Descriptor, list[dict[str, Any]]]:
        """Return the descriptor of what the name stands for, and the platforms that it is for.

        Raises `BadRequest` for what is nothing of OCI's or Docker's, and `LayerfsError` with skopeo's words.
        """
        descriptor, fields = self._top()
        if descriptor.media_type in media.INDEXES:
            return descriptor, _offered(_entries(fields))
        with suppress(BadRequest):  # an artifact is for no platform
            _, config = self._image(self._named.at(descriptor.digest), fields)
            return descriptor, [_platform(config.fields)] if platforms.of(config.fields) else []
        return descriptor, []

    def find(self, platform: str | None) -> Found:
        """Return what the name stands for, and its image for *platform* (None: this machine's, or any one).

        Raises `NotFound` where it is for other platforms alone, `BadRequest` for what is no image, and
        `LayerfsError` with skopeo's words.
        """
        wanted = platforms.parse(platform)
        descriptor, fields = self._top()
        if descriptor.media_type in media.INDEXES:
            chosen = _choose(_entries(fields), wanted, str(self._named))
            named = self._named.at(chosen)
            fields = media.parse(self._manifest(named), "the manifest")
            _kind(fields)
            layers, config = self._image(named, fields)
            return Found(descriptor, named, config, layers)
        named = self._named.at(descriptor.digest)
        layers, config = self._image(named, fields)
        own = platforms.of(config.fields)
        if platform is not None and (own is None or platforms.rank(wanted, own) is None):
            raise NotFound(
                f"image with reference {self._named} was found but does not provide the specified "
                f"platform ({wanted}): it is for {own or 'none that is known'}"
            )
        return Found(descriptor, named, config, layers)

    def _top(self) -> tuple[Descriptor, dict[str, Any]]:
        data = self._manifest(self._named)
        fields = media.parse(data, "the manifest")
        digest = self._named.digest or media.digest_of(data)
        return Descriptor(_kind(fields), digest, len(data)), fields

    def _image(self, named: Named, manifest: dict[str, Any]) -> tuple[tuple[Descriptor, ...], Config]:
        """Return the layers of a manifest, and its configuration, which is fetched."""
        about = media.descriptor(manifest.get("config"), "the configuration")
        if about.media_type not in media.CONFIGS:
            kind = str(manifest.get("artifactType") or about.media_type)
            raise BadRequest(f"{self._named} is no image but an artifact of type {kind[:100]!r}")
        layers = media.sequence(manifest.get("layers"), "the layers of the manifest")
        blobs = tuple(media.descriptor(layer, "a layer of the manifest") for layer in layers)
        data = self._ask(named, "--config", "--raw")
        if not media.matches(data, about.digest):
            raise BadRequest(f"the configuration of {self._named} does not have the digest {about.digest}")
        config = Config.parse(data)
        config.check_layers(len(blobs))
        return blobs, config

    def tags(self) -> list[str]:
        """Return the tags of the repository. Raises `LayerfsError`."""
        remote = replace(self._named, tag=None, digest=None).remote()
        return skopeo.tags(
            remote, self._options, scratch=self._scratch, doing=self._doing, watch=self._deadline()
        )

    def _manifest(self, named: Named) -> bytes:
        data = self._ask(named, "--raw")
        if named.digest is not None and not media.matches(data, named.digest):
            raise BadRequest(f"the manifest of {named} does not have that digest")
        return data

    def _ask(self, named: Named, *words: str) -> bytes:
        return skopeo.inspect(
            named.remote(),
            self._options,
            *words,
            scratch=self._scratch,
            doing=self._doing,
            watch=self._deadline(),
        )

    def _deadline(self) -> skopeo.Watch:
        end = time.monotonic() + _PATIENCE

        def watch(pid: int, said: str) -> None:
            self._check()
            if time.monotonic() > end:
                raise LayerfsError(
                    f"cannot {self._doing}: {self._named.host} has not answered within {_PATIENCE:g} seconds"
                )

        return watch


def _kind(manifest: dict[str, Any]) -> str:
    """Return the media type of a manifest or index, which OCI's need not say. Raises `BadRequest`."""
    kind = media.text(manifest.get("mediaType") or "", "the media type of the manifest")
    media.refuse_schema_1(kind)
    if manifest.get("schemaVersion") != 2:
        media.refuse_schema_1("application/vnd.docker.distribution.manifest.v1+")
    kind = kind or (media.OCI_INDEX if "manifests" in manifest else media.OCI_MANIFEST)
    if kind not in (*media.INDEXES, *media.MANIFESTS):
        raise BadRequest(f"unsupported media type {kind[:100]}")
    return kind


def _entries(index: dict[str, Any]) -> list[Descriptor]:
    return [
        media.descriptor(entry, "an entry of the manifest list")
        for entry in media.sequence(index.get("manifests"), "the manifest list")
    ]


def _choose(entries: Sequence[Descriptor], wanted: Platform, name: str) -> str:
    """Return the digest of the manifest for the platform that is *wanted*."""
    known = [(entry, offer) for entry in entries if (offer := platforms.of(entry.platform)) is not None]
    best = platforms.best(wanted, [offer for _, offer in known])
    if best is None:
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries of {name}")
    return known[best][0].digest


def _offered(entries: Sequence[Descriptor]) -> list[dict[str, Any]]:
    return [_platform(entry.platform) for entry in entries if entry.platform]


def _platform(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ("architecture", "os", "os.version", "os.features", "variant")
    return {name: fields[name] for name in names if fields.get(name)}
