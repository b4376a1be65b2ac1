"""Mount namespaces that have a copy of every mount, as each service with PrivateTmp has one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Layerfs, wait_until

PATIENCE = 30
IN_USE = (
    "ends, although process .* (has a file open|has its working directory)",
    "is in use: unmounted it lazily",
)
"""What a daemon logs whose mount was taken away while somebody had it."""


class Elsewhere:
    """A process in a mount namespace of its own, which got a copy of what was mounted when it began."""

    def __init__(self, layerfs: Layerfs, command: Sequence[str] = ("unshare", "--mount")) -> None:
        layerfs.expect_log(*IN_USE)
        self.process = subprocess.Popen(
            [*command, "sh", "-c", "echo; exec sleep 120"],
            env=layerfs.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"
        self.pid = self.process.pid

    def at(self, path: Path) -> Path:
        """Return where *path* of that namespace is found from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def end(self) -> None:
        """End the process, and its namespace with it."""
        self.process.kill()
        self.process.wait(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def elsewhere(layerfs: Layerfs, command: Sequence[str] = ("unshare", "--mount")) -> Iterator[Elsewhere]:
    """Have such a process while the block lasts."""
    made = Elsewhere(layerfs, command)
    try:
        yield made
    finally:
        made.end()


def has_ended(layerfs: Layerfs, pid: int) -> bool:
    """Wait until the daemon *pid* is no more."""
    wait_until(lambda: pid not in layerfs.processes() and not os.path.exists(f"/proc/{pid}/exe"), PATIENCE)
    return True


def commit(layerfs: Layerfs, *arguments: str) -> None:
    """Commit a mount. That its upper is empty then is said, and no matter here."""
    done = layerfs("commit", *arguments)
    assert done.returncode == 0, done.stderr
