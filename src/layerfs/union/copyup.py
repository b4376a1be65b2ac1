"""Copy-up: bringing an object of a lower layer into the upper before its first change.

A file's copy is made without a name, made durable, and linked into place, so the upper holds the old
object or the whole new one. Copying may take long, so it comes in three steps: `CopyUp(...)`
and `finish` belong to the thread that owns the union, `copy` to any thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from layerfs.union import syscalls
from layerfs.union.below import file_path
from layerfs.union.copying import copy_data, copy_metadata
from layerfs.union.fillin import FillIn
from layerfs.union.generation import above, refresh
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.links import Renamed, learn_moves, names_in, today
from layerfs.union.marking import METACOPY, REDIRECT
from layerfs.union.moves import Path
from layerfs.union.node import Directory, File, Node
from layerfs.union.partial import Partial, mark, unmark
from layerfs.union.ranges import shorter
from layerfs.union.thin import TOO_LONG, has_room, may_be_thin
from layerfs.union.unfinished import make_whole
from layerfs.union.upper import Upper
from layerfs.union.view import Union


def writable_upper(union: Union) -> Upper:
    """Return the upper layer of *union*; raises EROFS where it has none."""
    if union.upper is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return union.upper


def copy_up(union: Union, node: File) -> None:
    """Bring *node* into the upper, all three steps in a row. Raises `OSError`, having changed nothing."""
    if node.partial is not None:
        make_whole(union, node)
    elif not union.is_whole(node):
        job = FillIn(union, node) if union.in_upper(node) else CopyUp(union, node)
        try:
            job.copy()
            job.finish()
        finally:
            job.close()


class CopyUp:
    """One copy-up of *node* under way; `close` it in any case.

    With *length* only so many bytes are copied, for a file that is about to be cut to that length. With
    *metadata_only*, where the union allows that form and the file has no other name, none are. Nor are they
    with *thin*, where the file is large enough and the upper's filesystem can: it is partial then.
    """

    def __init__(
        self,
        union: Union,
        node: File,
        length: int | None = None,
        *,
        metadata_only: bool = False,
        durable: bool = True,
        thin: bool = False,
    ) -> None:
        self._union = union
        self._node = node
        self._upper = writable_upper(union)
        self._durable = durable
        self._temporary = b""
        self._copy = -1
        self._st = st = node.stat()
        if stat.S_IFMT(st.st_mode) != node.kind:  # somebody has changed the layer
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.length = st.st_size if length is None else min(length, st.st_size)
        """Bytes to copy, holes among them."""
        self._unseen = union.links(node, st) > len(node.names)
        self._links: list[Path] = []
        self.settling = 0.0
        """Seconds that the copy took to get to the disk."""
        self._metadata_only = (
            metadata_only
            and union.metacopy
            and node.is_regular
            and (st.st_nlink == 1 and st.st_size > 0 and bool(node.names))
        )
        self.is_thin = (
            thin
            and not self._metadata_only
            and node.is_regular
            and (st.st_nlink == 1 and bool(node.names))
            and may_be_thin(union, self._upper, self.length)
        )
        """Whether the copy is partial, once it has been made."""
        self._redirect = file_path(union, node) if self.is_thin else b""
        self._object = node.open(os.O_PATH)
        try:
            self._contents = os.dup(union.data(node)) if node.is_regular else -1
        except OSError:
            os.close(self._object)
            raise
        self._upper.begin_copy()

    def is_small(self, most: int) -> bool:
        """Tell whether `copy` reads at most *most* bytes, all of them in memory."""
        if not self._node.is_regular or self._metadata_only or not self.length:
            return self._st.st_nlink == 1 and not self._unseen
        if self._st.st_nlink > 1 or self._unseen or self.length > most:
            return False  # the other names of a file may have to be looked for in its whole layer
        try:
            return os.preadv(self._contents, [bytearray(self.length)], 0, os.RWF_NOWAIT) == self.length
        except OSError:
            return False

    def copy(self) -> None:
        """Make the copy, without a name or in the work directory. Touches no node: any thread may do it."""
        node, st, upper = self._node, self._st, self._upper
        source = b"/proc/self/fd/%d" % self._object
        if self._unseen:
            self._links = names_in(node.home.layer, st.st_ino)
            self.search()
        if stat.S_ISREG(st.st_mode):
            self._copy, self._temporary = upper.nameless_file()
            if self._metadata_only:
                os.ftruncate(self._copy, st.st_size)
                os.setxattr(self._copy, upper.marking.prefix + METACOPY, b"")
            else:
                self.is_thin = self.is_thin and self._make_thin()
                if not self.is_thin:
                    self._copy_contents()
            target = b"/proc/self/fd/%d" % self._copy
            copy_metadata(source, st, upper, target, follow=True, record=self._record())
            if self.is_thin and self._durable and not upper.keeps_order:
                os.fsync(self._copy)  # the marks: without them the file would be one of zeros
        else:
            name = upper.temporary()
            if stat.S_ISLNK(st.st_mode):
                os.symlink(os.readlink(b"", dir_fd=self._object), name, dir_fd=upper.work)
            else:
                os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=upper.work)
            self._temporary = name
            self._copy = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work)
            copy_metadata(source, st, upper, upper.work_object(name), record=self._record())

    def _make_thin(self) -> bool:
        """Mark the copy as partial; tell whether it is. It is not where blocks are shared."""
        upper = self._upper
        if not has_room(self._union, self._copy, self.length):
            return False
        if syscalls.clone_file(self._contents, self._copy):
            return False  # that was as quick, and the file is whole; `copy_data` does it once more
        if os.fstat(self._contents).st_size < self.length:
            raise shorter()
        upper.will_have_partial()
        try:
            os.setxattr(self._copy, upper.marking.prefix + REDIRECT, self._redirect)
        except OSError as error:
            if error.errno in TOO_LONG:
                return False
            raise
        os.ftruncate(self._copy, self.length)
        mark(self._copy, upper.marking.prefix, self.length)
        return True

    def _copy_contents(self) -> None:
        copy_data(self._contents, self._copy, self.length)
        self._settle()

    def _settle(self) -> None:
        if self._durable and self.length:
            self.settling = self._upper.settle(self._copy)

    def is_late(self) -> bool:
        """Tell whether the copy is thin and must be filled: its marks are true of an upper of before."""
        return self.is_thin and self._upper is not self._union.upper

    def fill(self) -> None:
        """Have a copy that was made thin be a whole one after all; any thread may do it."""
        self._copy_contents()
        unmark(self._copy, self._upper.marking.prefix)
        os.utime(self._copy, ns=(self._st.st_atime_ns, self._st.st_mtime_ns))
        self.is_thin = False

    def is_ready(self) -> bool:
        """Tell whether `finish` has nothing to search; if it has, `search` does that in a thread before.

        A directory that was renamed during a search may have been missed by it.
        """
        return not self._links or all(layer.moves.settle() for layer in self._above())

    def search(self) -> None:
        """Find out once more where directories were renamed. Touches no node: any thread may do it."""
        learn_moves(self._above())

    def _above(self) -> Sequence[Layer | Renamed]:
        return above(self._union, self._node.home.layer)

    def _record(self) -> bytes | None:
        """Return what to note on the copy for it to keep the file's number.

        Nothing for a file that has names outside of its layer: another layer may show it under those, and
        it has that number then.
        """
        if self._unseen and len(self._links) < self._st.st_nlink:
            return None
        return self._union.table.record(self._node.ino, os.fstat(self._copy).st_ino)

    def finish(self) -> None:
        """Put the copy in its place in today's upper, under every name that the file has."""
        union, node = self._union, self._node
        refresh(union, node)  # the union may have gone back meanwhile: then it may have no name any more
        union.on_change(node)
        before = (node.home, node.entry)
        union.drop_data(node)
        names = {*node.names, *self._unseen_names()}
        if names:
            self._place(names)
        else:
            pin = os.dup(self._copy)
            node.drop_pin()
            node.pin = pin
            node.orphan = True
        below = self._metadata_only or self.is_thin
        if not below:
            node.contents = None
        elif node.contents is None:
            node.contents = before
        node.removed = node.synced = False
        union.table.identify(node, node.home.layer, os.fstat(self._copy))
        if self.is_thin:
            union.add_partial(node, Partial(self._copy, self._contents, self.length))
            self._copy = self._contents = -1
        elif node.is_regular and not below:
            union.adopt_data(node, self._copy, writable=True)
            self._copy = -1

    def _place(self, names: set[tuple[Directory, bytes]]) -> None:
        union, node = self._union, self._node
        made: list[tuple[LayerDir, bytes]] = []
        try:
            for directory, name in sorted(names, key=lambda place: place != node.names[0]):
                home = copy_up_directory(union, directory)
                with KeptTimes(home):
                    self._link(home, name)
                made.append((home, name))
        except OSError:
            for home, name in made:
                with KeptTimes(home):
                    os.unlink(name, dir_fd=home.fd())
            raise
        node.place(*made[0])

    def _link(self, home: LayerDir, name: bytes) -> None:
        """Give the copy a name; by what it has already, if anything: not all may use /proc for that."""
        if self._temporary:
            os.link(
                self._temporary,
                name,
                src_dir_fd=self._upper.work,  # of the upper that it was when the copy was begun
                dst_dir_fd=home.fd(),
                follow_symlinks=False,
            )
        else:
            os.link(b"/proc/self/fd/%d" % self._copy, name, dst_dir_fd=home.fd(), follow_symlinks=True)

    def _unseen_names(self) -> Iterator[tuple[Directory, bytes]]:
        """Yield the file's other names in the union, whether anybody has looked them up or not."""
        union, node = self._union, self._node
        if not self._links:
            return
        above = self._above()
        for name_in_layer in self._links:
            *parents, name = today(name_in_layer, above)
            directory = _find_directory(union, parents)
            if directory is not None:
                found = _reachable(union, directory, name)
                if found is node:
                    yield directory, name
                else:
                    union.release(found or directory)  # the kernel never heard of it, and will not forget it

    def close(self) -> None:
        """Close what the copy-up had open and remove what it leaves in the work directory."""
        for fd in (self._object, self._contents, self._copy):
            if fd >= 0:
                os.close(fd)
        if self._temporary:
            self._upper.discard(self._temporary)
        self._upper.end_copy()


def _find_directory(union: Union, path: Sequence[bytes]) -> Directory | None:
    """Return the directory with that path from the root; None where there is none today."""
    directory = union.root
    for name in path:
        node = _reachable(union, directory, name)
        if not isinstance(node, Directory):
            union.release(node or directory)
            return None
        directory = node
    return directory


def _reachable(union: Union, directory: Directory, name: bytes) -> Node | None:
    """Return what `Union.lookup` does, and None for a name that nobody can reach by this union.

    It lies behind a mark that is not followed, or in a directory that we may not read.
    """
    try:
        return union.lookup(directory, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.EACCES):
            raise
        return None


class KeptTimes:
    """Leaves a directory's times as they were: a copy-up is no change that people made."""

    def __init__(self, directory: LayerDir) -> None:
        self._fd = directory.fd()

    def __enter__(self) -> None:
        self._st = os.fstat(self._fd)

    def __exit__(self, *failure: object) -> None:
        os.utime(self._fd, ns=(self._st.st_atime_ns, self._st.st_mtime_ns))


def copy_up_directory(union: Union, directory: Directory) -> LayerDir:
    """Return *directory*'s part in the upper, made (with those of its parents) where there is none.

    Raises `OSError`: EROFS without an upper, ENOENT for a removed directory, or what went wrong below.
    """
    upper = writable_upper(union)
    if directory.dirs[0].layer is upper and not directory.removed:
        return directory.dirs[0]
    missing: list[Directory] = []
    for ancestor in directory.ancestors():
        if ancestor.removed:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if ancestor.dirs[0].layer is upper:
            break
        missing.append(ancestor)
    for node in reversed(missing):
        assert node.parent is not None
        parent = node.parent.dirs[0]
        source = node.dirs[0].fd()
        with KeptTimes(parent):
            temporary = make_directory_like(upper, source)
            try:
                _move_into(upper, temporary, parent, node.name)
            except OSError:
                upper.discard(temporary)
                raise
        node.dirs.insert(0, parent.child(node.name))
        union.note_top(node)
    return directory.dirs[0]


def _move_into(upper: Upper, temporary: bytes, parent: LayerDir, name: bytes) -> None:
    """Rename a directory into place, also one that its owner, not being root, may not write to."""
    mode = stat.S_IMODE(os.stat(temporary, dir_fd=upper.work).st_mode)
    protected = os.geteuid() != 0 and not mode & stat.S_IWUSR
    if protected:
        os.chmod(temporary, mode | stat.S_IWUSR, dir_fd=upper.work)
    os.rename(temporary, name, src_dir_fd=upper.work, dst_dir_fd=parent.fd())
    if protected:
        os.chmod(name, mode, dir_fd=parent.fd())


def copy_up_removed(union: Union, directory: Directory) -> None:
    """Give a lower *directory* that has been removed while in use a nameless part to change."""
    upper = writable_upper(union)
    temporary = make_directory_like(upper, directory.dirs[0].fd())
    part = LayerDir(upper, None, b"", os.open(temporary, os.O_RDONLY | os.O_CLOEXEC, dir_fd=upper.work))
    part.pinned = True
    os.rmdir(temporary, dir_fd=upper.work)
    directory.dirs.insert(0, part)


def make_directory_like(upper: Upper, source: int) -> bytes:
    """Make an empty directory with the attributes of directory *source* in the work directory.

    Returns its name there.
    """
    temporary = upper.temporary()
    os.mkdir(temporary, 0o700, dir_fd=upper.work)
    try:
        copy_metadata(b"/proc/self/fd/%d" % source, os.fstat(source), upper, upper.work_object(temporary))
    except OSError:
        upper.discard(temporary)
        raise
    return temporary
