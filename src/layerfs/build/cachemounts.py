"""`RUN --mount=type=cache`: directories that outlive builds, by their ids, in `cache/mounts` of the store.

Each is held by a `flock` for as long as a command has it: shared or alone, as the Dockerfile says. One that
nobody holds may be pruned.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerfs.errors import from_os_error
from layerfs.store import Store
from layerfs.store.layers import measure
from layerfs.union.trees import remove_trees

if TYPE_CHECKING:
    from layerfs.build.stage import StageBuild

SHARING = ("shared", "private", "locked")
_LOCK = "lock"
_DATA = "data"
_ABOUT = "about.json"
_LOOK = 0.02
"""Seconds between two looks whether one is free."""


class Owner(NamedTuple):
    """The mode and the owner of a new one."""

    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class CacheMount:
    """One that is there."""

    path: Path
    identifier: str
    created: int
    """When it was made, in nanoseconds since the epoch."""
    used: int
    """When a command had it last."""

    @property
    def in_use(self) -> bool:
        """Whether a command has it."""
        try:
            lock = _opened(self.path)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def size(self) -> int:
        """Return the bytes of its files. Raises `OSError`."""
        return measure(self.path / _DATA) if (self.path / _DATA).is_dir() else 0


def _opened(path: Path, flags: int = 0) -> int:
    """Return a descriptor of the lock of the directory *path*. Raises `OSError`."""
    return os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def directory(root: Path) -> Path:
    """Return where they are in the store at *root*."""
    return root / "cache" / "mounts"


@contextmanager
def taken(
    stage: StageBuild, identifier: str, sharing: str, owner: Owner, below: str | None, source: str
) -> Iterator[Path]:
    """Have the directory *identifier* for the block, as *sharing* says; yield its path.

    A new one is a copy of the directory *source* of the step *below*, if that is given. Raises `LayerfsError`
    and what ends the build.
    """
    building = stage.building
    try:
        while True:
            path, lock = _take(building.root, identifier, sharing, building.check)
            try:
                if not (path / _DATA).exists():
                    _make(stage, path, owner, below, source)
                if sharing != "shared" or _share(path, lock, building.check):
                    os.utime(path / _LOCK)
                    break
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
    except OSError as error:
        raise from_os_error(error, f"make the cache {identifier}") from None
    try:
        yield path / _DATA
    finally:
        os.close(lock)


def _share(path: Path, lock: int, check: Callable[[], None]) -> bool:
    """Let others have it from here on; return whether it is still there: for an instant nobody holds it."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return _is_at(path, lock)
        except BlockingIOError:
            check()
            time.sleep(_LOOK)


def _is_at(path: Path, lock: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), os.stat(path / _LOCK))
    return False


def _take(root: Path, identifier: str, sharing: str, check: Callable[[], None]) -> tuple[Path, int]:
    """Return the directory of a cache, and the descriptor that holds it."""
    name = hashlib.sha256(os.fsencode(identifier)).hexdigest()[:32]
    for number in range(1 << 20):
        path = directory(root) / (f"{name}.{number}" if number else name)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / _ABOUT).exists():
            part = path / f"{_ABOUT}.{os.urandom(4).hex()}"  # half of it would be a cache that nobody finds
            part.write_text(json.dumps({"id": identifier}))
            part.rename(path / _ABOUT)
        lock = _opened(path, os.O_CREAT)
        new = not (path / _DATA).exists()
        kind = fcntl.LOCK_SH if sharing == "shared" and not new else fcntl.LOCK_EX
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                if _is_at(path, lock):
                    return path, lock
                break  # it has been pruned: once more
            except BlockingIOError:
                if sharing == "private":
                    break
                if sharing == "shared" and (path / _DATA).exists():
                    kind = fcntl.LOCK_SH
            check()
            time.sleep(_LOOK)
        os.close(lock)
        if sharing != "private":
            return _take(root, identifier, sharing, check)
    raise AssertionError("unreachable")


def _make(stage: StageBuild, path: Path, owner: Owner, below: str | None, source: str) -> None:
    """Make the data of a new one: whole, or not at all."""
    from layerfs.build import copying
    from layerfs.build.sources import of_stack

    unfinished = path / "new"
    remove_trees(unfinished)
    unfinished.mkdir()
    if below is not None:
        job = copying.Job(sources=(f"{source.rstrip('/')}/.",), destination="/")
        with (
            of_stack(stage.store.steps.stack_of_step(below), "the tree of a cache") as tree,
            copying.select(job, tree, scratch=stage.building.scratch) as selection,
        ):
            copying.write(selection, None, unfinished, scratch=stage.building.scratch)
    os.chown(unfinished, owner.uid, owner.gid)
    unfinished.chmod(owner.mode)
    unfinished.rename(path / _DATA)


def every(root: Path) -> list[CacheMount]:
    """Return those that are there."""
    found = []
    with suppress(FileNotFoundError):
        for path in sorted(directory(root).iterdir()):
            with suppress(OSError, ValueError, KeyError):
                about = path / _ABOUT
                identifier = str(json.loads(about.read_text())["id"])
                used = (path / _LOCK).stat().st_mtime_ns
                found.append(CacheMount(path, identifier, about.stat().st_mtime_ns, used))
    return found


def remove(mount: CacheMount) -> bool:
    """Remove one unless a command has it; return whether it is gone. Raises `LayerfsError`.

    Should this process be killed, recovery of the store removes what is left.
    """
    root = mount.path.parents[2]
    try:
        lock = _opened(mount.path)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with Store(root) as store, store.scratch() as scratch:
            mount.path.rename(scratch.path / "cache")
    except BlockingIOError:
        return False
    except OSError as error:
        raise from_os_error(error, f"remove the cache {mount.identifier}") from None
    finally:
        os.close(lock)
    return True
