"""Names with `*`, `?` and `[...]`, by the rules of Go's `filepath.Match`, which COPY and ADD follow."""

from __future__ import annotations

import re
from functools import lru_cache

from layerfs.errors import BadRequest

_LONGEST = 4096
"""Bytes that a pattern may have: no path has more."""


def is_pattern(name: bytes) -> bool:
    """Return whether *name* has a character in it that may stand for others."""
    escaped = False
    for byte in name:
        if escaped:
            escaped = False
        elif byte in b"*?[":
            return True
        else:
            escaped = byte == 0x5C
    return False


def quoted(name: str) -> str:
    """Return what stands for *name* alone where a name or a pattern may be given."""
    if not is_pattern(name.replace("\\", "").encode(errors="surrogateescape")):
        return name
    return re.sub(r"[*?\[]", r"[\g<0>]", name.replace("\\", "\\\\"))


def match(pattern: bytes, name: bytes) -> bool:
    """Return whether *pattern* matches the whole of *name*; no wildcard, `[^a]` included, matches a `/`.

    Raises `BadRequest` for a pattern that is malformed. The time is bounded by the product of both lengths.
    """
    return bool(compiled(pattern).fullmatch(text(name)))


def text(name: bytes) -> str:
    """Return a name as patterns are matched against it: one character for each of UTF-8, or stray byte."""
    return name.decode(errors="surrogateescape")


@lru_cache(maxsize=1000)
def compiled(pattern: bytes) -> re.Pattern[str]:
    """Return the expression for `text(NAME)`, to be used with `fullmatch`; raises `BadRequest` as `match`."""
    if len(pattern) > _LONGEST:
        raise BadRequest(f"expected a pattern of at most {_LONGEST} bytes")
    return re.compile(expression(text(pattern)), re.DOTALL)


def expression(pattern: str, end: str = r"\Z") -> str:
    """Return the regular expression for *pattern*, which has to be followed by *end*.

    Between two stars the first place that fits is the right one, and is kept (an atomic group): nothing is
    tried twice.
    """
    chunks = _chunks(pattern)
    result = chunks[0]
    for chunk in chunks[1:-1]:
        result += f"(?>[^/]*?{chunk})"
    return result + (f"[^/]*{chunks[-1]}(?={end})" if len(chunks) > 1 else f"(?={end})")


def _chunks(pattern: str) -> list[str]:
    """Return the expressions of what stands between the stars of *pattern*."""
    chunks = [""]
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if letter == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append("")
        elif letter == "?":
            chunks[-1] += "[^/]"
        elif letter == "[":
            found, at = _class(pattern, at)
            chunks[-1] += found
        elif letter == "\\":
            if at == len(pattern):
                raise _malformed(pattern, "it ends with a \\ that escapes nothing")
            chunks[-1] += re.escape(pattern[at])
            at += 1
        else:
            chunks[-1] += re.escape(letter)
    return chunks


def _class(pattern: str, at: int) -> tuple[str, int]:
    """Return the expression of the `[...]` whose first character is at *at*, and the offset behind it."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not ranges or not pattern.startswith("]", at):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        ranges.append(f"{_escaped(low)}-{_escaped(high)}" if low <= high else "")
    inside = "".join(ranges)
    if negated:
        return f"[^/{inside}]", at + 1
    return f"(?:(?!/)[{inside}])" if inside else "(?!)", at + 1  # nothing is in [b-a]


def _member(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise _malformed(pattern, "a [ is never closed, or has nothing in it")
    if pattern[at] == "\\":
        at += 1
        if at >= len(pattern):
            raise _malformed(pattern, "it ends with a \\ that escapes nothing")
    if at + 1 >= len(pattern):
        raise _malformed(pattern, "a [ is never closed")
    return pattern[at], at + 1


def _escaped(letter: str) -> str:
    return f"\\{letter}" if letter in "\\]^-[&~|" else letter


def _malformed(pattern: str, why: str) -> BadRequest:
    return BadRequest(f"bad pattern {pattern[:60]!r}: {why}")
