"""`--chmod`: what it makes of a mode, as an octal number or as chmod(1) has it (`u=rwX,go-w`)."""

from __future__ import annotations

import re
import stat
from typing import NamedTuple

from layerfs.errors import BadRequest

_OCTAL = re.compile(r"[0-7]+")
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_SET_ID = {"u": stat.S_ISUID, "g": stat.S_ISGID}
_MOST = 0o7777


class _Action(NamedTuple):
    who: str
    operator: str
    what: str


class Mode:
    """A parsed `--chmod`."""

    def __init__(self, text: str) -> None:
        """Parse *text*. Raises `BadRequest`."""
        self._number: int | None = None
        self._actions: list[_Action] = []
        if _OCTAL.fullmatch(text):
            self._number = int(text, 8)
        else:
            for clause in text.split(","):
                found = _CLAUSE.fullmatch(clause)
                if found is None:
                    raise _invalid(text)
                who = found[1] or "a"
                self._actions += [_Action(who, *action) for action in _ACTION.findall(found[2])]
        if self._number is not None and self._number > _MOST:
            raise _invalid(text)

    def apply(self, mode: int) -> int:
        """Return the permission bits of something that has *mode* (with its type) now."""
        if self._number is not None:
            return self._number
        bits = stat.S_IMODE(mode)
        for action in self._actions:
            bits = _applied(action, bits, is_directory=stat.S_ISDIR(mode))
        return bits


def _applied(action: _Action, bits: int, *, is_directory: bool) -> int:
    who = "ugo" if "a" in action.who else action.who
    wanted = affected = 0
    for letter in who:
        affected |= 0o7 << _SHIFTS[letter] | _SET_ID.get(letter, 0)
        wanted |= _permissions(action.what, bits, is_directory=is_directory) << _SHIFTS[letter]
        if "s" in action.what:
            wanted |= _SET_ID.get(letter, 0)
    if "t" in action.what:
        wanted |= stat.S_ISVTX
    if action.operator == "+":
        return bits | wanted
    if action.operator == "-":
        return bits & ~wanted
    if "a" in action.who:
        affected |= stat.S_ISVTX
    if is_directory:  # as GNU's chmod: only what names them takes set-id bits from a directory
        affected &= ~(stat.S_ISUID | stat.S_ISGID)
    return bits & ~affected | wanted


def _permissions(what: str, bits: int, *, is_directory: bool) -> int:
    """Return the three bits that *what* stands for: letters, or those that somebody has."""
    if what in _SHIFTS:
        return bits >> _SHIFTS[what] & 0o7
    value = 4 * ("r" in what) + 2 * ("w" in what)
    return value | ("x" in what or ("X" in what and (is_directory or bool(bits & 0o111))))


def _invalid(text: str) -> BadRequest:
    return BadRequest(
        f"invalid --chmod {text[:50]!r}: give an octal number up to 7777, or a mode such as u=rwX,go=rX"
    )
