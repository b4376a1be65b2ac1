"""Archives that ADD unpacks: recognized by what is in them, unpacked beside the layer, and moved into it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.archive.limits import Limits
from layerfs.archive.streams import Feed, Read, decompressed
from layerfs.archive.tar import Reader
from layerfs.archive.unpack import Unpacker
from layerfs.build.sources import shown
from layerfs.build.target import Attributes, Target, TargetDirectory
from layerfs.errors import BadRequest
from layerfs.union.reading import read_at
from layerfs.union.trees import remove_trees

if TYPE_CHECKING:
    from layerfs.build.selecting import Pick

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def recognized(pick: Pick) -> Pick:
    """Return *pick*, a file, as an archive if it is one: if a first member can be read from it.

    So docker has it: names do not count, and an archive without members is a file. Raises `OSError`.
    """
    if not stat.S_ISREG(pick.st.st_mode) or pick.st.st_size == 0:
        return pick
    with _read(pick) as read:
        try:
            found = next(iter(Reader(Feed(decompressed(read, more=True)))), None)
        except BadRequest:
            return pick
    return pick if found is None else replace(pick, kind="archive")


@contextmanager
def _read(pick: Pick) -> Iterator[Read]:
    """Yield what reads *pick*, a file, from its beginning to its end. Raises `OSError`."""
    with pick.above() as (directory, item):
        fd, at = directory.open(item)
    end = at + item.st.st_size

    def read(size: int) -> bytes:
        nonlocal at
        piece = read_at(fd, min(size, end - at), at)
        at += len(piece)
        return piece

    try:
        yield read
    finally:
        os.close(fd)


def unpack(
    pick: Pick,
    target: Target,
    destination: bytes,
    parents: Attributes,
    owner: tuple[int, int] | None,
    *,
    scratch: Path,
    check: Callable[[], None],
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
) -> tuple[int, int]:
    """Unpack *pick* into the directory *destination* of *target*; return how many files, and their bytes.

    Members take the place of what is there, directories are merged. They belong to *owner*, or to whom the
    archive says. *scratch* is on the filesystem of *target*. Raises `LayerfsError` and `OSError`.
    """
    tree = scratch / f"unpack-{os.urandom(6).hex()}"
    tree.mkdir(mode=0o700)
    try:
        with Unpacker(tree, limits, whiteouts=False) as unpacker:
            with _read(pick) as read:
                reader = Reader(Feed(decompressed(read, more=True)))
                for member in reader:
                    check()
                    member.name = member.name.lstrip(b"/") or b"."
                    if member.kind == "link":
                        member.target = member.target.lstrip(b"/")
                    if owner is not None:
                        member.uid, member.gid = owner
                    member.mtime_ns = target.time(member.mtime_ns)
                    unpacker.add(member, reader)
            unpacker.finish()
            unsaid = set(unpacker.inheriting())
        into = target.make(destination, parents)
        root = os.open(tree, _DIRECTORY)
        try:
            _move(root, into, b"", unsaid, check)
        finally:
            os.close(root)
        return unpacker.files, unpacker.size
    except BadRequest as error:
        text = str(error).removeprefix("the archive is refused because of ")
        raise BadRequest(f"cannot unpack {shown(pick.name)}: {text}") from None
    finally:
        remove_trees(tree)


def _move(
    source: int, into: TargetDirectory, path: bytes, unsaid: set[bytes], check: Callable[[], None]
) -> None:
    """Move all that is in the directory *source* into *into*; *unsaid* are directories that are only ways."""
    for name in sorted(os.fsencode(text) for text in os.listdir(source)):
        check()
        st = os.stat(name, dir_fd=source, follow_symlinks=False)
        if not stat.S_ISDIR(st.st_mode):
            into.make_room(name, replace=True)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=into.fd())
            into.changed = True
            continue
        here = path + name
        fd = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            child = _directory(into, name, st, fd, implied=here in unsaid)
            _move(fd, child, here + b"/", unsaid, check)
            if child.parent is into:
                child.done()
        finally:
            os.close(fd)


def _directory(
    into: TargetDirectory, name: bytes, st: os.stat_result, fd: int, *, implied: bool
) -> TargetDirectory:
    """Return the directory *name* of *into*, made or changed as the archive says."""
    seen = into.look(name)
    if implied:  # as for whoever writes below it: a link to a directory is followed
        above = Attributes(0, 0, 0o755)
        return into.target.make(into.path() + b"/" + name, above)
    if seen is not None and stat.S_ISDIR(seen.st_mode):
        child = into.enter(name)
        child.fd()
    else:
        child = into.add(name, replace=True)
    child.attributes = Attributes(
        st.st_uid,
        st.st_gid,
        stat.S_IMODE(st.st_mode),
        st.st_mtime_ns,
        _shown_attributes(into.target, fd),
    )
    return child


def _shown_attributes(target: Target, fd: int) -> dict[bytes, bytes]:
    found = {}
    for text in os.listxattr(fd):
        name = target.marking.shown_name(os.fsencode(text))
        if name is not None:
            found[name] = os.getxattr(fd, text)
    return found
