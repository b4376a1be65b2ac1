"""The tests: `unit` needs no mount, `fuse` mounts directories, `system` uses what people use."""
