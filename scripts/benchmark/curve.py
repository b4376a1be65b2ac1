"""The depth curve: what a mount costs with 1, 100, 1,000 and 10,000 checkpoints in one chain.

`scripts/bench-depth` runs it. The chain is made through the socket; each checkpoint changes a few files of a
tree of some thousand. Every figure is taken end to end, on a mount that was mounted anew for it where it is
called "first": nothing is known of the tree then but what the kernel keeps of the layers themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from layerfs.unixhttp.client import UnixClient
from layerfs.unixhttp.message import Query, Request

from .probe import Probe
from .trees import file_names, make_files
from .workloads.life import resident

NAME = "chain"
DEPTHS = (1, 100, 1_000, 10_000)
REDUCED = (1, 100)
FILES, DIRECTORIES = 3_000, 100
SAMPLE = 1_000
"""Files that are looked up, and names that are missed."""
AGAIN = 5
"""How often what takes milliseconds is done; the median counts."""
SETTLED = 3_600.0
"""Seconds that the background may take until it has nothing left to do."""


class Chain:
    """A mount with a chain of checkpoints, in a store of its own below *directory*."""

    def __init__(self, directory: Path, files: int) -> None:
        self.mnt = directory / "mnt"
        self._run = directory / "run"
        self._environment = {
            **os.environ,
            "LAYERFS_ROOT": str(directory / "store"),
            "LAYERFS_RUN": str(self._run),
        }
        self._random = random.Random(14)
        self.names = file_names(DIRECTORIES, files)
        self.depth = 0
        tree = directory / "tree"
        make_files(tree, self.names, os.urandom(1024))
        self.mnt.mkdir()
        self.command("import", tree, "base")
        self.command("mount", "--image", "base", "--name", NAME, self.mnt)

    def command(self, *words: str | Path) -> str:
        """Run `layerfs WORDS`; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "layerfs", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.strip()

    def post(self, path: str, body: bytes = b"{}") -> None:
        """Ask the daemon of the mount."""
        client = UnixClient(self._run / f"{NAME}.sock")
        answer = client.send(Request("POST", path, Query((("name", NAME),)), body))
        if answer.status >= 300:
            raise RuntimeError(answer.body.decode())

    def change(self) -> None:
        """Change what one checkpoint holds: three files written, now and then one made or removed."""
        for name in self._random.sample(self.names, 3):
            (self.mnt / name).write_bytes(b"%d\n" % self.depth)
        extra = self.mnt / f"d{self.depth % DIRECTORIES:04}" / f"made{self.depth % 500}"
        if extra.exists():
            extra.unlink()
        else:
            extra.write_bytes(b"made\n")

    def checkpoint(self) -> float:
        """Change something and keep it; return the seconds that the checkpoint takes."""
        self.change()
        start = time.perf_counter()
        self.post("/layerfs/checkpoint")
        self.depth += 1
        return time.perf_counter() - start

    def rollback(self) -> float:
        """Change something and go back; return the seconds until the answer."""
        self.change()
        start = time.perf_counter()
        self.post("/layerfs/rollback", b'{"Discard": true}')
        return time.perf_counter() - start

    def first_stat(self) -> float:
        """Return the seconds that the first stat of a file takes after going back."""
        self.rollback()
        start = time.perf_counter()
        os.stat(self.mnt / self.names[0])
        return time.perf_counter() - start

    def remount(self) -> float:
        """Unmount and mount again; return the seconds that mounting takes."""
        self.command("umount", NAME)
        start = time.perf_counter()
        self.command("mount", "--name", NAME, self.mnt)
        os.stat(self.mnt / self.names[0])
        return time.perf_counter() - start

    def pid(self) -> int:
        """Return the process of the daemon."""
        return int(self.status()["Pid"])

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself."""
        found = json.loads(self.command("status", "--format", "json", NAME))
        return dict(found[0] if isinstance(found, list) else found)

    def wait_until_settled(self) -> None:
        """Return when the background has nothing left to do."""
        deadline = time.monotonic() + SETTLED
        while self.status()["LayersToSettle"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {SETTLED:g} seconds for layers to be settled")
            time.sleep(0.5)


def measure(chain: Chain, probe: Probe) -> dict[str, float]:
    """Return the figures of *chain* as it is, in seconds, bytes or numbers."""
    sample = random.Random(1).sample(chain.names, min(SAMPLE, len(chain.names)))
    top = str(chain.mnt)
    found: dict[str, float] = {}
    chain.wait_until_settled()
    found["remount, ms"] = median(chain.remount() for _ in range(3)) * 1e3
    found["descriptors"] = len(os.listdir(f"/proc/{chain.pid()}/fd"))
    found["resident memory when mounted, MB"] = resident(chain.pid()) / 1e6

    def first(operation: str, names: list[str], count: int) -> float:
        times = []
        for _ in range(3):
            chain.remount()
            times.append(probe.run(top, operation, names)[0])
        return min(times) / count * 1e6

    found["stat of a file, first time, us"] = first("stat", sample, len(sample))
    found["missing name, first time, us"] = first("missing", [f"{name}.no" for name in sample], len(sample))
    directories = sorted({os.path.dirname(name) for name in chain.names})
    entries = sum(len(os.listdir(chain.mnt / name)) for name in directories)
    found["listing, first time, us an entry"] = first("walk", directories, entries)
    found["walk with lstat, first time, us a file"] = first("walk", ["."], entries)
    found["resident memory after a walk, MB"] = resident(chain.pid()) / 1e6
    found["descriptors after a walk"] = len(os.listdir(f"/proc/{chain.pid()}/fd"))
    found["rollback, ms"] = median(chain.rollback() for _ in range(AGAIN)) * 1e3
    found["first stat after a rollback, ms"] = median(chain.first_stat() for _ in range(AGAIN)) * 1e3
    return found


def curve(directory: Path, depths: tuple[int, ...], files: int, say: Callable[[str], None]) -> str:
    """Return the curve as a table in Markdown."""
    probe = Probe.build(directory)
    chain = Chain(directory, files)
    columns: list[dict[str, float]] = []
    try:
        for depth in depths:
            times: list[float] = []
            while chain.depth < depth:
                times.append(chain.checkpoint())
            start = time.monotonic()
            column = {"checkpoint, ms (median of the last 50)": median(times[-50:]) * 1e3}
            column |= measure(chain, probe)
            say(f"{depth}: {column} ({time.monotonic() - start:.0f} s)")
            columns.append(column)
    finally:
        chain.command("rm", "-f", NAME)
    lines = [f"| | {' | '.join(f'{depth:,}' for depth in depths)} |", f"| --- |{' ---: |' * len(depths)}"]
    lines += [
        f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns)} |" for name in columns[0]
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench-depth", description=__doc__)
    parser.add_argument("--full", action="store_true", help="up to 10,000 checkpoints, not 100")
    parser.add_argument("--depths", default="", help="such as 1,100,1000")
    parser.add_argument("--files", type=int, default=FILES, help="of the tree (%(default)s)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    depths = tuple(int(depth) for depth in options.depths.split(",") if depth)
    with tempfile.TemporaryDirectory(prefix="depth.", dir=options.directory) as directory:
        wanted = depths or (DEPTHS if options.full else REDUCED)
        print(curve(Path(directory), wanted, options.files, lambda line: print(line, file=sys.stderr)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
