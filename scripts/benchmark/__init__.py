"""layerfs beside the kernel's overlayfs and fuse-overlayfs: the same work on equal directories."""
