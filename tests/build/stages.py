"""A stage of a build at rest: layers that COPY and ADD made, from a context, seen through a mount."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerfs.build import context, copying, digests
from layerfs.build.copying import Copied, Job
from layerfs.build.sources import Source, of_stack
from layerfs.union import stack
from layerfs.union.marking import of_this_process
from layerfs.union.stack import Stack
from tests.conftest import Layerfs, detach
from tests.fuse.oracle import snapshot
from tests.fuse.oracle.snapshot import Snapshot

NEVER = 1 << 63


class Stage:
    """Layers in a directory of the test, and a context to copy from."""

    def __init__(self, layerfs: Layerfs, name: str = "stage") -> None:
        self.layerfs = layerfs
        self.name = name
        self.directory = layerfs.directory / name
        self.context = layerfs.directory / "context"
        self.scratch = layerfs.directory / "scratch"
        self.layers: list[Path] = []
        for path in (self.directory, self.context, self.scratch):
            path.mkdir(exist_ok=True)
        if not (self.context / "Dockerfile").exists():
            (self.context / "Dockerfile").write_text("FROM scratch\n")

    def layer(self) -> Path:
        """Return the empty tree of one more layer on top."""
        path = self.directory / f"layer{len(self.layers)}"
        path.mkdir(mode=0o755)
        self.layers.append(path)
        return path

    @property
    def stack(self) -> Stack | None:
        """The layers so far."""
        return stack_of(self.layers)

    def copy(
        self, *sources: str, to: str, source: Source | None = None, epoch: int | None = None, **options: Any
    ) -> Copied:
        """COPY from the context, or from *source*, into one more layer, as the Dockerfile would say it."""
        job = Job(sources=sources, destination=to, **options)
        if source is None:
            with context.from_directory(self.context) as opened:
                return self._copy(job, opened.source, epoch)
        return self._copy(job, source, epoch)

    def _copy(self, job: Job, source: Source, epoch: int | None) -> Copied:
        below = self.stack
        with copying.select(job, source, scratch=self.scratch) as selection:
            copied = copying.write(selection, below, self.layer(), scratch=self.scratch, epoch=epoch)
        assert os.listdir(self.scratch) == []
        return copied

    def copy_from(self, other: Stage, *sources: str, to: str, **options: Any) -> Copied:
        """COPY --from another stage."""
        assert other.stack is not None
        with of_stack(other.stack, f"the stage {other.name}") as source:
            return self.copy(*sources, to=to, source=source, **options)

    def digest(self, *sources: str, memory: Path | None = None, **options: Any) -> str:
        """Return the digest of what COPY would copy from the context."""
        with context.from_directory(self.context) as opened:
            return digest(
                Job(sources=sources, destination="/", **options), opened.source, self.scratch, memory
            )

    def see(self) -> Snapshot:
        """Return what a mount of all layers shows."""
        place = self.layerfs.directory / "mnt"
        place.mkdir(exist_ok=True)
        lowers = [f"--lower={layer}" for layer in reversed(self.layers)]
        self.layerfs.ok("mount", "--name", self.name, "-o", "ro", *lowers, place)
        try:
            return snapshot.take(os.fsencode(place), NEVER, kernel=False)
        finally:
            detach(place)
            self.layerfs.kill(self.name)
            self.layerfs("rm", self.name)


def digest(job: Job, source: Source, scratch: Path, memory: Path | None = None) -> str:
    """Return the digest of what *job* copies from *source*."""
    with copying.select(job, source, scratch=scratch) as selection:
        if memory is None:
            return selection.digest().text
        with digests.Memory(memory) as opened:
            return selection.digest(opened).text


def stack_of(layers: Sequence[Path]) -> Stack | None:
    """Return *layers*, bottom first, as a stack; None for none."""
    if not layers:
        return None
    return Stack(tuple(stack.Tree(layer) for layer in layers), of_this_process())
