"""Variables put into text, with a shell's quotes and escapes."""

from __future__ import annotations

import pytest

from layerfs.dockerfile import expansion
from layerfs.dockerfile.words import Malformed
from layerfs.errors import BadRequest

VALUES = {
    "A": "/home",
    "EMPTY": "",
    "한국": "안녕",
    "SPACED": " a  b ",
    "PATH": "/usr/lib:/usr/bin",
    "STAR": "a*b?c",
}


def expand(text: str, escape: str = "\\") -> str:
    return expansion.expand(text, VALUES.get, escape)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("x$A.y${A}z$NONE", "x/home.y/homez"),
        ("$한국", "안녕"),
        ("$", "$"),
        ("a$.b$", "a$.b$"),
        ("$1a$12b$@c$#d$$e", "abcde"),
        ("'$A'\"$A\"'\"'", '$A/home"'),
        ("\\$A \\'x\\\" \\a\\\\", "$A 'x\" a\\"),
        ('"\\$A \\" \\a \\\\"', '$A " \\a \\'),
        ("'\\$A'", "\\$A"),
        ("x\\", "x"),
        ("${A:-x}${EMPTY:-x}${NONE:-x}", "/homexx"),
        ("${A-x}${EMPTY-x}${NONE-x}", "/homex"),
        ("${A:+x}${EMPTY:+x}${NONE:+x}", "x"),
        ("${A+x}${EMPTY+x}${NONE+x}", "xx"),
        ("${A:?}${A?}${EMPTY?}", "/home/home"),
        ("${NONE:-${OTHER:-$A}}", "/home"),
        ("${NONE:-\"a } b\"}${NONE:-'}'}${NONE:-\\}}", "a } b}}"),
        ("${NONE:-{x}}", "{x}"),
        ("${PATH#*/}", "usr/lib:/usr/bin"),
        ("${PATH##*/}", "bin"),
        ("${PATH%/*}", "/usr/lib:/usr"),
        ("${PATH%%:*}", "/usr/lib"),
        ("${PATH#?usr}", "/lib:/usr/bin"),
        ("${PATH#lib}${PATH%x}", "/usr/lib:/usr/bin" * 2),
        ("${STAR#*\\*}${STAR%\\?*}${STAR##a\\**}", "b?ca*b"),
        ("${PATH/usr/opt}", "/opt/lib:/usr/bin"),
        ("${PATH//usr/opt}", "/opt/lib:/opt/bin"),
        ("${PATH//\\//\\\\}", "\\\\usr\\\\lib:\\\\usr\\\\bin"),
        ("${PATH//l*:/}", "/usr//usr/bin"),
        ("${PATH//*/x}${NONE/a/b}${PATH/$NONE/x}", "x/usr/lib:/usr/bin"),
        ("${PATH//?/.}", "................."),
        ("${A/$A/$SPACED}", " a  b "),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text) == expected


def test_the_backtick_as_escape() -> None:
    assert expand('C:\\$A `$A "`$A \\"', "`") == "C:\\/home $A $A \\"


@pytest.mark.parametrize(
    ("text", "offset", "says"),
    [
        ("x'y", 1, "' is never closed"),
        ('x"y', 1, '" is never closed'),
        ('x"y\\"', 1, '" is never closed'),
        ("x${A", 1, "expected }"),
        ("x${A:-y", 6, "expected }"),
        ("x${", 1, "bad substitution"),
        ("x${}", 1, "bad substitution"),
        ("x${{A}", 1, "bad substitution"),
        ("x${:-A}", 1, "bad substitution"),
        ("x${.}", 1, "bad substitution"),
        ("x${A:}", 5, "not ':}'"),
        ("x${A=b}", 4, "expected one of } :-"),
        ("x${A:=b}", 5, "not ':='"),
        ("x${A:#b}", 5, "not ':#'"),
        ("x${A/b}", 5, "expected /"),
        ("x${A//b/c", 8, "expected }"),
        ("x" + "${A:-" * 51 + "}" * 51, 251, "at most 50"),
    ],
)
def test_what_is_malformed_is_found_without_variables(text: str, offset: int, says: str) -> None:
    for found in (lambda: expand(text), lambda: expansion.check(text)):
        with pytest.raises(Malformed) as caught:
            found()
        assert says in str(caught.value)
        assert caught.value.offset == offset


def test_a_demanded_variable() -> None:
    for text, says in (
        ("${NONE:?give $A}", "NONE: give /home"),
        ("${NONE?}", "NONE: must be set"),
        ("${EMPTY:?}", "EMPTY: must not be empty"),
    ):
        expansion.check(text)
        with pytest.raises(BadRequest, match=says.replace("?", "\\?")):
            expand(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ("x$SPACED.y", ["x", "a", "b", ".y"]),
        ('x"$SPACED".y', ["x a  b .y"]),
        ("'a b' c\\ d", ["a b", "c d"]),
        ('"" x', ["x"]),
        (" ", []),
        ("$NONE", []),
        ("${A:-b} ${NONE:-c d}", ["/home", "c", "d"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert expansion.words(text, VALUES.get) == expected


def test_a_document_keeps_its_quotes() -> None:
    text = "'$A' \"${NONE:-'x'}\" \\$A \\\\ \\x it's\n"
    assert expansion.document(text, VALUES.get) == "'/home' \"'x'\" $A \\ x it's\n"


def test_a_value_has_a_limit() -> None:
    assert len(expansion.expand("$A" * 10, VALUES.get, most=50)) == 50
    for text in ("$A" * 11, '"' + "$A" * 11 + '"', "${NONE:-" + "$A" * 11 + "}", "x" * 51):
        with pytest.raises(BadRequest, match="a value is longer than"):
            expansion.expand(text, VALUES.get, most=50)
    with pytest.raises(BadRequest, match="a pattern of at most 1000"):
        expand("${A#" + "x" * 1001 + "}")
