"""The union as a FUSE filesystem: pyfuse3's operations over it, and the session that serves them."""
