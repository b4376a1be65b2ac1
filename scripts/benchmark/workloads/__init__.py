"""The workloads, one module a group; importing this package registers them all, in the report's order."""

from . import metadata, small, bulk, packages, life  # noqa: I001  (the report's order)

__all__ = ["bulk", "life", "metadata", "packages", "small"]
