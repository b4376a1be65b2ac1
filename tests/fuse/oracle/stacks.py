"""Random stacks of layers: what Hypothesis draws, and how it is put on disk in overlayfs' own form."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import strategies as st

NAMES = (b"a", b"b", b"c", b"d\xff")
"""Few names, so that layers meet and operations hit."""
LONG_NAMES = (b"l" * 255, b"l" * 256)
"""The longest name there may be, and one that is too long."""
TARGETS = (b"a", b"b/c", b"./d", b"/nonexistent/target")
"""Targets of symbolic links; none leads out of the mount to something that exists."""
FILE_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o2644, 0o000, 0o777)
DIRECTORY_MODES = (0o755, 0o700, 0o1777, 0o2775, 0o777)
OWNERS = (0, 0, 1000, 65534)
TIMES = (
    1_000_000_000_123_456_789,
    1_234_567_890_000_000_001,
    5,
    -1_500_000_000,
    -(2**31) * 10**9,  # the first second of 1901 that filesystems hold
    2**31 * 10**9,
    2**32 * 10**9 + 999_999_999,
    2**63 - 1,  # 2262: the last nanosecond of 64 bits
    2**63,
    15_032_385_535 * 10**9,  # 2446: the last second of ext4
)
"""Modification times in nanoseconds, all long before any test runs or long after."""
CONTENTS = (b"", b"short", b"0123456789" * 410, b"\0" * 4096 + b"after a page of zeros" * 300)
ATTRIBUTES = (("user.one", b"1"), ("user.two", b""), ("trusted.three", b"\0\xff" * 20))
MARKS_OF_OTHERS = (
    ("user.overlay.opaque", b"y"),
    ("user.overlay.redirect", b"/a"),
    ("user.overlay.metacopy", b""),
    ("user.overlay.whiteout", b""),
    ("user.overlay.layerfs.ino", b"77"),
    ("user.fuseoverlayfs.opaque", b"y"),
    ("trusted.overlay.overlay.opaque", b"y"),
)
"""What anybody may set on a file of his, and what somebody has set on a mount: data to a mount of root."""
NO_DEVICE = (252, 99)
"""Major and minor number of a block device that nobody has: numbers for local use."""
DEPTH = 3


@dataclass(frozen=True)
class Entry:
    """One name in one layer. `payload` is the content of a file or the target of a symbolic link.

    A "link" is one more name of what has the path `payload` in lower layer number `layer`.
    """

    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = TIMES[0]
    payload: bytes = b""
    opaque: bool = False
    attributes: tuple[tuple[str, bytes], ...] = ()
    children: Mapping[bytes, Entry] = field(default_factory=dict)
    layer: int = 0


Tree = Mapping[bytes, Entry]


_KINDS = ("absent", "file", "file", "symlink", "fifo", "device")
_FOLDERS = ("directory",) * 15
"""What the first two names mostly are, so that directories merge, at every depth."""


@st.composite
def _entries(draw: st.DrawFn, kind: str, depth: int, whiteouts: bool) -> Entry:
    mode, payload = draw(st.sampled_from(FILE_MODES)), b""
    children: Tree = {}
    if kind == "directory":
        mode = draw(st.sampled_from(DIRECTORY_MODES))
        children = draw(_trees(depth + 1, whiteouts))
    elif kind == "file":
        payload = draw(st.sampled_from(CONTENTS))
    elif kind == "symlink":
        mode, payload = 0o777, draw(st.sampled_from(TARGETS))
    opaque = kind == "directory" and whiteouts and draw(st.sampled_from((False,) * 5 + (True,)))
    uid, gid = draw(st.sampled_from(OWNERS)), draw(st.sampled_from(OWNERS))
    mtime = draw(st.sampled_from(TIMES))
    attributes = draw(st.sampled_from(((), (), ATTRIBUTES[:1], ATTRIBUTES, MARKS_OF_OTHERS)))
    if kind not in ("directory", "file"):
        attributes = ()
    return Entry(kind, mode, uid, gid, mtime, payload, opaque, attributes, children)


@st.composite
def _trees(draw: st.DrawFn, depth: int, whiteouts: bool) -> Tree:
    tree = {}
    for position, name in enumerate(NAMES):
        kinds = (*_KINDS, *(("whiteout",) if whiteouts else ()))
        if depth < DEPTH:
            kinds += _FOLDERS if position < 2 else _FOLDERS[:1]
        kind = draw(st.sampled_from(kinds))
        if kind == "whiteout":
            tree[name] = Entry(kind)
        elif kind != "absent":
            tree[name] = draw(_entries(kind, depth, whiteouts))
    return tree


@st.composite
def stacks(draw: st.DrawFn, *, within: bool) -> list[Tree]:
    """Draw a stack: two or three lower layers, bottom to top, and what the upper holds at the start.

    Some files have two names, and more, in lower layers: *within* one of them, or one name in each of two.
    """
    lowers = [draw(_trees(1, whiteouts=depth > 0)) for depth in range(draw(st.integers(2, 3)))]
    for _ in range(draw(st.integers(0, 4))):
        _add_link(draw, lowers, within=within)
    upper = draw(st.one_of(st.just({}), _trees(1, whiteouts=True)))
    below: Tree = {}
    for tree in lowers:
        below = _merged(below, tree)
    return [*lowers, _written(below, upper)]


def _add_link(draw: st.DrawFn, lowers: list[Tree], *, within: bool) -> None:
    """Give something in a lower layer another name there, or in another one where nothing is linked to it."""
    source = draw(st.integers(0, len(lowers) - 1))
    target = source if within else (source + draw(st.integers(1, len(lowers) - 1))) % len(lowers)
    linked = {
        (entry.layer, entry.payload) for tree in lowers for _, entry in _all(tree) if entry.kind == "link"
    }
    files = [
        path
        for path, entry in _all(lowers[source])
        if entry.kind in ("file", "symlink", "fifo") and (within or (source, path) not in linked)
    ]
    parents = [b"", *(path + b"/" for path, entry in _all(lowers[target]) if entry.kind == "directory")]
    taken = {path for path, _ in _all(lowers[target])}
    places = [parent + name for parent in parents for name in NAMES if parent + name not in taken]
    if files and places:
        link = Entry("link", payload=draw(st.sampled_from(files)), layer=source)
        lowers[target] = _with(lowers[target], draw(st.sampled_from(places)).split(b"/"), link)


def _all(tree: Tree, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """Yield everything in *tree* with its path."""
    for name, entry in tree.items():
        yield prefix + name, entry
        yield from _all(entry.children, prefix + name + b"/")


def _with(tree: Tree, path: Sequence[bytes], entry: Entry) -> Tree:
    """Return *tree* with *entry* at *path*."""
    name, *rest = path
    if rest:
        entry = replace(tree[name], children=_with(tree[name].children, rest, entry))
    return {**tree, name: entry}


def _merged(below: Tree, above: Tree) -> Tree:
    """Return what *above* over *below* looks like."""
    merged = dict(below)
    for name, entry in above.items():
        old = merged.pop(name, None)
        if entry.kind == "directory":
            inner = {} if old is None or entry.opaque else old.children
            merged[name] = replace(entry, children=_merged(inner, entry.children))
        elif entry.kind != "whiteout":
            merged[name] = entry
    return merged


def _written(below: Tree, upper: Tree) -> Tree:
    """Return *upper* without the whiteouts that hide nothing in *below*.

    No overlay ever writes such an upper, and in a directory that merges with nothing the kernel cannot
    read it: it lists those whiteouts, and does not remove the directory because of them.
    """
    written = {}
    for name, entry in upper.items():
        old = below.get(name)
        if entry.kind == "directory":
            inner = {} if old is None or entry.opaque else old.children
            written[name] = replace(entry, children=_written(inner, entry.children))
        elif entry.kind != "whiteout" or old is not None:
            written[name] = entry
    return written


def build(stack: Sequence[Tree], paths: Sequence[Path]) -> None:
    """Make the layers of *stack* (bottom to top) in the new directories *paths*."""
    for tree, path in zip(stack, paths, strict=True):
        path.mkdir(mode=0o755)
        _fill(os.fsencode(path), tree)
    for tree, path in zip(stack, paths, strict=True):
        for name, entry in _all(tree):
            if entry.kind == "link":
                _link(os.fsencode(paths[entry.layer]) + b"/" + entry.payload, os.fsencode(path) + b"/" + name)
        os.utime(path, ns=(TIMES[0], TIMES[0]))


def _link(source: bytes, target: bytes) -> None:
    parent = target.rpartition(b"/")[0]
    st = os.stat(parent)
    os.link(source, target, follow_symlinks=False)
    os.utime(parent, ns=(st.st_atime_ns, st.st_mtime_ns))


def _fill(directory: bytes, tree: Tree) -> None:
    for name, entry in tree.items():
        path = directory + b"/" + name
        match entry.kind:
            case "whiteout":
                os.mknod(path, stat.S_IFCHR, 0)
                continue
            case "link":
                continue  # when everything is there
            case "symlink":
                os.symlink(entry.payload, path)
            case "fifo":
                os.mkfifo(path)
            case "device":
                os.mknod(path, stat.S_IFBLK, os.makedev(*NO_DEVICE))
            case "directory":
                os.mkdir(path)
                _fill(path, entry.children)
                if entry.opaque:
                    os.setxattr(path, "trusted.overlay.opaque", b"y")
            case _:
                with open(path, "wb") as file:
                    file.write(entry.payload)
        for name_, value in entry.attributes:
            os.setxattr(path, name_, value, follow_symlinks=False)
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if entry.kind != "symlink":
            os.chmod(path, entry.mode)
        os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)
