"""Rename, the one operation that touches two places, a whiteout and a redirect at once.

Everything that must be there first (copies, opaque marks, redirects) is put there while it means
nothing yet; then one renameat2(2) does it all. A failure or a crash before it leaves the tree as it was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from layerfs.union import merge, syscalls, xattr
from layerfs.union.below import lower_path, mark_contents
from layerfs.union.copyup import (
    KeptTimes,
    copy_up,
    copy_up_directory,
    make_directory_like,
    writable_upper,
)
from layerfs.union.layer import LayerDir
from layerfs.union.marking import REDIRECT, Trust
from layerfs.union.moves import Path
from layerfs.union.mutate import (
    directory_gone,
    existing,
    losing_a_name,
    mark_opaque,
    name_gone,
)
from layerfs.union.node import Directory, Node
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from layerfs.union.whiteout import WHITEOUT


def rename(
    union: Union,
    parent: Directory,
    name: bytes,
    new_parent: Directory,
    new_name: bytes,
    flags: int = 0,
) -> None:
    """Rename *name* in *parent* to *new_name* in *new_parent*, as renameat2(2) with *flags*.

    A lower file is copied up first (callers that mind the time do it before); of a lower directory
    only the directory itself, with a redirect to what it held. Raises `OSError`: ENOTEMPTY, EISDIR,
    ENOTDIR, EEXIST (RENAME_NOREPLACE), EINVAL (flags, or a directory into itself), and what comes
    from below.
    """
    upper = writable_upper(union)
    if flags & ~(syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    node = existing(union, parent, name)
    target = union.lookup(new_parent, new_name)
    _check(union, node, parent, new_parent, target, flags)
    if target is node:
        return
    old, new = (*parent.path(), name), (*new_parent.path(), new_name)
    home = _into_upper(union, node, parent)
    new_home = copy_up_directory(union, new_parent)
    if flags & syscalls.RENAME_EXCHANGE:
        assert target is not None
        _into_upper(union, target, new_parent)
        _prepare(union, upper, node, new_parent, new_name)
        _prepare(union, upper, target, parent, name)
        syscalls.renameat2(home.fd(), name, new_home.fd(), new_name, syscalls.RENAME_EXCHANGE)
        upper.moves.exchange(old, new, _came_from(node), _came_from(target))
        _settle(union, node, parent, name, new_parent, new_name)
        _settle(union, target, new_parent, new_name, parent, name)
        return
    _prepare(union, upper, node, new_parent, new_name)
    if isinstance(target, Directory):
        with losing_a_name(target), _out_of_the_way(union, upper, target, new_home):
            _move(union, parent, name, home, new_home, new_name, is_directory=True)
        directory_gone(union, target)
    else:
        with losing_a_name(target) if target is not None else nullcontext():
            _move(union, parent, name, home, new_home, new_name, is_directory=isinstance(node, Directory))
        if target is not None:
            name_gone(union, target, new_parent, new_name)
    if isinstance(node, Directory):
        upper.moves.rename(old, new, _came_from(node))
    _settle(union, node, parent, name, new_parent, new_name)


def _came_from(node: Node) -> Path | None:
    """Return where the layers below have the directory *node*, if it has a redirect that says so."""
    redirect = node.dirs[0].redirect if isinstance(node, Directory) else None
    return tuple(redirect[1:].split(b"/")) if redirect and redirect.startswith(b"/") else None


def _check(
    union: Union, node: Node, parent: Directory, new_parent: Directory, target: Node | None, flags: int
) -> None:
    """Raise the `OSError` for a rename that the rules forbid."""
    code = 0
    if isinstance(node, Directory) and node in new_parent.ancestors():
        code = errno.EINVAL
    elif flags & syscalls.RENAME_EXCHANGE:
        if target is None:
            code = errno.ENOENT
        elif isinstance(target, Directory) and target in parent.ancestors():
            code = errno.EINVAL
    elif target is not None and target is not node:
        if flags & syscalls.RENAME_NOREPLACE:
            code = errno.EEXIST
        elif isinstance(target, Directory):
            if not isinstance(node, Directory):
                code = errno.EISDIR
            elif not union.is_empty(target):
                code = errno.ENOTEMPTY
        elif isinstance(node, Directory):
            code = errno.ENOTDIR
    if code:
        raise OSError(code, os.strerror(code))


def _into_upper(union: Union, node: Node, parent: Directory) -> LayerDir:
    """Bring *node* into the upper and return its directory there."""
    if isinstance(node, Directory):
        copy_up_directory(union, node)
    elif not union.in_upper(node):
        copy_up(union, node)
    elif node.contents is not None:
        mark_contents(union, writable_upper(union), node)
    return copy_up_directory(union, parent)


def _prepare(union: Union, upper: Upper, node: Node, parent: Directory, name: bytes) -> None:
    """Mark a directory so that it will merge with the right lower directories as *name* in *parent*."""
    if not isinstance(node, Directory):
        return
    part = node.dirs[0]
    if len(node.dirs) > 1:
        if part.redirect is None or not part.redirect.startswith(b"/"):
            if upper.trust is Trust.NONE:  # what is not followed is not written either, as in the kernel
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            redirect = lower_path(union, node)
            try:
                xattr.set_mark(part.fd(), upper.marking.prefix + REDIRECT, redirect)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):  # longer than an attribute
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV)) from error
                raise
            part.redirect = redirect
    elif merge.exists(union.lower_parts(parent), name) and part.parent is not None:
        mark_opaque(upper, part.parent.fd(), part.name)


@contextmanager
def _out_of_the_way(union: Union, upper: Upper, target: Directory, home: LayerDir) -> Iterator[None]:
    """Let something be renamed over the empty *target*; if that fails, *target* is as it was.

    Where its part in the upper holds whiteouts, an empty opaque directory stands in for it meanwhile.
    """
    part = target.dirs[0]
    stand_in = None
    try:
        if union.upper_part(target) is not None and part.kinds():
            stand_in = make_directory_like(upper, part.fd())
            mark_opaque(upper, upper.work, stand_in)
            with KeptTimes(home):
                upper.exchange(stand_in, home.fd(), target.name)
        try:
            yield
        except OSError:
            if stand_in is not None:
                with KeptTimes(home):
                    upper.exchange(stand_in, home.fd(), target.name)
            raise
    finally:
        if stand_in is not None:
            upper.discard(stand_in)


def _move(
    union: Union,
    parent: Directory,
    name: bytes,
    home: LayerDir,
    new_home: LayerDir,
    new_name: bytes,
    *,
    is_directory: bool,
) -> None:
    """Rename within the upper and leave a whiteout behind where a lower layer has the old name."""
    leave_whiteout = merge.exists(union.lower_parts(parent), name)
    if is_directory and new_home.kind(new_name) == WHITEOUT:
        # A directory cannot be renamed over a whiteout, but the two can change places.
        syscalls.renameat2(home.fd(), name, new_home.fd(), new_name, syscalls.RENAME_EXCHANGE)
        if not leave_whiteout:
            os.unlink(name, dir_fd=home.fd())
        return
    flags = syscalls.RENAME_WHITEOUT if leave_whiteout else 0
    syscalls.renameat2(home.fd(), name, new_home.fd(), new_name, flags)


def _settle(
    union: Union, node: Node, parent: Directory, name: bytes, new_parent: Directory, new_name: bytes
) -> None:
    """Bring the nodes in step with a rename that has happened on disk."""
    if parent.children.get(name) is node:  # not after an exchange: there stands the other one already
        del parent.children[name]
        union.listings.removed(parent, name)
    new_parent.children[new_name] = node
    new_home = new_parent.dirs[0]
    if isinstance(node, Directory):
        node.parent, node.name = new_parent, new_name
        node.dirs[0].move(new_home, new_name)
    else:
        old, new = (parent, name), (new_parent, new_name)
        node.set_names([new if place == old else place for place in node.names])
        if node.home is parent.dirs[0] and node.entry == name:
            node.place(new_home, new_name)
    union.listings.added(new_parent, new_name)
