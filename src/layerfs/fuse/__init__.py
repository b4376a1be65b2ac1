"""The union as a FUSE filesystem: pyfuse3's operations over it, and the session that serves them."""

from layerfs.fuse import wire

__all__ = ["wire"]  # first of all: the extension must be there before pyfuse3
