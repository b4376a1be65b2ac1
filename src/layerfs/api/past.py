"""Routes under `/layerfs/` that read the past: what led to something, what differs, and how it was.

They take a reference, `ref`: see `layerfs.store.revisions`. A path is the parameter `path`, or stands in
`ref` after a colon. The socket of a mount takes no reference, `~N` and `@{WHEN}` to be about that mount.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layerfs.api.routes import Call, route
from layerfs.api.times import timestamp
from layerfs.errors import BadRequest, LayerfsError, NotFound, from_os_error
from layerfs.unixhttp.message import Answer, Query, Stream, json_response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerfs.store.log import LogEntry
    from layerfs.store.revisions import Revision
    from layerfs.union.comparing import Comparison, Difference
    from layerfs.union.snapshot import Entry, Snapshot

_BYTES = (("Content-Type", "application/octet-stream"),)
_CHUNK = 1 << 18
_MOST = 1_000_000
TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def log(call: Call) -> Answer:
    """Return what led to a revision, newest first; with a path, what touched it."""
    if (elsewhere := _by_another_process(call)) is not None:
        return elsewhere
    revision = call.store.revision(reference(call))
    path = os.fsencode(call.query.get("path")) or None
    found = call.store.log(revision, path, most=_most(call), graph=call.query.flag("graph"))
    return json_response([_log_entry(entry) for entry in found])


def _most(call: Call) -> int | None:
    text = call.query.get("n")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST:
        raise BadRequest(f"invalid n {text[:20]!r}: give a number from 1 to {_MOST}")
    return int(text)


def _log_entry(entry: LogEntry) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "Id": entry.id,
        "Parent": entry.parent,
        "Created": timestamp(entry.created),
        "CreatedBy": entry.created_by,
        "Author": entry.author,
        "Comment": entry.comment,
        "Tags": list(entry.tags),
        "Size": entry.size,
        "Added": entry.added,
        "Changed": entry.changed,
        "Deleted": entry.deleted,
    }
    if entry.touch is not None:
        source = entry.touch.source
        shape["Touched"] = {
            "Kind": entry.touch.kind,
            "Path": os.fsdecode(entry.touch.path),
            "From": None if source is None else os.fsdecode(source),
        }
    return shape


def ls(call: Call) -> Answer:
    """Return what is in a directory as it was, or the one entry that is something else."""
    if (elsewhere := _by_another_process(call)) is not None:
        return elsewhere
    revision, path = place(call)
    with snapshot(call, revision) as tree:
        entry = find(tree, path, reference(call), follow=path.endswith(b"/"))
        entries = list(tree.children(entry)) if entry.is_directory else [entry]
        shapes = [_entry(tree, each) for each in entries]
    return json_response({"Path": os.fsdecode(entry.path), "Entries": shapes})


def _entry(tree: Snapshot, entry: Entry) -> dict[str, Any]:
    st = entry.status
    kind = stat.S_IFMT(st.st_mode)
    return {
        "Name": os.fsdecode(entry.name),
        "Type": TYPES[kind],
        "Mode": stat.S_IMODE(st.st_mode),
        "Uid": st.st_uid,
        "Gid": st.st_gid,
        "Size": 0 if entry.is_directory else st.st_size,
        "Modified": st.st_mtime_ns,
        "Target": os.fsdecode(tree.link(entry)) if kind == stat.S_IFLNK else None,
    }


def cat(call: Call) -> Answer:
    """Return what a regular file held."""
    if (elsewhere := _by_another_process(call)) is not None:
        return elsewhere
    revision, path = place(call)
    with snapshot(call, revision) as tree:
        entry = find(tree, path, reference(call), follow=True)
        shown = os.fsdecode(entry.path)
        if entry.is_directory:
            raise BadRequest(f"{shown} is a directory: list it with 'layerfs ls'")
        if not stat.S_ISREG(entry.status.st_mode):
            raise BadRequest(f"{shown} is no regular file: it holds nothing that could be shown")
        fd = tree.open(entry)
    pieces = _contents(fd, shown)
    next(pieces)
    return Stream(200, pieces, _BYTES)


def _contents(fd: int, shown: str) -> Generator[bytes, None, None]:
    """Yield nothing, and then what *fd* holds, which is closed."""
    from layerfs.union.reading import read_at

    try:
        yield b""  # the caller takes this one: from here on, closing the generator closes the file
        offset = 0
        while piece := read_at(fd, _CHUNK, offset):
            yield piece
            offset += len(piece)
    except OSError as error:
        raise from_os_error(error, f"read {shown}") from None
    finally:
        os.close(fd)


def diff(call: Call) -> Answer:
    """Return what differs between two revisions, `a` and `b`: paths, with `form` stat or patch the lines."""
    if (elsewhere := _by_another_process(call)) is not None:
        return elsewhere
    form = call.query.get("form") or "names"
    if form not in ("names", "stat", "patch"):
        raise BadRequest(f"invalid form {form[:20]!r}: use names, stat or patch")
    if form == "patch":
        pieces = _patch(call)
        next(pieces)
        return Stream(200, pieces, (("Content-Type", "text/x-diff"),))
    with _compared(call) as (comparison, found):
        shapes = [_difference(comparison, each, lines=form == "stat") for each in found]
    return json_response(shapes)


def _patch(call: Call) -> Generator[bytes, None, None]:
    from layerfs.api.patches import patch

    with _compared(call) as (comparison, found):
        yield b""  # the caller takes this one: from here on, closing the generator closes the trees
        for each in found:
            yield b"".join(patch(comparison, each))


@contextmanager
def _compared(call: Call) -> Iterator[tuple[Comparison, Iterator[Difference]]]:
    """Open the revisions that a call is about; yield them, and what differs at and below its path."""
    from layerfs.union.comparing import Comparison

    names = [reference(call, name) for name in ("a", "b")]
    path = os.fsencode(call.query.get("path")) or b"/"
    before, after = (call.store.revision(name) for name in names)
    with snapshot(call, before) as old, snapshot(call, after) as new:
        entries = [_at(tree, path) for tree in (old, new)]
        if entries == [None, None]:
            raise NotFound(f"{_shown(path)} is neither in {names[0]} nor in {names[1]}")
        comparison = Comparison(old, new)
        yield comparison, comparison.differences(*entries)


def _at(tree: Snapshot, path: bytes) -> Entry | None:
    try:
        return tree.find(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _difference(comparison: Comparison, found: Difference, *, lines: bool) -> dict[str, Any]:
    entries = [entry for entry in (found.before, found.after) if entry is not None]
    shape: dict[str, Any] = {
        "Kind": found.kind,
        "Path": os.fsdecode(found.path),
        "Type": TYPES[stat.S_IFMT(entries[-1].status.st_mode)],
    }
    if lines:
        from layerfs.api.patches import count

        told = count(comparison, found)
        sizes = [
            0 if entry is None or entry.is_directory else entry.status.st_size
            for entry in (found.before, found.after)
        ]
        shape["Lines"] = None if told is None else {"Added": told.added, "Deleted": told.deleted}
        shape["Binary"] = told is not None and told.binary
        shape["Sizes"] = sizes
    return shape


# What is asked for


def reference(call: Call, name: str = "ref") -> str:
    """Return the reference that the parameter *name* gives. Raises `BadRequest` for none."""
    text = call.query.get(name)
    live = call.place.live
    if live is not None and (not text or text.startswith(("~", "@{", ":/"))):
        return live.name + text
    if not text:
        raise BadRequest(f"give the parameter {name}: a mount, an image or a checkpoint")
    return text


def place(call: Call) -> tuple[Revision, bytes]:
    """Return the revision and the path in it that a call is about; no path is the root.

    Without the parameter `path`, the path begins after the first ":/" of `ref`, or, unless all of it is a
    reference, after its last colon. Raises `NotFound`, `BadRequest`.
    """
    text, path = reference(call), call.query.get("path")
    if path:
        return call.store.revision(text), os.fsencode(path)
    text, separator, rest = text.partition(":/")
    if separator:
        return call.store.revision(text), os.fsencode("/" + rest)
    try:
        return call.store.revision(text), b"/"
    except LayerfsError:
        before, colon, rest = text.rpartition(":")
        if not colon or not before or text.endswith("}"):
            raise
    return call.store.revision(before), os.fsencode(rest) or b"/"


@contextmanager
def snapshot(call: Call, revision: Revision) -> Iterator[Snapshot]:
    """Open the tree of a revision for the block; of a mount, what was written to it until now is in it."""
    from layerfs.union.snapshot import opened

    if revision.mount is not None:
        call.mount(revision.mount).flush()
    try:
        with opened(call.store.stack_at(revision)) as tree:
            yield tree
    except OSError as error:
        raise from_os_error(error, "read the tree of then") from None


def find(tree: Snapshot, path: bytes, name: str, *, follow: bool) -> Entry:
    """Return what is at *path* of the revision called *name*. Raises `NotFound`, `BadRequest`."""
    try:
        return tree.find(path, follow=follow)
    except FileNotFoundError:
        raise NotFound(f"{_shown(path)} is not in {name.partition(':/')[0]}") from None
    except OSError as error:
        raise BadRequest(f"cannot look at {_shown(path)}: {(error.strerror or '').lower()}") from None


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")[:1000]


def _by_another_process(call: Call) -> Answer | None:
    """Return the answer of another process where this one serves a mount and must not wait."""
    live = call.place.live
    if live is None:
        return None
    from layerfs.api import apart

    names = ["a", "b"] if call.request.path == "/layerfs/diff" else ["ref"]
    pairs = [(key, value) for key, value in call.query.pairs if key not in names]
    pairs += [(name, reference(call, name)) for name in names]
    return apart.answer(Call(call.place, call.request._replace(query=Query(pairs)), call.names))


ROUTES = (
    route("GET", "/layerfs/log", log),
    route("GET", "/layerfs/ls", ls),
    route("GET", "/layerfs/cat", cat),
    route("GET", "/layerfs/diff", diff),
)
