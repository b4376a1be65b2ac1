"""Which stages a build needs, in which order, and what each takes from others; nothing is read or run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from layerfs.dockerfile import expansion, parser
from layerfs.dockerfile.instructions import (
    Arg,
    Copy,
    Dockerfile,
    From,
    Instruction,
    Onbuild,
    Run,
    Stage,
)
from layerfs.errors import BadRequest
from layerfs.oci import platforms

SCRATCH = "scratch"
"""The image that is none."""

PREDEFINED = frozenset(
    name
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (proxy, proxy.lower())
)
"""Build arguments that a RUN has without an ARG."""
_MOST_TRIGGERS = 1000
_SILENT = PREDEFINED | {"SOURCE_DATE_EPOCH"}


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage that has to be built."""

    index: int
    """Its number in the Dockerfile, from 0."""
    begin: From
    instructions: tuple[Instruction, ...]
    """Those that run: triggers of what it is FROM first, and then its own."""
    triggers: int
    """How many of them are ONBUILD triggers of what it is FROM."""
    base: int | None
    """The stage it is FROM; None for an image."""
    image: str
    """What it is FROM with ARGs put in: a reference, `scratch`, or the name of the stage `base`."""
    platform: str | None
    """`--platform` with ARGs put in."""
    sources: Mapping[str, int | str]
    """What each `--from` of its COPYs and `from=` of its mounts means: the number of a stage, or an image."""

    @property
    def name(self) -> str:
        """What people call it: its name, or stage-NUMBER."""
        return self.begin.name or f"stage-{self.index}"

    @property
    def needs(self) -> frozenset[int]:
        """The stages that have to be done before."""
        stages = {source for source in self.sources.values() if isinstance(source, int)}
        return frozenset(stages if self.base is None else stages | {self.base})

    @property
    def images(self) -> tuple[str, ...]:
        """The images it needs, each once, that which it is FROM first; `scratch` is none."""
        found = [] if self.base is not None else [self.image]
        found += [source for source in self.sources.values() if isinstance(source, str)]
        return tuple(image for image in dict.fromkeys(found) if image != SCRATCH)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build does."""

    stages: tuple[PlannedStage, ...]
    """Those needed, each after all that it needs."""
    target: int
    """The number of the stage that becomes the image."""
    args: Mapping[str, str]
    """The ARGs before the first FROM and the platform's: what `ARG NAME` in a stage finds."""
    unused: tuple[str, ...]
    """The build arguments that no ARG names; a warning is due."""
    warnings: tuple[str, ...] = field(default=())

    def stage(self, index: int) -> PlannedStage:
        """Return the stage of that number; raises `KeyError` for one that is not needed."""
        for stage in self.stages:
            if stage.index == index:
                return stage
        raise KeyError(index)


def plan(
    dockerfile: Dockerfile,
    target: str | None = None,
    args: Mapping[str, str] | None = None,
    *,
    platform: str | None = None,
    triggers: Mapping[int, Sequence[str]] | None = None,
) -> Plan:
    """Return what has to be built for *target*, a stage's name or number; None is the last stage.

    *args* are the build arguments, *platform* what is built for where it is not this machine. *triggers* are
    the `OnBuild` lists of the images that stages are FROM, by the number of the stage: they are known once
    the images of a first plan are there, and can make more stages and images needed. Nothing is read or
    written. Raises `BadRequest` for a stage that does not exist, a circle, a `--from` of a later stage, an
    image without a name once ARGs are put in, and triggers that cannot be understood.
    """
    planner = _Planner(dockerfile, args or {}, platform, triggers or {})
    return planner.plan(target)


class _Planner:
    def __init__(
        self,
        dockerfile: Dockerfile,
        given: Mapping[str, str],
        platform: str | None,
        triggers: Mapping[int, Sequence[str]],
    ) -> None:
        self._dockerfile = dockerfile
        self._given = given
        self._platform = platform
        self._triggers = triggers
        self._names: dict[str, list[int]] = {}
        for index, stage in enumerate(dockerfile.stages):
            if stage.begin.name:
                self._names.setdefault(stage.begin.name, []).append(index)

    def plan(self, target: str | None) -> Plan:
        index = self._target(target)
        args = self._arguments(self._dockerfile.stages[index].begin.name or "default")
        planned: dict[int, PlannedStage] = {}
        waiting = [index]
        while waiting:
            number = waiting.pop()
            if number not in planned:
                planned[number] = self._stage(number, args)
                waiting.extend(planned[number].needs)
        stages = tuple(planned[number] for number in sorted(planned))
        return Plan(stages, index, args, self._unused(args), tuple(self._warnings()))

    def _target(self, target: str | None) -> int:
        stages = self._dockerfile.stages
        if not target:
            return len(stages) - 1
        if found := self._names.get(target.lower()):
            return found[-1]
        if target.isascii() and target.isdigit() and int(target[:9]) < len(stages):
            return int(target[:9])
        close = difflib.get_close_matches(target.lower()[:80], self._names, 1)
        known = ", ".join(self._names) or f"0 to {len(stages) - 1}: stages have no names"
        hint = f"did you mean {close[0]}?" if close else f"expected one of {known}"
        raise BadRequest(f"target stage {target[:80]!r} could not be found: {hint}")

    def _arguments(self, target: str) -> dict[str, str]:
        """Return the ARGs before the first FROM, which may use the platform's and each other."""
        here = platforms.parse(None)
        wanted = platforms.parse(self._platform)
        values = {
            "BUILDPLATFORM": str(here),
            "BUILDOS": here.os,
            "BUILDOSVERSION": "",
            "BUILDARCH": here.architecture,
            "BUILDVARIANT": here.variant,
            "TARGETPLATFORM": str(wanted),
            "TARGETOS": wanted.os,
            "TARGETOSVERSION": "",
            "TARGETARCH": wanted.architecture,
            "TARGETVARIANT": wanted.variant,
            "TARGETSTAGE": target,
        }
        values.update((name, self._given[name]) for name in values if name in self._given)
        for instruction in self._dockerfile.args:
            for name, default in instruction.names:
                if name in self._given:
                    values[name] = self._given[name]
                elif default is not None:
                    values[name] = self._expand(instruction, default, values)
        return values

    def _expand(self, instruction: Instruction, text: str, values: Mapping[str, str]) -> str:
        try:
            return expansion.expand(text, values.get, self._dockerfile.escape)
        except BadRequest as error:
            raise instruction.error(error) from None

    def _stage(self, index: int, args: Mapping[str, str]) -> PlannedStage:
        stage = self._dockerfile.stages[index]
        begin = stage.begin
        image = self._expand(begin, begin.image, args)
        if not image:
            raise begin.error(f"FROM {begin.image} names no image: give its ARG a default, or --build-arg")
        platform = None
        if begin.platform is not None:
            platform = self._expand(begin, begin.platform, args)
            if not platform:
                raise begin.error(
                    f"--platform={begin.platform} is empty: give its ARG a default, or --build-arg"
                )
            try:
                platforms.parse(platform)
            except BadRequest as error:
                raise begin.error(error) from None
        base = self._before(image, index)
        triggers = tuple(self._triggered(index, base, begin))
        instructions = (*triggers, *stage.instructions)
        sources: dict[str, int | str] = {}
        for instruction in instructions:
            for name in _sources(instruction):
                sources[name] = self._source(name, index, instruction)
        return PlannedStage(index, begin, instructions, len(triggers), base, image, platform, sources)

    def _before(self, name: str, index: int) -> int | None:
        """Return the last stage before *index* that is called *name*."""
        return max((found for found in self._names.get(name.lower(), ()) if found < index), default=None)

    def _triggered(self, index: int, base: int | None, begin: From) -> Iterator[Instruction]:
        texts = list(self._triggers.get(index, ()))
        if base is not None:
            own = self._dockerfile.stages[base].instructions
            texts = [each.instruction for each in own if isinstance(each, Onbuild)]
        if len(texts) > _MOST_TRIGGERS:
            raise begin.error(
                f"{begin.image} has more than {_MOST_TRIGGERS} ONBUILD triggers: expected fewer"
            )
        for text in texts:
            yield parser.parse_onbuild(text, f"{begin.file}:{begin.line}: ONBUILD of {begin.image[:80]}")

    def _source(self, name: str, index: int, instruction: Instruction) -> int | str:
        """Return what `--from=NAME` in stage *index* means."""
        stages = self._dockerfile.stages
        numbered = isinstance(instruction, Copy) and name.isascii() and name.isdigit()
        if numbered:
            number = int(name[:9])
            if number >= len(stages):
                raise instruction.error(
                    f"there is no stage {name[:20]}: expected one of 0 to {len(stages) - 1}"
                )
        else:
            found = self._before(name, index)
            if found is not None:
                return found
            if name.lower() not in self._names:
                return name
            number = self._names[name.lower()][0]
        if number < index:
            return number
        if number == index:
            raise instruction.error(f"stage {name!r} cannot copy from itself: expected a stage before it")
        if index in self._reach(number):
            raise instruction.error(f"stage {name!r} needs this one, and this one it: break the circle")
        raise instruction.error(f"stage {name!r} comes only later: move it before this stage")

    def _reach(self, start: int) -> set[int]:
        """Return the stages that *start* needs, whichever way; errors in them are not told of."""
        seen: set[int] = set()
        waiting = [start]
        while waiting:
            number = waiting.pop()
            stage = self._dockerfile.stages[number]
            names = [stage.begin.image, *(name for each in stage.instructions for name in _sources(each))]
            for name in names:
                found = [at for at in self._names.get(name.lower(), ()) if at != number]
                if (
                    not found
                    and name.isascii()
                    and name.isdigit()
                    and int(name[:9]) < len(self._dockerfile.stages)
                ):
                    found = [int(name[:9])]
                waiting += [at for at in found if at not in seen]
                seen.update(found)
        return seen

    def _unused(self, args: Mapping[str, str]) -> tuple[str, ...]:
        known = {*_SILENT, *args, *(name for each in self._dockerfile.args for name, _ in each.names)}
        for stage in self._dockerfile.stages:
            known.update(_declared(stage))
        return tuple(name for name in self._given if name not in known and not name.startswith("BUILDKIT_"))

    def _warnings(self) -> Iterator[str]:
        for name, found in self._names.items():
            if len(found) > 1:
                begin = self._dockerfile.stages[found[-1]].begin
                yield f"{begin.file}:{begin.line}: a stage before is called {name}, too: give it another name"


def _declared(stage: Stage) -> Iterator[str]:
    for instruction in stage.instructions:
        if isinstance(instruction, Arg):
            yield from (name for name, _ in instruction.names)


def _sources(instruction: Instruction) -> Iterator[str]:
    """Yield what `--from` and `from=` of an instruction name."""
    if isinstance(instruction, Copy) and instruction.from_ is not None:
        yield instruction.from_
    elif isinstance(instruction, Run):
        yield from (mount.options["from"] for mount in instruction.mounts if mount.options.get("from"))
