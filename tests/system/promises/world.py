"""What a tree may look like after a power cut: the state that was promised, and all that was done since.

A `World` follows the notes. Each part of it (a file's contents, one attribute, one name) has the value that
is promised to be on disk, and the values that it was given later, each of which may have got there or not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tests.system.promises.notes import Arguments, Call, Note

Place = tuple[str, str]
"""A name: the id of a directory, and the name in it."""
ROOT = "/"
_FAR = 1 << 62


def data(number: int, length: int) -> bytes:
    """Return the bytes that the write with this *number* wrote."""
    return random.Random(number).randbytes(length)


@dataclass
class Value:
    """One attribute: `promised` (None: nothing is) and what it was set to since."""

    promised: Any = None
    later: list[Any] = field(default_factory=list)

    @property
    def now(self) -> Any:
        """The value that the program sees."""
        return self.later[-1] if self.later else self.promised

    def set(self, value: Any) -> None:
        self.later.append(value)

    def promise(self) -> None:
        if self.later:
            self.promised, self.later = self.later[-1], []

    def allows(self, value: Any) -> bool:
        """Tell whether *value* may be found."""
        return value == self.promised or value in self.later


class Change(NamedTuple):
    """What a write or truncate may have left from byte `start` to `end`: `data`, or zeros if that is None."""

    start: int
    end: int
    data: bytes | None

    def without(self, start: int, end: int) -> Iterator[Change]:
        """Yield what is left of it when the bytes from *start* to *end* are known."""
        for low, high in ((self.start, min(self.end, start)), (max(self.start, end), self.end)):
            if low < high:
                yield Change(low, high, self.data and self.data[low - self.start : high - self.start])


class Contents:
    """The contents of a file."""

    def __init__(self, promised: bytes = b"") -> None:
        self.promised = promised
        self.now = bytearray(promised)
        self._later: list[Change] = []
        self._lengths = {len(promised)}

    def write(self, offset: int, content: bytes) -> None:
        """Take in a write."""
        end = offset + len(content)
        self.now.extend(bytes(max(0, end - len(self.now))))
        self.now[offset:end] = content
        self._later.append(Change(offset, end, content))
        self._lengths.add(len(self.now))

    def truncate(self, length: int) -> None:
        """Take in a truncate, to less or more."""
        del self.now[length:]
        self.now.extend(bytes(length - len(self.now)))
        self._later.append(Change(length, _FAR, None))
        self._lengths.add(length)

    def promise(self) -> None:
        """Note that all of it is on disk."""
        if self._later:
            self.promised, self._later, self._lengths = bytes(self.now), [], {len(self.now)}

    def promise_part(self, start: int, end: int) -> None:
        """Note that the bytes from *start* to *end*, and a length that has room for them, are on disk."""
        promised = bytearray(self.promised)
        promised.extend(bytes(max(0, end - len(promised))))
        promised[start:end] = self.now[start:end]
        self.promised = bytes(promised)
        self._later = [rest for change in self._later for rest in change.without(start, end)]
        self._lengths = {max(end, length) for length in self._lengths}

    def objection(self, found: bytes) -> str | None:
        """Say why *found* cannot be explained; None where it can."""
        if found == self.now or (found == self.promised and len(found) in self._lengths):
            return None
        if not min(self._lengths) <= len(found) <= max(self._lengths):
            return f"has {len(found)} bytes instead of {_range(self._lengths)}"
        borders = {0, len(self.promised), len(found)}
        for change in self._later:
            borders |= {change.start, change.end}
        places = sorted(place for place in borders if place <= len(found))
        for start, end in pairwise(places):
            wrong = _first_wrong(found[start:end], self._candidates(start, end))
            if wrong is not None:
                return f"has {self._what(found, start + wrong)} at byte {start + wrong} of {len(found)}"
        return None

    def _candidates(self, start: int, end: int) -> list[bytes]:
        """Return what may stand from *start* to *end*, where no change begins or ends between."""
        found = [self.promised[start:end] if start < len(self.promised) else bytes(end - start)]
        for low, high, content in self._later:
            if low <= start and end <= high:
                found.append(bytes(end - start) if content is None else content[start - low : end - low])
        return found

    @staticmethod
    def _what(found: bytes, place: int) -> str:
        part = found[place : place + 512]
        return "bytes that nobody wrote there" if any(part) else "zeros"


def _range(lengths: set[int]) -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"


def _first_wrong(found: bytes, candidates: list[bytes]) -> int | None:
    if found in candidates:
        return None
    for start in range(0, len(found), 512):
        part = found[start : start + 512]
        if any(part == other[start : start + 512] for other in candidates):
            continue
        for place, byte in enumerate(part, start):  # a page may have been on its way to the disk
            if all(other[place] != byte for other in candidates):
                return place
    return None


class Node:
    """A file, directory or symbolic link, whatever it is called."""

    def __init__(self, id_: str, kind: str) -> None:
        self.id = id_
        self.kind = kind
        """`file`, `dir` or `link`."""
        self.contents = Contents()
        self.target = ""
        self.mode = Value()
        self.mtime = Value()
        self.xattrs: dict[str, Value] = {}
        self.entries: dict[str, Value] = {}
        """Of a directory: for each name the id of what it names, or None."""
        self.places: list[frozenset[Place]] = [frozenset()]
        """All sets of names that it had since these were last promised; the last is today's."""
        self.version = 0
        """Counts the changes."""
        self.moves = 0
        """Counts the changes of its names."""

    def now_at(self, places: frozenset[Place]) -> None:
        """Note that it has these names now."""
        self.places.append(places)
        self.moves += 1


class World:
    """A tree as one or several programs know it, with what is promised of it."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {ROOT: Node(ROOT, "dir")}
        self.synced = 0
        """Counts the promises."""

    def node(self, id_: str) -> Node:
        return self.nodes[id_]

    def path(self, id_: str) -> str:
        """Return the path of a node by one of its names, relative to the root; that of the root is empty."""
        if id_ == ROOT:
            return ""
        places = self.node(id_).places[-1]
        if not places:
            return f"({id_}, removed)"
        directory, name = min(places)
        return f"{self.path(directory)}/{name}".lstrip("/")

    def children(self, directory: str) -> dict[str, Node]:
        """Return what a directory holds now."""
        entries = self.node(directory).entries
        return {name: self.node(value.now) for name, value in entries.items() if value.now is not None}

    def promise_all(self, but: set[str] | frozenset[str] = frozenset()) -> None:
        """Take everything as promised, except of the nodes in *but*."""
        for node in self.nodes.values():
            if node.id not in but:
                self._promise_node(node)
                for value in node.entries.values():
                    value.promise()
                node.places = node.places[-1:]

    # -- following the notes ------------------------------------------------------------------------

    def follow(self, note: Note) -> None:
        """Take in one note about a call on this tree."""
        call, ended, error, result = note
        if not ended:
            change = getattr(self, f"_do_{call.name}", None)
            if change is not None:
                change(**call.arguments)
                for id_ in touched(call):
                    if id_ in self.nodes:
                        self.nodes[id_].version += 1
        elif not error:
            promise = getattr(self, f"_done_{call.name}", None)
            if promise is not None:
                promise(call.arguments, result)
                self.synced += 1

    def _bind(self, directory: str, name: str, id_: str | None) -> None:
        entry = self.node(directory).entries.setdefault(name, Value())
        before = entry.now
        entry.set(id_)
        if before is not None:
            old = self.node(before)
            old.now_at(old.places[-1] - {(directory, name)})
        if id_ is not None:
            new = self.node(id_)
            new.now_at(new.places[-1] | {(directory, name)})

    def _add(self, dir: str, name: str, id: str, kind: str, mode: int) -> None:
        node = self.nodes[id] = Node(id, kind)
        node.mode.set(mode)
        node.mtime.set(None)
        self._bind(dir, name, id)

    def _do_create(self, dir: str, name: str, id: str, mode: int) -> None:
        self._add(dir, name, id, "file", mode)

    def _do_mkdir(self, dir: str, name: str, id: str, mode: int) -> None:
        self._add(dir, name, id, "dir", mode)

    def _do_symlink(self, dir: str, name: str, id: str, target: str) -> None:
        self._add(dir, name, id, "link", 0o777)
        self.node(id).target = target

    def _do_link(self, dir: str, name: str, id: str) -> None:
        self._bind(dir, name, id)

    def _do_unlink(self, dir: str, name: str, id: str) -> None:
        self._bind(dir, name, None)

    def _do_rename(self, dir: str, name: str, to_dir: str, to_name: str, id: str) -> None:
        moved = self.node(id)
        before = moved.places[-1]
        self._bind(dir, name, None)
        self._bind(to_dir, to_name, id)
        moved.places[-2:] = [before - {(dir, name)} | {(to_dir, to_name)}]  # at no moment it had no name

    def _do_exchange(self, dir: str, name: str, to_dir: str, to_name: str, id: str, other: str) -> None:
        one, two = self.node(id), self.node(other)
        places = one.places[-1], two.places[-1]
        for node, own, here, there in (
            (one, places[0], (dir, name), (to_dir, to_name)),
            (two, places[1], (to_dir, to_name), (dir, name)),
        ):
            node.now_at(own - {here} | {there})
            self.node(there[0]).entries[there[1]].set(node.id)

    def _do_write(self, id: str, offset: int, length: int, number: int) -> None:
        self.node(id).contents.write(offset, data(number, length))
        self.node(id).mtime.set(None)

    def _do_punch(self, id: str, offset: int, length: int) -> None:
        self.node(id).contents.write(offset, bytes(length))
        self.node(id).mtime.set(None)

    def _do_truncate(self, id: str, length: int) -> None:
        self.node(id).contents.truncate(length)
        self.node(id).mtime.set(None)

    def _do_chmod(self, id: str, mode: int) -> None:
        self.node(id).mode.set(mode)

    def _do_setxattr(self, id: str, key: str, value: str) -> None:
        self.node(id).xattrs.setdefault(key, Value()).set(value)

    def _do_write_synced(self, id: str, offset: int, length: int, number: int, data_only: bool) -> None:
        self._do_write(id, offset, length, number)

    def _done_write_synced(self, arguments: Arguments, result: Any) -> None:
        start = arguments["offset"]
        self.node(arguments["id"]).contents.promise_part(start, start + arguments["length"])

    def _done_fdatasync(self, arguments: Arguments, result: Any) -> None:
        self.node(arguments["id"]).contents.promise()

    def _done_fsync(self, arguments: Arguments, result: Any) -> None:
        """The file with its attributes and, as ext4 and XFS have it, the names by which it is found."""
        node = self.node(arguments["id"])
        if result is not None:
            node.mtime.set(result)
        self._promise_node(node)
        for directory, name in frozenset[Place]().union(*node.places):
            entry = self.node(directory).entries[name]
            if entry.now in (node.id, None):  # else something else has taken the name since
                entry.promise()
        node.places = node.places[-1:]
        for directory, _ in node.places[-1]:
            self._promise_way(directory)

    def _done_fsyncdir(self, arguments: Arguments, result: Any) -> None:
        directory = self.node(arguments["id"])
        self._promise_node(directory)
        for value in directory.entries.values():
            value.promise()
        for node in self.children(directory.id).values():
            if all(place == directory.id for place, _ in frozenset[Place]().union(*node.places)):
                node.places = node.places[-1:]
        self._promise_way(directory.id)

    def way(self, id_: str) -> Iterator[Node]:
        """Yield a node and the directories above all its names, without the root."""
        if id_ != ROOT:
            node = self.node(id_)
            yield node
            for directory, _ in node.places[-1]:
                yield from self.way(directory)

    def promise_contents(self, id_: str) -> None:
        """Note that the contents of a node are on disk, under whatever name."""
        self.node(id_).contents.promise()

    def _promise_way(self, directory: str) -> None:
        """Promise the names that lead to a directory."""
        while directory != ROOT:
            node = self.node(directory)
            for parent, name in node.places[-1]:
                self.node(parent).entries[name].promise()
                directory = parent
            if not node.places[-1]:
                return
            node.places = node.places[-1:]

    def _promise_node(self, node: Node) -> None:
        node.contents.promise()
        node.mode.promise()
        node.mtime.promise()
        for value in node.xattrs.values():
            value.promise()


def touched(call: Call) -> set[str]:
    """Return the ids of the nodes that a call changes."""
    keys = ("id", "other", "dir", "to_dir")
    return {call.arguments[key] for key in keys if key in call.arguments}
