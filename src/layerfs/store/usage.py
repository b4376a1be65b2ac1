"""What the store's bytes are for: which layers are shared, which an image has alone, what could be freed.

Sizes are bytes of regular files, as `layers.size` counts them. A directory outside the store is nobody's
to free, so it counts in the size of images and in no sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from layerfs.errors import LayerfsError
from layerfs.store import cacheusage, checkpoints, external, images, layers, mounts
from layerfs.store.cacheusage import CacheUsage
from layerfs.store.database import Database
from layerfs.store.model import Image, Layer, Mount


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """A layer, its bytes, and how many images and mounts have it in their stacks (or as the upper).

    A mount has those as well that it can go back to.
    """

    layer: Layer
    size: int
    owned: bool
    """Whether its tree is the store's own, so that removing the layer frees its bytes."""
    images: int
    mounts: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Everything in the store at one moment."""

    images: tuple[Image, ...]
    """Newest first, as are the mounts."""
    mounts: tuple[Mount, ...]
    layers: Mapping[str, LayerUsage]
    """By id, the oldest first."""
    cache: tuple[CacheUsage, ...] = ()
    """The build cache: those entries first that were used last."""
    cached: Collection[str] = ()
    """The layers that the build cache keeps, and builds that go on."""
    pasts: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The layers of what each mount has been at before it went back, by the mount's id."""

    def size(self, layer_ids: Iterable[str]) -> int:
        """Return the bytes of these layers together."""
        return sum(self.layers[layer_id].size for layer_id in layer_ids)

    def shared_size(self, image: Image) -> int:
        """Return the bytes of those layers of *image* that other images have too."""
        return self.size(layer for layer in image.layers if self.layers[layer].images > 1)

    def mounts_of(self, image: Image) -> int:
        """Return how many mounts were made from *image*."""
        return sum(mount.image == image.id for mount in self.mounts)

    def owned_size(self, layer_ids: Iterable[str]) -> int:
        """Return the bytes of these layers that are in the store, each layer counted once."""
        return self.size({layer_id for layer_id in layer_ids if self.layers[layer_id].owned})

    def freed(self, *, images: bool, mounts: Collection[str] = ()) -> int:
        """Return the bytes that removing the mounts with the ids *mounts* would free.

        With *images*, every image goes too that no mount needs then.
        """
        stay = [mount for mount in self.mounts if mount.id not in mounts]
        needed = self._needed_by(stay) if images else self.images
        kept = {layer for owner in needed for layer in owner.layers}
        kept |= {layer for mount in stay for layer in (*stack_of(mount), *self.pasts.get(mount.id, ()))}
        kept |= set(self.cached)
        return self.owned_size(self.layers.keys() - kept)

    def cache_size(self, *, reclaimable: bool = False) -> int:
        """Return the bytes that the build cache alone has, or those of them that pruning it would free."""
        alone = [used for used in self.cache if not used.shared and not (reclaimable and used.in_use)]
        return self.owned_size(layer for used in alone for layer in used.layers)

    def _needed_by(self, stay: Iterable[Mount]) -> list[Image]:
        """Return the images that these mounts were made from, and those that the images were made from."""
        by_id = {image.id: image for image in self.images}
        needed = []
        for mount in stay:
            image = by_id.get(mount.image or "")
            while image is not None:
                needed.append(image)
                image = by_id.get(image.parent or "")
        return needed


def stack_of(mount: Mount) -> tuple[str, ...]:
    """Return the layers of *mount*, its upper among them."""
    return (*mount.layers, mount.upper) if mount.upper else mount.layers


def usage(db: Database) -> Usage:
    """Return what is in the store; layers that nobody measured yet are, and uppers each time."""
    with db.snapshot():
        all_images, all_mounts, rows = images.every(db), mounts.every(db), layers.every(db)
        pasts = checkpoints.layers_of_pasts(db)
    in_images = Counter(layer for image in all_images for layer in set(image.layers))
    in_mounts = Counter(
        layer for mount in all_mounts for layer in {*stack_of(mount), *pasts.get(mount.id, ())}
    )
    used = {
        row.id: LayerUsage(
            row,
            _size(db, row),
            not external.is_outside(db, row),
            in_images[row.id],
            in_mounts[row.id],
        )
        for row in rows
    }
    sizes = {layer_id: layer.size for layer_id, layer in used.items()}
    cache = cacheusage.usage(db, lambda layer_id: sizes.get(layer_id, 0))
    kept = cacheusage.kept_layers(db)
    return Usage(tuple(all_images), tuple(all_mounts), used, tuple(cache), kept, pasts)


def _size(db: Database, layer: Layer) -> int:
    try:
        return layer.size if layer.size is not None else layers.size(db, layer.id)
    except LayerfsError:
        return 0  # removed meanwhile, or a tree that is lost
