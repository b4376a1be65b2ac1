"""Here-documents: which words of an instruction announce them, and what a RUN makes of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from layerfs.dockerfile import words
from layerfs.dockerfile.instructions import Heredoc, Run
from layerfs.dockerfile.words import Malformed

PIPES = "/dev/pipes"
"""Where a RUN finds its here-document that is a program."""

_HEAD = re.compile(r"(\d*)<<(-?)[ \t\r\n\f]*([^<]*)")
_TAKERS = ("RUN", "COPY", "ADD")


class Head(NamedTuple):
    """What announces a here-document: `<<NAME`, `<<-NAME`, `<<"NAME"`."""

    name: str
    chomp: bool
    """Whether tabs at the beginning of its lines are left out."""
    expand: bool
    """Whether variables are put in: not where the name was quoted."""


def find(text: str, escape: str) -> list[tuple[int, Head]]:
    """Return the here-documents that an instruction announces, with the offset of each.

    Only RUN, COPY and ADD have any, by ONBUILD too, and not with a JSON list.
    """
    word, start = words.first(text)
    if word.upper() == "ONBUILD":
        word, length = words.first(text[start:])
        start += length
    if word.upper() not in _TAKERS:
        return []
    try:
        _, rest = words.flags(text, start, escape)
        if words.json_list(text[rest:]) is not None:
            return []
    except Malformed:
        return []  # the parser says what is wrong
    return [
        (offset, head)
        for candidate, offset in _candidates(text, start)
        if (head := parse(candidate)) is not None
    ]


def parse(word: str) -> Head | None:
    """Return the here-document that *word* announces; None where it is another word."""
    found = _HEAD.fullmatch(word)
    if not found or not found[3]:
        return None
    try:
        name = words.split(found[3], 0, "\\")
    except Malformed:
        return None
    if len(name) != 1 or len(name[0].text) != len(found[3].strip(words.SPACE)):
        return None
    bare = _QUOTES.sub(lambda part: part[1] or part[2] or part[3] or "", name[0].text)
    if not bare:
        return None
    quoted = any(part[3] is None for part in _QUOTES.finditer(name[0].text))
    return Head(bare, found[2] == "-", not quoted)


def command(run: Run, shell: Sequence[str]) -> tuple[list[str], Heredoc | None]:
    """Return the words that a RUN starts, and the here-document that has to be a file for them.

    The file belongs, with mode 0755, into the directory `PIPES` under the here-document's name. The shell
    gets a here-document as its script where that is all the command has, unless it begins with `#!`.
    """
    if not isinstance(run.command, str):
        return list(run.command), None
    text = run.command
    if run.heredocs:
        if parse(text) is None:
            text += "".join(f"\n{document.content}{document.name}" for document in run.heredocs)
        elif run.heredocs[0].content.startswith("#!"):
            return [*shell, f"{PIPES}/{run.heredocs[0].name}"], run.heredocs[0]
        else:
            text = run.heredocs[0].content
    return [*shell, text], None


_QUOTES = re.compile(r"'([^']*)'|\"([^\"]*)\"|\\(.)", re.DOTALL)


def _candidates(text: str, start: int) -> list[words.Word]:
    """Split as a shell does, quotes and escapes kept; `<<` takes the spaces that follow it into its word."""
    result = []
    at = words.skip(text, start)
    while at < len(text):
        found = _SHELL_WORD.match(text, at)
        end = found.end() if found else at
        if end < len(text) and text[end] in "'\"":
            return []  # a quote is never closed: for the shell to complain about
        if end > at:
            result.append(words.Word(text[at:end], at))
        at = words.skip(text, max(end, at + 1))
    return result


_SHELL_WORD = re.compile(
    rf"(?>(?:<<-?[ \t\r]*|[^{words.SPACE}'\"\\<]++|<|'[^']*'|\"(?:[^\"\\]++|\\.)*\"|\\(?:.|\Z))*)", re.DOTALL
)
