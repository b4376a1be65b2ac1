"""What was promised of images and checkpoints, and whether they are that after a power cut."""

from __future__ import annotations

import copy
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from layerfs.errors import LayerfsError, NotFound
from layerfs.store import Store, layers, stacks
from layerfs.store.model import Layer
from tests.system.promises.checker import Check, Unmounted
from tests.system.promises.imports import Imports
from tests.system.promises.notes import Call, Note
from tests.system.promises.rigs import Rig
from tests.system.promises.world import World, touched

_SYNCS = ("fsync", "fdatasync", "fsyncdir", "write_synced")
_MOST = 2
"""Differences that are shown of one image."""
MAY_SAY = re.compile(
    r"set aside after a crash|not known to be on disk when the machine stopped|: clean$|: \d+ problems? left$"
)
"""What `layerfs fsck` may say: what it sets aside, or cannot vouch for, was never promised."""


class Commit:
    """One commit: `whole` is what its image has once all is on disk, `sure` what must be of that at least.

    One that `is_image` has a reference; a checkpoint is told by its comment.
    """

    def __init__(self, call: Call, world: World, under_way: set[str]) -> None:
        self.is_image = bool(call.arguments["image"])
        self._tag = call.arguments["tag"]
        self.reference = f"cut:{self._tag}" if self.is_image else f"checkpoint {self._tag}"
        self.returned = False
        self.known = False
        """Whether the store must know it: it had returned, and a sync that began after it has returned."""
        self.sure = copy.deepcopy(world)
        self.whole = copy.deepcopy(world)
        self.whole.promise_all(but=under_way)
        self._then = {
            node.id: (node.version, node.moves) for node in world.nodes.values() if node.id not in under_way
        }

    def layers(self, store: Store) -> list[Layer]:
        """Return the layers that it has in *store*, bottom first. Raises `NotFound`."""
        if self.is_image:
            return store.layers_of(store.resolve(self.reference))
        db = store.database
        step = db.scalar("SELECT id FROM steps WHERE comment = ?", (self._tag,))
        if step is None:
            raise NotFound(f"no step has the comment {self._tag}")
        return layers.get_all(db, stacks.layer_ids(db, str(step))[::-1])

    def follow(self, note: Note, world: World) -> None:
        """Take in a note that came after the beginning of the commit."""
        if not note.ended:
            if not self.returned:  # it may be in the image, or in the next upper
                self.sure.follow(note)
                self.whole.follow(note)
        elif note.call.name in _SYNCS and not note.error:
            node = world.node(note.call.arguments["id"])
            if self._then.get(node.id, (-1, 0))[0] != node.version:
                return  # what was synced is not what was sealed
            if all(self._then.get(one.id, (0, -1))[1] == one.moves for one in world.way(node.id)):
                self.sure.follow(note)
            elif note.call.name != "write_synced":
                self.sure.promise_contents(node.id)


class Story:
    """All images that the notes tell of."""

    def __init__(self) -> None:
        self._commits: list[Commit] = []
        self._imports = Imports()
        self._commit_of: dict[tuple[str, int], Commit] = {}
        self._under_way: dict[str, tuple[Call, list[Commit]]] = {}
        """The call that each program is in, and the commits that had returned when it began."""

    def follow(self, note: Note, world: World) -> None:
        """Take in one note; *world* has done so already."""
        call = note.call
        self._imports.follow(note)
        for commit in self._commits:
            commit.follow(note, world)
        key = (call.program, call.serial)
        if not note.ended:
            if call.name == "commit":
                under_way = [touched(other) for other, _ in self._under_way.values()]
                commit = Commit(call, world, set().union(*under_way))
                self._commits.append(commit)
                self._commit_of[key] = commit
            self._under_way[call.program] = call, [commit for commit in self._commits if commit.returned]
            return
        _, before = self._under_way.pop(call.program)
        if note.error:
            return
        if call.name == "commit":
            self._commit_of[key].returned = True
        elif call.name in _SYNCS:
            for commit in before:
                commit.known = True

    def broken(self, rig: Rig, settled: set[str]) -> list[str]:
        """Return what is wrong with the images in the store of *rig*, and what its checks say of it.

        *settled* are the ids of the layers that had been settled when the power went.
        """
        failures: list[str] = []
        with closing(Store(rig.store)) as store:
            present = []
            for commit in self._commits:
                try:
                    commit.layers(store)
                except LayerfsError:
                    if commit.known:
                        failures.append(f"commit {commit.reference} is forgotten, though a sync followed it")
                else:
                    present.append(commit)
            for commit in present:
                differences = list(_differences(store, commit, commit.sure))
                failures += [f"image {commit.reference}: {text}" for text in differences[:_MOST]]
            failures += self._imports.broken(store)
            if present:
                failures += _verified(rig, store, present, settled)
        _, text = rig.layerfs("fsck")
        failures += [f"fsck: {line}" for line in text.splitlines() if not MAY_SAY.search(line)]
        return failures


def _differences(store: Store, commit: Commit, world: World) -> Iterator[str]:
    try:
        tree = Unmounted.of(commit.layers(store))
    except OSError as error:
        yield f"cannot be opened: {error}"
        return
    with closing(tree):
        for broken in Check(world, tree).broken():
            yield broken.sentence


def settled(rig: Rig, room: Path) -> set[str]:
    """Return the short ids of the layers that are settled; *room* is for a copy of the database."""
    for name in ("layerfs.db", "layerfs.db-wal"):
        (room / name).unlink(missing_ok=True)
        if (rig.store / name).exists():
            shutil.copyfile(rig.store / name, room / name)
    with closing(sqlite3.connect(room / "layerfs.db")) as db:
        query = "SELECT id FROM layers WHERE manifest_done AND NOT unverified"
        return {row[0][:12] for row in db.execute(query)}


def _verified(rig: Rig, store: Store, present: list[Commit], settled: set[str]) -> Iterator[str]:
    """Verify the last image, and with it the layers of all; what it certifies must be whole."""
    images = [commit for commit in present if commit.is_image]
    if not images:
        return
    last = images[-1]
    present = present[: present.index(last) + 1]  # verified with it: those have its layers or fewer
    status, text = rig.layerfs("verify", last.reference)
    if status == 0:
        for commit in present:
            for difference in list(_differences(store, commit, commit.whole))[:_MOST]:
                yield f"verify found nothing in {last.reference}, but {commit.reference}: {difference}"
        return
    for line in text.splitlines():
        if line.split()[0] in settled:
            yield f"a settled layer is damaged: {line}"
