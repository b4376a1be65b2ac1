"""The distribution room: images from and to registries and other places, through skopeo."""
