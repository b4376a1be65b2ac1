"""COPY, ADD and WORKDIR: a new layer's tree, made at rest on top of the layers below.

As BuildKit has it: the contents of directories are merged into the destination, files take the place of what
is no directory, and links are followed in the destination and at the end of a source, within their trees.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.build.digests import Digest
from layerfs.build.modes import Mode
from layerfs.build.owners import UnknownOwner, find_owner
from layerfs.build.selecting import Job, Pick, Selection, select
from layerfs.build.sources import (
    DEEPEST,
    Item,
    SourceDirectory,
    changed,
    of_stack,
    shown,
    too_deep,
)
from layerfs.build.target import Attributes, Occupied, Target, TargetDirectory
from layerfs.errors import BadRequest, from_os_error
from layerfs.union import syscalls, whiteout
from layerfs.union.copying import copy_data
from layerfs.union.marking import of_this_process
from layerfs.union.ranges import copy_range
from layerfs.union.stack import Stack

__all__ = ["Copied", "Job", "Selection", "make_directory", "select", "write"]

_DESCRIPTORS = 64
_SMALL = 1 << 17
"""Bytes up to which reading and writing a file costs less than asking the kernel to copy it."""
_LARGE = 1 << 28
"""Bytes that are copied before the check is asked again."""
_NEW_DIRECTORY = 0o755


@dataclass(slots=True)
class Copied:
    """What was copied."""

    files: int = 0
    size: int = 0
    """Bytes of regular files."""
    newest_ns: int = 0
    """The last time (ctime) that anything changed of what was read and is not ours."""

    def is_as(self, digest: Digest) -> bool:
        """Tell whether nothing has changed since *digest*: else its key must not stand for this layer."""
        return self.newest_ns <= digest.newest_ns


def write(
    selection: Selection,
    below: Stack | None,
    tree: Path,
    *,
    scratch: Path,
    epoch: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Copied:
    """Do the copy into the empty directory *tree*, which becomes a layer on top of *below*.

    *tree* gets the owner, mode and attributes of the root below. *scratch* is a directory on its filesystem,
    where archives are unpacked. No time in the layer is later than *epoch* (seconds: SOURCE_DATE_EPOCH).
    Nothing is synced. Raises `LayerfsError`, and what *check* raises; the tree is then to be thrown away.
    """
    job = selection.job
    mode = Mode(job.chmod) if job.chmod is not None else None
    link = job.link and job.chmod is None  # as BuildKit has it
    with _failing(f"{job.word} to {job.destination}"), _opened(below, tree, epoch, link=link) as target:
        owner = _owner(below, job.chown)
        writer = _Writer(target, owner, mode, check)
        destination = _joined(job.workdir, job.destination)
        parents = Attributes(*(owner or (0, 0)), _NEW_DIRECTORY)
        single = len(selection.picks) == 1
        for pick in selection.picks:
            if pick.kind == "archive":
                from layerfs.build import archives

                files, size = archives.unpack(
                    pick, target, destination, parents, owner, scratch=scratch, check=check
                )
                writer.copied.files += files
                writer.copied.size += size
                if pick.source.may_change:
                    writer.note(pick.st)
            else:
                writer.copy(pick, destination, parents, single=single)
    return writer.copied


def make_directory(
    path: str, user: str, below: Stack | None, tree: Path, *, epoch: int | None = None
) -> bool:
    """WORKDIR: make the directory *path* (absolute), and those above it, mode 0755, owned by *user*.

    *user* is as USER has it, empty for root; one who is not there counts as root. Tells whether the directory
    was missing; if not, *tree* is as it was but for its attributes, and no layer is needed. Raises
    `LayerfsError`.
    """
    with _failing(f"WORKDIR {path}"), _opened(below, tree, epoch, link=False) as target:
        _, missing = target.find(os.fsencode(path))
        if missing:
            owner = None
            with suppress(
                UnknownOwner
            ):  # a RUN or container will say so, if there is any; so has BuildKit it
                owner = _owner(below, user or None)
            target.make(os.fsencode(path), Attributes(*(owner or (0, 0)), _NEW_DIRECTORY))
        return bool(missing)


@contextmanager
def _opened(below: Stack | None, tree: Path, epoch: int | None, *, link: bool) -> Iterator[Target]:
    epoch_ns = None if epoch is None else epoch * 1_000_000_000
    if below is None:
        with Target(tree, [], of_this_process(), epoch_ns=epoch_ns) as target:
            yield target
        return
    with (
        below.opened(_DESCRIPTORS) as layers,
        Target(tree, layers, below.marking, epoch_ns=epoch_ns, link=link) as target,
    ):
        yield target


@contextmanager
def _failing(doing: str) -> Iterator[None]:
    """Have errors of the system, and those about the destination, say what was being done."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from None
    except Occupied as error:
        raise BadRequest(f"{doing}: {error}") from None


def _owner(below: Stack | None, wanted: str | None) -> tuple[int, int] | None:
    if wanted is None:
        return None
    if below is None:
        return find_owner(None, wanted)
    with of_stack(below, "the stage") as source:
        return find_owner(source, wanted)


def _joined(workdir: str, destination: str) -> bytes:
    """Return the destination from the root, with a slash at the end if it is to be a directory."""
    path = posixpath.join("/", workdir, destination)
    if destination in ("", ".") or path.endswith(("/", "/.")):
        path = path.rstrip("/") + "/"
    return os.fsencode(path)


class _Writer:
    """Copies picks into a target."""

    def __init__(
        self, target: Target, owner: tuple[int, int] | None, mode: Mode | None, check: Callable[[], None]
    ) -> None:
        self.copied = Copied()
        self._target = target
        self._owner = owner
        self._mode = mode
        self._check = check
        self._keeps_owners = False
        self._may_change = True
        self._links: dict[tuple[int, int], bytes] = {}

    def note(self, st: os.stat_result) -> None:
        """Note that something with the stat *st* was read."""
        if st.st_ctime_ns > self.copied.newest_ns:
            self.copied.newest_ns = st.st_ctime_ns

    def copy(self, pick: Pick, destination: bytes, parents: Attributes, *, single: bool) -> None:
        """Copy a file, or what a directory holds, to *destination*, a directory if it ends with a slash."""
        self._keeps_owners = pick.source.keeps_owners
        self._may_change = pick.source.may_change
        self._links.clear()
        target = self._target
        into, missing = target.find(destination)
        if pick.kind == "directory" or destination.endswith(b"/"):
            into, missing = target.extend(into, missing, parents), []
        if pick.kind == "directory":
            with pick.inside() as directory:
                self._copy_contents(directory, into, 0)
                into.mtime_ns = directory.st.st_mtime_ns
            return
        name = pick.name
        if missing:
            *above, name = missing
            if not single:
                raise Occupied("with several files, the destination must be a directory: end it with a slash")
            into = target.extend(into, above, parents)
        with pick.above() as (directory, item):
            self._copy_item(directory, item, into, name)

    def _copy_contents(self, source: SourceDirectory, into: TargetDirectory, depth: int) -> None:
        self._check()
        self._target.trim()
        if self._target.is_here(source.st):
            raise BadRequest("the build context contains the store: move it, or name it in .dockerignore")
        if self._may_change:
            self.note(source.st)
        for item in source.items():
            if stat.S_ISDIR(item.st.st_mode):
                self._copy_directory(source, item, into, depth)
            else:
                self._copy_item(source, item, into, item.name)

    def _copy_directory(self, source: SourceDirectory, item: Item, into: TargetDirectory, depth: int) -> None:
        if depth > DEEPEST:
            raise too_deep(item.name)
        with closing(source.enter(item.name)) as inside:
            seen = into.look(item.name)
            if seen is not None and stat.S_ISDIR(seen.st_mode):
                child = into.enter(item.name)
            else:
                child = into.add(item.name)
            if seen is None or not inside.implied:
                child.fd()
                child.attributes = self._attributes(inside.st, inside.xattrs(b"", -1))
                child.mtime_ns = inside.st.st_mtime_ns
            self._copy_contents(inside, child, depth + 1)
            child.done()

    def _attributes(self, st: os.stat_result, xattrs: dict[bytes, bytes]) -> Attributes:
        uid, gid = self._owner or ((st.st_uid, st.st_gid) if self._keeps_owners else (0, 0))
        mode = self._mode.apply(st.st_mode) if self._mode is not None else stat.S_IMODE(st.st_mode)
        return Attributes(uid, gid, mode, st.st_mtime_ns, xattrs)

    def _copy_item(self, source: SourceDirectory, item: Item, into: TargetDirectory, name: bytes) -> None:
        """Copy anything but a directory to *name* in *into*."""
        st = item.st
        self.copied.files += 1
        if st.st_nlink > 1 and self._link(st, into, name):
            return
        if stat.S_ISREG(st.st_mode):
            self._copy_file(source, item, into, name)
        else:
            if self._may_change:
                self.note(st)
            self._copy_special(source, item, into, name)
        if st.st_nlink > 1:
            self._links[st.st_dev, st.st_ino] = into.path() + b"/" + name

    def _link(self, st: os.stat_result, into: TargetDirectory, name: bytes) -> bool:
        """Make *name* another name of what was copied before, if the file with the stat *st* was."""
        first = self._links.get((st.st_dev, st.st_ino))
        if first is None:
            return False
        into.make_room(name)
        try:
            os.link(
                first.lstrip(b"/"),
                name,
                src_dir_fd=self._target.root.fd(),
                dst_dir_fd=into.fd(),
                follow_symlinks=False,
            )
        except OSError:  # too long a path, too many links: then it is a file of its own
            return False
        into.changed = True
        return True

    def _copy_file(self, source: SourceDirectory, item: Item, into: TargetDirectory, name: bytes) -> None:
        st = item.st
        size = st.st_size
        target = self._target
        fd, start = source.open(item)
        try:
            attributes = self._attributes(st, source.xattrs(item.name, fd))
            mode = attributes.mode
            plain = target.created_mode(mode)
            new = into.create(name, mode if plain else 0o600)
            try:
                if size <= _SMALL and st.st_blocks << 9 >= size:
                    _copy_small(fd, start, new, size, item.name)
                else:
                    self._copy_large(fd, start, new, size)
                target.give(new, attributes, mode_is_set=plain)
                moment = target.time(attributes.mtime_ns)
                os.utime(new, ns=(moment, moment))
            finally:
                os.close(new)
            if self._may_change:
                self.note(os.fstat(fd))
        finally:
            os.close(fd)
        self.copied.size += size

    def _copy_large(self, source: int, start: int, target: int, size: int) -> None:
        """Copy *size* bytes from *start* on: by sharing them, or in the kernel, holes as holes."""
        if start == 0 and size <= _LARGE:
            self._check()
            copy_data(source, target, size)
            return
        if start == 0 and syscalls.clone_file(source, target):
            os.ftruncate(target, size)  # more may have come since
            return
        at = 0
        while at < size:
            self._check()
            end = min(at + _LARGE, size)
            if start == 0:
                at = _next_data(source, at, end)
                end = min(_next_hole(source, at), end) if at < end else end
            copy_range(source, target, start + at, end - at, at=at)
            at = end
        os.ftruncate(target, size)

    def _copy_special(self, source: SourceDirectory, item: Item, into: TargetDirectory, name: bytes) -> None:
        st = item.st
        into.make_room(name)
        if stat.S_ISLNK(st.st_mode):
            os.symlink(source.readlink(item.name), name, dir_fd=into.fd())
        elif whiteout.is_device_whiteout(st):
            raise BadRequest(
                f"cannot copy {shown(item.name)}: a layer has character devices 0:0 for deleted names"
            )
        else:
            os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=into.fd())
        into.changed = True
        attributes = self._attributes(st, source.xattrs(item.name, -1))
        self._target.give_at(into.fd(), name, attributes, link=stat.S_ISLNK(st.st_mode))


def _next_data(fd: int, at: int, end: int) -> int:
    """Return where there is data in a file from *at* on, *end* if not before."""
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to its end
            return end
        raise


def _next_hole(fd: int, at: int) -> int:
    return os.lseek(fd, at, os.SEEK_HOLE)


def _copy_small(source: int, start: int, target: int, size: int, name: bytes) -> None:
    """Copy *size* bytes from *start* on; more may have come since."""
    data = os.pread(source, size, start)
    while len(data) < size:
        more = os.pread(source, size - len(data), start + len(data))
        if not more:
            raise changed(name)
        data += more
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
