"""Push: an image is saved into a layout beside the store's layers, and skopeo copies that.

The same layer always gives the same blob, so what a registry has already is not sent to it again. Blobs that
it is known to have from an earlier pull or push are not even made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from layerfs import oci
from layerfs.distribution import origins, skopeo
from layerfs.distribution.remotes import Remote
from layerfs.distribution.skopeo import Options
from layerfs.errors import NotFound
from layerfs.oci import Known
from layerfs.store import Store
from layerfs.store.model import Layer

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
