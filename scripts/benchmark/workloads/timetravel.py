"""Checkpoints, going back and forks during a search, as in DeltaBox's trace, and other ways to do that.

A tree of 50,000 files; 100 expansions, each 1 to 200 files that a running process writes, some large, some
deleted, some renamed; a checkpoint after each; 49 times back to an earlier one. What copies all files or all
that was written does a part of it, the same each time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

from ..measure import timed
from ..peers import command, unmount
from ..registry import Row, Stage, workload
from ..targets import CHECKPOINT, FORK, ROLLBACK
from .commit import BASE, MOUNT
from .engine import engine

PEERS = ("layerfs", "overlay", "buildah", "copies", "xfs", "btrfs")
_SLOW = {"buildah": 20, "copies": 20, "xfs": 20}
"""By how much less those do whose checkpoint takes as long as the tree, or all that was written, is large."""
_FORKS = 5
_MANY = 5
"""How often it goes back from many changed files."""
_SEED = 20

WRITER = """
import os, random, sys
top, files = sys.argv[1], sys.argv[2:]
names = [line.rstrip("\\n") for line in open(files[0])]
for line in sys.stdin:
    seed, count = map(int, line.split())
    chance = random.Random(seed)
    for number in range(count):
        path = os.path.join(top, chance.choice(names))
        what = chance.random()
        try:
            if what < 0.05:
                os.unlink(path)
            elif what < 0.10:
                os.rename(path, f"{path}.{seed}")
            else:
                with open(path, "wb") as file:
                    file.write(os.urandom(1 << 20 if what > 0.99 else chance.randrange(1, 8192)))
        except FileNotFoundError:
            pass
    print("done", flush=True)
"""


class Timeline(Protocol):
    """A tree that can be kept and gone back to in one peer's way."""

    top: Path
    """The tree; a process that uses it by that path goes on after each step."""

    def checkpoint(self) -> str:
        """Keep what the tree is; return what to go back to."""

    def rollback(self, to: str) -> None:
        """Have the tree be what it was."""

    def fork(self, number: int) -> Path:
        """Return another tree, of what this one is now, that can be written to."""


class _Layerfs:
    def __init__(self, stage: Stage, socket: Path) -> None:
        from layerfs.client.client import Client

        root = Path(os.environ["LAYERFS_ROOT"])
        command("layerfs", "mount", "--image", BASE, "--name", MOUNT, stage.stack.mountpoint)
        self.top = stage.stack.mountpoint
        self._forks = stage.stack.upper
        self._mount, self._engine = Client.for_mount(MOUNT), Client.of(root)

    def checkpoint(self) -> str:
        return str(self._mount.request("POST", "/layerfs/checkpoint", body=b"{}", name=MOUNT)["Step"])

    def rollback(self, to: str) -> None:
        body = json.dumps({"Ref": to}).encode()
        self._mount.request("POST", "/layerfs/rollback", body=body, name=MOUNT)

    def fork(self, number: int) -> Path:
        place = self._forks / f"fork{number}"
        place.mkdir()
        body = json.dumps({"Name": f"{MOUNT}-{number}", "Mountpoint": str(place)}).encode()
        self._engine.request("POST", "/layerfs/fork", body=body, name=MOUNT)
        return place

    def end(self) -> None:
        names = command("layerfs", "ps", "-a", "--format", "{{.Names}}").split()
        command("layerfs", "rm", "-f", *names)


class _Overlay:
    """The kernel's overlayfs, mounted anew by hand over one more layer each time."""

    def __init__(self, stage: Stage) -> None:
        self.top, self._base = stage.stack.mountpoint, stage.stack.upper
        self._serial, self._lowers = 0, ["base"]
        (self._base / "base").symlink_to(stage.stack.lowers[0])
        self._mount()

    def _mount(self) -> None:
        self._serial += 1
        for name in (f"{self._serial}", f"w{self._serial}"):
            (self._base / name).mkdir()
        self._mount_at(self.top, f"{self._serial}")

    def _mount_at(self, top: Path, upper: str) -> None:
        lowers = ":".join(reversed(self._lowers))
        options = f"lowerdir={lowers},upperdir={upper},workdir=w{upper}"
        command("mount", "-t", "overlay", "overlay", "-o", options, top, cwd=self._base)

    def checkpoint(self) -> str:
        command("umount", self.top)
        self._lowers = [*self._lowers, f"{self._serial}"]
        self._mount()
        return ":".join(self._lowers)

    def rollback(self, to: str) -> None:
        command("umount", self.top)
        self._lowers = to.split(":")
        self._mount()

    def fork(self, number: int) -> Path:
        self.checkpoint()
        place = self._base / f"fork{number}"
        for path in (place, self._base / f"f{number}", self._base / f"wf{number}"):
            path.mkdir()
        self._mount_at(place, f"f{number}")
        return place

    def end(self) -> None:
        unmount(self.top)
        unmount(self._base)


class _Buildah:
    """`docker commit`'s way: what was written is packed as an archive, and a new container made of that."""

    def __init__(self, stage: Stage) -> None:
        store = stage.stack.upper
        self._policy = store / "policy.json"
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._places = ("--root", store / "root", "--runroot", store / "run", "--storage-driver", "overlay")
        self._serial = 0
        self._buildah("from", "--name", MOUNT, "scratch")
        self.top = stage.stack.mountpoint
        place = self._buildah("mount", MOUNT).strip()
        command("cp", "-a", f"{stage.stack.lowers[0]}/.", place)
        command("mount", "--bind", place, self.top)

    def _buildah(self, *words: str | Path) -> str:
        return command("buildah", *self._places, *words)

    def checkpoint(self) -> str:
        self._serial += 1
        name = f"localhost/bench:{self._serial}"
        self._buildah("commit", "-q", "--signature-policy", self._policy, MOUNT, name)
        return name

    def rollback(self, to: str) -> None:
        command("umount", self.top)
        self._buildah("rm", MOUNT)
        command("mount", "--bind", self._from(to, MOUNT), self.top)

    def _from(self, image: str, name: str) -> str:
        self._buildah("from", "--signature-policy", self._policy, "--pull-never", "--name", name, image)
        return self._buildah("mount", name).strip()

    def fork(self, number: int) -> Path:
        return Path(self._from(self.checkpoint(), f"{MOUNT}-{number}"))

    def end(self) -> None:
        unmount(self.top)
        self._buildah("rm", "--all")


class _Copies:
    """Copies of all files, or of their extents where the filesystem can share them."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        self._directory, self._serial = directory, 0
        self.top = directory / "tree"
        command("cp", "-a", stage.stack.lowers[0], self.top)

    def _copy(self, source: Path, target: Path) -> None:
        command("cp", "-a", "--reflink=auto", source, target)

    def checkpoint(self) -> str:
        self._serial += 1
        self._copy(self.top, self._directory / f"saved{self._serial}")
        return str(self._directory / f"saved{self._serial}")

    def rollback(self, to: str) -> None:
        self._serial += 1
        self.top.rename(self._directory / f"given-up{self._serial}")
        self._copy(Path(to), self.top)

    def fork(self, number: int) -> Path:
        place = self._directory / f"fork{number}"
        self._copy(self.top, place)
        return place

    def end(self) -> None:
        """Nothing but files: they go with the directory."""


class _Btrfs(_Copies):
    """Snapshots of a subvolume."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        command("btrfs", "subvolume", "create", directory / "tree")
        super().__init__(stage, directory)

    def _copy(self, source: Path, target: Path) -> None:
        command("btrfs", "subvolume", "snapshot", source, target)


@contextmanager
def _filesystem(stage: Stage, kind: str) -> Iterator[Path]:
    """Have a filesystem of its own, in a file, mounted; yield where."""
    image, place = stage.stack.work / "disk", stage.stack.upper / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 30)
    command(f"mkfs.{kind}", *(("-q", "-m", "reflink=1") if kind == "xfs" else ("-q",)), image)
    command("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        unmount(place)
        image.unlink()


@contextmanager
def timeline(stage: Stage) -> Iterator[Timeline]:
    """Have a tree of 50,000 files that the peer can keep and take back."""
    with ExitStack() as stack:
        made: _Layerfs | _Overlay | _Buildah | _Copies
        if stage.peer == "layerfs":
            made = _Layerfs(stage, stack.enter_context(engine(stage)))
        elif stage.peer == "overlay":
            made = _Overlay(stage)
        elif stage.peer == "buildah":
            made = _Buildah(stage)
        elif stage.peer == "copies":
            made = _Copies(stage, stage.stack.upper)
        else:
            kind = _Copies if stage.peer == "xfs" else _Btrfs
            made = kind(stage, stack.enter_context(_filesystem(stage, stage.peer)))
        stack.callback(made.end)
        yield made


class _Writer:
    """A running process that writes to the tree."""

    def __init__(self, top: Path, names: list[str], place: Path) -> None:
        self.names = names
        listed = place / "names"
        listed.write_text("\n".join(names))
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, top, listed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def write(self, seed: int, count: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seed, count, file=self._process.stdin, flush=True)
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process that writes has ended")

    def end(self) -> None:
        with suppress(OSError):
            self._process.communicate(timeout=20)
        self._process.kill()


def _late(values: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


@workload(
    "past",
    Row("checkpoint, median of 100 expansions", CHECKPOINT),
    Row("checkpoint, 99th percentile"),
    Row("rollback, median of 49"),
    Row("rollback, 99th percentile"),
    Row("rollback where 1,000 files changed", ROLLBACK),
    Row("first stat after a rollback"),
    Row("first read after a rollback"),
    Row("first write after a rollback"),
    Row("fork of a tree in use until usable", FORK),
    peers=PEERS,
    costly=True,
)
def search(stage: Stage) -> tuple[float, ...]:
    """A process writes, is kept, and taken back; with layerfs it all goes over the sockets."""
    part = _SLOW.get(stage.peer, 1)
    expansions, rollbacks = max(2, stage.sizes.expansions // part), max(1, stage.sizes.rollbacks // part)
    lower = stage.stack.lowers[0]
    names = sorted(str(path.relative_to(lower)) for path in lower.rglob("*") if path.is_file())
    chance = random.Random(_SEED)
    kept: list[float] = []
    back: list[float] = []
    many: list[float] = []
    forks: list[float] = []
    looks: dict[str, list[float]] = {"stat": [], "read": [], "write": []}
    with timeline(stage) as tree, ExitStack() as stack:
        writer = _Writer(tree.top, names, stage.stack.work)
        stack.callback(writer.end)
        past: list[str] = []

        def note(to: list[float], work: Callable[[], object]) -> None:
            to.append(timed(work))

        def look() -> None:
            name = tree.top / chance.choice(names)
            note(looks["stat"], lambda: os.path.lexists(name))
            there = tree.top / chance.choice(names)
            while not there.exists():
                there = tree.top / chance.choice(names)
            note(looks["read"], there.read_bytes)
            note(looks["write"], lambda: there.write_bytes(b"first"))

        for number in range(expansions):
            writer.write(number, chance.randrange(1, stage.sizes.expansion + 1))
            note(kept, lambda: past.append(tree.checkpoint()))
            if number * rollbacks // expansions != (number + 1) * rollbacks // expansions:
                note(back, partial(tree.rollback, chance.choice(past)))
                look()
        for number in range(min(_MANY, rollbacks)):
            writer.write(10_000 + number, stage.sizes.past_changed)
            note(many, lambda: tree.rollback(past[-1]))
        for number in range(min(_FORKS, rollbacks)):

            def fork(number: int = number) -> None:
                os.stat(tree.fork(number))

            note(forks, fork)
    figures = (median(kept), _late(kept), median(back), _late(back), median(many))
    return (*figures, *(median(looks[what]) for what in ("stat", "read", "write")), median(forks))
