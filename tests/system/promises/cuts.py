"""One power cut from beginning to end, and the command line that makes many: `python -m ...promises.cuts`."""

from __future__ import annotations

import argparse
import copy
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.system.promises import base, commits, habits, images, machine, notes
from tests.system.promises.checker import Broken, Check, Mounted
from tests.system.promises.disk import Disk
from tests.system.promises.imports import Importer
from tests.system.promises.machine import Machine
from tests.system.promises.program import Program
from tests.system.promises.rigs import Rig
from tests.system.promises.world import World, touched

_PATIENCE = 90
"""Seconds after which a machine that does not answer is ended."""


class Plan(NamedTuple):
    """What a seed stands for."""

    seed: int
    after: float
    """Seconds from the start of the programs to the cut."""
    programs: int
    committers: int
    remount: float
    """Seconds after which the mount is unmounted and mounted again; 0: not at all."""
    kill: bool
    """Whether the daemon is killed then; all that was written has reached it, since nothing is open."""
    intruder: bool
    """Whether somebody else commits the disk's journal at random moments."""
    options: tuple[str, ...]
    """Options of the mount."""
    imports: bool
    """Whether images are imported and removed meanwhile."""
    again: float
    """Seconds after which the power goes once more, while the machine starts again; 0: it does not."""

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        after = rng.choice((0.05, 0.2, 0.4, 1.0)) * (0.3 + rng.random())
        programs = rng.randint(1, base.PROGRAMS)
        committers = rng.choice((0, 1, 1, 1)) if programs > 1 else rng.choice((0, 1))
        remount = after * rng.random() if rng.random() < 0.25 else 0
        kill = rng.random() < 0.5
        intruder = rng.random() < 0.5
        options = ("-o", "metacopy=on") if rng.random() < 0.25 else ()
        imports = rng.random() < 0.3
        again = rng.random() * 0.4 if rng.random() < 0.2 else 0
        return cls(seed, after, programs, committers, remount, kill, intruder, options, imports, again)


class Trial:
    """Cuts on one *rig*; *room* is a directory for what survives."""

    def __init__(self, rig: Rig, room: Path, *, forgetful: bool = False) -> None:
        self.rig = rig
        self.forgetful = forgetful
        self._room = room
        self._notes = room / "notes"
        self._pause = room / "pause"
        self._crashes = room / "crashes"
        self._world = base.make(World(), None)
        self._template = Disk(_made(room / "template"), rig.disk.kind)
        self._template.make()
        # The store knows its own paths: it is furnished where it will be used.
        rig.disk.copy_from(self._template)
        rig.disk.plug_in()
        machine.new_boot_id(room / "boot_id")
        rig.furnish()
        rig.disk.unplug()
        self._template.copy_from(rig.disk)

    def run(self, seed: int) -> list[str]:
        """Cut the power once; return what is wrong then, each in some lines."""
        plan = Plan.of(seed)
        rig = self.rig
        rig.disk.copy_from(self._template)
        for leftover in (self._notes, self._pause, self._crashes, *self._room.glob("still-*")):
            leftover.unlink(missing_ok=True)
        rig.disk.plug_in()
        try:
            self._until_the_cut(plan)
            if plan.again and rig.is_layerfs:
                self._start_in_vain(plan.again)
            rig.disk.plug_in()
            return self._after_the_cut()
        except (OSError, RuntimeError) as error:
            return [f"the trial itself failed: {error}"]
        finally:
            rig.off()
            with suppress(OSError):
                rig.disk.unplug()

    def _until_the_cut(self, plan: Plan) -> None:
        rig = self.rig
        machine.new_boot_id(self._room / "boot_id")
        running = Machine(lambda up: self._boot(plan, up))
        try:
            answer = running.up()
            if answer != "up":
                raise RuntimeError(answer)
            if plan.remount and rig.is_layerfs:
                answer = running.up()
                if answer != "remounted":
                    raise RuntimeError(answer)
            time.sleep(plan.after)
            notes.Notebook(self._notes, "power").begins("cut", {})
            rig.disk.cut()
        finally:
            running.end()
            rig.off()
            rig.disk.unplug()

    def _start_in_vain(self, after: float) -> None:
        """Start the machine again, and cut the power meanwhile."""
        rig = self.rig
        rig.disk.plug_in()
        machine.new_boot_id(self._room / "boot_id")
        running = Machine(self._boot_again)
        try:
            time.sleep(after)
            rig.disk.cut()
        finally:
            running.end()
            rig.off()
            rig.disk.unplug()

    def _boot(self, plan: Plan, up: Callable[[str], None]) -> None:
        rig = self.rig
        try:
            rig.mount(*plan.options)
        except RuntimeError as error:
            up(repr(error))
            return
        links = rig.kind != "overlay"
        for number in range(plan.programs):
            commits_too = number < plan.committers and rig.is_layerfs
            kind = commits.Committer if commits_too else Program
            program = kind(
                rig.root, number, self._notes, self._world, plan.seed, forgetful=self.forgetful, links=links
            )
            chosen = habits.chosen(plan.seed, number)
            if isinstance(program, commits.Committer):
                program.control = rig.control
                chosen += [commits.commit] * len(chosen)
            machine.start(partial(program.run, chosen, self._pause), self._crashes)
        if plan.imports and rig.is_layerfs:
            importer = Importer(self._room, self._notes, plan.seed)
            machine.start(importer.run, self._crashes)
        if plan.intruder:
            machine.start(partial(_intrude, rig.disk.path, plan.seed), self._crashes)
        up("up")
        if plan.remount and rig.is_layerfs:
            time.sleep(plan.remount)
            up(self._remount(plan))

    def _remount(self, plan: Plan) -> str:
        """Have all programs stand still with nothing open, and mount again; return what went wrong."""
        self._pause.touch()
        stills = [self._room / f"still-p{number}" for number in range(plan.programs)]
        deadline = time.monotonic() + 20
        while not all(still.exists() for still in stills):
            if time.monotonic() > deadline:
                return "a program does not stand still"
            time.sleep(0.002)
        try:
            (self.rig.kill if plan.kill else self.rig.umount)()
            self.rig.mount_again()
        except RuntimeError as error:
            return str(error)
        self._pause.unlink()
        return "remounted"

    def _after_the_cut(self) -> list[str]:
        rig = self.rig
        story = list(notes.read(self._notes))
        world = copy.deepcopy(self._world)
        last = images.Story()
        failures = [f"a program crashed: {text}" for text in self._crashes.read_text().split("\n\n") if text]
        cut = False
        for note in story:
            cut = cut or note.call.name == "cut"
            if cut and note.ended:
                continue  # what returned while the power went is no promise: it may have failed, or not have
            world.follow(note)
            last.follow(note, world)
            if note.error:
                failures.append(
                    f"{note.call.program}: {note.call.name} {note.call.arguments} failed before the cut: "
                    f"{os.strerror(note.error)}"
                )
        machine.new_boot_id(self._room / "boot_id")
        settled = images.settled(rig, self._room) if rig.is_layerfs else set()
        running = Machine(self._boot_again)
        watchdog = threading.Timer(_PATIENCE, running.end)
        watchdog.start()
        try:
            answer = running.up()
            if answer != "up":
                if "no such mount" in answer and not world.synced:
                    return failures
                return [*failures, f"the store does not open: {answer}"]
            broken = Check(world, Mounted(rig.root)).broken()
            failures += [self._told(one, story) for one in broken]
            if rig.is_layerfs:
                failures += last.broken(rig, settled)
                failures += self._unusable()
                failures += [f"logged: {line}" for line in rig.log().splitlines() if _is_strange(line)]
            if rig.kind in ("overlay", "dirs"):
                changed = Check(self._world, Mounted(rig.disk.path / "tree")).broken()
                failures += [f"in the lower layer, {broken.sentence}" for broken in changed]
        finally:
            watchdog.cancel()
            running.end()
        return failures

    def _boot_again(self, up: Callable[[str], None]) -> None:
        try:
            self.rig.mount_again()
        except RuntimeError as error:
            up(str(error).replace("\n", " / "))
            return
        up("up")

    def _unusable(self) -> list[str]:
        """Write to the mount and commit, as if nothing had happened; return what does not work."""
        file = self.rig.root / "afterwards"
        try:
            file.write_bytes(b"still here")
            commits.commit_mount(self.rig.control, "afterwards")
            if file.read_bytes() != b"still here":
                return ["what is written afterwards is not there"]
        except OSError as error:
            return [f"the mount cannot be used afterwards: {error}"]
        return []

    def _told(self, broken: Broken, story: list[notes.Note]) -> str:
        lines = [broken.sentence]
        about = [
            note for note in story if touched(note.call) & broken.nodes or note.call.name in ("commit", "cut")
        ]
        for note in about[-14:]:
            end = "" if not note.ended else f" -> errno {note.error}" if note.error else f" -> {note.result}"
            lines.append(f"    {note.call.program} {note.call.name} {note.call.arguments}{end}")
        return "\n".join(lines)


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _is_strange(line: str) -> bool:
    return " ERROR " in line or "Traceback" in line


def _intrude(disk: Path, seed: int) -> None:
    """Commit the journal at random moments, as other users of a disk do."""
    rng = random.Random(f"intruder/{seed}")
    with suppress(OSError):
        fd = os.open(disk / "other", os.O_RDWR | os.O_CREAT)
        while True:
            time.sleep(rng.random() * rng.choice((0.005, 0.05)))
            os.pwrite(fd, b"x", rng.randrange(1 << 20))
            os.fsync(fd)


def main() -> int:
    """Make cuts; print what is wrong, and in the end how many there were."""
    parser = argparse.ArgumentParser()
    parser.add_argument("room", type=Path)
    parser.add_argument("--rig", default="store")
    parser.add_argument("--disk", default="ext4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--forgetful", action="store_true")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--stop", action="store_true")
    given = parser.parse_args()
    given.room.mkdir(parents=True, exist_ok=True)
    given.room = given.room.resolve()
    machine.in_own_mount_table()
    machine.import_all()
    disk = Disk(given.room, given.disk)
    rig = Rig(given.rig, disk, given.room, given.option)
    os.environ.update(LAYERFS_ROOT=str(rig.store), LAYERFS_RUN=str(rig.run))
    trial = Trial(rig, given.room, forgetful=given.forgetful)
    bad = done = 0
    start = time.monotonic()
    for seed in range(given.seed, given.seed + given.cuts):
        if time.monotonic() - start > given.seconds:
            break
        failures = trial.run(seed)
        done += 1
        bad += bool(failures)
        for failure in failures:
            print(f"{given.rig} on {given.disk}, seed {seed}: {failure}", flush=True)
        if failures and given.stop:
            break
    seconds = time.monotonic() - start
    print(f"{given.rig} on {given.disk}: {done} cuts, {bad} with broken promises, {round(seconds)} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
