"""Physical lines to logical ones: continuations, comments, directives, here-documents, line ends."""

from __future__ import annotations

import pytest

from layerfs.dockerfile import heredocs, lines, parser
from layerfs.dockerfile.instructions import Heredoc, Run
from layerfs.errors import BadRequest


def texts(text: str) -> list[str]:
    return [line.text for line in lines.read(text.encode(), "D").lines]


def documents(text: str) -> tuple[Heredoc, ...]:
    (line,) = lines.read(text.encode(), "D").lines
    return line.heredocs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN a \\\n  b\n", ["RUN a   b"]),
        ("RUN a \\ \t\n  b", ["RUN a   b"]),
        ("RUN a \\\n# note\n   # note\n b\nRUN c", ["RUN a  b", "RUN c"]),
        ("RUN a \\\n\n\n b\n", ["RUN a  b"]),
        ("RUN a \\\\\nRUN b", ["RUN a \\\\", "RUN b"]),
        ("RUN a # no comment\n", ["RUN a # no comment"]),
        ("  RUN a\n\n\t# note\n RUN b \\", ["RUN a", "RUN b "]),
        ("RUN \\\n\\\na\n", ["RUN a"]),
        ("\\\nRUN a\n", ["RUN a"]),
        ("\\\n", []),
        ("RUN a\r\nRUN b \\\r\n c\r\n", ["RUN a", "RUN b  c"]),
        ("\ufeffRUN a", ["RUN a"]),
        ("RUN a\x0bb\x85\u2028c", ["RUN a\x0bb\x85\u2028c"]),
    ],
)
def test_lines_are_joined(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_an_empty_line_in_an_instruction_is_warned_of_once() -> None:
    found = lines.read(b"RUN a \\\n\n b \\\n\n c\nRUN d \\\n # note\n e\n", "D")
    assert found.warnings == ["D:1: an empty line continues 'RUN a  b  c': remove it"]


@pytest.mark.parametrize(
    ("text", "directives", "expected"),
    [
        ("# escape=`\nRUN a `\n b\\", {"escape": "`"}, ["RUN a  b\\"]),
        ("#EsCape = \\ \n# syntax=x\nRUN a \\\n b", {"escape": "\\", "syntax": "x"}, ["RUN a  b"]),
        ("# check=skip=all;error=true\r\nRUN a", {"check": "skip=all;error=true"}, ["RUN a"]),
        ("\ufeff# escape=`\nRUN a `\n b", {"escape": "`"}, ["RUN a  b"]),
        ("# note\n# escape=`\nRUN a `\nRUN b", {}, ["RUN a `", "RUN b"]),
        ("# other=1\n# escape=`\nRUN a `", {}, ["RUN a `"]),
        ("\n# escape=`\nRUN a `", {}, ["RUN a `"]),
        ("RUN b\n# escape=`\nRUN a `", {}, ["RUN b", "RUN a `"]),
    ],
)
def test_directives_stand_at_the_top(text: str, directives: dict[str, str], expected: list[str]) -> None:
    found = lines.read(text.encode(), "D")
    assert found.directives == directives
    assert [line.text for line in found.lines] == expected


def test_the_backtick_escapes_in_words_too() -> None:
    stage = parser.parse(b"# escape=`\nFROM a\nENV A=b` c D=C:\\\nWORKDIR C:\\x\n").stages[0]
    assert [each.text for each in stage.instructions] == ["ENV A=b` c D=C:\\", "WORKDIR C:\\x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# escape=`\n# escape=`\n", "D:2:1: expected only one escape directive: remove this one"),
        ("#  escape = x\n", "D:1:13: expected \\ or ` as escape, not 'x'"),
    ],
)
def test_bad_directives(text: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        lines.read(text.encode(), "D")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN <<A\nx\nA\n", (Heredoc("A", "x\n", True),)),
        ("RUN <<A\nA", (Heredoc("A", "", True),)),
        ("RUN <<A\n# x \\\n\n  A\nA ", None),
        ("RUN <<A\n# x \\\n\n  A\nA\n", (Heredoc("A", "# x \\\n\n  A\n", True),)),
        ("RUN <<-A\n\t\tx\n\ty\tz\n\tA\n", (Heredoc("A", "x\ny\tz\n", True),)),
        ("RUN <<'A'\n$x\nA\n", (Heredoc("A", "$x\n", False),)),
        ('RUN <<"A B"\nx\nA B\n', (Heredoc("A B", "x\n", False),)),
        ("RUN <<a'b'\nab\n", (Heredoc("ab", "", False),)),
        ("RUN <<a\\'b\na'b\n", (Heredoc("a'b", "", True),)),
        ("RUN << A > b\nA\n", (Heredoc("A", "", True),)),
        ("RUN <<- A\nA\n", (Heredoc("A", "", True),)),
        ("RUN 3<<A\nA\n", (Heredoc("A", "", True),)),
        ("RUN <<$A\n$A\n", (Heredoc("$A", "", True),)),
        ("RUN <<A <<B\nB\nA\nA\nB\n", (Heredoc("A", "B\n", True), Heredoc("B", "A\n", True))),
        ("RUN --mount=type=tmpfs,target=/x cat <<A \\\n > b\nx\nA\n", (Heredoc("A", "x\n", True),)),
        ("RUN <<A\r\nx\r\nA\r\n", (Heredoc("A", "x\r\n", True),)),
        ("ONBUILD RUN <<A\nA\n", (Heredoc("A", "", True),)),
        ("COPY <<A /b\nA\n", (Heredoc("A", "", True),)),
        ("ADD <<A /b\nA\n", (Heredoc("A", "", True),)),
        ("RUN '<<A'", ()),
        ('RUN "<<A"', ()),
        ("RUN \\<<A", ()),
        ("RUN cat <<<A", ()),
        ("RUN cat <<< A", ()),
        ('RUN ["<<A"]', ()),
        ("RUN a<<A", ()),
        ("RUN <<'A", ()),
        ("USER <<A", ()),
        ("ONBUILD USER <<A", ()),
        ("RUN echo it's <<A", ()),
    ],
)
def test_here_documents(text: str, expected: tuple[Heredoc, ...] | None) -> None:
    if expected is None:
        with pytest.raises(BadRequest, match="D:1:5: expected a line 'A' further down"):
            documents(text)
    else:
        assert documents(text) == expected


def test_what_follows_a_here_document_is_the_next_instruction() -> None:
    assert texts("RUN <<A\nRUN x\nA\nRUN y\n") == ["RUN <<A", "RUN y"]


@pytest.mark.parametrize(
    ("text", "words", "name"),
    [
        ("RUN a b", ["sh", "-c", "a b"], None),
        ('RUN ["a", "b"]', ["a", "b"], None),
        ("RUN <<A\nx\ny\nA", ["sh", "-c", "x\ny\n"], None),
        ("RUN <<-A\n\tx\nA", ["sh", "-c", "x\n"], None),
        ("RUN <<A\n#!/usr/bin/python3\nprint(1)\nA", ["sh", "-c", "/dev/pipes/A"], "A"),
        ("RUN python3 <<'A' > b\nx\nA", ["sh", "-c", "python3 <<'A' > b\nx\nA"], None),
        ("RUN cat <<A <<B\n1\nA\n2\nB", ["sh", "-c", "cat <<A <<B\n1\nA\n2\nB"], None),
    ],
)
def test_what_a_run_starts(text: str, words: list[str], name: str | None) -> None:
    (run,) = parser.parse(f"FROM a\n{text}\n".encode()).stages[0].instructions
    assert isinstance(run, Run)
    found, document = heredocs.command(run, ["sh", "-c"])
    assert found == words
    assert (document.name if document else None) == name
