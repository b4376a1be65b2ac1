"""Names with wildcards, and which files of a context are left out."""

from __future__ import annotations

import pytest

from layerfs.build import ignore, wildcards
from layerfs.build.ignore import Ignore
from layerfs.errors import BadRequest


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*", "", True),
        ("a*", "a", True),
        ("a*", "ab/c", False),
        ("a*/b", "axx/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c", "a1b2b3c", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("*x", "xxx", True),
        ("a?b", "a☺b", True),
        ("a?b", "a/b", False),
        ("a???b", "a☺b", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[^b-d]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a[^x]b", "a/b", False),
        ("[à-ü]*", "é", True),
        ("*[à-ü]", "A", False),
        ("[\\]a\\-&&~||]", "]", True),
        ("[\\]a\\-&&~||]", "-", True),
        ("[z-a]", "b", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("a.b", "axb", False),
        ("a\nb*", "a\nb\n", True),
        ("abc", "abc\n", False),
    ],
)
def test_wildcards(pattern: str, name: str, expected: bool) -> None:
    assert wildcards.match(pattern.encode(), name.encode()) is expected


def test_wildcards_take_bytes_that_are_no_text() -> None:
    assert wildcards.match(b"a?b", b"a\xffb")
    assert wildcards.match(b"\xff*", b"\xff\xfe")
    assert not wildcards.match(b"\xfe*", b"\xff")


@pytest.mark.parametrize(
    "pattern", ["[", "[^", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[^bc", "a[", "\\", "a[\\", "*["]
)
def test_malformed_patterns(pattern: str) -> None:
    with pytest.raises(BadRequest, match=r"^bad pattern "):
        wildcards.match(pattern.encode(), b"a")
    with pytest.raises(BadRequest, match=r"^bad pattern "):
        Ignore([pattern])


def test_which_names_are_patterns() -> None:
    assert all(map(wildcards.is_pattern, (b"a[b]", b"*", b"a/?", b"\\\\*")))
    assert not any(map(wildcards.is_pattern, (b"a\\*b", b"", b"a]", b"a\\")))


@pytest.mark.parametrize(
    ("patterns", "out", "kept"),
    [
        (["a"], "a a/b a/b/c", "b b/a ab"),
        (["/a/", "./b/../c"], "a a/x c", "b"),
        (["*.o"], "x.o x.o/y", "d/x.o x.oo"),
        (["*/*.o"], "d/x.o", "x.o d/e/x.o"),
        (["**/*.o"], "x.o d/x.o d/e/x.o d/x.o/y", "x.oo"),
        (["**.o"], "x.o d/x.o .o", "x.oo"),
        (["**"], "a a/b", ""),
        (["**/**"], "a a/b", ""),
        (["a/**"], "a/b a/b/c", "a b"),
        (["a/**/b"], "a/b a/x/b a/x/y/b a/b/z", "a/xb a b"),
        (["**/a/**/b"], "a/b x/a/y/b", "b x/b"),
        (["a**/b"], "ab ax/b axx/y/b a/b", "xb b axb"),
        (["a**"], "a ab ab/c", "ba"),
        (["**a"], "a ba x/ba", "ab"),
        (["**a*"], "a x/ab", "xa"),
        (["a/b**"], "a/b a/bc/d", "a/c"),
        (["?"], "a a/b", "ab"),
        (["[ab]c"], "ac bc/x", "cc"),
        (["a.b"], "a.b", "axb"),
        (["a\\*"], "a*", "ab"),
        (["*", "!a"], "b b/a", "a a/b"),
        (["a", "!a/b"], "a a/c", "a/b a/b/c"),
        (["!a", "*"], "a", ""),
        (["**", "!**/keep", "x/keep"], "a x/keep/y", "keep b/keep/c"),
        (["a", "!a/b", "a/b/c"], "a/b/c", "a/b/d"),
        ([" ! a ", "b "], "b", "a"),
        (["", " ", ".", "/"], "", "a"),
        ([b"\xff"], "", "a"),
    ],
)
def test_ignore(patterns: list[str | bytes], out: str, kept: str) -> None:
    found = Ignore(patterns)
    assert [path for path in out.split() if not found.matches(path.encode())] == []
    assert [path for path in kept.split() if found.matches(path.encode())] == []


def test_bytes_that_are_no_text_can_be_ignored() -> None:
    assert Ignore(ignore.read(b"caf\xe9\n")).matches(b"caf\xe9/x")


@pytest.mark.parametrize(
    ("patterns", "skipped", "walked"),
    [
        (["a", "b/*"], "a b/c", "b c"),
        (["*", "!a/b"], "c c/d a/c", "a a/b"),
        (["*", "!a/b/c"], "c a/c", "a a/b"),
        (["*", "!**/x"], "", "a a/b"),
        (["*", "!a/**/x"], "b", "a a/b"),
        (["!a/b", "*"], "a b", ""),
        (["*", "!a*/x?"], "b", "ab a"),
        (["*", "!**.c"], "", "a"),
        ([], "", "a"),
    ],
)
def test_a_directory_is_skipped_where_nothing_below_is_taken_back(
    patterns: list[str], skipped: str, walked: str
) -> None:
    found = Ignore(patterns)
    assert [path for path in skipped.split() if not found.skips(path.encode())] == []
    assert [path for path in walked.split() if found.skips(path.encode())] == []


def test_a_file_of_patterns() -> None:
    data = b"\xef\xbb\xbfa\r\n# note\n\n  b c \n #no note\n!d\n"
    assert ignore.read(data) == ["a", "b c", "#no note", "!d"]


def test_bad_patterns_are_quoted() -> None:
    for pattern in ("!", " ! "):
        with pytest.raises(BadRequest, match=r"^bad pattern '!': expected a pattern after it$"):
            Ignore([pattern])
    with pytest.raises(BadRequest, match="expected \\*\\* to be a whole name"):
        Ignore(["a**/" * 6 + "b"])
    with pytest.raises(BadRequest, match="at most 2000 patterns"):
        Ignore(["a"] * 2001)
    with pytest.raises(BadRequest, match="at most 4096 bytes"):
        Ignore(["a" * 5000])
    with pytest.raises(BadRequest, match="at most 1 MiB"):
        ignore.read(b"a" * (1 << 21))
