"""layerfs: immutable layers and a copy-on-write upper directory as one live filesystem."""

__version__ = "0.1.0"
