"""Words of an instruction's text: split at spaces, as flags, or out of a JSON list."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import NamedTuple

from layerfs.errors import BadRequest

SPACE = (
    " \t\v\f\r\n\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What separates words that may be quoted, and is left out around lines: Go's `unicode.IsSpace`."""

_BLANK = " \t\v\f\r\n"
"""What separates plain words: a no-break space may be in a file's name."""
_PLAIN = re.compile(rf"[^{_BLANK}]+")
_SKIP = re.compile(rf"[{SPACE}]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(BadRequest):
    """Text does not follow the grammar; *offset* is the character where, for whoever knows its place."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Word(NamedTuple):
    """A word, and where it begins."""

    text: str
    offset: int


class Flag(NamedTuple):
    """A `--name=value` before an instruction's arguments; *value* is None without `=`."""

    name: str
    value: str | None
    offset: int


def skip(text: str, start: int) -> int:
    """Return the offset of the first character at or after *start* that is no space."""
    found = _SKIP.match(text, start)
    return found.end() if found else start


def first(text: str) -> tuple[str, int]:
    """Return the word that *text* begins with, and the offset of what follows it."""
    found = _PLAIN.search(text)
    return (found[0], skip(text, found.end())) if found else ("", len(text))


def plain(text: str, start: int = 0) -> list[Word]:
    """Split at spaces; quotes mean nothing."""
    return [Word(found[0], found.start()) for found in _PLAIN.finditer(text, start)]


def split(text: str, start: int, escape: str) -> list[Word]:
    """Split at spaces that are neither quoted nor escaped; quotes and escapes stay for `expansion`.

    Raises `Malformed` for a quote that is never closed.
    """
    result = []
    pattern = _quoted_word(escape)
    at = skip(text, start)
    while at < len(text):
        found = pattern.match(text, at)
        end = found.end() if found else at
        if end < len(text) and text[end] in "'\"":
            raise Malformed(f"a {text[end]} is never closed: expected another one", end)
        word = text[at:end]
        if end == len(text) and word.endswith(escape) and not _escapes_end(word, escape):
            word = word[:-1]  # nothing follows that it could escape
        if word:
            result.append(Word(word, at))
        at = skip(text, max(end, at + 1))
    return result


def flags(text: str, start: int, escape: str) -> tuple[list[Flag], int]:
    """Return the flags at *start*, quotes and escapes taken away, and the offset of what follows them.

    A word `--` ends them. Raises `Malformed` for a quote that is never closed.
    """
    result = []
    at = skip(text, start)
    while text.startswith("--", at):
        found = _quoted_word(escape).match(text, at)
        end = found.end() if found else at
        if end < len(text) and text[end] in "'\"":
            raise Malformed(f"a {text[end]} is never closed: expected another one", end)
        word = _unquoted(text[at:end], escape)
        offset, at = at, skip(text, end)
        if word == "--":
            break
        name, equals, value = word.removeprefix("--").partition("=")
        result.append(Flag(name, value if equals else None, offset))
    return result, at


def json_list(text: str, offset: int = 0) -> tuple[str, ...] | None:
    """Return the strings of a JSON list; None where *text* is none, which means that it is for a shell.

    Raises `Malformed` for a list of something else, as Docker does.
    """
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(word, str) for word in words):
        raise Malformed('expected only strings in the list, as in ["make", "-j", "2"]', offset)
    result = tuple(_SURROGATE.sub("\ufffd", word) for word in words)
    if any("\0" in word for word in result):
        raise Malformed("expected no null byte in the list's strings", offset)
    return result


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity, which Python would read


@cache
def _quoted_word(escape: str) -> re.Pattern[str]:
    """Return what matches as much of a word as is well formed; an open quote is left."""
    token = re.escape(escape)
    # An atomic group, not a possessive quantifier: that of a group goes wrong before Python 3.11.5.
    return re.compile(
        rf"(?>(?:[^{SPACE}'\"{token}]++|'[^']*'|\"(?:[^\"{token}]++|{token}.)*\"|{token}(?:.|\Z))*)",
        re.DOTALL,
    )


def _escapes_end(word: str, escape: str) -> bool:
    """Return whether the escape character that *word* ends with is itself escaped."""
    return (len(word) - len(word.rstrip(escape))) % 2 == 0


def _unquoted(word: str, escape: str) -> str:
    """Take the quotes and escapes of a flag away: an escape counts in either kind of quotes."""
    if not any(letter in word for letter in ("'", '"', escape)):
        return word
    result = []
    quote = ""
    letters = iter(word)
    for letter in letters:
        if letter == escape:
            result.append(next(letters, ""))
        elif letter == quote:
            quote = ""
        elif letter in "'\"" and not quote:
            quote = letter
        else:
            result.append(letter)
    return "".join(result)
