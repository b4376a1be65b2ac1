"""A Dockerfile's text to its stages and instructions; each error says line, column and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from layerfs.dockerfile import lines, statements
from layerfs.dockerfile.arguments import Arguments
from layerfs.dockerfile.instructions import Arg, Dockerfile, From, Instruction, Stage
from layerfs.dockerfile.lines import Line
from layerfs.dockerfile.words import Malformed, first
from layerfs.errors import BadRequest

_PARSERS: dict[str, Callable[[Arguments], Instruction]] = {
    "ADD": statements.add,
    "ARG": statements.arg,
    "CMD": statements.command,
    "COPY": statements.copy,
    "ENTRYPOINT": statements.command,
    "ENV": statements.env,
    "EXPOSE": statements.several,
    "FROM": statements.from_,
    "HEALTHCHECK": statements.healthcheck,
    "LABEL": statements.label,
    "MAINTAINER": statements.maintainer,
    "ONBUILD": statements.onbuild,
    "RUN": statements.run,
    "SHELL": statements.shell,
    "STOPSIGNAL": statements.single,
    "USER": statements.single,
    "VOLUME": statements.volume,
    "WORKDIR": statements.single,
}
_MOST_STAGES = 1000
_OFFICIAL = ("docker/dockerfile", "docker.io/docker/dockerfile")


def parse(data: bytes, file: str = "Dockerfile") -> Dockerfile:
    """Return the Dockerfile that *data* is; messages call it *file*.

    Raises `BadRequest`: `FILE:LINE:COLUMN: what was expected`. Variables are not put in, but the grammar of
    their places is checked. The work is proportional to the length, which is bounded.
    """
    source = lines.read(data, file)
    if not source.lines:
        raise BadRequest(f"{file}:1:1: expected FROM, as in FROM debian:12: there is no instruction")
    args: list[Arg] = []
    stages: list[tuple[From, list[Instruction]]] = []
    for line in source.lines:
        instruction = _instruction(line, source.escape)
        if isinstance(instruction, From):
            if len(stages) == _MOST_STAGES:
                raise line.error(0, f"expected at most {_MOST_STAGES} stages")
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            args.append(instruction)
        else:
            raise line.error(
                0, f"expected FROM, or ARG, before {_word(line)}: a stage begins with FROM IMAGE"
            )
    if not stages:
        raise source.lines[-1].error(
            len(source.lines[-1].text), "expected FROM IMAGE after ARG: there is no stage"
        )
    warnings = [*source.warnings, *_warnings(source.directives, file)]
    built = tuple(Stage(begin, tuple(rest)) for begin, rest in stages)
    return Dockerfile(tuple(args), built, source.escape, tuple(warnings), dict(source.directives))


def parse_onbuild(text: str, file: str = "ONBUILD") -> Instruction:
    """Return the instruction that an image's `OnBuild` entry *text* is, here-documents included.

    Raises `BadRequest` as `parse` does, and where it is none, several, or one that cannot be a trigger.
    """
    source = lines.read(text.encode(errors="surrogatepass"), file)
    if len(source.lines) != 1:
        raise BadRequest(f"{file}:1:1: expected one instruction, not {len(source.lines)}")
    (line,) = source.lines
    _check_trigger(line, 0)
    return _instruction(line, source.escape)


def parse_changes(changes: Sequence[str], words: Sequence[str], file: str = "change") -> list[Instruction]:
    """Return the instructions in *changes*, each one or several lines, of which only *words* are known.

    Raises `BadRequest` as `parse` does.
    """
    source = lines.read("\n".join(changes).encode(errors="surrogatepass"), file)
    for line in source.lines:
        if _word(line) not in words:
            what = f"{_word(line)[:40]} is not an instruction that a change can be"
            raise BadRequest(f"{what}: use {', '.join(words)}")  # the word says which of them it is
    return [_instruction(line, source.escape) for line in source.lines]


def _word(line: Line) -> str:
    return first(line.text)[0].upper()


def _check_trigger(line: Line, start: int) -> None:
    """Raise `BadRequest` where the instruction at *start* cannot follow ONBUILD."""
    word = first(line.text[start:])[0].upper()
    if word in ("FROM", "MAINTAINER", "ONBUILD"):
        raise line.error(start, f"ONBUILD cannot be followed by {word}")


def _instruction(line: Line, escape: str, start: int = 0) -> Instruction:
    """Parse what is at *start* of *line*."""
    word, length = first(line.text[start:])
    parser = _PARSERS.get(word.upper())
    if parser is None:
        close = difflib.get_close_matches(word.upper()[:40], _PARSERS, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_PARSERS)}"
        raise line.error(start, f"{word[:40]} is not an instruction: {hint}")
    if parser is statements.onbuild and start + length < len(line.text):
        _check_trigger(line, start + length)
        _instruction(line, escape, start + length)
    try:
        return parser(Arguments.of(line, word.upper(), start, start + length, escape))
    except Malformed as error:
        raise line.error(error.offset, str(error)) from None


def _warnings(directives: dict[str, str], file: str) -> list[str]:
    syntax = directives.get("syntax", "")
    if syntax and re.split("[ @]|:[^/]*$", syntax)[0] not in _OFFICIAL:
        return [f"{file}: syntax={syntax[:80]} is not used: the file is read as docker/dockerfile:1"]
    return []
