"""A disk that is thinly provisioned, and whose pool can run dry: it refuses blocks that it has promised.

What is written to it is taken into the page cache, as by any disk. Only when the system writes it back
there is no room, and the data is lost.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

_POOL, _SIZE = "96m", 256 << 20


class ThinDisk:
    """An ext4 in a sparse image that lies in a small memory filesystem: *directory*`/thin` is where it is."""

    def __init__(self, directory: Path) -> None:
        self.pool, self.path = directory / "pool", directory / "thin"
        for path in (self.pool, self.path):
            path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_POOL}", "tmpfs", self.pool], check=True)
        image = self.pool / "image"
        with image.open("wb") as file:
            file.truncate(_SIZE)
        # Its journal and tables have their room already.
        features = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-N", "2048"]
        subprocess.run(["mkfs.ext4", "-q", *features, image], check=True, timeout=30)
        subprocess.run(["mount", "-o", "loop", image, self.path], check=True, timeout=20)
        (self.path / "first").write_bytes(b"x" * 4096)
        os.sync()

    def run_dry(self) -> None:
        """Have it refuse what it has no block for yet."""
        os.sync()
        with suppress(OSError), (self.pool / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    def refill(self) -> None:
        """Have it take everything again."""
        (self.pool / "ballast").unlink()
