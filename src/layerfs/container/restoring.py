"""Bringing files and trees back into a mount: what differs from then is written to it, as by anybody.

The tree is known by a descriptor of its root. Nothing is written through a link, or to another filesystem
that is mounted in it. A file gets its contents, owner and attributes under a name of its own before it takes
the place of what is there, so nobody sees half of it; several files are not one moment.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from layerfs.container.rootfs import open_on_filesystem
from layerfs.errors import Conflict, LayerfsError, from_os_error
from layerfs.union.comparing import Comparison, Difference
from layerfs.union.copying import copy_data
from layerfs.union.snapshot import Entry, Snapshot

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def restore(root: int, now: Snapshot, then: Snapshot, entries: Sequence[Entry]) -> int:
    """Make the tree *root*, which is as *now*, have *entries* of the tree *then*, with all below them.

    What was not there then goes. Returns how many paths were changed. Not atomic. Raises `LayerfsError`; some
    of it may have been done then.
    """
    comparison = Comparison(now, then)
    done = 0
    for entry in entries:
        writer = _Writer(root, then)
        before = now.at(entry.path)
        found = list(comparison.differences(before, entry))
        try:
            for path in _above(entry.path):
                writer.make_above(path)
            for each in reversed(found):
                if each.before is not None and _gives_way(each):
                    writer.remove(each.before)
            for each in found:
                if each.after is not None:
                    writer.write(each.after)
            writer.finish()
        except OSError as error:
            raise _failed(error, writer.at_work) from None
        done += len(found)
    return done


def _gives_way(each: Difference) -> bool:
    """Tell whether what is there must go before anything comes: files give way when they are replaced."""
    assert each.before is not None
    if each.after is None:
        return True
    return each.before.is_directory and not each.after.is_directory


def _above(path: bytes) -> Iterator[bytes]:
    """Yield the directories above *path*, from the top, without the root."""
    names = path.split(b"/")[1:-1]
    for number in range(1, len(names) + 1):
        yield b"/" + b"/".join(names[:number])


def _failed(error: OSError, path: bytes) -> LayerfsError:
    shown = path.decode("utf-8", "replace")
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return Conflict(f"cannot restore {shown}: a directory above it is a file or a link now")
    if error.errno == errno.EXDEV:
        return Conflict(f"cannot restore {shown}: something else is mounted on it, or above it")
    error.filename = None
    return from_os_error(error, f"restore {shown}")


class _Writer:
    """Writes entries of one tree into another; its methods raise `OSError`."""

    def __init__(self, root: int, then: Snapshot) -> None:
        self.at_work = b"/"
        """The path that is being written."""
        self._root = root
        self._then = then
        self._links: dict[tuple[int, int], bytes] = {}
        self._touched: dict[bytes, None] = {}

    def make_above(self, path: bytes) -> None:
        """Make a directory above what is brought back, as it was, if it is missing."""
        self.at_work = path
        entry = self._then.at(path)
        with self._parent(path) as (parent, name):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                return
        if entry is not None:
            self._dress_directory(entry)
            self._touched[path] = None

    def remove(self, entry: Entry) -> None:
        """Remove what is there, a directory only if it is empty."""
        self.at_work = entry.path
        self._touch_above(entry.path)
        with self._parent(entry.path) as (parent, name), suppress(FileNotFoundError):
            if entry.is_directory:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def write(self, entry: Entry) -> None:
        """Have *entry* be there."""
        self.at_work = entry.path
        self._then.trim()
        self._touch_above(entry.path)
        if entry.is_directory:
            self._directory(entry)
        else:
            self._other(entry)

    def finish(self) -> None:
        """Give the directories that were written to the times that they had."""
        for path in sorted(self._touched, reverse=True):
            entry = self._then.at(path)
            if entry is not None and entry.is_directory:
                with self._opened(path) as fd:
                    os.utime(fd, ns=(entry.status.st_atime_ns, entry.status.st_mtime_ns))

    def _directory(self, entry: Entry) -> None:
        if entry.path != b"/":
            with self._parent(entry.path) as (parent, name):
                try:
                    is_there = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
                    if not is_there:
                        os.unlink(name, dir_fd=parent)
                except FileNotFoundError:
                    is_there = False
                if not is_there:
                    os.mkdir(name, 0o700, dir_fd=parent)
        self._dress_directory(entry)
        self._touched[entry.path] = None

    def _dress_directory(self, entry: Entry) -> None:
        with self._opened(entry.path) as fd:
            wanted = self._then.xattrs(entry)
            for text in os.listxattr(fd):
                if os.fsencode(text) not in wanted:
                    os.removexattr(fd, text)
            self._dress(b"/proc/self/fd/%d" % fd, entry, follow=True)

    def _other(self, entry: Entry) -> None:
        identity = entry.status.st_dev, entry.status.st_ino
        with self._parent(entry.path) as (parent, name):
            fresh = b".layerfs-%s" % os.urandom(8).hex().encode()
            place = b"/proc/self/fd/%d/%s" % (parent, fresh)
            try:
                first = self._links.get(identity) if entry.status.st_nlink > 1 else None
                if first is None:
                    self._make(parent, fresh, entry)
                    self._dress(place, entry, follow=False)
                else:
                    with self._parent(first) as (other, known):
                        os.link(known, fresh, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
                os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(fresh, dir_fd=parent)
                raise
        self._links.setdefault(identity, entry.path)

    def _make(self, parent: int, name: bytes, entry: Entry) -> None:
        kind = stat.S_IFMT(entry.status.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(self._then.link(entry), name, dir_fd=parent)
            return
        if kind != stat.S_IFREG:
            os.mknod(name, kind | 0o600, entry.status.st_rdev, dir_fd=parent)
            return
        source = self._then.open(entry)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=parent)
            try:
                copy_data(source, target, entry.status.st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _dress(self, place: bytes, entry: Entry, *, follow: bool) -> None:
        """Give *place* the owner, attributes, mode and times of *entry*."""
        st = entry.status
        os.chown(place, st.st_uid, st.st_gid, follow_symlinks=follow)
        for name, value in self._then.xattrs(entry).items():
            os.setxattr(place, name, value, follow_symlinks=follow)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(place, stat.S_IMODE(st.st_mode))
        os.utime(place, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=follow)

    def _touch_above(self, path: bytes) -> None:
        self._touched[path.rpartition(b"/")[0] or b"/"] = None

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory that *path* is in, for the block; yield its descriptor and the last name."""
        above, _, name = path.rpartition(b"/")
        with self._opened(above or b"/") as fd:
            yield fd, name

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        fd = open_on_filesystem(self._root, path.lstrip(b"/") or b".", _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)
