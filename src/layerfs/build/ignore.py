"""Which files of a context are left out: `.dockerignore`, by the rules of moby's pattern matcher.

The last pattern that matches a path, or a directory above it, decides; `!` before it takes the path back in.
`**` stands for any number of directories.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache

from layerfs.build import wildcards
from layerfs.dockerfile.words import SPACE
from layerfs.errors import BadRequest

MOST_PATTERNS = 2000
_MOST_BYTES = 1 << 20
_MOST_LOOSE = 4
"""How many `**` of a pattern may follow a part of a name, as in `a**/b`: each doubles the work."""
_TOGETHER = 200
"""Patterns that are made one regular expression; Python compiles a longer one ever more slowly."""


def read(data: bytes) -> list[str]:
    """Return the patterns of a `.dockerignore` file, comments and empty lines left out.

    Raises `BadRequest` for a file that is too long.
    """
    if len(data) > _MOST_BYTES:
        raise BadRequest(f".dockerignore: expected at most {_MOST_BYTES >> 20} MiB, not {len(data)} bytes")
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    lines = (line for line in text.split("\n") if not line.startswith("#"))
    return [pattern for line in lines if (pattern := line.strip(SPACE))]


class Ignore:
    """Patterns, ready to be asked. It does not change, and may be asked by several threads."""

    def __init__(self, patterns: Sequence[str | bytes]) -> None:
        """Take *patterns* in their order; raises `BadRequest` that quotes the one which is malformed."""
        if len(patterns) > MOST_PATTERNS:
            raise BadRequest(f"expected at most {MOST_PATTERNS} patterns, not {len(patterns)}")
        rules = [
            _rule(pattern if isinstance(pattern, str) else wildcards.text(pattern)) for pattern in patterns
        ]
        self._groups = _groups([rule for rule in rules if rule])[::-1]

    def __bool__(self) -> bool:
        return bool(self._groups)

    def matches(self, path: bytes) -> bool:
        """Return whether *path*, relative and with `/` between its names, is left out."""
        text = wildcards.text(path)
        for group in self._groups:  # the last that matches decides
            if group.expression.match(text):
                return group.out
        return False

    def skips(self, directory: bytes) -> bool:
        """Return whether a directory is left out with all that is in it: nothing below is taken back in."""
        text = wildcards.text(directory)
        names = text.split("/")
        for group in self._groups:
            if group.out and group.expression.match(text):
                return True
            if not group.out and any(_may_reach(parts, names) for parts in group.components):
                return False
        return False


class _Group:
    """Patterns one after the other that all leave out, or all take in."""

    def __init__(self, out: bool, patterns: Sequence[_Rule]) -> None:
        self.out = out
        self.expression = re.compile("|".join(f"(?:{rule.expression})" for rule in patterns), re.DOTALL)
        self.components = [parts for rule in patterns for parts in rule.alternatives] if not out else []


class _Rule:
    """One pattern."""

    def __init__(self, pattern: str, out: bool) -> None:
        self.out = out
        self.alternatives = [alternative.split("/") for alternative in _aligned(pattern)]
        if _is_suffix(pattern):  # such as **.log: whatever ends so, and what is below that
            self.expression = f".*?{re.escape(pattern[2:])}(?=/|\\Z)"
            self.alternatives = [["**"]]
            if pattern.startswith("**/"):
                self.expression = f"(?:.*/)?{re.escape(pattern[3:])}(?=/|\\Z)"
        else:
            self.expression = "|".join(f"(?:{_path(parts)})" for parts in self.alternatives)


def _rule(pattern: str) -> _Rule | None:
    text = pattern.strip(SPACE)
    if not text:
        return None
    out = not text.startswith("!")
    text = text.removeprefix("!").strip(SPACE)
    if not text:
        raise BadRequest("bad pattern '!': expected a pattern after it")
    text = posixpath.normpath(text).lstrip("/")
    if text in ("", "."):
        return None  # the context itself, which cannot be left out
    wildcards.compiled(text.replace("**", "*").encode(errors="surrogateescape"))  # says what is malformed
    return _Rule(text, out)


def _groups(rules: Sequence[_Rule]) -> list[_Group]:
    result: list[_Group] = []
    start = 0
    for end in range(1, len(rules) + 1):
        if end == len(rules) or rules[end].out != rules[start].out or end - start == _TOGETHER:
            result.append(_Group(rules[start].out, rules[start:end]))
            start = end
    return result


def _is_suffix(pattern: str) -> bool:
    return pattern.startswith("**") and not any(letter in "*?[]\\" for letter in pattern[2:])


def _aligned(pattern: str) -> list[str]:
    """Return patterns that together mean *pattern*, in which each `**` is a whole component.

    `**x` is `**/x`; `a**/b` is `ab`, or `a*/**/b`.
    """
    pattern = re.sub(r"\*{3,}", "**", pattern)
    result = [""]
    loose = 0
    parts = _STARS.split(pattern)
    for index, part in enumerate(parts):
        if index == 0:
            result = [part]
            continue
        last = index == len(parts) - 1 and not part
        if result[0] == "" or result[0].endswith("/"):
            result = [f"{text}**" if last else f"{text}**/{part}" for text in result]
        elif last:
            result = [other for text in result for other in (f"{text}*", f"{text}*/**")]
        else:
            loose += 1
            if loose > _MOST_LOOSE:
                raise BadRequest(
                    f"bad pattern {pattern[:60]!r}: expected ** to be a whole name, as in a/**/b, "
                    f"more than {_MOST_LOOSE} times"
                )
            result = [other for text in result for other in (f"{text}{part}", f"{text}*/**/{part}")]
    return result


_STARS = re.compile(r"(?<!\\)\*\*/?")


def _path(parts: Sequence[str]) -> str:
    """Return the expression that matches a path, or one above which it is, by its components."""
    if parts == ["**"]:
        return ""
    segments: list[list[str]] = [[]]
    for part in parts:
        if part == "**":
            segments.append([])
        else:
            segments[-1].append(part)
    result = ""
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if not segment:
            if last and index:
                result += "."  # something below, whatever it is
            continue
        body = "/".join(_component(part) for part in segment)
        if index == 0:
            result += body + ("" if last else "/")
        elif last:
            result += f"(?:[^/]+/)*{body}"
        else:  # the first place that fits is as good as any later one
            result += f"(?>(?:[^/]+/)*?{body}/)"
    return result


def _component(part: str) -> str:
    return wildcards.expression(part, r"(?:/|\Z)")


def _may_reach(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether a pattern may match something in the directory *names*."""
    for part, name in zip(parts, names, strict=False):
        if part == "**":
            return True
        if not _name(part).match(name):
            return False
    return True


@lru_cache(maxsize=4 * MOST_PATTERNS)
def _name(part: str) -> re.Pattern[str]:
    return re.compile(wildcards.expression(part), re.DOTALL)
