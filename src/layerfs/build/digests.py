"""Digests of what a build copies (XXH3-128), and the memory that saves reading what has not changed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

NAME = "digests.db"
"""The memory's file, below `cache/` in the store's root."""


class Memory:
    """Digests of files, known by (device, inode, size, mtime, ctime) over builds; a context manager.

    A file that is damaged, or that another layerfs wrote, is made anew; one that cannot be written is done
    without. Belongs to one thread; several processes and threads may each have one on the same file.
    """

    def __init__(self, file: Path) -> None:
        raise NotImplementedError

    def __enter__(self) -> Memory:
        """Return the memory."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is new, and close."""
