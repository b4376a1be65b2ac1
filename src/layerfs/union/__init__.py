"""The union of layers, on directories: what a merged tree is, and how it changes. No FUSE in here."""
