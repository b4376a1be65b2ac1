"""The container room: an image's mount as the root of processes that an OCI runtime runs."""
