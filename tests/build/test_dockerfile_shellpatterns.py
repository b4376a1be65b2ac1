"""The patterns of `${A#p}` and `${A/p/r}`, held against an expression of Python's for small ones."""

from __future__ import annotations

import itertools
import re

import pytest

from layerfs.dockerfile import shellpatterns
from layerfs.errors import BadRequest

PATTERNS = ["".join(letters) for length in range(4) for letters in itertools.product("ab*?", repeat=length)]
VALUES = ["".join(letters) for length in range(6) for letters in itertools.product("ab", repeat=length)]


def expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace("\\*", ".*").replace("\\?", "."))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_prefixes_and_suffixes_are_the_shortest_or_longest_that_match(pattern: str) -> None:
    good = expression(pattern)
    for value in VALUES:
        heads = [end for end in range(len(value) + 1) if good.fullmatch(value[:end])] or [0]
        tails = [start for start in range(len(value) + 1) if good.fullmatch(value[start:])] or [len(value)]
        assert shellpatterns.trim_prefix(value, pattern, False) == value[min(heads) :]
        assert shellpatterns.trim_prefix(value, pattern, True) == value[max(heads) :]
        assert shellpatterns.trim_suffix(value, pattern, False) == value[: max(tails)]
        assert shellpatterns.trim_suffix(value, pattern, True) == value[: min(tails)]


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern.strip("*")])
def test_replacing_takes_the_first_and_longest(pattern: str) -> None:
    good = expression(pattern)
    for value in VALUES:
        assert shellpatterns.replace(value, pattern, "<x>", False, 100) == good.sub("<x>", value, count=1)
        assert shellpatterns.replace(value, pattern, "<x>", True, 100) == good.sub("<x>", value)


def test_stars_alone_replace_the_whole() -> None:
    for pattern in ("*", "**"):
        assert shellpatterns.replace("abc", pattern, "x", True, 9) == "x"
        assert shellpatterns.replace("", pattern, "x", True, 9) == "x"
    assert shellpatterns.replace("abc", "", "x", True, 9) == "abc"


def test_escapes_stand_for_themselves() -> None:
    assert shellpatterns.trim_prefix("a*b", "a\\*", False) == "b"
    assert shellpatterns.trim_prefix("a.b", "a\\*", False) == "a.b"
    assert shellpatterns.trim_suffix("a\\", "\\", False) == "a"
    assert shellpatterns.replace("([x])", "[x]", "y", True, 9) == "(y)"


def test_what_is_replaced_has_a_limit() -> None:
    assert shellpatterns.replace("a" * 10, "a", "xy", True, 20) == "xy" * 10
    assert shellpatterns.replace("a" * 10, "*", "x" * 20, True, 20) == "x" * 20
    for value, pattern, replacement in (
        ("a" * 10, "a", "xyz"),
        ("a" * 9 + "b", "b", "x" * 12),
        ("", "*", "x" * 21),
    ):
        with pytest.raises(BadRequest, match="a value is longer than"):
            shellpatterns.replace(value, pattern, replacement, True, 20)
