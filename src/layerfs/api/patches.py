"""Differences between two trees as git shows them: unified diffs, and how many lines they add and remove."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator
from typing import NamedTuple

from layerfs.union.comparing import Comparison, Difference
from layerfs.union.snapshot import Entry, Snapshot

_MOST_BYTES = 1 << 20
_MOST_LINES = 20_000
"""The longest texts that are compared line by line: the time that takes grows faster than they do."""
_LOOK = 8000
"""Bytes at the beginning of a file without a zero among them that make it text, as for git."""
_QUOTED = {0x22: b'\\"', 0x5C: b"\\\\", 0x09: b"\\t", 0x0A: b"\\n", 0x0D: b"\\r"}


class Lines(NamedTuple):
    """How the contents of a path differ."""

    added: int
    deleted: int
    binary: bool
    """Whether they are no text, or too long to be compared line by line."""


def count(comparison: Comparison, found: Difference) -> Lines | None:
    """Return how many lines a difference adds and deletes, None if it has no contents; raises `OSError`."""
    texts = _texts(comparison, found)
    if texts is None:
        return None
    if isinstance(texts, bool):
        return Lines(0, 0, True)
    added = deleted = 0
    for tag, i, j, k, m in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if tag != "equal":
            deleted += j - i
            added += m - k
    return Lines(added, deleted, False)


def patch(comparison: Comparison, found: Difference) -> Iterator[bytes]:
    """Yield a difference in git's form; nothing for a directory's. Raises `OSError`."""
    before, after = (_not_directory(entry) for entry in (found.before, found.after))
    if before is None and after is None:
        return
    old, new = b"a" + found.path, b"b" + found.path
    yield b"diff --git %s %s\n" % (_quoted(old), _quoted(new))
    if before is None:
        assert after is not None
        yield b"new file mode %06o\n" % after.status.st_mode
    elif after is None:
        yield b"deleted file mode %06o\n" % before.status.st_mode
    elif before.status.st_mode != after.status.st_mode:
        yield b"old mode %06o\nnew mode %06o\n" % (before.status.st_mode, after.status.st_mode)
    texts = _texts(comparison, found)
    if texts is None:
        return
    if isinstance(texts, bool):
        why = b"Binary files" if texts else b"Large files"
        names = (b"/dev/null" if before is None else old), (b"/dev/null" if after is None else new)
        yield b"%s %s and %s differ\n" % (why, _quoted(names[0]), _quoted(names[1]))
        return
    old, new = (b"/dev/null" if before is None else old), (b"/dev/null" if after is None else new)
    for line in difflib.diff_bytes(
        difflib.unified_diff, *texts, fromfile=_quoted(old), tofile=_quoted(new), lineterm=b"\n"
    ):
        yield line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def _not_directory(entry: Entry | None) -> Entry | None:
    return None if entry is None or entry.is_directory else entry


def _texts(comparison: Comparison, found: Difference) -> tuple[list[bytes], list[bytes]] | bool | None:
    """Return the lines of before and after; True for what is no text, False for too much of it.

    None where neither has contents, or both have the same.
    """
    before, after = (_not_directory(entry) for entry in (found.before, found.after))
    sides = ((comparison.before, before), (comparison.after, after))
    if not any(entry is not None and _has_contents(entry) for _, entry in sides):
        return None
    if any(entry is not None and entry.status.st_size > _MOST_BYTES for _, entry in sides):
        return not all(_is_text(tree, entry) for tree, entry in sides)
    old, new = (b"" if entry is None else _contents(tree, entry) for tree, entry in sides)
    if old == new:
        return None
    if b"\0" in old[:_LOOK] or b"\0" in new[:_LOOK]:
        return True
    lines = _lines(old), _lines(new)
    return lines if max(map(len, lines)) <= _MOST_LINES else False


def _lines(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _has_contents(entry: Entry) -> bool:
    return stat.S_ISREG(entry.status.st_mode) or stat.S_ISLNK(entry.status.st_mode)


def _contents(tree: Snapshot, entry: Entry) -> bytes:
    if stat.S_ISLNK(entry.status.st_mode):
        return tree.link(entry)
    return tree.read(entry, _MOST_BYTES) if stat.S_ISREG(entry.status.st_mode) else b""


def _is_text(tree: Snapshot, entry: Entry | None) -> bool:
    if entry is None or not stat.S_ISREG(entry.status.st_mode):
        return True
    return b"\0" not in tree.read(entry, _LOOK)


def _quoted(name: bytes) -> bytes:
    """Return *name* as git writes it: as in C where it would not be one word in a line of ASCII."""
    if all(0x20 <= byte < 0x7F and byte not in (0x22, 0x5C) for byte in name):
        return name
    quoted = b"".join(
        _QUOTED.get(byte) or (bytes((byte,)) if 0x20 <= byte < 0x7F else b"\\%03o" % byte) for byte in name
    )
    return b'"%s"' % quoted
