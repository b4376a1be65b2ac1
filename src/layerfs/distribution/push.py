"""Push: an image is saved into a layout beside the store's layers, and skopeo copies that.

The same layer always gives the same blob, so what a registry has already is not sent to it again. Blobs that
it is known to have from an earlier pull or push are not even made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from layerfs import oci
from layerfs.distribution import origins, skopeo
from layerfs.distribution.credentials import Credentials
from layerfs.distribution.named import Named
from layerfs.distribution.progress import Report, Uploads, short
from layerfs.distribution.remotes import Remote
from layerfs.distribution.skopeo import Options
from layerfs.errors import NotFound
from layerfs.oci import Known, media
from layerfs.store import Store
from layerfs.store.model import Layer
from layerfs.store.references import repository
from layerfs.store.scratch import Scratch

_UNPACKED = ("containers-storage", "docker-archive", "docker-daemon")
"""Where layers are kept without compression."""


def push(store: Store, reference: str, target: Remote, options: Options, *, progress: bool) -> str:
    """Bring the image that *reference* means to *target*; return the digest of its manifest there.

    With *progress*, standard error shows how far it is. Raises `LayerfsError`.
    """
    doing = f"push {reference} to {target}"
    skopeo.check(doing)
    image = store.resolve(reference)
    stack = store.layers_of(image)
    compression = "none" if target.transport in _UNPACKED else "gzip"
    registry = target.registry()
    with store.scratch() as scratch:

        def send(name: str, knows: Callable[[Layer], Known | None]) -> str:
            digest = scratch.path / f"{name}.digest"
            layout = scratch.path / name
            oci.save(store, [image.id], layout, format="oci-dir", compression=compression, knows=knows)
            told = replace(options, extra=("--digestfile", str(digest), *options.extra))
            source = skopeo.layout(scratch, name)
            skopeo.copy(source, target, told, side="dest", scratch=scratch, doing=doing, progress=progress)
            if registry is not None:
                origins.note(store, image, registry, layout)
            return digest.read_text().strip()

        if registry is not None and any(origins.known(store, layer, registry) for layer in stack):
            with suppress(NotFound):  # then the registry has lost them, or what it has is not for this user
                return send("part", lambda layer: origins.known(store, layer, registry))
        return send("whole", lambda layer: None)


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that a registry has now."""

    tag: str
    digest: str
    size: int
    """Bytes of its manifest."""


def push_named(store: Store, named: Named, credentials: Credentials, report: Report) -> Iterator[Pushed]:
    """Bring the image *named*, or all tags of its repository, to its registry, as `docker push` does.

    Says so in *report*, and yields each tag that is there. What *report* raises ends it. Raises
    `LayerfsError`.
    """
    doing = f"push {named}"
    skopeo.check(doing)
    report.say(f"The push refers to repository [{named.full_repository}]")
    tags = [tag for image in store.images() for tag in image.tags if repository(tag) == named.repository]
    if not tags:
        raise NotFound(f"An image does not exist locally with the tag: {named.repository}")
    if named.tag is not None:
        if str(named) not in tags:
            raise NotFound(f"tag does not exist: {named}")
        tags = [str(named)]
    with credentials.file(named.host) as authfile:
        options = skopeo.access(named.is_local, authfile)
        for tag in sorted(tags):
            yield _push_tag(store, Named.parse(tag), options, report, doing)


def _push_tag(store: Store, named: Named, options: Options, report: Report, doing: str) -> Pushed:
    image = store.resolve(str(named))
    stack = store.layers_of(image)
    names = [short(layer.diff_id or layer.id) for layer in stack]
    for name in names:
        report.say("Preparing", name, current=0)

    def send(scratch: Scratch, name: str, knows: Callable[[Layer], Known | None]) -> Pushed:
        digest = scratch.path / f"{name}.digest"
        layout = scratch.path / name
        oci.save(
            store,
            [image.id],
            layout,
            format="oci-dir",
            compression="gzip",
            knows=knows,
            check=report.check,
        )
        manifest = layout / "blobs" / _manifest_digest(layout).replace(":", "/")
        fields = media.parse(manifest.read_bytes(), "the manifest")
        blobs = [media.descriptor(layer, "a layer") for layer in fields["layers"]]
        skopeo.copy(
            skopeo.layout(scratch, name),
            named.remote(),
            replace(options, extra=("--digestfile", str(digest))),
            side="dest",
            scratch=scratch,
            doing=doing,
            progress=False,
            watch=Uploads(blobs, names, report),
        )
        origins.note(store, image, named.host, layout)
        return Pushed(named.tag or "", digest.read_text().strip(), manifest.stat().st_size)

    with store.scratch() as scratch:
        if any(origins.known(store, layer, named.host) for layer in stack):
            with suppress(NotFound):  # then the registry has lost them, or what it has is not for this user
                return send(scratch, "part", lambda layer: origins.known(store, layer, named.host))
        return send(scratch, "whole", lambda layer: None)


def _manifest_digest(layout: Path) -> str:
    (entry,) = media.parse((layout / "index.json").read_bytes(), "index.json")["manifests"]
    return str(entry["digest"])
