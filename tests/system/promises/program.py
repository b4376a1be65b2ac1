"""A program: it works in a directory of its own, and notes each call and what that call promised it."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfs.union import syscalls
from tests.system.promises.notes import Call, Note, Notebook
from tests.system.promises.world import Node, World

_PUNCH = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
MOST = 400_000
"""Bytes that a file may grow to."""


class Program:
    """A program with its directory `top` below *root*; *seed* decides what it does.

    One that is *forgetful* notes promises and does not ask for them: what a harness has to find out.
    """

    def __init__(
        self,
        root: Path,
        number: int,
        notes: Path,
        world: World,
        seed: int,
        *,
        forgetful: bool = False,
        links: bool = True,
    ) -> None:
        self.root = root
        self.name = f"p{number}"
        self.top = f"/{self.name}"
        self.random = random.Random(f"{seed}/{number}")
        self.world = world
        self.forgetful = forgetful
        self.links = links
        self._notes = Notebook(notes, self.name)
        self._serial = 0
        self._open: dict[str, int] = {}
        """Descriptors that are kept open, by the file's id."""

    def run(self, habits: Sequence[Callable[[Program], None]], pause: Path) -> None:
        """Do one of *habits* after the other, chosen at random, until a call fails.

        While the file *pause* is there, stand still with nothing open.
        """
        still = pause.with_name(f"still-{self.name}")
        with suppress(OSError):
            while True:
                self.random.choice(habits)(self)
                if self.random.random() < 0.2:
                    time.sleep(self.random.random() * 0.02)
                if pause.exists():
                    self._stand_still(pause, still)
        still.touch()

    def _stand_still(self, pause: Path, still: Path) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        still.touch()
        while pause.exists():
            time.sleep(0.001)
        still.unlink()

    # -- calls ----------------------------------------------------------------------------------------

    def _call(self, name: str, action: Callable[[], Any], /, **arguments: Any) -> Any:
        self._serial += 1
        call = Call(self.name, self._serial, name, arguments)
        self._notes.begins(name, arguments)
        self.world.follow(Note(call, False, 0, None))
        try:
            result = action()
        except OSError as error:
            self._notes.failed(error)
            raise
        self._notes.worked(result)
        self.world.follow(Note(call, True, 0, result))
        return result

    def path(self, node: Node | str, name: str | None = None) -> Path:
        """Return the path of a node, or of *name* in a directory."""
        path = self.root / self.world.path(node if isinstance(node, str) else node.id)
        return path if name is None else path / name

    def _fd(self, node: Node, flags: int = 0) -> int:
        """Return a descriptor on a file: one that is kept, or a new one."""
        if flags or self.random.random() < 0.7:
            return os.open(self.path(node), os.O_RDWR | flags)
        if node.id not in self._open:
            while len(self._open) > 6:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[node.id] = os.open(self.path(node), os.O_RDWR)
        return os.dup(self._open[node.id])

    def _with_file(self, node: Node, action: Callable[[int], Any], flags: int = 0) -> Callable[[], Any]:
        def act() -> Any:
            fd = self._fd(node, flags)
            try:
                return action(fd)
            finally:
                os.close(fd)

        return act

    def new_name(self) -> str:
        """Return a name that has not been used before."""
        self._serial += 1
        return f"n{self._serial}"

    def _new(self) -> tuple[str, str]:
        name = self.new_name()
        return name, f"{self.name}:{self._serial}"

    def create(self, directory: Node, name: str | None = None) -> Node:
        """Make an empty file."""
        made, id_ = self._new()
        name = name or made
        mode = self.random.choice((0o600, 0o644))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._call(
            "create",
            lambda: os.close(os.open(self.path(directory, name), flags, mode)),
            dir=directory.id,
            name=name,
            id=id_,
            mode=mode,
        )
        return self.world.node(id_)

    def write(self, node: Node, offset: int, length: int) -> None:
        """Write *length* bytes at *offset*."""
        number = self.random.getrandbits(60) | 1
        content = random.Random(number).randbytes(length)
        self._call(
            "write",
            self._with_file(node, lambda fd: _write_all(fd, content, offset)),
            id=node.id,
            offset=offset,
            length=length,
            number=number,
        )

    def write_synced(self, node: Node, offset: int, length: int) -> None:
        """Write with O_SYNC or O_DSYNC."""
        data_only = self.random.random() < 0.5
        flags = os.O_DSYNC if data_only else os.O_SYNC
        number = self.random.getrandbits(60) | 1
        content = random.Random(number).randbytes(length)
        self._call(
            "write_synced",
            self._with_file(node, lambda fd: _write_all(fd, content, offset), 0 if self.forgetful else flags),
            id=node.id,
            offset=offset,
            length=length,
            number=number,
            data_only=data_only,
        )

    def write_mapped(self, node: Node, offset: int, length: int) -> None:
        """Write within a file through a shared mapping."""
        number = self.random.getrandbits(60) | 1
        content = random.Random(number).randbytes(length)

        def act(fd: int) -> None:
            with mmap.mmap(fd, 0) as memory:
                memory[offset : offset + length] = content

        self._call(
            "write", self._with_file(node, act), id=node.id, offset=offset, length=length, number=number
        )

    def write_direct(self, node: Node, offset: int, length: int) -> None:
        """Write past the page cache; both numbers are multiples of 4096."""
        number = self.random.getrandbits(60) | 1
        memory = mmap.mmap(-1, length)
        memory[:] = random.Random(number).randbytes(length)
        self._call(
            "write",
            self._with_file(node, lambda fd: os.pwritev(fd, [memory], offset), os.O_DIRECT),
            id=node.id,
            offset=offset,
            length=length,
            number=number,
        )

    def punch(self, node: Node, offset: int, length: int) -> None:
        """Punch a hole into a file; its length stays."""
        self._call(
            "punch",
            self._with_file(node, lambda fd: syscalls.fallocate(fd, _PUNCH, offset, length)),
            id=node.id,
            offset=offset,
            length=length,
        )

    def msync(self, node: Node) -> None:
        """Have a mapping of the file written to disk."""

        def act(fd: int) -> None:
            if not self.forgetful:
                with mmap.mmap(fd, 0) as memory:
                    memory.flush()

        self._call("fdatasync", self._with_file(node, act), id=node.id)

    def truncate(self, node: Node, length: int) -> None:
        """Cut or extend a file."""
        self._call(
            "truncate", self._with_file(node, lambda fd: os.ftruncate(fd, length)), id=node.id, length=length
        )

    def fsync(self, node: Node) -> None:
        """Fsync; the promise has the modification time that was shown before."""

        def act(fd: int) -> int:
            mtime = os.fstat(fd).st_mtime_ns
            if not self.forgetful:
                os.fsync(fd)
            return mtime

        self._call("fsync", self._with_file(node, act), id=node.id)

    def fdatasync(self, node: Node) -> None:
        """Fdatasync."""
        action = (lambda fd: None) if self.forgetful else os.fdatasync
        self._call("fdatasync", self._with_file(node, action), id=node.id)

    def fsyncdir(self, node: Node) -> None:
        """Fsync of a directory."""

        def act() -> None:
            fd = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY)
            try:
                if not self.forgetful:
                    os.fsync(fd)
            finally:
                os.close(fd)

        self._call("fsyncdir", act, id=node.id)

    def mkdir(self, directory: Node, name: str | None = None) -> Node:
        """Make a directory."""
        made, id_ = self._new()
        name = name or made
        self._call(
            "mkdir",
            lambda: self.path(directory, name).mkdir(mode=0o755),
            dir=directory.id,
            name=name,
            id=id_,
            mode=0o755,
        )
        return self.world.node(id_)

    def symlink(self, directory: Node) -> None:
        """Make a symbolic link."""
        name, id_ = self._new()
        target = "t" * self.random.choice((5, 100)) + name
        self._call(
            "symlink",
            lambda: self.path(directory, name).symlink_to(target),
            dir=directory.id,
            name=name,
            id=id_,
            target=target,
        )

    def link(self, node: Node, directory: Node) -> None:
        """Give a file one more name."""
        name, _ = self._new()
        paths = self.path(node), self.path(directory, name)
        self._call(
            "link",
            lambda: os.link(*paths, follow_symlinks=False),
            dir=directory.id,
            name=name,
            id=node.id,
        )

    def unlink(self, directory: Node, name: str) -> None:
        """Remove a name, or an empty directory."""
        node = self.world.children(directory.id)[name]
        path = self.path(directory, name)
        self._call(
            "unlink",
            path.rmdir if node.kind == "dir" else path.unlink,
            dir=directory.id,
            name=name,
            id=node.id,
        )

    def rename(self, directory: Node, name: str, to: Node, to_name: str) -> None:
        """Rename, over what is there."""
        node = self.world.children(directory.id)[name]
        paths = self.path(directory, name), self.path(to, to_name)
        self._call(
            "rename",
            lambda: os.rename(*paths),
            dir=directory.id,
            name=name,
            to_dir=to.id,
            to_name=to_name,
            id=node.id,
        )

    def exchange(self, directory: Node, name: str, to: Node, to_name: str) -> None:
        """Have two names change places."""
        nodes = self.world.children(directory.id)[name], self.world.children(to.id)[to_name]
        paths = [os.fsencode(self.path(*place)) for place in ((directory, name), (to, to_name))]
        self._call(
            "exchange",
            lambda: syscalls.renameat2(-100, paths[0], -100, paths[1], syscalls.RENAME_EXCHANGE),
            dir=directory.id,
            name=name,
            to_dir=to.id,
            to_name=to_name,
            id=nodes[0].id,
            other=nodes[1].id,
        )

    def chmod(self, node: Node) -> None:
        """Change the mode."""
        mode = self.random.choice((0o600, 0o640, 0o644, 0o666, 0o700, 0o755))
        self._call("chmod", lambda: self.path(node).chmod(mode), id=node.id, mode=mode)

    def setxattr(self, node: Node) -> None:
        """Set an extended attribute."""
        key, value = f"user.{self.random.choice('abc')}", str(self.random.getrandbits(40))
        self._call(
            "setxattr",
            lambda: os.setxattr(self.path(node), key, value.encode()),
            id=node.id,
            key=key,
            value=value,
        )

    # -- choices --------------------------------------------------------------------------------------

    def directories(self) -> list[Node]:
        """Return the program's directories, its top first."""
        found = [self.world.node(self.top)]
        for node in found:
            found += [child for child in self.world.children(node.id).values() if child.kind == "dir"]
        return found

    def directory(self) -> Node:
        """Return one of the directories."""
        return self.random.choice(self.directories())

    def names(self, kinds: str = "file") -> list[tuple[Node, str, Node]]:
        """Return all names of objects of these kinds: directory, name, object."""
        return [
            (directory, name, child)
            for directory in self.directories()
            for name, child in self.world.children(directory.id).items()
            if child.kind in kinds
        ]

    def file(self) -> Node:
        """Return one of the files, made if there is none."""
        names = self.names()
        if not names:
            return self.create(self.directory())
        lower = [entry for entry in names if ":" not in entry[2].id]
        return self.random.choice(lower if lower and self.random.random() < 0.4 else names)[2]

    def size(self) -> int:
        """Return how much to write at a time."""
        most = self.random.choice((200, 4096, 20_000, 150_000))
        return self.random.randint(1, most)

    def sync(self, node: Node) -> None:
        """Sync a file in one of the ways, with the directories of its names or without."""
        way = self.random.random()
        if way < 0.65:
            self.fsync(node)
        elif way < 0.85:
            self.fdatasync(node)
        elif node.contents.now:
            self.msync(node)
        if self.random.random() < 0.4:
            self.sync_names(node)

    def sync_names(self, node: Node) -> None:
        """Sync the directories that a node has its names in."""
        for directory in sorted({directory for directory, _ in node.places[-1]}):
            self.fsyncdir(self.world.node(directory))


def _write_all(fd: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written


def length_of(node: Node) -> int:
    """Return how long a file is now."""
    return len(node.contents.now)
