"""Variables are put into text: `$A`, `${A}` and the forms of `${A:-x}`, with a shell's quotes and escapes.

The forms are those of the Dockerfile reference: `-` `+` `?` (with `:` an empty variable counts as unset),
`#` `##` `%` `%%` (a beginning or an end taken away) and `/` `//` (replaced).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from layerfs.dockerfile import shellpatterns
from layerfs.dockerfile.words import SPACE, Malformed
from layerfs.errors import BadRequest

Lookup = Callable[[str], "str | None"]
"""Returns the value of a variable, None where there is none; `Mapping.get` is one."""

MOST_VALUE = 128 << 10
"""Characters of a value with variables put in: Linux takes no longer variable or argument."""
MOST_DOCUMENT = 16 << 20
"""Characters of a here-document with variables put in."""

_DEEPEST = 50
"""How deep `${A:-${B:-...}}` may be nested."""
_NAME = re.compile(r"\d+|[@*#?$!-]|\w+")


def expand(text: str, lookup: Lookup, escape: str = "\\", most: int = MOST_VALUE) -> str:
    """Return *text* with variables put in, quotes and escapes taken away; an unset one is nothing.

    *escape* is the Dockerfile's. Raises `Malformed` with the offset in *text* for a quote or brace that is
    never closed, or a form that does not exist; `BadRequest` for a variable that `${A:?}` demands, and for
    a result of more than *most* characters.
    """
    if not _special(escape).search(text):
        return _bounded(text, most)
    return _Expander(text, lookup, escape, most).whole()


def words(text: str, lookup: Lookup, escape: str = "\\", most: int = MOST_VALUE) -> list[str]:
    """Return *text* as `expand` does, split at spaces that are not quoted; those of values split, too."""
    return _Expander(text, lookup, escape, most).words()


def document(text: str, lookup: Lookup, most: int = MOST_DOCUMENT) -> str:
    """Return a here-document of COPY or ADD with variables put in: quotes stay, `\\$` is a dollar."""
    if not _special("\\").search(text):
        return _bounded(text, most)
    return _Expander(text, lookup, "\\", most, quotes=False).whole()


def check(text: str, escape: str = "\\", *, quotes: bool = True) -> None:
    """Raise what `expand` would because of *text* itself, whatever the variables are."""
    if _special(escape).search(text):
        _Expander(text, None, escape, len(text) + MOST_VALUE, quotes=quotes).whole()


def changes(text: str, escape: str = "\\") -> bool:
    """Return whether `expand` could change *text*, for places where Docker puts no variables in."""
    return bool(_special(escape).search(text))


@cache
def _special(escape: str) -> re.Pattern[str]:
    return re.compile(rf"[$'\"{re.escape(escape)}]")


@cache
def _plain(escape: str, stop: str, quotes: bool) -> re.Pattern[str]:
    special = "$" + escape + stop + ("'\"" if quotes else "")
    return re.compile(f"[^{re.escape(special)}]+")


def _bounded(text: str, most: int) -> str:
    if len(text) > most:
        raise BadRequest(f"a value is longer than {most >> 10} KiB once variables are put in")
    return text


class _Expander:
    """Reads a text once, from left to right."""

    def __init__(
        self, text: str, lookup: Lookup | None, escape: str, most: int, *, quotes: bool = True
    ) -> None:
        self._text = text
        self._lookup = lookup
        """None where only the grammar is looked at: then no variable is set, and none is missed."""
        self._escape = escape
        self._most = most
        self._quotes = quotes
        self._at = 0
        self._depth = 0

    def whole(self) -> str:
        return self._join([part for part, _ in self._until("", raw=False)])

    def words(self) -> list[str]:
        result: list[str] = []
        word = ""
        for part, keep in self._until("", raw=False):
            if keep:
                word += part
                continue
            for index, piece in enumerate(_SPACES.split(part)):
                if index and word:
                    result.append(word)
                    word = ""
                word += piece
        return [*result, word] if word else result

    def _join(self, parts: list[str]) -> str:
        if sum(map(len, parts)) > self._most:
            raise BadRequest(f"a value is longer than {self._most >> 10} KiB once variables are put in")
        return "".join(parts)

    def _until(self, stop: str, *, raw: bool) -> list[tuple[str, bool]]:
        """Return what comes before *stop*, and go past it; each part, and whether its spaces are kept.

        *raw* leaves escape characters in, for patterns.
        """
        begin = self._at
        plain = _plain(self._escape, stop, self._quotes)
        parts: list[tuple[str, bool]] = []
        room = self._most
        while self._at < len(self._text):
            letter = self._text[self._at]
            if found := plain.match(self._text, self._at):
                self._at = found.end()
                part = (found[0], False)
            elif letter == stop:
                self._at += 1
                return parts
            elif letter == "$":
                part = (self._variable(), False)
            elif letter == "'" and self._quotes:
                part = (self._single(), True)
            elif letter == '"' and self._quotes:
                part = (self._double(raw), True)
            else:  # an escape; at the very end it is nothing
                part = (self._text[self._at + (0 if raw else 1) : self._at + 2], True)
                self._at += 2
            parts.append(part)
            room -= len(part[0])
            if room < 0:
                raise BadRequest(f"a value is longer than {self._most >> 10} KiB once variables are put in")
        if stop:
            raise Malformed(f"expected {stop} that ends ${{...}}", min(begin, len(self._text) - 1))
        return parts

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise Malformed("a ' is never closed: expected another one", self._at)
        begin, self._at = self._at + 1, end + 1
        return self._text[begin:end]

    def _double(self, raw: bool) -> str:
        begin = self._at
        self._at += 1
        plain = _plain(self._escape, '"', False)
        parts: list[str] = []
        while self._at < len(self._text):
            if found := plain.match(self._text, self._at):
                self._at = found.end()
                parts.append(found[0])
                continue
            letter = self._text[self._at]
            if letter == '"':
                self._at += 1
                return self._join(parts)
            if letter == "$":
                parts.append(self._variable())
                continue
            follows = self._text[self._at + 1 : self._at + 2]
            if follows in ('"', "$", self._escape):
                parts.append(letter + follows if raw else follows)
                self._at += 2
            else:  # it escapes nothing else, and so stays
                parts.append(letter)
                self._at += 1
        raise Malformed('a " is never closed: expected another one', begin)

    def _variable(self) -> str:
        begin = self._at
        self._at += 1
        if not self._text.startswith("{", self._at):
            name = self._name()
            return self._value(name) or "" if name else "$"
        self._at += 1
        name = self._name()
        if not name:
            raise Malformed("bad substitution: expected a variable's name after ${", begin)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Malformed(f"expected at most {_DEEPEST} ${{...}} inside each other", begin)
        result = self._form(name, begin)
        self._depth -= 1
        return result

    def _form(self, name: str, begin: int) -> str:
        """Return what `${NAME` and the rest, which is read here, stand for."""
        kind = self._take(1)
        empty_is_unset = kind == ":"
        if empty_is_unset:
            kind = self._take(1)
        if kind == "}" and not empty_is_unset:
            return self._value(name) or ""
        if kind in ("-", "+", "?") and kind:
            return self._choice(name, kind, empty_is_unset, begin)
        if kind in ("#", "%") and kind and not empty_is_unset:
            return self._trimmed(name, kind)
        if kind == "/" and not empty_is_unset:
            return self._replaced(name)
        if not kind:
            raise Malformed("expected } that ends ${...}", begin)
        modifier = (":" if empty_is_unset else "") + kind
        raise Malformed(
            f"expected one of }} :- :+ :? - + ? # % / after ${{{name}, not {modifier!r}", self._at - 1
        )

    def _choice(self, name: str, kind: str, empty_is_unset: bool, begin: int) -> str:
        word = self._inner("}", raw=False)
        value = self._value(name)
        missing = not value if empty_is_unset else value is None
        if kind == "+":
            return "" if missing else word
        if kind == "-":
            return word if missing else value or ""
        if missing and self._lookup is not None:
            why = word or ("must not be empty" if empty_is_unset else "must be set")
            raise Malformed(f"{name}: {why}: give it with --build-arg, ARG or ENV", begin)
        return value or ""

    def _trimmed(self, name: str, kind: str) -> str:
        pattern = self._inner("}", raw=True)
        longest = pattern.startswith(kind)
        trim = shellpatterns.trim_prefix if kind == "#" else shellpatterns.trim_suffix
        return trim(self._value(name) or "", pattern.removeprefix(kind), longest)

    def _replaced(self, name: str) -> str:
        everywhere = self._text.startswith("/", self._at)
        self._at += everywhere
        pattern = self._inner("/", raw=True)
        replacement = self._inner("}", raw=True)
        return shellpatterns.replace(self._value(name) or "", pattern, replacement, everywhere, self._most)

    def _inner(self, stop: str, *, raw: bool) -> str:
        return self._join([part for part, _ in self._until(stop, raw=raw)])

    def _take(self, count: int) -> str:
        taken = self._text[self._at : self._at + count]
        self._at += count
        return taken

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found[0] if found else ""

    def _value(self, name: str) -> str | None:
        return self._lookup(name) if self._lookup else None


_SPACES = re.compile(f"[{SPACE}]")
