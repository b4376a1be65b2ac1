"""Making partial files whole, and those that a killed daemon has left.

An upper that nobody serves is in overlayfs' own form, but for the time between the end of a daemon that was
killed and the next one who looks. Another daemon takes the files up as they are (`take_up`). Whoever reads or
seals the upper at rest has them made whole first (`finish_at_rest`), which may be cut short, and done again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from layerfs.union import durability
from layerfs.union.layer import Layer, LayerDir
from layerfs.union.links import directories_of
from layerfs.union.moves import Path as Names
from layerfs.union.node import Directory, File, Node
from layerfs.union.partial import Partial, open_partial, unmark
from layerfs.union.stack import Stack
from layerfs.union.upper import PARTIALS
from layerfs.union.view import Union
from layerfs.union.whiteout import DIRECTORY, WHITEOUT

_log = logging.getLogger(__name__)

_DESCRIPTORS = 64
_AT_ONCE = 16 << 20
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_whole(union: Union, node: File, *, durable: bool = True) -> None:
    """Fill the partial file *node* while the caller waits; on disk before its marks go. Raises `OSError`."""
    assert node.partial is not None
    assert union.upper is not None
    finish(node.partial, union.marking.prefix, union.upper.make_durable if durable else None)
    union.made_whole(node)


def finish(partial: Partial, prefix: bytes, make_durable: Callable[[int], None] | None) -> None:
    """Fill a file, which keeps its times, and take its marks; raises `OSError`, then it is partial yet.

    *make_durable* brings its contents to the disk before that.
    """
    st = os.fstat(partial.fd)
    try:
        while spans := partial.left(_AT_ONCE):
            for start, end in spans:
                partial.fill(start, end)
        if make_durable is not None:
            make_durable(partial.fd)
    finally:
        os.utime(partial.fd, ns=(st.st_atime_ns, st.st_mtime_ns))
    unmark(partial.fd, prefix)


def take_up(union: Union) -> None:
    """Have *union* know all partial files that a killed daemon has left in its upper.

    Reads the whole upper, where there may be any. The log has those that make no sense. Raises `OSError`.
    """
    assert union.upper is not None
    if not union.upper.may_have_partial():
        return
    for home, name, path in _marked(union.upper):
        if not _is_metacopy(home, name):
            _unmark(home, name)
            continue
        node: Node | None = union.root
        try:
            for part in (*path, name):
                assert isinstance(node, Directory)
                node = union.lookup(node, part)
        except OSError as error:
            _log.error("%r was copied up in part, and cannot be read: %s", b"/".join((*path, name)), error)


def finish_at_rest(stack: Stack, work: Path) -> None:
    """Make the partial files whole that a killed daemon has left in the topmost tree of *stack*, an upper.

    *work* is its work directory. Does nothing to an upper that somebody serves. Raises `OSError` with the
    name of a file that cannot be finished.
    """
    note = work / PARTIALS
    if not note.exists():
        return
    with stack.opened(_DESCRIPTORS) as layers:
        held = layers[-1].open_root()
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if failed := finish_tree(layers[-1], durability.settler(held)):
                raise failed[0]
            note.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


def finish_tree(layer: Layer, make_durable: Callable[[int], None]) -> list[OSError]:
    """Make every partial file in the tree of *layer* whole; nobody else may write to it.

    Returns an error, with its path, for each one that is still partial. Raises `OSError` where the tree
    cannot be read.
    """
    failed = []
    for home, name, path in _marked(layer):
        try:
            _finish_file(home, name, make_durable)
        except OSError as error:
            failed.append(OSError(error.errno, error.strerror, b"/".join((*path, name))))
    return failed


def _marked(layer: Layer) -> Iterator[tuple[LayerDir, bytes, Names]]:
    """Yield the files of *layer* that are marked as partial, with their directory and its path."""
    for directory, path in directories_of(layer):
        for name, kind in directory.kinds().items():
            if kind not in (DIRECTORY, WHITEOUT):
                with suppress(FileNotFoundError):
                    st = os.stat(name, dir_fd=directory.fd(), follow_symlinks=False)
                    if stat.S_ISREG(st.st_mode) and directory.file_marks(name, st).partial is not None:
                        yield directory, name, path


def _is_metacopy(home: LayerDir, name: bytes) -> bool:
    return home.file_marks(name, os.stat(name, dir_fd=home.fd(), follow_symlinks=False)).metacopy


def _finish_file(home: LayerDir, name: bytes, make_durable: Callable[[int], None]) -> None:
    if not _is_metacopy(home, name):
        _unmark(home, name)
        return
    marks = home.file_marks(name, os.stat(name, dir_fd=home.fd(), follow_symlinks=False))
    partial = open_partial(home, name, marks)
    try:
        finish(partial, home.layer.marking.prefix, make_durable)
    finally:
        partial.close()


def _unmark(home: LayerDir, name: bytes) -> None:
    """Take the last marks from a file that is whole already."""
    fd = os.open(name, os.O_RDWR | _SAFELY, dir_fd=home.fd())
    try:
        unmark(fd, home.layer.marking.prefix)
    finally:
        os.close(fd)
