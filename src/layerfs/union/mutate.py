"""Adding names to the union and taking them away: all that changes the tree but rename.

Each function runs from start to end without giving up the thread, leaves disk and nodes in step, and
on failure raises `OSError` with both as they were. Modes are taken as they are: the umask has been
applied by whoever asks, and the process's own must be 0.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from layerfs.union import merge, syscalls, xattr
from layerfs.union.below import mark_contents
from layerfs.union.copyup import copy_up, copy_up_directory, writable_upper
from layerfs.union.entering import enter_directory, enter_file
from layerfs.union.layer import LayerDir
from layerfs.union.node import Directory, File, Node
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from layerfs.union.whiteout import WHITEOUT, set_opaque

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_Made = TypeVar("_Made")


class Owner(NamedTuple):
    """The user and group that a new object belongs to (the group, unless the directory is setgid)."""

    uid: int
    gid: int


def create(
    union: Union, parent: Directory, name: bytes, mode: int, owner: Owner
) -> tuple[File, os.stat_result]:
    """Make an empty regular file; `union.data` has it open for reading and writing."""

    def make(directory: int, entry: bytes) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(entry, flags, stat.S_IMODE(mode), dir_fd=directory)

    home, fd, st = _add(union, parent, name, owner, make, stat.S_IMODE(mode))
    node = _enter(union, parent, name, home, st)
    union.adopt_data(node, fd, writable=True)
    return node, st


def mknod(
    union: Union, parent: Directory, name: bytes, mode: int, rdev: int, owner: Owner
) -> tuple[File, os.stat_result]:
    """Make a fifo, socket, device or regular file, its type and permissions in *mode*.

    A character device 0:0 is refused (EPERM), as by overlayfs: in a layer it means a whiteout.
    """
    if stat.S_ISCHR(mode) and rdev == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def make(directory: int, entry: bytes) -> None:
        os.mknod(entry, mode, rdev, dir_fd=directory)

    home, _, st = _add(union, parent, name, owner, make, stat.S_IMODE(mode))
    return _enter(union, parent, name, home, st), st


def symlink(
    union: Union, parent: Directory, name: bytes, target: bytes, owner: Owner
) -> tuple[File, os.stat_result]:
    """Make a symbolic link to *target*."""

    def make(directory: int, entry: bytes) -> None:
        os.symlink(target, entry, dir_fd=directory)

    home, _, st = _add(union, parent, name, owner, make, 0)
    return _enter(union, parent, name, home, st), st


def mkdir(
    union: Union, parent: Directory, name: bytes, mode: int, owner: Owner
) -> tuple[Directory, os.stat_result]:
    """Make an empty directory; over a whiteout it is opaque, so that nothing deleted comes back."""

    def make(directory: int, entry: bytes) -> None:
        os.mkdir(entry, stat.S_IMODE(mode), dir_fd=directory)

    home, _, st = _add(union, parent, name, owner, make, stat.S_IMODE(mode), directory=True)
    number = union.table.number(st.st_dev, st.st_ino)
    return enter_directory(union, parent, name, [home.child(name)], number), st


def _enter(union: Union, parent: Directory, name: bytes, home: LayerDir, st: os.stat_result) -> File:
    return enter_file(union, parent, name, home, st)


def _add(
    union: Union,
    parent: Directory,
    name: bytes,
    owner: Owner,
    make: Callable[[int, bytes], _Made],
    mode: int,
    *,
    directory: bool = False,
) -> tuple[LayerDir, _Made, os.stat_result]:
    """Make an object at *name* in *parent*: in place, or over a whiteout by way of the work directory.

    Returns the directory of the upper that holds it, what *make* returned, and its stat. What is in the way
    is asked for only when something is.
    """
    upper = writable_upper(union)
    home = copy_up_directory(union, parent)
    over = _has_lower(union, parent, name) and _over_whiteout(home, name)
    if not over:
        try:
            made = make(home.fd(), name)
        except FileExistsError:
            over = _over_whiteout(home, name)
        else:
            st = _give(home.fd(), name, owner, mode, home, made, directory=directory)
    if over:
        made, st = _make_over(upper, home, name, owner, make, mode, directory=directory)
    union.listings.added(parent, name)
    return home, made, st


def _make_over(
    upper: Upper,
    home: LayerDir,
    name: bytes,
    owner: Owner,
    make: Callable[[int, bytes], _Made],
    mode: int,
    *,
    directory: bool,
) -> tuple[_Made, os.stat_result]:
    """Make an object beside the upper and have it take the place of the whiteout *name* in *home*."""
    with _workplace(upper, home) as place:
        entry = upper.temporary()
        made = make(place, entry)
        st = _give(place, entry, owner, mode, home, made, directory=directory)
        try:
            if directory:
                mark_opaque(upper, place, entry)
                syscalls.renameat2(place, entry, home.fd(), name, syscalls.RENAME_EXCHANGE)
            else:
                os.rename(entry, name, src_dir_fd=place, dst_dir_fd=home.fd())
        except OSError:
            _unmake(place, entry, made, directory)
            raise
        if directory:
            os.unlink(entry, dir_fd=place)  # the whiteout
    return made, st


def _unmake(place: int, entry: bytes, made: object, directory: bool) -> None:
    if isinstance(made, int):
        os.close(made)
    (os.rmdir if directory else os.unlink)(entry, dir_fd=place)


@contextmanager
def _workplace(upper: Upper, home: LayerDir) -> Iterator[int]:
    """Yield a directory beside the upper in which new objects inherit the same ACLs as in *home*."""
    acl = xattr.default_acl(home.fd())
    if acl is None:
        yield upper.work
        return
    name = upper.temporary()
    os.mkdir(name, 0o700, dir_fd=upper.work)
    fd = -1
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper.work)
        os.setxattr(fd, xattr.DEFAULT_ACL, acl)
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)
        upper.discard(name)


def _has_lower(union: Union, parent: Directory, name: bytes) -> bool:
    lower = union.lower_parts(parent)
    return bool(lower) and merge.exists(lower, name)


def _over_whiteout(home: LayerDir, name: bytes) -> bool:
    """Return True where a whiteout stands at *name* in the upper; anything else there or below is EEXIST."""
    if home.kind(name) != WHITEOUT:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    return True


def _give(
    place: int, entry: bytes, owner: Owner, mode: int, home: LayerDir, made: object, *, directory: bool
) -> os.stat_result:
    """Give a new object in *place* the owner and mode that it is to have in *home*; remove it on failure.

    Returns its stat. One that has the right owner already is asked for nothing more, which is most of them.
    """
    try:
        st = _status(place, entry, made)
        if (st.st_uid, st.st_gid) != owner or mode & _SPECIAL or place != home.fd():
            parent = os.fstat(home.fd())
            setgid = parent.st_mode & stat.S_ISGID
            gid = parent.st_gid if setgid else owner.gid
            if (st.st_uid, st.st_gid) != (owner.uid, gid):
                os.chown(entry, owner.uid, gid, dir_fd=place, follow_symlinks=False)
            special = (mode | setgid if directory else mode) & _SPECIAL
            if special:
                os.chmod(entry, stat.S_IMODE(st.st_mode) | special, dir_fd=place)
            st = _status(place, entry, made)
    except OSError:
        _unmake(place, entry, made, directory)
        raise
    return st


def _status(place: int, entry: bytes, made: object) -> os.stat_result:
    if isinstance(made, int):
        return os.fstat(made)
    return os.stat(entry, dir_fd=place, follow_symlinks=False)


def mark_opaque(upper: Upper, place: int, entry: bytes) -> None:
    """Mark the directory *entry* in the directory *place* opaque."""
    fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        set_opaque(fd, upper.marking)
    finally:
        os.close(fd)


def link(union: Union, node: File, parent: Directory, name: bytes) -> os.stat_result:
    """Make *name* in *parent* another name of *node*; copies a lower file up first."""
    upper = writable_upper(union)
    home = copy_up_directory(union, parent)
    over = (home.kind(name) is not None or _has_lower(union, parent, name)) and _over_whiteout(home, name)
    if not union.in_upper(node):
        copy_up(union, node)
    elif node.contents is not None:
        mark_contents(union, upper, node)
    if node.pin >= 0:
        source, place, follow = b"/proc/self/fd/%d" % node.pin, None, True
    else:
        source, place, follow = node.entry, node.home.fd(), False
    if over:
        entry = upper.temporary()
        os.link(source, entry, src_dir_fd=place, dst_dir_fd=upper.work, follow_symlinks=follow)
        try:
            os.rename(entry, name, src_dir_fd=upper.work, dst_dir_fd=home.fd())
        except OSError:
            upper.discard(entry)
            raise
    else:
        os.link(source, name, src_dir_fd=place, dst_dir_fd=home.fd(), follow_symlinks=follow)
    if node.pin >= 0:
        node.place(home, name)
        union.table.lapsed.discard(node.ino)
    node.add_name(parent, name)
    parent.children[name] = node
    union.listings.added(parent, name)
    return node.stat()


def unlink(union: Union, parent: Directory, name: bytes) -> None:
    """Remove *name*, not a directory, from *parent*. Whoever has the file open keeps it."""
    upper = writable_upper(union)
    node = existing(union, parent, name)
    if isinstance(node, Directory):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    below = _has_lower(union, parent, name)
    home = copy_up_directory(union, parent)
    above = union.in_upper(node)  # all the names of a file are in one layer
    with losing_a_name(node):
        if below:
            upper.whiteout(home.fd(), name, over=above)
        else:
            os.unlink(name, dir_fd=home.fd())
    name_gone(union, node, parent, name)


@contextmanager
def losing_a_name(node: Node) -> Iterator[None]:
    """Keep hold of *node*'s object while a name of it is taken away; if that fails, as before."""
    if isinstance(node, Directory):
        part = node.dirs[0]
        part.pin()
        try:
            yield
        except BaseException:
            part.pinned = False
            raise
    else:
        held = node.pin, node.fd, node.writable
        node.pin_object()
        try:
            yield
        except BaseException:
            if node.pin not in held[:2]:
                node.drop_pin()
            node.pin, node.fd, node.writable = held
            raise


def name_gone(union: Union, node: File, parent: Directory, name: bytes) -> None:
    """Note that *node*, pinned, has lost *name* in *parent*."""
    node.set_names([place for place in node.names if place != (parent, name)])
    del parent.children[name]
    union.listings.removed(parent, name)
    if not union.in_upper(node):
        union.hide_name(node)
        union.on_change(node)
        node.drop_pin()
    elif os.fstat(node.pin).st_nlink == 0:
        node.orphan = True
        union.end_partial(node)
    elif node.home is parent.dirs[0] and node.entry == name:
        if node.names:
            other, entry = node.names[0]
            node.place(other.dirs[0], entry)
        else:
            node.entry = b""  # it has a name that nobody has looked up yet: the pin stays
    elif node.entry:
        node.drop_pin()
    union.release(node)


def rmdir(union: Union, parent: Directory, name: bytes) -> None:
    """Remove the empty directory *name* from *parent*. Whoever is in it may stay."""
    upper = writable_upper(union)
    node = existing(union, parent, name)
    if not isinstance(node, Directory):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    below = merge.exists(union.lower_parts(parent), name)
    if below or len(node.dirs) > 1 or not union.in_upper(node):
        _check_empty(union, node)  # else rmdir(2) says so
    home = copy_up_directory(union, parent)
    with losing_a_name(node):
        if not union.in_upper(node):
            upper.whiteout(home.fd(), name, over=False)
        elif below:
            entry = upper.temporary()
            upper.whiteout(upper.work, entry, over=False)
            try:
                upper.exchange(entry, home.fd(), name)
            except OSError:
                upper.discard(entry)
                raise
            upper.discard(entry)
        else:
            _remove(union, upper, home, node)
    directory_gone(union, node)


def _check_empty(union: Union, node: Directory) -> None:
    if not union.is_empty(node):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _remove(union: Union, upper: Upper, home: LayerDir, node: Directory) -> None:
    """Remove the directory *node* of the upper, in which there is nothing or only whiteouts."""
    try:
        os.rmdir(node.name, dir_fd=home.fd())
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _check_empty(union, node)
        entry = upper.temporary()
        os.rename(node.name, entry, src_dir_fd=home.fd(), dst_dir_fd=upper.work)
        upper.discard(entry)


def directory_gone(union: Union, node: Directory) -> None:
    """Note that *node*, its top part pinned, has lost its name."""
    assert node.parent is not None
    writable_upper(union).moves.remove(node.path())
    node.parent.children.pop(node.name, None)
    union.listings.removed(node.parent, node.name)
    union.listings.drop(node)
    node.removed = True
    union.release(node)


def existing(union: Union, parent: Directory, name: bytes) -> Node:
    """Return the node called *name* in *parent*; raises ENOENT where there is none."""
    node = union.lookup(parent, name)
    if node is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return node
