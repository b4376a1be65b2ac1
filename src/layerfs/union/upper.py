"""The upper layer: the tree that takes the writes, with the work directory beside it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from layerfs.union import durability, syscalls
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.extents import reports_extents
from layerfs.union.layer import Layer
from layerfs.union.marking import TRUSTED, USER, Marking, Trust
from layerfs.union.moves import Moves
from layerfs.union.whiteout import make_whiteout

_log = logging.getLogger(__name__)

_WORK = b"work"
_WHITEOUT = b"whiteout"
_MOVES = b"moves"
PARTIALS = "partial"
"""There while files of the upper may be partial. Other overlays, which empty the work directory, leave it."""
_NOTE = os.path.join("..", PARTIALS)

_one_at_a_time = threading.Lock()


class Upper(Layer):
    """The one layer that changes. Only one union at a time may have it (it is held by `flock`).

    New objects are made ready in the work directory and then renamed into place, so each appears
    whole or not at all. As in overlayfs only `WORK/work` is used, and emptied at the start.
    """

    __slots__ = ("_copies", "_reports_extents", "_serial", "make_durable", "work", "work_path")

    work: int
    """A descriptor on the directory for objects in the making; open until the layer is sealed."""
    _serial: count[int]

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        work: str | bytes | os.PathLike[str],
        *,
        after: Upper | None = None,
        marking: Marking | None = None,
        trust: Trust = Trust.ALL,
        shelf: Shelf | None = None,
        directories: DirectoryCache | None = None,
    ) -> None:
        """Open the tree at *path* with work directory *work*.

        *after* is the upper that this one is to follow in the same union; the two may share a work
        directory. What else there is to say of this one is then as it is of that one.

        Raises `OSError`: EBUSY when another mount uses the upper, EXDEV when the two are not on one
        filesystem, EINVAL when one lies in the other, EOPNOTSUPP when the filesystem takes `USER` marks
        but not those of *marking*.
        """
        if after is not None:
            marking, trust, shelf, directories = after.marking, after.trust, after.shelf, after.directories
        super().__init__(
            path, mutable=True, marking=marking, trust=trust, shelf=shelf, directories=directories
        )
        self._copies = 0
        self._reports_extents: bool | None = None if after is None else after._reports_extents
        try:
            self.work_path = os.fsencode(work)
            self._check_work()
            try:
                fcntl.flock(self.root.fd(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "already used by another mount", self.path) from None
            if after is not None and after.work_path == self.work_path:
                self.work, self._serial = os.dup(after.work), after._serial
            else:
                self._load_moves()
                self.work, self._serial = self._open_work(), count(1)
            with os.scandir(self.root.fd()) as entries:
                if next(entries, None) is None:
                    self.moves = Moves(known=True)
        except BaseException:
            self.root.close()
            raise
        self.make_durable: Callable[[int], None]
        if after is not None and os.fstat(after.work).st_dev == os.fstat(self.work).st_dev:
            self.make_durable = after.make_durable  # a commit is in a hurry
        else:
            self.make_durable = durability.settler(self.work)
            if (
                self.marking is TRUSTED
                and not TRUSTED.can_be_written(self.work)
                and USER.can_be_written(self.work)
            ):
                self.close()
                code = errno.EOPNOTSUPP
                raise OSError(code, "its filesystem has no trusted. attributes: use -o userxattr", self.path)

    def _check_work(self) -> None:
        upper, work = os.stat(self.path), os.stat(self.work_path)
        if not stat.S_ISDIR(work.st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.work_path)
        if upper.st_dev != work.st_dev:
            raise OSError(errno.EXDEV, "the work directory is not on the upper's filesystem", self.work_path)
        first, second = os.path.realpath(self.path) + b"/", os.path.realpath(self.work_path) + b"/"
        if first.startswith(second) or second.startswith(first):
            raise OSError(errno.EINVAL, "upper and work directory lie in one another", self.work_path)

    def _load_moves(self) -> None:
        """Learn what the last daemon knew of renamed directories, if it ended in order.

        Another overlay that was mounted meanwhile has emptied the work directory, as all of them do.
        """
        path = os.path.join(self.work_path, _WORK, _MOVES)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError), open(os.open(path, flags), "rb") as file:
            self.moves = Moves.load(file.read(), self._inode()) or self.moves

    def _save_moves(self) -> None:
        """Leave for the next daemon what is known of renamed directories."""
        temporary = self.temporary()
        with suppress(OSError):  # without it the next one searches
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600, dir_fd=self.work), "wb") as file:
                file.write(self.moves.dump(self._inode()))
            os.rename(temporary, _MOVES, src_dir_fd=self.work, dst_dir_fd=self.work)

    def _inode(self) -> int:
        return os.fstat(self.root.fd()).st_ino

    def _open_work(self) -> int:
        path = os.path.join(self.work_path, _WORK)
        if os.path.lexists(path):
            shutil.rmtree(path)
        os.mkdir(path, 0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def seal(self) -> None:
        """Make this an immutable layer: from now on it is a lower, and nobody's upper.

        The descriptor on the work directory stays open while a copy-up on its way has a file there.
        """
        for name in (_WHITEOUT, _MOVES):  # a next upper that was not used may have left its own table
            with suppress(OSError):
                os.unlink(name, dir_fd=self.work)
        fcntl.flock(self.root.fd(), fcntl.LOCK_UN)
        self.mutable = False
        self.let_go()
        self._close_work()

    def begin_copy(self) -> None:
        """Have the work directory stay open until `end_copy`, also when the layer is sealed before that."""
        self._copies += 1

    def end_copy(self) -> None:
        """Take back what one `begin_copy` has asked for."""
        self._copies -= 1
        if not self.mutable:
            self._close_work()

    @property
    def copies(self) -> int:
        """How many copy-ups are on their way that have begun in this layer."""
        return self._copies

    def settle(self, fd: int) -> float:
        """Do `make_durable` with *fd*; return the seconds that took."""
        start = time.perf_counter()
        self.make_durable(fd)
        return time.perf_counter() - start

    @property
    def keeps_order(self) -> bool:
        """Whether what is changed first is on the disk first, with nothing to wait for."""
        return self.make_durable is syscalls.write_back

    def can_hold_partial(self) -> bool:
        """Tell whether files may be partial here: their marks are followed, and their extents are told."""
        if self._reports_extents is None:
            self._reports_extents = self.trust is Trust.ALL and reports_extents(self.work)
        return self._reports_extents

    def will_have_partial(self) -> None:
        """Note, before any of them has a name, that files here may be partial. Any thread may do it.

        That is on the disk before their names are. Raises `OSError`.
        """
        with _one_at_a_time:
            if self.may_have_partial():
                return
            fd = os.open(_NOTE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.work)
            try:
                if not self.keeps_order:
                    os.fsync(fd)
                    _sync_directory(b"..", self.work)
            finally:
                os.close(fd)

    def may_have_partial(self) -> bool:
        """Tell whether files here may be partial, of a daemon that was killed."""
        try:
            os.stat(_NOTE, dir_fd=self.work, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def has_no_partial(self) -> None:
        """Take back what `will_have_partial` noted."""
        with suppress(OSError):
            os.unlink(_NOTE, dir_fd=self.work)

    def _close_work(self) -> None:
        if self.work >= 0 and not self._copies:
            os.close(self.work)
            self.work = -1

    def close(self) -> None:
        """Close every descriptor on the layer and give it up for others."""
        if self.mutable and self.moves.settle():
            self._save_moves()
        self._copies = 0
        self._close_work()
        super().close()

    def give_up(self) -> None:
        """Close the descriptors of an upper that was never used: nothing is left for another one.

        Those on directories, which it shares with the one that it was to follow, stay as they are.
        """
        self._close_work()
        self.root.close()

    def nameless_file(self) -> tuple[int, bytes]:
        """Make an empty regular file and return its descriptor and its name in the work directory.

        It has none (b"") where the filesystem can do without (open(2), O_TMPFILE): then nothing is left of
        it however the process ends, and syncing it syncs no directory.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(b".", flags | os.O_TMPFILE, 0o600, dir_fd=self.work), b""
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
        name = self.temporary()
        return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.work), name

    def temporary(self) -> bytes:
        """Return a name that is free in the work directory."""
        return b"#%x" % next(self._serial)

    def work_object(self, name: bytes) -> bytes:
        """Return a path of *name* in the work directory, for calls without directory descriptors."""
        return b"/proc/self/fd/%d/%s" % (self.work, name)

    def whiteout(self, directory: int, name: bytes, *, over: bool) -> None:
        """Put a whiteout at *name* in the upper directory *directory*; with *over*, in place of a file."""
        if not over:
            self._link_whiteout(directory, name)
            return
        temporary = self.temporary()
        self._link_whiteout(self.work, temporary)
        try:
            os.rename(temporary, name, src_dir_fd=self.work, dst_dir_fd=directory)
        except OSError:
            os.unlink(temporary, dir_fd=self.work)
            raise

    def _link_whiteout(self, directory: int, name: bytes) -> None:
        """Make *name* one more link to the layer's one whiteout inode, as overlayfs does: links are cheap."""
        try:
            os.link(_WHITEOUT, name, src_dir_fd=self.work, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            make_whiteout(directory, name)
            if error.errno in (errno.ENOENT, errno.EMLINK):
                self._share_whiteout(directory, name)

    def _share_whiteout(self, directory: int, name: bytes) -> None:
        with suppress(OSError):
            os.unlink(_WHITEOUT, dir_fd=self.work)
        with suppress(OSError):  # without it the next one is made, not linked
            os.link(name, _WHITEOUT, src_dir_fd=directory, dst_dir_fd=self.work, follow_symlinks=False)

    def discard(self, name: bytes) -> None:
        """Remove *name*, whatever it is, from the work directory; what cannot go waits for the next start."""
        try:
            os.unlink(name, dir_fd=self.work)
        except IsADirectoryError:
            shutil.rmtree(self.work_object(name), ignore_errors=True)
        except OSError:
            _log.warning("cannot remove %r from %r", name, self.work_path)

    def exchange(self, temporary: bytes, directory: int, name: bytes) -> None:
        """Swap *temporary* of the work directory with *name* in *directory*, atomically."""
        syscalls.renameat2(self.work, temporary, directory, name, syscalls.RENAME_EXCHANGE)


def _sync_directory(path: bytes, dir_fd: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
