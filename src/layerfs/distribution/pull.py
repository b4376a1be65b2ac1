"""Pull: skopeo copies an image into a layout beside the store's layers, and that is loaded.

Layers that the store has are not fetched again: skopeo takes a blob that lies in the layout already for
done, and loading never opens the blobs of layers that it shares, so an empty file stands for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from layerfs import oci
from layerfs.archive.limits import Limits
from layerfs.distribution import origins, skopeo
from layerfs.distribution.remotes import Remote
from layerfs.distribution.skopeo import Options
from layerfs.errors import BadRequest, LayerfsError
from layerfs.oci import Loaded
from layerfs.oci.config import Config
from layerfs.store import Store, elsewhere
from layerfs.store.references import normalize
from layerfs.store.scratch import Scratch

_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")


def pull(
    store: Store,
    source: Remote,
    name: str | None,
    options: Options,
    *,
    limits: Limits,
    progress: bool,
) -> Loaded:
    """Bring the image *source* into the store, where it is called *name*, or else as it is there.

    An image that unpacks to more than *limits* is refused. With *progress*, standard error shows how far
    it is. On failure the store is as it was. Raises `LayerfsError`.
    """
    reference = normalize(name) if name is not None else source.image_name()
    skopeo.check(f"pull {source}")
    references = [reference] if reference is not None else []
    with store.scratch() as scratch:
        known = _known_blobs(store, source, options, scratch)
        try:
            layout = _fetch(source, options, scratch, known, progress)
            return _load(store, source, layout, references, options, limits)
        except BadRequest:
            if not known or _known_blobs(store, source, options, scratch) == known:
                raise
        # A layer was removed from the store meanwhile, and its blob is needed after all.
        layout = _fetch(source, options, scratch, [], progress)
        return _load(store, source, layout, references, options, limits)


def _known_blobs(store: Store, source: Remote, options: Options, scratch: Scratch) -> list[str]:
    """Return the digests of the blobs of *source*, an image in a registry, that need not be fetched."""
    if source.transport != "docker" or not store.images():
        return []
    doing = f"pull {source}"
    try:
        config = Config.parse(
            skopeo.inspect(source, options, "--config", "--raw", scratch=scratch, doing=doing)
        )
        present = set(elsewhere.shared_layers(store.database, config.diff_ids))
        if elsewhere.find_image(store.database, config.data) is not None:
            present = set(config.diff_ids)
        if not present:
            return []
        blobs = skopeo.layers(source, options, scratch=scratch, doing=doing)
    except BadRequest:
        return []  # whatever it is, loading it will say
    if len(blobs) != len(config.diff_ids):
        return []
    return [
        blob for blob, diff_id in zip(blobs, config.diff_ids, strict=True)
        if diff_id in present and _DIGEST.fullmatch(blob)
    ]  # fmt: skip


def _fetch(source: Remote, options: Options, scratch: Scratch, known: Sequence[str], progress: bool) -> Path:
    """Copy the image *source*, but for the blobs *known*, into a layout, and return that."""
    name = "part" if known else "whole"
    layout = scratch.path / name
    for digest in known:
        blob = layout / "blobs" / digest.replace(":", "/")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.touch()
    target = skopeo.layout(scratch, name)
    doing = f"pull {source}"
    skopeo.copy(source, target, options, side="src", scratch=scratch, doing=doing, progress=progress)
    return layout


def _load(
    store: Store, source: Remote, layout: Path, references: Sequence[str], options: Options, limits: Limits
) -> Loaded:
    loaded = oci.load(store, layout, platform=options.platform, references=references, limits=limits)
    if len(loaded) != 1:
        raise LayerfsError(f"cannot pull {source}: skopeo brought {len(loaded)} images instead of one")
    if (registry := source.registry()) is not None:
        origins.note(store, loaded[0].image, registry, layout)
    return loaded[0]
