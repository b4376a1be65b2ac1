"""The control room: the Docker Engine API dialect of a mount, its server, and its client."""
