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
from layerfs.distribution.access import Access
from layerfs.distribution.named import Named
from layerfs.distribution.progress import Report, Uploads, short
from layerfs.distribution.skopeo import Options
from layerfs.errors import NotFound
from layerfs.oci import Known, media
from layerfs.store import Store
from layerfs.store.model import Layer
from layerfs.store.references import repository
from layerfs.store.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that a registry has now."""

    tag: str
    digest: str
    size: int
    """Bytes of its manifest."""


def push_named(store: Store, named: Named, access: Access, report: Report) -> Iterator[Pushed]:
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
    for tag in sorted(tags):
        yield push(store, tag, Named.parse(tag), access, report, doing)


def push(store: Store, reference: str, named: Named, access: Access, report: Report, doing: str) -> Pushed:
    """Bring the image that *reference* means to a registry, where it is called *named*.

    Says so in *report*; what that raises ends it, as what it is *doing* says. Raises `LayerfsError`.
    """
    skopeo.check(doing)
    image = store.resolve(reference)
    stack = store.layers_of(image)
    names = [short(layer.diff_id or layer.id) for layer in stack]
    for name in names:
        report.say("Preparing", name, current=0)

    def send(scratch: Scratch, options: Options, name: str, knows: Callable[[Layer], Known | None]) -> Pushed:
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
            replace(options, extra=("--digestfile", str(digest), *options.extra)),
            side="dest",
            scratch=scratch,
            doing=doing,
            progress=False,
            watch=Uploads(blobs, names, report),
        )
        origins.note(store, image, named.host, layout)
        pushed = Pushed(named.tag or "", digest.read_text().strip(), manifest.stat().st_size)
        if any(repository(tag) == named.repository for tag in image.tags):  # with the last of which it goes
            with suppress(NotFound):  # the image has just been removed here
                store.note_digest(image.id, f"{named.repository}@{pushed.digest}")
        return pushed

    with store.scratch() as scratch, access.options(named, scratch) as options:
        if any(origins.known(store, layer, named.host) for layer in stack):
            with suppress(NotFound):  # then the registry has lost them, or what it has is not for this user
                return send(scratch, options, "part", lambda layer: origins.known(store, layer, named.host))
        return send(scratch, options, "whole", lambda layer: None)


def _manifest_digest(layout: Path) -> str:
    (entry,) = media.parse((layout / "index.json").read_bytes(), "index.json")["manifests"]
    return str(entry["digest"])
