"""Dockerfiles made to take long: they are read, or refused, in time proportional to their length."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from layerfs.build import wildcards
from layerfs.build.ignore import Ignore
from layerfs.dockerfile import expansion, parser
from layerfs.errors import BadRequest

MANY = 100_000
PATIENCE = 5.0
"""Seconds: ten times what the slowest takes on a small machine; what grows with the square takes minutes."""


def in_time(work: Callable[[], object]) -> str:
    """Return what is wrong with the input of *work*, "" for nothing; fail where it takes too long."""
    begun = time.process_time()
    try:
        work()
        said = ""
    except BadRequest as error:
        said = str(error)
    assert time.process_time() - begun < PATIENCE
    assert len(said) < 500
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"RUN echo hello \\\n  && true\n" * 5000, ""),
        (b'ENV A="b c" D=$E\n' * 10_000, ""),
        (b"COPY --chown=a:b a b /c/\n" * 10_000, ""),
        (b"RUN <<A\nx\nA\n" * 10_000, ""),
        (b'ENV A="' + b"a" * MANY, "never closed"),
        (b'ENV A="' + b"\\a" * MANY, "never closed"),
        (b"ENV A=" + b'"a"' * MANY + b'"', "never closed"),
        (b"ENV A=" + b"''" * MANY + b"'", "never closed"),
        (b"ENV A=" + b"\\" * MANY + b"a", ""),
        (b"ENV A=" + b"$" * MANY, ""),
        (b"ENV A=" + b"${a:-" * MANY, "at most 50"),
        (b"ENV A=" + b"${" * MANY, "expected one of }"),
        (b"ENV A=" + b"${a#*}" * (MANY // 2), ""),
        (b"RUN " + b"<" * MANY, ""),
        (b"RUN " + b"<< " * MANY, ""),
        (b'RUN << "' + b'a"' * MANY, ""),
        (b"RUN " + b"<<a " * (MANY // 4), "further down"),
        (b"RUN <<A\n" * MANY, "further down"),
        (b"RUN a\\\n" * MANY, ""),
        (b"RUN " + b"\\ " * MANY + b"x", ""),
        (b"RUN a\\\n" + b"\n" * MANY + b"b", ""),
        (b"RUN" + b" " * MANY, "needs an argument"),
        (b"#\n" * MANY, ""),
        (b"LABEL " + b"a=b " * MANY, ""),
        (b"COPY " + b"--exclude=b " * (MANY // 4) + b"a b", ""),
        (b"COPY " + b"--" * MANY + b" a b", "has no flag"),
        (b"RUN " + b"--mount=target=/a " * (MANY // 10) + b"a", ""),
        (b"RUN --mount=target=/a," + b'"' * MANY + b" a", "expected KEY=VALUE"),
        (b"CMD " + b"[" * MANY, ""),
        (b"CMD " + b"[" * 500 + b"]" * 500, "expected only strings"),
        (b"CMD [" + b'"a",' * MANY + b'"a"]', ""),
        (b"CMD [" + b"1" * MANY + b"]", ""),
        (b"HEALTHCHECK --interval=" + b"1" * MANY + b"s CMD a", "expected a duration"),
        (b"HEALTHCHECK --interval=" + b"1h" * MANY + b" CMD a", ""),
        (b"EXPOSE " + b"1 " * MANY, ""),
        (b"A" * MANY + b" b", "is not an instruction"),
        (b"COPY <<A /b\n" + b"${a:-\n" * MANY + b"A\n", "line"),
        (b"RUN <<" + b"a" * MANY, "expected a line 'aaa"),
        (b"ENV A=${" + b"a" * MANY + b"=}", "expected one of } :-"),
        (b"FROM a\n" * 10_000, "at most 1000 stages"),
        (b"RUN " + b"a" * (2 << 20), "at most 1048576 characters"),
        (b"#" + b"a" * (5 << 20), "at most 4 MiB"),
    ],
)
def test_a_file_is_read_or_refused_quickly(text: bytes, says: str) -> None:
    said = in_time(lambda: parser.parse(b"FROM a\n" + text))
    assert says in said if says else said == ""


def test_ten_thousand_lines_take_well_under_a_second() -> None:
    text = (
        b"FROM a\n" + b'RUN apt-get update \\\n  && make\nENV A="b $C" D=e\nCOPY a b /c/\nLABEL a=b\n' * 2000
    )
    begun = time.process_time()
    parser.parse(text)
    assert time.process_time() - begun < 0.9


@pytest.mark.parametrize(
    "text",
    [
        "${A##$P}",
        "${A%%$P}",
        "${A#$P}",
        "${A//$P/x}",
        "${A//x*x*x*x*y/x}",
        "${A//x/yy}",
        "${A//x/$A}",
        "$A" * MANY,
        "${B:-" * 40 + "$A" + "}" * 40,
    ],
)
def test_variables_are_put_in_quickly(text: str) -> None:
    values = {"A": "x" * MANY, "P": "*x" * 400 + "y"}
    in_time(lambda: expansion.expand(text, values.get))
    in_time(lambda: expansion.words(text, values.get))
    in_time(lambda: expansion.document(text, values.get))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 2000 + "b", "a" * 4000),
        ("?*" * 2000 + "b", "a" * 4000),
        ("*[^b]" * 800 + "b", "a" * 4000),
        ("**/a/" * 700 + "b", "a/" * 2000 + "a"),
        ("**/*/" * 700 + "b", "a/" * 2000 + "a"),
        ("**/a*a/" * 500 + "b", "aaaa/" * 800 + "a"),
        ("a**a**a**/b", "aaaa/" * 800 + "a"),
    ],
)
def test_patterns_are_matched_quickly(pattern: str, path: str) -> None:
    assert in_time(lambda: Ignore([pattern]).matches(path.encode())) == ""
    assert in_time(lambda: wildcards.match(pattern.encode(), path.encode())) == ""
