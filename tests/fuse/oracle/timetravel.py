"""The same rules with checkpoints, on a mount that can go back and fork; the other side is a directory.

A checkpoint of that is a copy of it (cp -a), and going back puts the copy in its place. So after each step
the whole tree of the mount is compared with what a plain filesystem makes of the same operations.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import stat
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from time import time_ns

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from layerfs.api.server import start_mount
from layerfs.client.client import Client
from layerfs.host import rundir
from layerfs.mounting.request import MountRequest
from layerfs.store import Store
from tests.fuse.oracle import actions as do
from tests.fuse.oracle.mounts import LayerfsSide, Side
from tests.fuse.oracle.rules import ACLS, DATA, NODES, USERS, USES, Oracle
from tests.fuse.oracle.stacks import NAMES

_AT_EMPTY_PATH, _AT_STATX_FORCE_SYNC, _STATX_NLINK = 0x1000, 0x2000, 4
_libc = ctypes.CDLL(None, use_errno=True)
_ACLS = ("access",) if os.environ.get("LAYERFS_EXTENSION") == "0" else ("access", "default")
"""Without the extension the kernel applies the umask although a default ACL overrules it."""
_MOST = 8
"""Checkpoints that are remembered."""
_NO_WHITEOUTS = NODES.filter(lambda node: not (stat.S_ISCHR(node[0]) and node[1] == (0, 0)))


class PlainSide(Side):
    """A directory, and copies of what it was."""

    def __init__(self, directory: Path, lowers: Sequence[Path]) -> None:
        super().__init__(directory, lowers)
        self.saved: dict[int, Path] = {}

    def _mount(self) -> None:
        """Have a mount of it on itself: its root is one that nothing can be renamed to."""
        subprocess.run(["mount", "--bind", self.mountpoint, self.mountpoint], check=True)

    def commit(self) -> None:
        """Do nothing: the tree stays what it is."""

    def checkpoint(self, number: int) -> None:
        """Copy the tree."""
        self.saved[number] = self.directory / f"saved{number}"
        subprocess.run(["cp", "-a", f"{self.mountpoint}/.", self.saved[number]], check=True)

    def rollback(self, number: int, kept: int) -> bool:
        """Have the tree be a copy of the copy *number*; first copy it as *kept*."""
        self.checkpoint(kept)
        subprocess.run(["find", self.mountpoint, "-mindepth", "1", "-delete"], check=True)
        for name in os.listxattr(self.mountpoint):
            os.removexattr(self.mountpoint, name)
        os.chmod(self.mountpoint, 0o755)  # where there is an ACL, cp leaves an inherited set-group-ID bit
        subprocess.run(["cp", "-a", f"{self.saved[number]}/.", self.mountpoint], check=True)
        return True


class StoreSide(LayerfsSide):
    """layerfs on an image of its own store, whose uppers are the store's, so that it can go back."""

    def __init__(self, directory: Path, lowers: Sequence[Path]) -> None:
        super().__init__(directory, lowers)
        self.steps: dict[int, str] = {}

    def _mount(self) -> None:
        image = None
        if not self._known:
            with Store(self.store) as store:
                store.import_image(self.lowers[0], "base")
            image = "base"
        start_mount(
            MountRequest(mountpoint=str(self.mountpoint), root=self.store, name=self.name, image=image)
        )
        self._known = True
        self._pid = rundir.running_pid(self.name) or 0

    def checkpoint(self, number: int) -> None:
        """Make a checkpoint, and remember its id."""
        self.steps[number] = self._ask("/layerfs/checkpoint", {})["Step"]

    def rollback(self, number: int, kept: int) -> bool:
        """Go back; tell whether what is given up is a checkpoint now, which is *kept* then."""
        with Store(self.store) as store:
            present = store.mount(self.name).step
        went = self._ask("/layerfs/rollback", {"Ref": self.steps[number]})
        assert went["Step"] == self.steps[number]
        self.steps[kept] = went["Kept"] or present
        return True

    def fork(self, number: int) -> Path:
        """Make a mount of what this one is now; return where."""
        place = self.directory / f"fork{number}"
        place.mkdir()
        name = f"{self.name}-{number}"
        client = Client.of(self.store)
        body = json.dumps({"Name": name, "Mountpoint": str(place)}).encode()
        client.request("POST", "/layerfs/fork", body=body, name=self.name)
        return place

    def end_fork(self, number: int) -> None:
        """Remove that mount."""
        name = f"{self.name}-{number}"
        pid = rundir.running_pid(name)
        Client.of(self.store).request("DELETE", f"/containers/{name}", force=True)
        if pid is not None:
            os.waitpid(pid, 0)
        (self.directory / f"fork{number}").rmdir()

    def _ask(self, path: str, body: dict[str, object]) -> dict[str, str]:
        answer = Client.for_mount(self.name).request(
            "POST", path, body=json.dumps(body).encode(), name=self.name
        )
        assert isinstance(answer, dict)
        return answer

    def settle(self) -> None:
        """Wait until all layers are measured."""
        with Store(self.store) as store:
            for layer in (self.store / "layers").iterdir():
                if store.database.scalar("SELECT state FROM layers WHERE id = ?", (layer.name,)) == "sealed":
                    store.settle_layer(layer.name)

    def problems(self) -> list[str]:
        """Return what is wrong with the store."""
        with Store(self.store) as store:
            store.recover()
            return [f"{problem.subject}: {problem.what}" for problem in store.check()]


@dataclass(frozen=True)
class Checkpoint(do.Action):
    """Note what the tree is now, under *number*."""

    number: int

    def perform(self, side: Side) -> None:
        assert isinstance(side, PlainSide | StoreSide)
        side.checkpoint(self.number)


@dataclass(frozen=True)
class Rollback(do.Action):
    """Go back to the checkpoint *number*; what is given up is *kept*."""

    number: int
    kept: int

    def perform(self, side: Side) -> bool:
        assert isinstance(side, PlainSide | StoreSide)
        return side.rollback(self.number, self.kept)


def _make_tree(tree: Path) -> None:
    """Make a tree with something of each kind in it."""
    for directory in ("a", "b/a", "b/c", "c"):
        (tree / directory).mkdir(parents=True)
    for number, name in enumerate(("a/a", "a/b", "b/a/b", "b/b", "d")):
        (tree / name).write_bytes(b"%d" % number * (number * 1000 + 1))
    os.link(tree / "a/a", tree / "b/c/a")
    os.symlink("a/a", tree / "e")
    os.mkfifo(tree / "c/b")
    os.chmod(tree / "c", 0o1777)
    os.setxattr(tree / "a/b", "user.one", b"1")


class TimeTravel(Oracle):
    """Everything that people do to a filesystem, checkpoints, going back and forks."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: list[int] = []

    @initialize()
    def set_up(self) -> None:
        """Make a tree for each side, and mount one. Raises `Enough` when the budget is spent."""
        self.budget.check()
        self.began = time_ns() - 10**9
        self.directory = Path(mkdtemp(prefix="oracle-"))
        self.directory.chmod(0o711)
        os.environ["LAYERFS_RUN"] = str(self.directory / "run")
        os.environ["LAYERFS_ENGINE"] = ""
        tree = self.directory / "tree"
        _make_tree(tree)
        for kind, name in ((PlainSide, "plain"), (StoreSide, "layerfs")):
            top = self.directory / name
            top.mkdir()
            side = kind(top, [tree])
            self.sides.append(side)
            side.mount()
            if kind is PlainSide:
                subprocess.run(["cp", "-a", f"{tree}/.", side.mountpoint], check=True)
        self.tree = self.compare(*self.sides)
        self.broken = False

    def place(self, data: st.DataObject) -> bytes:
        """Draw a name in a directory that exists; short, since redirects have a limit."""
        parents = sorted(path for path, item in self.tree.items() if stat.S_ISDIR(item.type)) or [b""]
        places = [parent + b"/" + name if parent else name for parent in parents for name in NAMES]
        free = [path for path in places if path not in self.tree and len(path) < 200]
        taken_too = not free or data.draw(st.sampled_from((False, False, False, True)))
        return data.draw(st.sampled_from(places if taken_too else free))

    def swap(self) -> None:
        """Mount again: the layers are the store's."""
        if self.sides:
            self.remount()

    def remount(self) -> None:
        """Mount again; layerfs then does not know any more how many of a lower file's names were removed."""
        self.counted = False
        self.step(do.Remount())

    def commit(self) -> None:
        """Commit, with everything open."""
        self.step(do.Commit())

    def can_commit(self) -> bool:
        """Tell that it can: nothing is asked of the kernel's overlayfs."""
        return bool(self.sides)

    @rule(data=st.data(), node=_NO_WHITEOUTS)
    def mknod(self, data: st.DataObject, node: tuple[int, tuple[int, int]]) -> None:
        self.step(do.Mknod(self.place(data), *node))

    @rule(data=st.data(), kind=st.sampled_from(_ACLS), acl=st.sampled_from(ACLS), uid=USERS)
    def set_acl(self, data: st.DataObject, kind: str, acl: bytes, uid: int) -> None:
        self.step(do.SetAttribute(self.existing(data), f"system.posix_acl_{kind}", acl), uid)

    @rule(chance=st.integers(0, 30))
    def start_afresh(self, chance: int) -> None:
        """Now and then have caches dropped, mount again, or commit."""
        if chance in (1, 2, 3):
            self.step(do.Forget())
        elif chance == 4:
            self.remount()
        elif chance == 5:
            self.commit()

    @rule()
    def checkpoint(self) -> None:
        """Make a checkpoint, with everything open."""
        number = next(self.serial)
        if self.step(Checkpoint(number)):
            self._remember(number)

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), forget=st.booleans(), text=DATA)
    def rollback(self, data: st.DataObject, forget: bool, text: bytes) -> None:
        """Go back, or to what was given up, with everything open."""
        self.go_back(data, text)
        if forget:
            self.step(do.Forget())

    def go_back(self, data: st.DataObject, text: bytes) -> None:
        """Go back; what is open stays what it was, and what is written to it then gets into no tree."""
        number, kept = data.draw(st.sampled_from(self.checkpoints)), next(self.serial)
        if not self.sides:
            return
        handles = self.sides[1].handles
        before = {handle: _contents(fd) for handle, fd in handles.items()}
        if not self.step(Rollback(number, kept)):
            return
        for handle, fd in handles.items():
            assert _contents(fd) == before[handle], f"{handle} is not what it was"
        self.broken = True
        for handle, fd in handles.items():
            if stat.S_ISREG(os.fstat(fd).st_mode) and _links(fd) == 0 and _is_for_both(fd):
                note(f"writes to {handle}, which is in no tree")
                os.pwrite(fd, text, 1)
                os.fsync(fd)
                assert os.pread(fd, len(text), 1) == text
        self.tree = self.compare(*self.sides)
        self.broken = False
        for side in self.sides:
            side.close_handles()
        self._remember(kept)

    def _remember(self, number: int) -> None:
        self.checkpoints.append(number)
        del self.checkpoints[:-_MOST]

    @rule(chance=st.integers(0, 3))
    def fork(self, chance: int) -> None:
        """Now and then fork: another mount of the same tree, and what is written to it stays there."""
        if chance or not self.sides:
            return
        self.broken = True
        self.budget.count()
        number = next(self.serial)
        note(f"fork {number}")
        plain, layerfs = self.sides
        assert isinstance(layerfs, StoreSide)
        place = layerfs.fork(number)
        try:
            view = PlainSide(place.parent, [])
            view.mountpoint = place
            self.counted = False  # a new mount does not know how many names were removed
            self.tree = self.compare(plain, view)
            (place / "of the fork").write_text("x")
            subprocess.run(["rm", "-rf", place / "a"], check=True)
        finally:
            layerfs.end_fork(number)
        self.tree = self.compare(*self.sides)
        self.broken = False

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), what=USES, text=DATA)
    def use_over_rollback(self, data: st.DataObject, what: str, text: bytes) -> None:
        """Have something open that changes, and go back."""
        handle = next(self.serial)
        if self.step(do.Open(handle, self.existing(data), os.O_RDWR)):
            self.step(do.Use(handle, self.possible(handle, what), 0o640, text[:1000]))
            self.go_back(data, text)

    def teardown(self) -> None:
        """Hold the store against itself, at the end."""
        try:
            if not self.broken and self.sides:
                layerfs = self.sides[1]
                assert isinstance(layerfs, StoreSide)
                self.broken = True
                for side in self.sides:
                    side.unmount()
                problems = layerfs.problems()
                assert not problems, problems
                self.broken = False
        finally:
            sides, self.sides = self.sides, []
            for side in sides:
                side.clean_up()
                side.settle()
            self.budget.failed |= bool(self.directory) and self.broken
            if self.directory is not None:  # processes that measure the layers of forks may still be at it
                subprocess.run(["rm", "-rf", self.directory], check=True)
            self.directory = None


def _contents(fd: int) -> object:
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        return None
    try:
        return os.pread(fd, 1 << 20, 0)
    except OSError as error:
        return error.errno


def _links(fd: int) -> int:
    """Return the link count of a file as its filesystem has it, not as the kernel has kept it (statx(2))."""
    answer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_NLINK, answer) != 0:
        raise OSError(ctypes.get_errno(), "statx")
    return int(struct.unpack_from("=I", answer, 16)[0])


def _is_for_both(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
