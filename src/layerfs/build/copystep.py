"""COPY, ADD and WORKDIR as steps of a stage: found in the cache by what is copied, or written at rest."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.build import copying, keys
from layerfs.build.cachefrom import is_same_tree
from layerfs.build.context import Nothing
from layerfs.build.copying import Job
from layerfs.build.digests import Digest, Memory
from layerfs.build.sources import of_stack
from layerfs.dockerfile import history

if TYPE_CHECKING:
    from layerfs.build.progress import Step
    from layerfs.build.sources import Source
    from layerfs.build.stage import StageBuild
    from layerfs.dockerfile.instructions import Copy, Single


def copy_step(stage: StageBuild, instruction: Copy, step: Step) -> None:
    """Do a COPY or ADD. Raises `LayerfsError`."""
    wanted = stage.configuration.expand_copy(instruction)
    job = Job(
        word=wanted.word,
        sources=wanted.sources,
        files=tuple((it.name, it.content.encode(errors="surrogateescape")) for it in wanted.heredocs),
        destination=wanted.destination,
        workdir=stage.configuration.config.get("WorkingDir") or "/",
        chown=wanted.chown,
        chmod=wanted.chmod,
        parents=wanted.parents,
        link=wanted.link,
        exclude=wanted.exclude,
        unpack=wanted.unpack,
        checksum=wanted.checksum,
        keep_git_dir=wanted.keep_git_dir,
    )
    created_by = history.copy(wanted)
    building = stage.building
    epoch = building.options.epoch
    with ExitStack() as opened:
        first = None
        source: Source = building.context.source
        if wanted.from_ is not None:
            there = stage_of(stage, wanted.from_)
            # The same layers are the same files, without a look at them.
            first = keys.key(job.word, stage.step, source=there, job=keys.job(job), epoch=epoch)
            if found := stage.cached(first):
                stage.made(step, found, created_by, cached=True)
                return
            called = f"stage {wanted.from_}"
            if there is None:
                source = Nothing(called)
            else:
                source = opened.enter_context(of_stack(stage.store.steps.stack_of_step(there), called))
        selection = opened.enter_context(
            copying.select(job, source, scratch=building.scratch, check=building.check)
        )
        memory = opened.enter_context(Memory(building.memory))
        digest = selection.digest(memory)
        key = keys.key(job.word, stage.step, digest=digest.text, job=keys.job(job), epoch=epoch)
        found = stage.cached(key)
        if found is None:
            stage.missed(step)
            stage.rest()
            found = _copied(stage, selection, created_by, key, digest)
            cached = False
        else:
            cached = True
    if first is not None:
        stage.store.build_cache.put(first, found, description=created_by)
    stage.made(step, found, created_by, cached=cached)


def _copied(
    stage: StageBuild, selection: copying.Selection, created_by: str, key: str, digest: Digest
) -> str:
    """Write what is selected into a new layer, and return the step of that."""
    building, steps = stage.building, stage.store.steps
    below = steps.stack_of_step(stage.step) if stage.step is not None else None
    with steps.new_layer(stage.step) as new:
        copied = copying.write(
            selection,
            below,
            new.path,
            scratch=building.scratch,
            epoch=building.options.epoch,
            check=building.check,
        )
        made = steps.seal_layer(
            new,
            stage.step,
            created=building.created(),
            created_by=created_by,
            comment=history.COMMENT,
        )
        made = _candidate(stage, new.path, created_by) or made
    if copied.is_as(digest):
        stage.store.build_cache.put(key, made, kind="source.local", description=created_by)
    return made


def _candidate(stage: StageBuild, tree: Path, created_by: str) -> str | None:
    """Return the step of an image that was given as a cache, if it has the same files as *tree*."""
    there = stage.candidate(created_by)
    if there is None or there.layer is None:
        return None
    if not is_same_tree(tree, stage.store.layer(there.layer).path):
        return None
    return stage.taken(there)


def stage_of(stage: StageBuild, name: str) -> str | None:
    """Return the step of the stage or the image that *name* means, once it is there; None if it is empty.

    Raises `LayerfsError`, and what ends the build.
    """
    building = stage.building
    place = stage.sources.get(name.lower())
    if place is not None:
        return building.outcome(place).step
    base = building.images.base(
        stage.store, name, building.options.platform, building.progress, building.check
    )
    return base.step


def workdir_step(stage: StageBuild, instruction: Single, step: Step) -> None:
    """Do a WORKDIR. Raises `LayerfsError`."""
    created_by = stage.configuration.apply(instruction) or ""
    path = stage.configuration.config["WorkingDir"]
    if path == "/":
        stage.unchanged(step, created_by, cached=None)
        return
    user = stage.configuration.config.get("User") or ""
    epoch = stage.building.options.epoch
    key = keys.key("WORKDIR", stage.step, path=path, user=user, epoch=epoch)
    if found := stage.cached(key):
        stage.found(step, found, created_by)
        return
    steps = stage.store.steps
    below = steps.stack_of_step(stage.step) if stage.step is not None else None
    with steps.new_layer(stage.step) as new:
        made = None
        if copying.make_directory(path, user, below, new.path, epoch=epoch):
            made = steps.seal_layer(
                new,
                stage.step,
                created=stage.building.created(),
                created_by=created_by,
                comment=history.COMMENT,
            )
            made = _candidate(stage, new.path, created_by) or made
    if made is None:
        if stage.step is not None:
            stage.store.build_cache.put(key, stage.step, description=created_by)
        stage.unchanged(step, created_by, cached=False)
    else:
        stage.store.build_cache.put(key, made, description=created_by)
        stage.made(step, made, created_by, cached=False)


__all__ = ["copy_step", "stage_of", "workdir_step"]
