"""The store: where layers, images and mounts are kept, and how an upper becomes a layer."""

from layerfs.store.facade import Store

__all__ = ["Store"]
