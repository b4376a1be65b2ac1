"""The tree of a new layer while it is filled: what can be seen there, with what lies below, and what is made.

Nobody else knows the tree yet, so nothing in it needs to appear whole. Directories have mode 0700 until they
are closed, and get owner, mode, attributes and times then: nothing is inherited, and not only root can write.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerfs.archive.directories import NEW_FILE, is_real_root
from layerfs.build.sources import DEEPEST, shown, too_deep
from layerfs.build.walking import parts_of
from layerfs.errors import BadRequest
from layerfs.host.umask import umask
from layerfs.union import merge, syscalls, whiteout
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.marking import Marking
from layerfs.union.trees import remove_trees
from layerfs.union.view import copy_attributes

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 255
_REFUSED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL)
"""Why an attribute stays behind: it is not for this user, or not for this filesystem, as with BuildKit."""


@dataclass(slots=True)
class Attributes:
    """What something new is to have. Without a time it keeps that of its making."""

    uid: int
    gid: int
    mode: int
    mtime_ns: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Occupied(BadRequest):
    """A directory is to take the place of something else, or something else that of a directory."""


class Target:
    """The empty directory *tree* as the top of *below* (layers, bottom first); a context manager."""

    def __init__(
        self,
        tree: Path,
        below: Sequence[Layer],
        marking: Marking,
        *,
        epoch_ns: int | None = None,
        link: bool = False,
    ) -> None:
        """Open the tree. With *link* nothing of *below* counts but what its root is. Raises `OSError`."""
        self.path = tree
        self.marking = marking
        self.epoch_ns = epoch_ns
        self.now_ns = time.time_ns() if epoch_ns is None else epoch_ns
        self.me = os.geteuid(), os.getegid()
        self.is_root = is_real_root()
        self._layers = below
        self.like = below[-1].root if below else None
        """What the root is to be like."""
        self.root = TargetDirectory(
            self, None, b"", [] if link else [layer.root for layer in reversed(below)]
        )
        self.root.open(os.open(tree, _DIRECTORY))
        self.identity = _identity(self.root.status())
        self._unmask = ~umask() & 0o777

    def __enter__(self) -> Target:
        """Return the target."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        """Give the directories that are still open what they are to have, unless the work has failed."""
        self.root.close(keep=kind is None)

    def is_here(self, st: os.stat_result) -> bool:
        """Tell whether *st* is of the tree itself: a copy of it into itself would have no end."""
        return _identity(st) == self.identity

    def trim(self) -> None:
        """Close what was opened below and is not needed: between two operations."""
        if self._layers:
            self._layers[0].directories.trim()

    def time(self, wanted: int | None) -> int:
        """Return the time that something gets which had, or is to have, the time *wanted*."""
        if wanted is None:
            return self.now_ns
        return wanted if self.epoch_ns is None else min(wanted, self.epoch_ns)

    def find(self, path: bytes) -> tuple[TargetDirectory, list[bytes]]:
        """Return the last directory that *path* leads to, links followed, and the names that are left.

        Those are missing, or the one that is left is no directory. `..` of the root is the root. Raises
        `Occupied` for a file that is taken for a directory, and `OSError`.
        """
        here = self.root
        pending = parts_of(path)[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                here = here.parent or here
                continue
            seen = here.look(part)
            if seen is None:
                return here, _without_dots([part, *reversed(pending)])
            if stat.S_ISDIR(seen.st_mode):
                here = here.enter(part)
            elif stat.S_ISLNK(seen.st_mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                link = here.readlink(part)
                if link.startswith(b"/"):
                    here = self.root
                pending += parts_of(link)[::-1]
            elif pending:
                raise Occupied(f"{shown(here.path() + b'/' + part)} is a file, not a directory")
            else:
                return here, [part]
        return here, []

    def make(self, path: bytes, attributes: Attributes) -> TargetDirectory:
        """Return the directory that *path* leads to; those that are missing are made with *attributes*."""
        return self.extend(*self.find(path), attributes)

    def extend(
        self, here: TargetDirectory, missing: Sequence[bytes], attributes: Attributes
    ) -> TargetDirectory:
        """Make directories in *here*, one in the other, with *attributes*; return the last one."""
        for part in missing:
            if here.look(part) is not None:
                raise Occupied(f"{shown(here.path() + b'/' + part)} is a file, not a directory")
            here = here.add(part)
            here.attributes = attributes
        return here

    def created_mode(self, mode: int) -> bool:
        """Tell whether a file that is made with *mode* has it then: the umask takes nothing of it."""
        return mode & self._unmask == mode

    def give(
        self, fd: int, attributes: Attributes, *, is_mine: bool = True, mode_is_set: bool = False
    ) -> None:
        """Give a file or directory open as *fd* what it is to have, but for its times.

        *is_mine* says that it belongs to this process, *mode_is_set* that it has been made with its mode.
        """
        mode = attributes.mode
        if not is_mine or (attributes.uid, attributes.gid) != self.me:
            mode = self._own(attributes, lambda: os.fchown(fd, attributes.uid, attributes.gid))
        for name, value in attributes.xattrs.items():
            self._set(fd, name, value)
            mode_is_set = False  # an access control list has changed it
        if not mode_is_set:
            os.fchmod(fd, mode)

    def give_at(self, directory: int, name: bytes, attributes: Attributes, *, link: bool) -> None:
        """Give *name*, a symbolic *link* or something that is not opened, all that it is to have."""
        mode = attributes.mode
        if (attributes.uid, attributes.gid) != self.me:
            mode = self._own(
                attributes,
                lambda: os.chown(
                    name, attributes.uid, attributes.gid, dir_fd=directory, follow_symlinks=False
                ),
            )
        path = b"/proc/self/fd/%d/%s" % (directory, name)
        for attribute, value in attributes.xattrs.items():
            self._set(path, attribute, value)
        if not link:
            os.chmod(name, mode, dir_fd=directory)
        moment = self.time(attributes.mtime_ns)
        syscalls.utimensat(directory, name, moment, moment)

    def _own(self, attributes: Attributes, chown: Callable[[], None]) -> int:
        """Give something to its owner; return the mode that it may have: see `Unpacker`."""
        mode = attributes.mode
        try:
            chown()
        except OSError as error:
            if self.is_root or error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode

    def _set(self, file: int | bytes, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(file, self.marking.stored_name(name), value, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno not in _REFUSED:
                raise


class TargetDirectory:
    """A directory of the merged tree: what is new of it, once there is anything, and what lies below."""

    __slots__ = (
        "_children",
        "_fd",
        "_is_new",
        "attributes",
        "changed",
        "lower",
        "mtime_ns",
        "name",
        "parent",
        "target",
    )

    def __init__(
        self, target: Target, parent: TargetDirectory | None, name: bytes, lower: list[LayerDir]
    ) -> None:
        self.target = target
        self.parent = parent
        self.name = name
        self.lower = lower
        """Its parts in the layers below, topmost first; none where it hides them."""
        self.attributes: Attributes | None = None
        """What it is to have; None for what it has."""
        self.changed = False
        """Whether names have come: then its time is that of the change, if `mtime_ns` is None."""
        self.mtime_ns: int | None = None
        """The time that it gets if anything of it is new."""
        self._fd = -1
        self._is_new = False  # there was nothing of it in the tree
        self._children: dict[bytes, TargetDirectory] = {}

    def path(self) -> bytes:
        """Return its path, without a slash at the end: b"" for the root."""
        parts: list[bytes] = []
        here = self
        while here.parent is not None:
            parts.append(here.name)
            here = here.parent
        return b"".join(b"/" + part for part in reversed(parts))

    def open(self, fd: int) -> None:
        """Note that the new part is there, open as *fd*, which is the directory's from now on."""
        self._fd = fd

    def fd(self) -> int:
        """Return a descriptor on its new part, made if there is none. Raises `OSError`."""
        if self._fd < 0:
            assert self.parent is not None
            above = self.parent.fd()
            os.mkdir(self.name, 0o700, dir_fd=above)
            self._fd = os.open(self.name, _DIRECTORY, dir_fd=above)
            self._is_new = True
        return self._fd

    def look(self, name: bytes) -> os.stat_result | None:
        """Return the lstat of *name* in the merged directory, None where there is none. Raises `OSError`."""
        child = self._children.get(name)
        if child is not None:
            return child.status()
        own = self._own(name)
        if own is not None or not self.lower:
            return own
        found = merge.resolve(self.lower, name)
        if isinstance(found, list):
            return found[0].status()
        if found is None:
            return None
        return os.stat(name, dir_fd=found.fd(), follow_symlinks=False)

    def status(self) -> os.stat_result:
        """Return its stat, as it is so far. Raises `OSError`."""
        return os.fstat(self._fd) if self._fd >= 0 else self.lower[0].status()

    def _own(self, name: bytes) -> os.stat_result | None:
        if self._fd >= 0:
            try:
                return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
        return None

    def readlink(self, name: bytes) -> bytes:
        """Return the target of the symbolic link *name*. Raises `OSError`."""
        if self._own(name) is not None:
            return os.readlink(name, dir_fd=self._fd)
        found = merge.resolve(self.lower, name)
        assert isinstance(found, LayerDir)
        return os.readlink(name, dir_fd=found.fd())

    def enter(self, name: bytes) -> TargetDirectory:
        """Return the directory *name*, which is there, in the tree or below. Raises `OSError`."""
        child = self._children.get(name)
        if child is None:
            self._check_depth(name)
            found = merge.resolve(self.lower, name) if self.lower else None
            child = TargetDirectory(self.target, self, name, found if isinstance(found, list) else [])
            if self._own(name) is not None:
                child.open(os.open(name, _DIRECTORY, dir_fd=self._fd))
                if child.lower and self.target.marking.read(child.fd()).opaque:
                    child.lower = []
                self._keep_open(child)
            self._children[name] = child
        return child

    def _keep_open(self, child: TargetDirectory) -> None:
        """Have a directory that an earlier source has made keep what it has."""
        st = os.fstat(child.fd())
        child.mtime_ns = st.st_mtime_ns
        if not self.target.is_root:
            child.attributes = Attributes(st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode))
            os.fchmod(child.fd(), 0o700)

    def _check_depth(self, name: bytes) -> None:
        depth = 0
        here: TargetDirectory | None = self
        while here is not None:
            depth += 1
            here = here.parent
        if depth > DEEPEST:
            raise too_deep(name)

    def add(self, name: bytes, *, replace: bool = False) -> TargetDirectory:
        """Make the directory *name*, where no directory is. What is there goes if it may.

        Raises `Occupied`, and `OSError`.
        """
        self._check_depth(name)
        hides = False
        if self._own(name) is not None:
            if not replace:
                raise Occupied(f"cannot copy a directory to {self._shown(name)}: a file is there")
            os.unlink(name, dir_fd=self._fd)
            hides = bool(self.lower) and isinstance(merge.resolve(self.lower, name), list)
        elif self.lower and not replace and merge.resolve(self.lower, name) is not None:
            raise Occupied(f"cannot copy a directory to {self._shown(name)}: a file is there")
        child = TargetDirectory(self.target, self, name, [])
        child.fd()
        self.changed = True
        if hides:
            whiteout.set_opaque(child.fd(), self.target.marking)
        self._children[name] = child
        return child

    def make_room(self, name: bytes, *, replace: bool = False) -> None:
        """See to it that something other than a directory can be made at *name*.

        Raises `Occupied` where a directory is, unless *replace*, and `OSError`.
        """
        own = self._own(name)
        if own is None:
            if self.lower and not replace and isinstance(merge.resolve(self.lower, name), list):
                raise Occupied(f"cannot copy a file to {self._shown(name)}: a directory is there")
        elif not stat.S_ISDIR(own.st_mode):
            os.unlink(name, dir_fd=self._fd)
        elif not replace:
            raise Occupied(f"cannot copy a file to {self._shown(name)}: a directory is there")
        else:
            child = self._children.pop(name, None)
            if child is not None:
                child.close(keep=False)
            remove_trees(self.target.path / os.fsdecode(self.path().lstrip(b"/")) / os.fsdecode(name))

    def create(self, name: bytes, mode: int, *, replace: bool = False) -> int:
        """Make the regular file *name*, in place of anything that is no directory; return a descriptor."""
        if self.lower:
            self.make_room(name, replace=replace)
        self.changed = True
        try:
            return os.open(name, NEW_FILE, mode, dir_fd=self.fd())
        except FileExistsError:
            self.make_room(name, replace=replace)
            return os.open(name, NEW_FILE, mode, dir_fd=self.fd())

    def _shown(self, name: bytes) -> str:
        return shown(self.path() + b"/" + name)

    def done(self) -> None:
        """Close the directory: all has been written to it that the present source has for it."""
        if self.parent is not None:
            self.parent._children.pop(self.name, None)
        self.close(keep=True)

    def close(self, *, keep: bool) -> None:
        """Close it and all in it; give its new part, if there is one, what it is to have, if it is kept."""
        for child in list(self._children.values()):
            child.close(keep=keep)
        self._children.clear()
        if self._fd < 0:
            return
        try:
            if keep:
                self._finish()
        finally:
            os.close(self._fd)
            self._fd = -1

    def _finish(self) -> None:
        target = self.target
        moment = self.mtime_ns
        like = target.like if self.parent is None else self.lower[0] if self._is_new and self.lower else None
        if like is not None:
            copy_attributes(like.fd(), self._fd, target.marking)
            if moment is None and not self.changed:
                moment = like.status().st_mtime_ns
        if self.attributes is not None:
            target.give(self._fd, self.attributes, is_mine=like is None and self._is_new)
            moment = self.attributes.mtime_ns if moment is None else moment
        moment = target.time(moment)
        os.utime(self._fd, ns=(moment, moment))


def _identity(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino


def _without_dots(parts: list[bytes]) -> list[bytes]:
    """Return *parts*, of which the first does not exist, with `..` in them taken at its word."""
    left: list[bytes] = []
    for part in parts:
        if part != b"..":
            left.append(part)
        elif left:
            left.pop()
    return left
