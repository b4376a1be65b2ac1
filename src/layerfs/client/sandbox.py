"""Mounts as sandboxes, for programs: checkpoint, go back, fork, and ask for what was.

    with Layerfs() as layerfs:
        sandbox = layerfs.mount("debian:12", "/srv/agent", name="agent")
        with sandbox.checkpoint("before the risky step"):
            ...  # goes back when an exception leaves the block

Every method raises `layerfs.errors.LayerfsError` with one line that says what to do: `NotFound`, `Conflict`,
`BadRequest`, `NoSpace` and so on. It has changed nothing then, unless it says otherwise. References, *ref*,
are those of docs/time-travel.md. An object may be used by several threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from layerfs.client import answers
from layerfs.client.answers import Ask, Difference, FileEntry, LogEntry, Restored, Thinned, WentBack
from layerfs.client.client import Client
from layerfs.host.rundir import store_root

if TYPE_CHECKING:
    from layerfs.mounting.request import MountRequest

_A = TypeVar("_A")


def _launch() -> Callable[[MountRequest], str]:
    """Return what mounts: another process, as this one may have threads and must not fork."""
    from layerfs.api.apart import launch

    return launch


class Layerfs:
    """A store: asks its engine where one runs, or answers in this process. A context manager for the eye."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        """Use the store at *root*: by default that of `$LAYERFS_ROOT`, or of the user."""
        self._root: Path = store_root(None if root is None else os.fspath(root))

    def __enter__(self) -> Layerfs:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: no connection is kept."""

    def run(self, ask: Ask[_A]) -> _A:
        """Send a request, and return what its answer means. For what has no method here."""
        client = Client.of(self._root, _launch)
        if ask.path == "/layerfs/cat":
            answer = client.stream(ask.method, ask.path, **ask.query)
            try:
                return ask.meaning(b"".join(answer.chunks))
            finally:
                answer.chunks.close()
        return ask.meaning(client.request(ask.method, ask.path, body=ask.body, **ask.query))

    def sandbox(self, name: str) -> Sandbox:
        """Return the mount called *name*, or with that id. Nobody looks whether there is one."""
        return Sandbox(self, name)

    def mount(
        self,
        image: str | None,
        mountpoint: str | os.PathLike[str],
        *,
        name: str | None = None,
        read_only: bool = False,
    ) -> Sandbox:
        """Mount *image* on a directory, or without one the mount called *name* again; return once it answers.

        Without a *name* the mount is forgotten when it is unmounted. Raises `NotFound` for no such image or
        directory, `Conflict` where something is mounted there or the name is taken.
        """
        return Sandbox(self, self.run(answers.mount(mountpoint, image, name, read_only=read_only)))

    def log(self, ref: str, path: str | None = None, *, most: int | None = None) -> list[LogEntry]:
        """Return what led to *ref*, newest first, *most* entries; with *path*, what touched it.

        Raises `NotFound`, also for a path that was never there.
        """
        return self.run(answers.log(ref, path, most))

    def ls(self, ref: str, path: str = "/") -> list[FileEntry]:
        """Return what was in the directory *path*, by name, or the one entry that is something else."""
        return self.run(answers.ls(ref, path))

    def read(self, ref: str, path: str) -> bytes:
        """Return what the regular file *path* held. Links are followed within the tree."""
        return self.run(answers.read(ref, path))

    def diff(self, a: str, b: str, path: str | None = None) -> list[Difference]:
        """Return what differs between two trees, or at and below *path*; parents before children."""
        return self.run(answers.diff(a, b, path))

    def squash(self, ref: str) -> str:
        """Join a checkpoint with the one that stands on it, and return that. Atomic; durable.

        Raises `Conflict` where an image, a mount or another checkpoint needs it, or a mount of it is in use.
        """
        return self.run(answers.squash(ref))


class Sandbox:
    """A mount of a store, in use or at rest; made by `Layerfs`."""

    def __init__(self, store: Layerfs, name: str) -> None:
        """Name the mount *name* of *store*."""
        self._store = store
        self.name = name

    def checkpoint(self, message: str = "", *, pause: bool | None = None) -> Checkpoint:
        """Keep what the mount is now, and return that; as a context manager it goes back on an exception.

        Atomic. Everything whose write had returned before is in it. Not durable: a power cut within the next
        seconds may undo it. With *pause* the processes of a container stand still meanwhile; None: where that
        is possible. Not idempotent: each call makes one.
        """
        return Checkpoint(self, self._store.run(answers.checkpoint(self.name, message, pause=pause)))

    def rollback(self, ref: str = "", *, discard: bool = False, pause: bool | None = None) -> WentBack:
        """Be what it was at *ref*, by default the last checkpoint.

        Atomic, not durable. What is given up is a checkpoint itself, unless nothing was written or it is to
        be *discard*ed. See docs/time-travel.md for what processes in it see.
        """
        return self._store.run(answers.rollback(self.name, ref, discard=discard, pause=pause))

    def fork(self, name: str, mountpoint: str | os.PathLike[str]) -> Sandbox:
        """Make another live mount of what this one is now, called *name*; this one goes on."""
        return Sandbox(self._store, self._store.run(answers.fork(self.name, name, mountpoint, None))[0])

    def forks(self, name: str, directory: str | os.PathLike[str], count: int) -> list[Sandbox]:
        """Make *count* forks, all or none: NAME-1, NAME-2, ..., on directories of these names."""
        made = self._store.run(answers.fork(self.name, name, directory, count))
        return [Sandbox(self._store, each) for each in made]

    def restore(self, ref: str, *paths: str) -> Restored:
        """Bring files or trees back, as they were at *ref*. A checkpoint is made before.

        Nobody sees half a file, but several are not one moment. An error after the checkpoint names it.
        """
        return self._store.run(answers.restore(self.name, ref, paths))

    def keep(self, *, every: str | None = None, last: int | None = None, daily: int | None = None) -> Thinned:
        """Thin out the checkpoints that no rule wants and nobody needs; see `layerfs keep`.

        *every* is a span such as "10m". May be repeated. Raises `Conflict` while the mount is in use.
        """
        return self._store.run(answers.keep(self.name, every, last, daily))

    def log(self, path: str | None = None, *, most: int | None = None) -> list[LogEntry]:
        """Return what led to what the mount is now; see `Layerfs.log`."""
        return self._store.log(self.name, path, most=most)

    def ls(self, path: str = "/") -> list[FileEntry]:
        """Return what is in the directory *path* now."""
        return self._store.ls(self.name, path)

    def read(self, path: str) -> bytes:
        """Return what the regular file *path* holds now."""
        return self._store.read(self.name, path)

    def unmount(self, *, force: bool = False) -> None:
        """Unmount it, and return once its daemon has ended; what was written stays.

        Raises `Conflict` if it is in use, unless by *force*, or not mounted.
        """
        self._store.run(answers.unmount(self.name, force=force))

    def remove(self, *, force: bool = False) -> None:
        """Remove it, what was written to it and its checkpoints; by *force*, unmount it before."""
        self._store.run(answers.remove(self.name, force=force))


class Checkpoint:
    """A checkpoint of a sandbox. As a context manager, the sandbox goes back to it when an exception leaves.

    What is given up is kept as a checkpoint (`went_back.kept`). The exception goes on. Where going back
    fails, that error is raised in its place, with it for its context.
    """

    def __init__(self, sandbox: Sandbox, step: str) -> None:
        """Name the checkpoint *step* of *sandbox*."""
        self.sandbox = sandbox
        self.id = step
        self.went_back: WentBack | None = None
        """What going back at the end of the block has done, None where the block ended in order."""

    def rollback(self, *, discard: bool = False) -> WentBack:
        """Have the sandbox be what it was then; see `Sandbox.rollback`."""
        return self.sandbox.rollback(self.id, discard=discard)

    def __enter__(self) -> Checkpoint:
        """Return the checkpoint."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back if the block was left by an exception."""
        if error is not None:
            self.went_back = self.rollback()
