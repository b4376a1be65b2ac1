"""`RUN --mount=type=bind` of the build context: what is to be seen of it, as a layer of its own.

Never the context itself: its owners, its sockets, what is mounted in it, and whatever becomes of it while the
command runs, are not for the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layerfs.build import copying, keys, wildcards
from layerfs.build.digests import Digest, Memory
from layerfs.errors import NotFound

if TYPE_CHECKING:
    from layerfs.build.building import Building
    from layerfs.build.stage import StageBuild

PLACE = "context"
"""What is called so in the layer is to be mounted: a directory or a file."""


def digest(building: Building, source: str) -> Digest:
    """Return the digest of what *source* is in the context.

    Raises `LayerfsError`, and what ends the build.
    """
    with _selected(building, source) as selection, Memory(building.memory) as memory:
        return selection.digest(memory)


def step(stage: StageBuild, source: str) -> str:
    """Return a step that has *source* of the context at `PLACE`, and nothing else; it is kept for others.

    Raises `LayerfsError`, and what ends the build.
    """
    building, steps = stage.building, stage.store.steps
    with _selected(building, source) as selection:
        with Memory(building.memory) as memory:
            seen = selection.digest(memory)
        kind = selection.picks[0].kind
        key = keys.key("context mount", None, digest=seen.text, kind=kind)
        found = stage.store.build_cache.get(key)
        if found is not None:
            return found.step
        with steps.new_layer(None) as new:
            copied = copying.write(selection, None, new.path, scratch=building.scratch, check=building.check)
            made = steps.seal_layer(new, None, created=building.created(), created_by="build context")
        if copied.is_as(seen):
            stage.store.build_cache.put(key, made, kind="source.local", description=f"build context {source}")
        return made


@contextmanager
def _selected(building: Building, source: str) -> Iterator[copying.Selection]:
    job = copying.Job(word="RUN --mount", sources=(wildcards.quoted(source),), destination=f"/{PLACE}")
    with copying.select(
        job, building.context.source, scratch=building.scratch, check=building.check
    ) as selection:
        if not selection.picks:
            raise NotFound(f"RUN --mount {source}: not found in {building.context.source.called}")
        yield selection
