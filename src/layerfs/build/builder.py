"""A whole build: from a context and what is asked of it to an image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.build import outcome, workplace
from layerfs.build.base import Base
from layerfs.build.building import Building, Options
from layerfs.build.outcome import Entry, Outcome
from layerfs.build.plan import Plan, PlannedStage, plan
from layerfs.build.stage import StageBuild
from layerfs.dockerfile import history, parser
from layerfs.dockerfile.configure import Configuration
from layerfs.errors import BadRequest
from layerfs.oci import platforms
from layerfs.store import Store
from layerfs.store.references import normalize

if TYPE_CHECKING:
    from layerfs.build.context import Context
    from layerfs.build.progress import Progress
    from layerfs.distribution.credentials import Credentials
    from layerfs.dockerfile.instructions import Dockerfile
    from layerfs.mounting.request import MountRequest
    from layerfs.store.model import Image


_SIDE_BY_SIDE = 32
"""Stages that are worked on at a time: each has a thread, a store and perhaps a mount."""


def build(
    root: Path,
    launch: Callable[[MountRequest], str],
    context: Context,
    options: Options,
    progress: Progress,
    credentials: Callable[[str], Credentials],
) -> Image:
    """Build what the Dockerfile of *context* says, and return the image, which has its tags.

    *launch* mounts, as `mounting.launch.start` does; *credentials* returns those for a registry. The image is
    there whole, with its tags, or not at all. When this returns, or raises, nothing of the build runs, is
    mounted or lies outside the store. Raises `LayerfsError`, `StepFailed` where a command failed, and what
    *progress* raises to end it.
    """
    references = [normalize(tag) for tag in options.tags]
    dockerfile = parser.parse(context.dockerfile.encode("utf-8", "surrogateescape"), context.dockerfile_name)
    first = _plan(dockerfile, options, {})
    for line in (*dockerfile.warnings, *first.warnings):
        progress.warn(line)
    if first.unused:
        progress.warn(f"One or more build-args [{' '.join(first.unused)}] were not consumed")
    workplace.recover()
    with ExitStack() as ends, Store(root) as store, store.building() as held:
        building = Building(root, launch, context, options, progress, credentials, (held.id, held.path), ends)
        planned, bases = _resolved(building, store, dockerfile, first)
        progress.planned({stage.index: len(stage.instructions) + 1 for stage in planned.stages})
        _build_stages(building, planned, dockerfile, bases)
        result = building.result(planned.target)
        ends.close()  # before there is an image: what cannot be taken away is an error
        return _image(building, store, result, references)


def _plan(dockerfile: Dockerfile, options: Options, triggers: Mapping[int, Sequence[str]]) -> Plan:
    return plan(
        dockerfile,
        options.target or None,
        options.args,
        platform=str(options.platform),
        triggers=triggers,
    )


def _resolved(
    building: Building, store: Store, dockerfile: Dockerfile, planned: Plan
) -> tuple[Plan, dict[int, Base]]:
    """Return the plan with the triggers of the images, and what stages that are FROM images begin with."""
    bases: dict[int, Base] = {}
    triggers: dict[int, Sequence[str]] = {}
    while missing := [it for it in planned.stages if it.base is None and it.index not in bases]:
        for stage in missing:
            base = _base(building, store, stage)
            bases[stage.index] = base
            if base.config.get("OnBuild"):
                triggers[stage.index] = base.config["OnBuild"]
        if triggers:
            planned = _plan(dockerfile, building.options, triggers)
    return planned, bases


def _base(building: Building, store: Store, stage: PlannedStage) -> Base:
    platform = building.options.platform
    if stage.platform is not None:
        platform = platforms.parse(stage.platform)
    return building.images.base(store, stage.image, platform, building.progress, building.check)


def _build_stages(
    building: Building, planned: Plan, dockerfile: Dockerfile, bases: Mapping[int, Base]
) -> None:
    """Build all stages, side by side as far as they do not wait for each other. Raises nothing."""
    alone = len(dockerfile.stages) == 1
    lock = threading.Lock()
    waiting = list(reversed(planned.stages))  # a stage waits only for those that are taken before it

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                stage = waiting.pop()
            one(stage)

    def one(stage: PlannedStage) -> None:
        try:
            building.check()
            with building.store() as store:
                name = stage.begin.name or ("" if alone else stage.name)
                building.finish(stage.index, _stage(building, store, stage, name, planned, dockerfile, bases))
            building.progress.end_stage(stage.index)
        except BaseException as error:
            building.fail(error)

    others = min(len(waiting), _SIDE_BY_SIDE) - 1
    with ExitStack() as threads:
        for number in range(others):
            thread = threading.Thread(target=work, name=f"stages {number}")
            thread.start()
            threads.callback(thread.join)
        work()


def _stage(
    building: Building,
    store: Store,
    stage: PlannedStage,
    name: str,
    planned: Plan,
    dockerfile: Dockerfile,
    bases: Mapping[int, Base],
) -> Outcome:
    sources = {name.lower(): it for name, it in stage.sources.items() if isinstance(it, int)}
    begun = _begun(building, store, stage, planned, dockerfile, bases)
    total = len(stage.instructions) + 1
    step = building.progress.begin(stage.index, name, 1, total, stage.begin.text)
    if stage.triggers:
        step.note(f"# Executing {stage.triggers} build trigger{'s' if stage.triggers > 1 else ''}")
    base = bases.get(stage.index)
    step.working()
    step.done((base.identifier if base else begun.step) or "")
    made = StageBuild(building, store, stage.index, name, sources)
    return made.run(begun, stage.instructions, [it.text for it in stage.instructions])


def _begun(
    building: Building,
    store: Store,
    stage: PlannedStage,
    planned: Plan,
    dockerfile: Dockerfile,
    bases: Mapping[int, Base],
) -> Outcome:
    """Return what a stage begins with."""
    if stage.base is not None:
        below = building.outcome(stage.base)
        configuration = below.configuration.child()
        return Outcome(below.base, below.step, below.entries, configuration, below.platform)
    base = bases[stage.index]
    config: dict[str, Any] = {name: value for name, value in base.config.items() if name != "OnBuild"}
    configuration = Configuration(
        config, escape=dockerfile.escape, build_args=building.options.args, global_args=planned.args
    )
    configuration.set_default_path()
    return Outcome(base.step, base.step, (), configuration, base.platform)


def _image(building: Building, store: Store, result: Outcome, references: Sequence[str]) -> Image:
    options, steps = building.options, store.steps
    before = steps.entry(result.base).created if result.base is not None else None
    configuration = result.configuration
    made = list(result.entries)
    if not made and result.base is None and options.labels:
        labels = " ".join(f"{name}={value}" for name, value in options.labels.items())
        made.append(Entry(f"LABEL {labels}"))
    entries = outcome.history(
        made,
        before=before,
        now=building.created(),
        author=configuration.author,
        comment=history.COMMENT,
    )
    top = steps.add_history(result.base, entries)
    if top is None:
        raise BadRequest("No image was generated. This Dockerfile does nothing but begin with scratch")
    config = dict(configuration.config)
    if options.labels:
        config["Labels"] = {**(config.get("Labels") or {}), **options.labels}
    platform = (result.platform.architecture, result.platform.os)
    if options.epoch is not None:
        from layerfs.oci.reproducible import make_image

        return make_image(
            store,
            top,
            config,
            base=result.base,
            epoch=building.created(),
            platform=platform,
            references=references,
            author=configuration.author,
            comment=history.COMMENT,
        )
    return steps.make_image(
        top,
        config,
        references=references,
        platform=platform,
        author=configuration.author,
        comment=history.COMMENT,
    )
