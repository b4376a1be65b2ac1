"""The patterns of `${name#pattern}` and its like, where `*` and `?` stand for other characters.

The work is bounded whatever the pattern: a set of states, held in one integer, moves over the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layerfs.errors import BadRequest

_LONGEST = 1000
"""Characters that a pattern may have; the states of a longer one would make each step slow."""

_Token = tuple[str, str]
"""`("*", "")`, `("?", "")`, or `("", LETTER)`."""


def trim_prefix(value: str, pattern: str, longest: bool) -> str:
    """Return *value* without the shortest, or longest, beginning that *pattern* matches."""
    ends = list(_Matcher(_tokens(pattern)).ends(value, 0, not longest))
    return value[ends[-1] :] if ends else value


def trim_suffix(value: str, pattern: str, longest: bool) -> str:
    """Return *value* without the shortest, or longest, end that *pattern* matches."""
    ends = list(_Matcher(_tokens(pattern)[::-1]).ends(value[::-1], 0, not longest))
    return value[: len(value) - ends[-1]] if ends else value


def replace(value: str, pattern: str, replacement: str, everywhere: bool, most: int) -> str:
    """Return *value* with the first match of *pattern*, or each, replaced; the longest one of several.

    Raises `BadRequest` where the result has more than *most* characters.
    """
    tokens = _tokens(pattern)
    if not tokens:
        return value
    matcher = _Matcher(tokens)
    starts = _Matcher(tokens[::-1]).possible_ends(value[::-1])
    result: list[str] = []
    length = done = 0
    for start in sorted(len(value) - end for end in starts):
        if start < done:
            continue
        end = max(matcher.ends(value, start, False))
        if end == start and start:
            continue  # a `*` matches nothing more behind what it has matched
        result += [value[done:start], replacement]
        length += start - done + len(replacement)
        done = end
        if not everywhere or length > most:
            break
    if length + len(value) - done > most:
        raise BadRequest(f"a value is longer than {most >> 10} KiB once a pattern is replaced in it")
    return "".join([*result, value[done:]])


def _tokens(pattern: str) -> list[_Token]:
    if len(pattern) > _LONGEST:
        raise BadRequest(f"expected a pattern of at most {_LONGEST} characters")
    result: list[_Token] = []
    letters = iter(pattern)
    for letter in letters:
        if letter == "\\":
            result.append(("", next(letters, "\\")))
        elif letter == "?":
            result.append(("?", ""))
        elif letter != "*":
            result.append(("", letter))
        elif not result or result[-1][0] != "*":  # several in a row are one
            result.append(("*", ""))
    return result


class _Matcher:
    """A pattern as bits: bit *i* of a state says that the first *i* tokens have matched."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._final = 1 << len(tokens)
        self._stars = sum(1 << index for index, token in enumerate(tokens) if token[0] == "*")
        self._any = sum(1 << index for index, token in enumerate(tokens) if token[0] == "?")
        self._letters: dict[str, int] = {}
        for index, (kind, letter) in enumerate(tokens):
            if not kind:
                self._letters[letter] = self._letters.get(letter, 0) | 1 << index

    def ends(self, value: str, start: int, first: bool) -> Iterable[int]:
        """Yield where matches that begin at *start* end, in order; only the *first* if that is asked for."""
        state = self._settled(1)
        for position in range(start, len(value) + 1):
            if state & self._final:
                yield position
                if first:
                    return
            if not state or position == len(value):
                return
            state = self._step(state, value[position])

    def possible_ends(self, value: str) -> list[int]:
        """Return where matches end that begin anywhere."""
        result = []
        state = self._settled(1)
        for position in range(len(value) + 1):
            if state & self._final:
                result.append(position)
            if position < len(value):
                state = self._step(state, value[position]) | self._settled(1)
        return result

    def _step(self, state: int, letter: str) -> int:
        moved = (state & (self._letters.get(letter, 0) | self._any)) << 1
        return self._settled(moved | (state & self._stars))

    def _settled(self, state: int) -> int:
        return state | (state & self._stars) << 1  # a `*` may stand for nothing; no two are side by side
