"""How much an archive may hold before it is taken for an attack."""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.errors import BadRequest

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an archive may unpack to, whatever its own size."""

    size: int = 256 * GIB
    """Bytes of all files, holes included."""
    files: int = 10_000_000
    """Files, directories, links and all else that has a name."""

    def check(self, size: int, files: int) -> None:
        """Raise `BadRequest` when *size* bytes in *files* files are more than that."""
        if size > self.size:
            raise BadRequest(
                f"it holds more than {self.size} bytes: if you trust it, raise the limit with --max-size"
            )
        if files > self.files:
            raise BadRequest(
                f"it holds more than {self.files} files: if you trust it, raise the limit with --max-files"
            )
