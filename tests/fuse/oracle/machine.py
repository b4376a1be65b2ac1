"""The state machine without its rules: sets up both sides, acts on both, compares, cleans up."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from tests.fuse.oracle import actions as do
from tests.fuse.oracle import snapshot
from tests.fuse.oracle.budget import Budget
from tests.fuse.oracle.mounts import KernelSide, LayerfsSide, Side
from tests.fuse.oracle.stacks import LONG_NAMES, NAMES, build, stacks


class TwoMounts(RuleBasedStateMachine):
    """Two mounts of equal stacks. The rules are in `rules`."""

    budget: Budget

    def __init__(self) -> None:
        super().__init__()
        self.directory: Path | None = None
        self.sides: list[Side] = []
        self.tree: snapshot.Snapshot = {}
        self.serial = itertools.count()
        self.began = 0
        self.index = False
        """Whether the kernel has an index."""
        self.counted = True
        """Whether link counts are compared."""
        self.broken = True
        """Set while something is under way that may fail."""

    # -- the two sides --------------------------------------------------------------------------

    @initialize(data=st.data(), within=st.booleans())
    def set_up(self, data: st.DataObject, within: bool) -> None:
        """Build both stacks and mount them. Raises `Enough` when the budget is spent.

        Half of the stacks have hard links within a layer: these the kernel keeps with an index alone. Such an
        upper is not for others, nor for a commit: its files are links to what is in the index.
        """
        self.index, stack = within, data.draw(stacks(within=within))
        self.budget.check()
        self.began = time.time_ns() - 10**9  # file times lag behind the clock by up to a tick
        self.directory = Path(tempfile.mkdtemp(prefix="oracle-"))
        self.directory.chmod(0o711)  # actions by ordinary users come through here
        os.environ["LAYERFS_RUN"] = str(self.directory / "run")
        for kind, name in ((KernelSide, "kernel"), (LayerfsSide, "layerfs")):
            top = self.directory / name
            top.mkdir()
            lowers = [top / f"lower{depth}" for depth in range(len(stack) - 1)]
            build(stack, [*lowers, top / "upper"])
            side = kind(top, lowers)
            if isinstance(side, KernelSide):
                side.index = self.index
            self.sides.append(side)
            side.mount()
        self.tree = self.compare(*self.sides)
        # The kernel goes on counting names that the stack hides from the start. The other name of an inode
        # in two layers counts until a copy-up, and there are occasions for one that only the kernel takes.
        self.counted = all(item.links in (0, max(1, len(item.names))) for item in self.tree.values())
        self.broken = False

    def compare(self, kernel: Side, layerfs: Side) -> snapshot.Snapshot:
        """Compare what two mounts show, and return it."""
        expected, found = (self.look(side) for side in (kernel, layerfs))
        lines = snapshot.differences(expected, found)
        assert not lines, "the trees differ:\n" + "\n".join(lines)
        return expected

    def look(self, side: Side) -> snapshot.Snapshot:
        """Return what a side shows.

        Without an index the kernel shows one inode number for the two files that an inode in two layers is.
        """
        is_kernel = isinstance(side, KernelSide)
        upper = os.fsencode(side.upper) if is_kernel and not self.index else None
        with side.guard():
            found = snapshot.take(side.path(b""), self.began, kernel=is_kernel, upper=upper)
        if self.counted:
            return found
        return {path: item._replace(links=len(item.names)) for path, item in found.items()}

    def step(self, action: do.Action, uid: int = 0) -> bool:
        """Do *action* on both sides and compare; tell whether it succeeded."""
        if not self.sides:
            return False
        self.broken = True
        if self.index and isinstance(action, do.Remount):
            self.counted = False  # layerfs has forgotten how many of a lower file's names were removed
        self.budget.count()
        note(f"{action}{f' as user {uid}' if uid else ''}")
        theirs, ours = (do.outcome(action, side, uid) for side in self.sides)
        assert theirs == ours, f"{action} as {uid}: the kernel answers {theirs!r}, layerfs {ours!r}"
        self.tree = self.compare(*self.sides)
        self.broken = False
        return not isinstance(theirs, str)

    def teardown(self) -> None:
        """Mount each upper under the other filesystem and compare once more; leave nothing behind."""
        try:
            if not self.broken:
                self.swap()
                self.broken = True
                for side in self.sides:
                    side.unmount()
                self.broken = False
        finally:
            self.budget.failed |= bool(self.directory) and self.broken
            for side in self.sides:
                side.clean_up()
                side.settle()
            if self.directory is not None:
                shutil.rmtree(self.directory)

    def swap(self) -> None:
        """Let each side go on with the layers that the other has written: it must see the same tree."""
        if not self.sides:
            return
        if self.index:
            self.step(do.Remount())
            return
        self.broken = True
        note("swap")
        for side in self.sides:
            side.unmount()
            side.settle()
        kernel, layerfs = self.sides
        self.sides = [KernelSide.taking_over(layerfs), LayerfsSide.taking_over(kernel)]
        for side in self.sides:
            side.mount()
        before, self.tree = self.tree, self.compare(*self.sides)
        lines = snapshot.differences(before, self.tree)
        assert not lines, "the trees are not what they were:\n" + "\n".join(lines)
        self.broken = False

    # -- drawing ----------------------------------------------------------------------------------

    def existing(self, data: st.DataObject) -> bytes:
        """Draw the path of something that exists; b"" is the root."""
        return data.draw(st.sampled_from(sorted(self.tree) or [b"a"]))

    def place(self, data: st.DataObject) -> bytes:
        """Draw a name in a directory that exists; mostly one that is free."""
        parents = sorted(path for path, item in self.tree.items() if stat.S_ISDIR(item.type)) or [b""]
        places = [
            parent + b"/" + name if parent else name for parent in parents for name in NAMES + LONG_NAMES
        ]
        free = [path for path in places if path not in self.tree]
        taken_too = not free or data.draw(st.sampled_from((False, False, False, True)))
        return data.draw(st.sampled_from(places if taken_too else free))

    def anywhere(self, data: st.DataObject) -> bytes:
        """Draw either of the two."""
        return self.existing(data) if data.draw(st.booleans()) else self.place(data)
