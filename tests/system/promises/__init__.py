"""Programs that are given promises by a filesystem, a power cut, and what is left of the promises after it."""
