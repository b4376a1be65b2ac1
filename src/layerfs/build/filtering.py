"""A source of which a part is not there: what .dockerignore, `--exclude` and `--parents` leave out."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import closing

from layerfs.build.ignore import Ignore
from layerfs.build.sources import DEEPEST, Content, Item, Source, SourceDirectory, too_deep

Rules = tuple[Ignore, ...]
"""What any of them leaves out is left out."""


def only(patterns: Sequence[str | bytes]) -> Ignore:
    """Return the rule that leaves out all but what matches one of *patterns*, or is below what does."""
    taken = [b"!" + (pattern if isinstance(pattern, bytes) else os.fsencode(pattern)) for pattern in patterns]
    return Ignore([b"**", *taken])


class Filtered:
    """A source without what *rules* leave out."""

    def __init__(self, source: Source, rules: Rules) -> None:
        self._source = source
        self._rules = rules
        self.keeps_owners = source.keeps_owners
        self.lasting = source.lasting
        self.may_change = source.may_change
        self.digests = source.digests
        self.called = source.called

    def root(self) -> SourceDirectory:
        """Return its root, which the caller closes. Raises `OSError`."""
        return filtered(self._source.root(), self._rules)


def filtered(directory: SourceDirectory, rules: Rules) -> SourceDirectory:
    """Return *directory* without what *rules* leave out, by its path from there; it owns *directory*."""
    return _FilteredDirectory(directory, rules, b"") if rules else directory


class _FilteredDirectory:
    __slots__ = ("_inner", "_prefix", "_rules", "implied", "st")

    def __init__(self, inner: SourceDirectory, rules: Rules, path: bytes) -> None:
        self._inner = inner
        self._rules = rules
        self._prefix = path + b"/" if path else b""
        self.st = inner.st
        self.implied = inner.implied or (path != b"" and self._leaves_out(path))

    def items(self) -> list[Item]:
        return [item for item in self._inner.items() if self._shows(item.name, item.st)]

    def find(self, name: bytes) -> os.stat_result | None:
        st = self._inner.find(name)
        return st if st is not None and self._shows(name, st) else None

    def _leaves_out(self, path: bytes) -> bool:
        return any(rule.matches(path) for rule in self._rules)

    def _shows(self, name: bytes, st: os.stat_result) -> bool:
        """Tell whether *name* is there: a directory that is left out is, if anything in it is not."""
        path = self._prefix + name
        if not self._leaves_out(path):
            return True
        if not stat.S_ISDIR(st.st_mode) or any(rule.skips(path) for rule in self._rules):
            return False
        if path.count(b"/") > DEEPEST:
            raise too_deep(name)
        with closing(self._enter(name)) as inside:
            return any(inside._shows(item.name, item.st) for item in inside._inner.items())

    def _enter(self, name: bytes) -> _FilteredDirectory:
        return _FilteredDirectory(self._inner.enter(name), self._rules, self._prefix + name)

    def enter(self, name: bytes) -> SourceDirectory:
        return self._enter(name)

    def open(self, item: Item) -> Content:
        return self._inner.open(item)

    def readlink(self, name: bytes) -> bytes:
        return self._inner.readlink(name)

    def xattrs(self, name: bytes, fd: int) -> dict[bytes, bytes]:
        return self._inner.xattrs(name, fd)

    def close(self) -> None:
        self._inner.close()
