"""What a build has outside the store while it goes on: `RUN/builds/ID`, held by a lock.

Everything that a killed process could leave is written down there before it is made: mounts by their names,
networks by the ids of the mounts that have them, containers by their bundles. So whoever finds the lock free
can take it all away (`recover`).
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import Conflict, LayerfsError, NoSpace, NotFound, from_os_error
from layerfs.host import mountcalls, rundir
from layerfs.host.ownership import check_private, open_own
from layerfs.host.rundir import RunLock
from layerfs.store import Store
from layerfs.union.trees import remove_trees

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_log = logging.getLogger(__name__)
_LOCK = "lock"
_PRIVATE = b"mode=0700,size=64m,nr_inodes=8k"


class Workplace:
    """The directory of one build. Its methods may be called by every thread of the build."""

    def __init__(self, root: Path, path: Path) -> None:
        """Use *path*, which `workplace` has made, for a build in the store at *root*."""
        self.root = root
        self.path = path
        self.id = path.name
        self.private = path / "private"
        """A tmpfs: bundles, secrets, files for containers. Nothing of it gets to a disk."""
        self._numbers = itertools.count(1)

    def mount_name(self) -> tuple[str, Path]:
        """Return the name for a new mount of the build, and the directory to mount it on."""
        name = self._name()
        place = self.path / "mounts" / name
        place.mkdir(parents=True)
        return name, place

    def container(self) -> tuple[str, Path]:
        """Return the id for a new container of the build, and its bundle, an empty directory."""
        name = self._name()
        bundle = self.private / "bundles" / name
        bundle.mkdir(parents=True)
        return name, bundle

    def _name(self) -> str:
        return f"build-{self.id}-{next(self._numbers)}"

    def note_network(self, mount_id: str) -> Path:
        """Write down that the mount *mount_id* is about to get a network; return the note, to be removed."""
        note = self.path / "networks" / mount_id
        note.parent.mkdir(exist_ok=True)
        note.touch()
        return note


@contextmanager
def workplace(root: Path) -> Iterator[Workplace]:
    """Make the directory of a build in the store at *root*, and take away all that is in it at the end.

    Raises `LayerfsError`.
    """
    path, lock = _directory(root)
    try:
        made = Workplace(root, path)
        try:
            made.private.mkdir(mode=0o700)
            mountcalls.mount_tmpfs(os.fsencode(made.private), _PRIVATE)
        except OSError as error:
            raise from_os_error(error, "make a directory for the build") from None
        yield made
    finally:
        try:
            _clear(path, root)
        finally:
            os.close(lock)


def _directory(root: Path) -> tuple[Path, int]:
    """Make a directory for a build in the store at *root*; return it, and the descriptor that holds it."""
    try:
        above = rundir.make_run_dir() / "builds"
        above.mkdir(mode=0o700, exist_ok=True)
        check_private(above, "directory of builds", "remove it")
        while True:
            path = above / os.urandom(4).hex()  # short: it is in the names of sockets
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            lock = -1
            with suppress(FileNotFoundError, BlockingIOError):  # taken for left over, an instant after mkdir
                lock = open_own(path / _LOCK, os.O_RDWR | os.O_CREAT)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), os.lstat(path / _LOCK)):
                    os.write(lock, os.fsencode(root))
                    return path, lock
            if lock >= 0:
                os.close(lock)
    except OSError as error:
        raise from_os_error(error, "make a directory for the build") from None


def recover() -> list[str]:
    """Take away what builds have left whose process was killed; return a line for each. Never raises."""
    done = []
    try:
        found = sorted((rundir.run_dir() / "builds").iterdir())
    except (OSError, LayerfsError):
        return []
    for path in found:
        try:
            lock = open_own(path / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            with suppress(OSError):
                path.rmdir()  # made, but no more
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            root = Path(os.fsdecode(os.pread(lock, 4096, 0)))
            _clear(path, root if root.is_absolute() else None)
            done.append(f"cleared away after the build {path.name}, whose process was killed")
        except BlockingIOError:
            continue
        except (LayerfsError, OSError) as error:
            _log.error("cannot clear away after the build %s: %s", path.name, error)
        finally:
            os.close(lock)
    return done


def _clear(path: Path, root: Path | None) -> None:
    """Take away all that the build in the directory *path* has or had; may be repeated.

    Everything is tried, whatever goes wrong with the rest. Raises the first `LayerfsError` then.
    """
    wrong: list[LayerfsError] = []
    with _noted(wrong):
        _end_containers(path / "private" / "bundles")
    if root is not None:
        for note in _entries(path / "networks"):
            with _noted(wrong):
                _take_network(root, note)
        for place in _entries(path / "mounts"):
            with _noted(wrong):
                _unmount(root, place)
    if wrong:
        raise wrong[0]
    try:
        with suppress(OSError):  # it is not mounted yet
            mountcalls.umount(os.fsencode(path / "private"), lazy=True)
        for child in _entries(path):
            if child.name != _LOCK:
                remove_trees(child)
        (path / _LOCK).unlink(missing_ok=True)  # the last: without it nobody looks here
        path.rmdir()
    except OSError as error:
        raise from_os_error(error, "remove the directory of the build") from None


@contextmanager
def _noted(wrong: list[LayerfsError]) -> Iterator[None]:
    try:
        yield
    except LayerfsError as error:
        wrong.append(error)
    except OSError as error:
        wrong.append(from_os_error(error, "clear away after the build"))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _end_containers(bundles: Path) -> None:
    from layerfs.container import ociruntime

    if found := _entries(bundles):
        for oci_runtime in ociruntime.installed():
            for bundle in found:
                oci_runtime.delete(bundle.name)


def _take_network(root: Path, note: Path) -> None:
    from layerfs.container import networks

    networks.take_down(root, note.name)
    note.unlink(missing_ok=True)


def _unmount(root: Path, place: Path) -> None:
    """Unmount the mount that is called like the directory *place*, and remove it from the store."""
    take_away(root, place.name)
    for _ in range(2):
        try:
            place.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            mountcalls.umount(os.fsencode(place), lazy=True)  # its daemon is dead, and its row is gone


def _make_room(store: Store, row: Mount) -> None:
    """Remove what was written to a mount that is to go: without that, the store cannot note that it goes."""
    from layerfs.mounting.find import mount_of

    with suppress(LayerfsError):
        mount_of(store, row).unmount(force=True)
    with suppress(Conflict, OSError), RunLock(row.name):  # no daemon has it
        for upper in (store.layer(row.upper).path,) if row.upper else ():
            remove_trees(*upper.iterdir())


def take_away(root: Path, name: str) -> None:
    """End the mount called *name*, and remove it and its upper from the store; fine if there is none.

    Raises `LayerfsError`.
    """
    from layerfs.mounting.find import mount_of

    try:
        with Store(root, create=False) as store:
            row = store.mount(name)
            try:
                with suppress(Conflict, NotFound):  # its daemon ends just now
                    mount_of(store, row).remove(force=True)
            except NoSpace:
                _make_room(store, row)
                store.remove_mount(row.id)
    except NotFound:
        pass
    with suppress(Conflict), RunLock(name) as lock:
        lock.forget()
