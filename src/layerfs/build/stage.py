"""One stage: its instructions, one after the other, each found in the cache or done."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layerfs.build import keys
from layerfs.build.building import Building, Stopped
from layerfs.build.errors import StepFailed
from layerfs.build.outcome import Entry, Outcome
from layerfs.dockerfile import heredocs, history
from layerfs.dockerfile.configure import Configuration
from layerfs.dockerfile.instructions import Copy, Instruction, Run, Single
from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.build.live import Live
    from layerfs.build.network import Network
    from layerfs.build.progress import Step
    from layerfs.build.run import Container, Order
    from layerfs.build.runmounts import Mounts
    from layerfs.store import Store
    from layerfs.store.model import HistoryEntry


class StageBuild:
    """The work on a stage, which belongs to one thread."""

    def __init__(
        self, building: Building, store: Store, place: int, name: str, sources: Mapping[str, int]
    ) -> None:
        """Prepare; *place* is the stage's, from 0, and *sources* the places of those that it can name."""
        self.building = building
        self.store = store
        self.place = place
        self.name = name
        self.sources = sources
        self.base: str | None = None
        self.step: str | None = None
        """The step with the files of all that was done so far."""
        self.entries: list[Entry] = []
        self._live: Live | None = None
        self._network: Network | None = None
        self._ahead: Container | None = None
        self._endings: list[threading.Thread] = []
        self._wrong: list[LayerfsError] = []
        self._total = 0
        self._number = 0
        self._to_come: Sequence[Instruction] = ()

    def run(self, begin: Outcome, instructions: Sequence[Instruction], shown: Sequence[str]) -> Outcome:
        """Do *instructions* on top of *begin*; return what the stage has come to. Raises `LayerfsError`."""
        self.base, self.step = begin.base, begin.step
        self.entries = list(begin.entries)
        self.configuration = begin.configuration
        self.platform = begin.platform
        self._total = len(instructions) + 1
        self._number = 1
        try:
            for index, instruction in enumerate(instructions):
                self.building.check()
                self._number += 1
                self._to_come = instructions[index:]
                step = self.building.progress.begin(
                    self.place, self.name, self._number, self._total, shown[index]
                )
                try:
                    self._do(instruction, step, instructions[index + 1 :])
                except BaseException as error:
                    if not isinstance(error, Stopped):
                        step.failed()
                    raise
        finally:
            self.close()
        return Outcome(self.base, self.step, tuple(self.entries), self.configuration, self.platform)

    def _do(self, instruction: Instruction, step: Step, rest: Sequence[Instruction]) -> None:
        if isinstance(instruction, Run):
            self._run(instruction, step, rest)
        elif (do := _at_rest(instruction)) is not None:
            do(self, step)
        else:
            text = self.configuration.apply(instruction)
            if text is not None:
                self.entries.append(Entry(text))
            step.done(self.step or "", cached=None)

    def made(self, step: Step, made: str, created_by: str, *, cached: bool) -> None:
        """Go on from the step *made*, whose layer is that of *created_by*."""
        self.step = made
        entry = self.store.steps.entry(made)
        assert entry.layer is not None
        layer = entry.layer if self._has_files(entry.layer) else None
        self.entries.append(Entry(created_by, entry.created, layer))
        step.done(made, cached=cached)

    def found(self, step: Step, found: str, created_by: str) -> None:
        """Go on from a step of the cache, which may be the present one."""
        if found == self.step:
            self.unchanged(step, created_by, cached=True)
        else:
            self.made(step, found, created_by, cached=True)

    def unchanged(self, step: Step, created_by: str, *, cached: bool | None) -> None:
        """Go on from the same files as before: what *created_by* says has changed none."""
        self.entries.append(Entry(created_by))
        step.done(self.step or "", cached=cached)

    def _has_files(self, layer: str) -> bool:
        """Return whether there is anything in a layer: like BuildKit we leave empty ones out of images."""
        import os

        with os.scandir(self.store.layer(layer).path) as entries:
            return next(entries, None) is not None

    def missed(self, step: Step) -> None:
        """Say that a step has to be done, and begin with what those after it will need for certain."""
        step.working()
        runs = (it for it in self._to_come if isinstance(it, Run))
        if self.step is not None and any(run.network == "default" for run in runs):
            self._begin_network(self.step)

    def _begin_network(self, step: str) -> None:
        from layerfs.build.network import Network

        if self._network is None:
            self._network = Network(self.building.work(), self.building.options.host)
        self._network.begin(step)

    def cached(self, key: str) -> str | None:
        """Return the step that the cache has for *key*, None if there is none, or none is wanted."""
        if self.building.options.no_cache:
            return None
        found = self.store.build_cache.get(key)
        if found is None:
            return None
        layer = self.store.steps.entry(found.step).layer
        return found.step if self.building.may_use(self.store, layer) else None

    def candidate(self, created_by: str) -> HistoryEntry | None:
        """Return what an image that was given as a cache has next, if it is the same so far."""
        return self.building.candidate(self.store, self.base, self.entries, created_by)

    def taken(self, entry: HistoryEntry) -> str:
        """Return the step of a layer that another image has on the same files."""
        made = self.store.steps.add_history(self.step, [entry])
        assert made is not None
        return made

    # RUN

    def _run(self, instruction: Run, step: Step, rest: Sequence[Instruction]) -> None:
        from layerfs.build.runmounts import Mounts

        run = self.configuration.expand_run(instruction)
        if run.security != "sandbox":
            raise instruction.error("--security=insecure is not allowed: leave it out")
        order = self._order(run, self.configuration)
        mounts = Mounts(self, run, order)
        created_by = history.run(order.words, self.configuration.args())
        key = keys.key(
            "RUN",
            self.step,
            words=order.words,
            environment=[self.configuration.config.get("Env") or [], self.configuration.args()],
            directory=order.directory,
            user=order.user,
            network=order.host["NetworkMode"],
            names=order.host["ExtraHosts"],
            mounts=mounts.described(),
            script=mounts.script.content if mounts.script is not None else None,
            epoch=self.building.options.epoch,
        )
        found = self.cached(key)
        told = not mounts.find_files and mounts.script is None  # a history has nothing of these
        if found is None and told and (there := self.candidate(created_by)) is not None:
            found = self.taken(there) if there.layer is not None else self.step
            if found is not None:
                self.store.build_cache.put(key, found, description=created_by)
        if found is not None:
            self.found(step, found, created_by)
            return
        self.missed(step)
        try:
            made = self._execute(order, mounts, created_by, step, rest)
        except StepFailed as error:
            error.where = f"{instruction.file}:{instruction.line}"
            raise
        if not mounts.have_changed():
            kind = "exec.cachemount" if mounts.caches else "regular"
            self.store.build_cache.put(key, made, kind=kind, description=created_by)
        self.made(step, made, created_by, cached=False)

    def _order(self, run: Run, configuration: Configuration) -> Order:
        from layerfs.build.run import Order

        host: Mapping[str, Any] = self.building.options.host
        if run.network == "host" != host["NetworkMode"] and not self.building.options.host_network:
            # A Dockerfile from elsewhere must not reach what listens on the loopback. BuildKit asks, too.
            raise run.error(
                "RUN --network=host: this build may not use the network of the host: "
                "allow it with --allow network.host"
            )
        if run.network != "default":
            host = {**host, "NetworkMode": run.network}
        return Order(
            words=tuple(heredocs.command(run, configuration.shell())[0]),
            variables=tuple(f"{name}={value}" for name, value in configuration.environment().items()),
            directory=configuration.config.get("WorkingDir") or "/",
            user=configuration.config.get("User") or "",
            host=host,
        )

    def _execute(
        self, order: Order, mounts: Mounts, created_by: str, step: Step, rest: Sequence[Instruction]
    ) -> str:
        """Run a command on the live tree, and return the step that has what it wrote."""
        from layerfs.build.run import Container

        live = self.live()
        order = self._connected(order)
        check = self.building.check
        with mounts.opened() as (points, variables):
            order = replace(order, points=tuple(points), variables=(*order.variables, *variables))
            container, self._ahead = self._ahead, None
            try:
                if container is not None and not (container.fits(order) and container.go(check)):
                    container.discard()
                    container = None
                if container is None:
                    container = Container(self.building.work(), live.tree, order)
                    container.go(check)
                self._prepare(container, rest)
                container.watch(step.output, check)
            except BaseException:
                if container is not None:
                    container.discard()
                raise
        return self._sealed(container, live, created_by)

    def _sealed(self, container: Container, live: Live, created_by: str) -> str:
        """Seal what a command has written that has just ended, while its container ends; return the step."""
        made, wrong = "", None
        try:
            made = live.checkpoint(created_by, history.COMMENT, self.building.created(), self.building.id)
        except LayerfsError as error:
            wrong = error
        finally:
            try:
                container.finish(self.building.check)
            except StepFailed as error:
                if made and self.building.options.keep_failed:
                    error.image = self._keep(made)
                raise
            finally:
                container.discard()
        if wrong is not None:
            raise wrong
        return made

    def live(self) -> Live:
        """Return the mount of the present step, to be written to."""
        from layerfs.build.live import Live

        if self._live is not None and self._live.step != self.step:
            self.rest()
        if self._live is None:
            work = self.building.work()
            if self.step is None:
                self.step = self._empty_layer()
            self._live = Live(work, self.building.launch, self.store, self.step)
        return self._live

    def _empty_layer(self) -> str:
        """Make something to mount where a stage has nothing yet."""
        with self.store.steps.new_layer(None) as new:
            return self.store.steps.seal_layer(
                new, None, created=self.building.created(), created_by="FROM scratch"
            )

    def _connected(self, order: Order) -> Order:
        if order.host["NetworkMode"] in ("host", "none"):
            return order
        if self._network is None:
            assert self.step is not None
            self._begin_network(self.step)
        assert self._network is not None
        made = self._network.ready()
        return replace(order, namespace=made.namespace, network=made.files)

    def _prepare(self, container: Container, rest: Sequence[Instruction]) -> None:
        """Make the container of the next RUN, if it is the next that changes files, while this one runs."""
        from layerfs.build.run import Container

        configuration = copy.deepcopy(self.configuration)
        for instruction in rest:
            if isinstance(instruction, Run):
                if instruction.mounts or container.made_places:
                    return
                with suppress(LayerfsError):  # it is made again, and says what is wrong, when it is needed
                    order = self._connected(self._order(instruction, configuration))
                    assert self._live is not None
                    self._ahead = Container(self.building.work(), self._live.tree, order, ahead=True)
                return
            if _at_rest(instruction) is not None:
                return
            try:
                configuration.apply(instruction)
            except LayerfsError:
                return

    def _keep(self, made: str) -> str:
        """Make an image of the step *made*, the tree of a command that has failed; return its id."""
        config = {**self.configuration.config, "Entrypoint": [], "Cmd": [self.configuration.shell()[0]]}
        return self.store.steps.make_image(made, config, comment="the tree of a step that failed").id

    # The end of mounts

    def rest(self) -> None:
        """End the live mount, if there is one: what follows works on the layers themselves."""
        live, self._live = self._live, None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.discard()
        if live is not None:
            self._later(live.end)

    def _later(self, end: Any) -> None:
        """Have *end* done by a thread, which `close` waits for."""

        def run() -> None:
            try:
                end()
            except LayerfsError as error:
                self._wrong.append(error)

        thread = threading.Thread(target=run, name="end of a mount")
        thread.start()
        self._endings.append(thread)

    def close(self) -> None:
        """Take away all that the stage has. Raises `LayerfsError` where something may be left."""
        self.rest()
        if self._network is not None:
            self._later(self._network.close)
            self._network = None
        for thread in self._endings:
            thread.join()
        self._endings.clear()
        if self._wrong:
            raise self._wrong[0]


def _at_rest(instruction: Instruction) -> Callable[[StageBuild, Step], None] | None:
    """Return what does an instruction that changes files without a command, None for another one."""
    from layerfs.build.copystep import copy_step, workdir_step

    if isinstance(instruction, Copy):
        return lambda stage, step: copy_step(stage, instruction, step)
    if isinstance(instruction, Single) and instruction.word == "WORKDIR":
        return lambda stage, step: workdir_step(stage, instruction, step)
    return None
