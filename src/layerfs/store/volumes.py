"""Volumes: directories of the store that containers mount, and that outlive them.

The data of a volume lies in `volumes/NAME/_data`. The directory is made before its row, and a row is on the
disk before anybody may write to the volume. A volume is removed by renaming its directory, to one whose name
begins with a dot, in the transaction that deletes its row. So after a crash a directory with such a name is
that of a removed volume, unless there is a row whose own directory is missing: then it goes back.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound, from_os_error
from layerfs.host.mounttable import mounted_at, resolve
from layerfs.store import events, layers
from layerfs.store.database import Database
from layerfs.store.model import Volume, now, to_datetime
from layerfs.union.trees import boot_id, remove_trees, sync_path

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
ANONYMOUS = "com.docker.volume.anonymous"
"""The label by which Docker knows a volume that nobody named."""
_LONGEST = 230
"""Characters of a name: a removed volume's directory has some more, and a filesystem takes 255."""
_PATIENCE = 120.0
"""Seconds to wait for another process that mounts, fills or removes a volume."""
_OPTIONS = ("type", "o", "device")
_NEEDED = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_REMOVED = ".removed-"
_COLUMNS = "name, created, anonymous, labels, options"


def is_mounted(volume: Volume) -> bool:
    """Return whether something is mounted on a volume's directory."""
    return mounted_at(resolve(str(volume.path))) is not None


class Use(NamedTuple):
    """A volume that a container mounts."""

    mount: str
    destination: str
    volume: str
    filled: bool
    """Whether the image's content was copied into the volume, or need not be."""
    up: bool
    """Whether the container runs, and has it mounted."""


def directory(root: Path) -> Path:
    """Return where the volumes of the store at *root* lie."""
    return root / "volumes"


def check_name(name: str) -> str:
    """Return *name* if it can name a volume (Docker's rule), else raise `BadRequest`."""
    if len(name) == 1:
        raise BadRequest(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not NAME.fullmatch(name):
        raise BadRequest(
            f'create {name[:80]}: "{name[:80]}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    if len(name) > _LONGEST:
        raise BadRequest(
            f"create {name[:80]}...: volume name is too long, {_LONGEST} characters are the most"
        )
    return name


def check_options(options: Mapping[str, str]) -> None:
    """Raise `BadRequest` for options that Docker's driver `local` would refuse."""
    for name in options:
        if name == "size":
            raise BadRequest("quota size requested but no quota support")
        if name not in _OPTIONS:
            raise BadRequest(f'invalid option: "{name[:80]}"')
    for name, needed in _NEEDED.items():
        for other in needed:
            if name in options and not options.get(other):
                raise BadRequest(f'missing required option: "{other}"')


class Volumes:
    """The volumes of a store, and who has them. Any method may raise `StoreBusy` and its like."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._root = directory(db.root)

    def every(self) -> list[Volume]:
        """Return all volumes, by name."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM volumes ORDER BY name")
        return [self._volume(row) for row in rows.fetchall()]

    def find(self, name: str) -> Volume:
        """Return the volume called *name*; raises `NotFound`."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM volumes WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"get {name[:_LONGEST]}: no such volume")
        return self._volume(row)

    def create(
        self,
        name: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        anonymous: bool = False,
    ) -> Volume:
        """Return the volume called *name*, a new one where there is none; one without a name gets one.

        Durable on return. May be repeated: the labels and options of one that is there stay. Raises
        `BadRequest`.
        """
        given = dict(labels or {})
        if not name:
            name, anonymous = os.urandom(32).hex(), True
        if anonymous:
            given.setdefault(ANONYMOUS, "")
        check_name(name)
        check_options(options or {})
        with suppress(NotFound):
            return self.find(name)
        try:
            with self._db.transaction():
                if self._db.scalar("SELECT 1 FROM volumes WHERE name = ?", (name,)) is None:
                    self._make(name)
                    columns = (name, now(), anonymous, json.dumps(given), json.dumps(dict(options or {})))
                    self._db.execute(f"INSERT INTO volumes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", columns)
                    self.record(name, "create")
        except BaseException as error:
            with suppress(LayerfsError):
                _remove_unmade(self._db, self._root / name)
            if isinstance(error, OSError):
                raise from_os_error(error, f"create the volume {name}") from None
            raise
        self._db.sync()
        return self.find(name)

    def _make(self, name: str) -> None:
        """Make the directory of a new volume, on the disk; what lies there already stays."""
        if not self._root.exists():
            self._root.mkdir(mode=0o711)
            sync_path(self._root.parent)
        own = self._root / name
        own.mkdir(mode=0o701, exist_ok=True)
        (own / "_data").mkdir(mode=0o755, exist_ok=True)
        (own / "_data").chmod(0o755)
        sync_path(own)
        sync_path(self._root)

    def remove(self, name: str) -> int:
        """Remove a volume and its data; return the bytes it had.

        Raises `NotFound`, and `Conflict` while a container uses it, or something is mounted there.
        """
        volume = self.find(name)
        with self.held(volume) if volume.path.parent.is_dir() else nullcontext():
            self._check_unused(name)
            if is_mounted(volume):
                raise Conflict(f"remove {name}: volume has active mounts")
            size = self.size(volume)
            aside = self._root / f"{_REMOVED}{name}-{os.urandom(4).hex()}"
            own = volume.path.parent
            try:
                with self._db.transaction():
                    self.find(name)
                    self._check_unused(name)
                    with suppress(FileNotFoundError):
                        own.rename(aside)
                    self._db.execute("DELETE FROM volumes WHERE name = ?", (name,))
                    self.record(name, "destroy")
            except OSError as error:
                raise from_os_error(error, f"remove the volume {name}") from None
            except BaseException:
                with suppress(FileNotFoundError):
                    aside.rename(own)
                raise
        self._db.sync()  # that the row is gone: its data must not be missed
        if aside.exists():
            remove_trees(aside)
        return size

    def _check_unused(self, name: str) -> None:
        if users := self.users(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")

    def prune(self, wanted: Callable[[Volume], bool]) -> tuple[list[Volume], int]:
        """Remove the *wanted* volumes that no container has; return those that went, and their bytes."""
        gone, freed = [], 0
        for volume in self.every():
            if not wanted(volume) or self.users(volume.name):
                continue
            with suppress(Conflict, NotFound):  # somebody was quicker
                freed += self.remove(volume.name)
                gone.append(volume)
        with self._db.transaction():
            events.record(self._db, "volume", "prune", "", {"reclaimed": str(freed)})
        return gone, freed

    def size(self, volume: Volume) -> int:
        """Return the bytes of a volume's regular files; those of something mounted there are not its own."""
        if volume.options or not volume.path.is_dir():
            return 0
        return layers.measure(volume.path)

    @contextmanager
    def held(self, volume: Volume) -> Iterator[None]:
        """Keep others from mounting, unmounting, filling and removing a volume while the block lasts.

        Waits for who does, `Conflict` after a while. Raises `NotFound` for one whose directory is gone.
        """
        try:
            fd = os.open(volume.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(
                f"the directory {volume.path.parent} of the volume {volume.name} is gone"
            ) from None
        try:
            _lock(fd, volume.name)
            yield
        finally:
            os.close(fd)

    # Uses

    def uses(self, *, mount: str | None = None, volume: str | None = None) -> list[Use]:
        """Return which volumes containers have, running or not."""
        rows = self._db.execute(
            "SELECT mount, destination, volume, filled, up IS ?3 FROM volume_uses "
            "WHERE (?1 IS NULL OR mount = ?1) AND (?2 IS NULL OR volume = ?2) ORDER BY mount, destination",
            (mount, volume, boot_id()),
        )
        return [Use(a, b, c, bool(filled), bool(up)) for a, b, c, filled, up in rows.fetchall()]

    def users(self, name: str) -> list[str]:
        """Return the ids of the containers that have the volume called *name*."""
        return sorted({use.mount for use in self.uses(volume=name)})

    def claim(self, mount_id: str, destination: str, name: str) -> None:
        """Note that a container has a volume at *destination*; may be repeated. Raises `NotFound`."""
        with self._db.transaction():
            self.find(name)
            if self._db.scalar("SELECT 1 FROM mounts WHERE id = ?", (mount_id,)) is None:
                raise NotFound(f"no such mount: {mount_id}")
            self._db.execute(
                "DELETE FROM volume_uses WHERE mount = ? AND destination = ? AND volume != ?",
                (mount_id, destination, name),
            )
            self._db.execute(
                "INSERT OR IGNORE INTO volume_uses (mount, destination, volume) VALUES (?, ?, ?)",
                (mount_id, destination, name),
            )

    def set_filled(self, mount_id: str, destination: str) -> None:
        """Note that the image's content need not be copied into the volume at *destination* any more."""
        with self._db.transaction():
            self._db.execute(
                "UPDATE volume_uses SET filled = 1 WHERE mount = ? AND destination = ?",
                (mount_id, destination),
            )

    def set_up(self, mount_id: str, destination: str, **attributes: str) -> None:
        """Note that a container that starts has the volume at *destination* mounted, with an event."""
        with self._db.transaction():
            self._db.execute(
                "UPDATE volume_uses SET up = ? WHERE mount = ? AND destination = ?",
                (boot_id(), mount_id, destination),
            )
            for use in self.uses(mount=mount_id):
                if use.destination == destination:
                    self.record(
                        use.volume, "mount", container=mount_id, destination=destination, **attributes
                    )

    def set_down(self, mount_id: str) -> list[str]:
        """Note that a container has no volume mounted any more; return those that nobody has.

        May be repeated, and writes nothing where there is nothing to do.
        """
        if self._db.scalar("SELECT 1 FROM volume_uses WHERE mount = ? AND up NOTNULL", (mount_id,)) is None:
            return []
        with self._db.transaction():
            mine = {use.volume for use in self.uses(mount=mount_id) if use.up}
            self._db.execute("UPDATE volume_uses SET up = NULL WHERE mount = ?", (mount_id,))
            for name in sorted(mine):
                self.record(name, "unmount", container=mount_id)
            return [name for name in sorted(mine) if not self.is_up(name)]

    def is_up(self, name: str) -> bool:
        """Return whether a container that runs has the volume mounted."""
        return any(use.up for use in self.uses(volume=name))

    def anonymous_of(self, mount_id: str) -> list[str]:
        """Return the volumes that may go with a container: nobody named them, and nobody else has them."""
        names = {use.volume for use in self.uses(mount=mount_id)}
        return [
            name for name in sorted(names) if self.find(name).anonymous and self.users(name) == [mount_id]
        ]

    def record(self, name: str, action: str, **attributes: str) -> None:
        """Record an event about a volume; part of a transaction."""
        events.record(self._db, "volume", action, name, {**attributes, "driver": "local"})

    def _volume(self, row: tuple[Any, ...]) -> Volume:
        name, created, anonymous, labels, options = row
        return Volume(
            name,
            self._root / name / "_data",
            to_datetime(created),
            bool(anonymous),
            json.loads(labels),
            json.loads(options),
        )


def _lock(fd: int, name: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            raise Conflict(f"waited {_PATIENCE:g} seconds: another process is at work on the volume {name}")
        time.sleep(0.01)


def recover(db: Database) -> list[str]:
    """Put back or remove what a removal that was cut short has left; return a line for each thing done."""
    done = []
    for path in _aside(db.root):
        name = path.name.removeprefix(_REMOVED)[:-9]
        own = path.with_name(name)
        with db.transaction():  # who removes it has committed by now, or been killed
            if db.scalar("SELECT 1 FROM volumes WHERE name = ?", (name,)) and not own.exists():
                path.rename(own)
                done.append(f"put back the volume {name}, whose removal was cut short")
                continue
        with suppress(LayerfsError):
            remove_trees(path)
            done.append(f"removed {path}: its volume is gone")
    unmade = [path for path in strangers(db) if _remove_unmade(db, path)]
    return [*done, *(f"removed {path}: its volume was not made to the end" for path in unmade)]


def _remove_unmade(db: Database, own: Path) -> bool:
    """Remove the empty directory of a volume that was not made to its end; return whether it was one."""
    with suppress(OSError), db.transaction():  # who makes one has committed by now, or been killed
        if db.scalar("SELECT 1 FROM volumes WHERE name = ?", (own.name,)) is None:
            with suppress(FileNotFoundError):
                (own / "_data").rmdir()
            own.rmdir()
            return True
    return False


def _aside(root: Path) -> list[Path]:
    try:
        found = sorted(directory(root).iterdir())
    except FileNotFoundError:
        return []
    return [path for path in found if re.fullmatch(rf"{re.escape(_REMOVED)}.+-[0-9a-f]{{8}}", path.name)]


def strangers(db: Database) -> list[Path]:
    """Return the directories below `volumes/` that no row names, but for what `recover` sees to."""
    try:
        found = sorted(directory(db.root).iterdir())
    except FileNotFoundError:
        return []
    return [
        path
        for path in found
        if not path.name.startswith(".")
        and db.scalar("SELECT 1 FROM volumes WHERE name = ?", (path.name,)) is None
    ]
