"""The arguments of each kind of instruction to the instruction itself: one function for each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from layerfs.dockerfile import durations, expansion, heredocs, mounts, words
from layerfs.dockerfile.arguments import WANTED, Arguments
from layerfs.dockerfile.instructions import (
    Arg,
    Command,
    Copy,
    Env,
    From,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Onbuild,
    Run,
    RunMount,
    Several,
    Single,
)
from layerfs.dockerfile.words import SPACE, Malformed, Word
from layerfs.errors import BadRequest

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_SHORTEST = 10**6
"""Nanoseconds: the shortest time that HEALTHCHECK takes."""


def from_(given: Arguments) -> Instruction:
    """FROM [--platform=PLATFORM] IMAGE [AS NAME]."""
    found = words.plain(given.rest)
    name = None
    if len(found) == 3 and found[1].text.upper() == "AS":
        name = found[2].text.lower()
        if not _STAGE_NAME.fullmatch(name):
            wanted = "a letter first, then letters, digits, '-', '_' and '.'"
            raise Malformed(
                f"{found[2].text[:40]!r} cannot name a stage: expected {wanted}",
                given.start + found[2].offset,
            )
    elif len(found) != 1:
        at = given.start + found[min(1, len(found) - 1)].offset
        raise Malformed("expected FROM IMAGE or FROM IMAGE AS NAME", at)
    image = given.check(Word(found[0].text, given.start))
    return From(image=image, name=name, platform=given.flag("platform"), **given.common)


def arg(given: Arguments) -> Instruction:
    """ARG NAME[=DEFAULT] ...."""
    names: list[tuple[str, str | None]] = []
    for text, offset in words.split(given.line.text, given.start, given.escape):
        name, equals, value = text.partition("=")
        if not name:
            raise Malformed("a name is missing before =: use ARG NAME=DEFAULT", offset)
        given.check(Word(name, offset))
        names.append((name, given.check(Word(value, offset + len(name) + 1)) if equals else None))
    return Arg(names=tuple(names), **given.common)


def env(given: Arguments) -> Instruction:
    """ENV NAME=VALUE ... or ENV NAME VALUE."""
    return Env(pairs=given.pairs(), **given.common)


def label(given: Arguments) -> Instruction:
    """LABEL NAME=VALUE ... or LABEL NAME VALUE."""
    return Label(pairs=given.pairs(), **given.common)


def run(given: Arguments) -> Instruction:
    """RUN COMMAND or RUN ["COMMAND", ...]."""
    network = given.flag("network", expanded=False) or "default"
    security = given.flag("security", expanded=False) or "sandbox"
    for name, value, choices in (
        ("network", network, ("default", "none", "host")),
        ("security", security, ("sandbox", "insecure")),
    ):
        if value not in choices:
            raise Malformed(
                f"expected --{name}={'|'.join(choices)}, not {value[:40]!r}", given.flags[name][0][1]
            )
    command_ = given.command()
    if not command_:
        raise Malformed(f"expected {WANTED['RUN']}", given.start)
    return Run(
        command=command_,
        heredocs=given.line.heredocs,
        mounts=tuple(_mounts(given)),
        network=network,
        security=security,
        **given.common,
    )


def _mounts(given: Arguments) -> Iterable[RunMount]:
    for value, offset in given.flags.get("mount", ()):
        try:
            yield mounts.parse(value or "", given.escape)
        except BadRequest as error:
            raise Malformed(str(error), offset) from None


def command(given: Arguments) -> Instruction:
    """CMD or ENTRYPOINT; an empty list is good, and takes away what an image below says."""
    return Command(word=given.word, command=given.command(), **given.common)


def shell(given: Arguments) -> Instruction:
    """SHELL ["PROGRAM", "ARGUMENT"]."""
    listed = words.json_list(given.rest, given.start)
    if not listed:
        raise Malformed(f"expected {WANTED['SHELL']}", given.start)
    return Command(word="SHELL", command=listed, **given.common)


def add(given: Arguments) -> Instruction:
    """ADD SOURCE ... DESTINATION."""
    return Copy(
        checksum=given.flag("checksum"),
        keep_git_dir=given.yes("keep-git-dir") or False,
        unpack=given.yes("unpack"),
        **_copied(given),
    )


def copy(given: Arguments) -> Instruction:
    """COPY SOURCE ... DESTINATION."""
    source = given.flag("from", expanded=False)
    if source is not None:
        offset = given.flags["from"][0][1]
        if not source or expansion.changes(source, given.escape):
            hint = "variables belong into a stage of its own, FROM ... AS NAME"
            raise Malformed(f"expected --from=STAGE or --from=IMAGE as it is: {hint}", offset)
    return Copy(from_=source, parents=given.yes("parents") or False, **_copied(given))


def _copied(given: Arguments) -> dict[str, Any]:
    """Return what COPY and ADD have in common."""
    found = given.plain()
    if len(found) < 2:
        raise Malformed(f"{given.word} needs a destination: expected {WANTED[given.word]}", given.start)
    if given.rest.startswith("["):
        heads: list[heredocs.Head | None] = [None] * len(found)
    else:
        heads = [heredocs.parse(word.text) for word in found]
    if heads[-1] is not None:
        raise Malformed("a here-document cannot be the destination: expected a path", found[-1].offset)
    documents = {document.name: document for document in given.line.heredocs}
    taken: list[Heredoc] = []
    sources: list[str] = []
    for word, head in zip(found[:-1], heads[:-1], strict=True):
        if head is None:
            if word.text.endswith(("<<", "<<-")) and given.line.heredocs:
                raise Malformed("expected the here-document's name right after <<", word.offset)
            sources.append(given.check(word))
        else:
            if head.name not in documents:  # quotes elsewhere in the line keep it from being one
                raise Malformed(f"expected the quotes after <<{head.name[:40]} to be closed", word.offset)
            document = documents[head.name]
            if document.expand:
                _check_document(given, document, word.offset)
            taken.append(document)
    return {
        "word": given.word,
        "sources": tuple(sources),
        "heredocs": tuple(taken),
        "destination": given.check(found[-1]),
        "chown": given.flag("chown"),
        "chmod": given.flag("chmod"),
        "link": given.yes("link") or False,
        "exclude": tuple(value or "" for value, _ in given.flags.get("exclude", ())),
        **given.common,
    }


def _check_document(given: Arguments, document: Heredoc, offset: int) -> None:
    try:
        expansion.check(document.content, quotes=False)
    except Malformed as error:
        before = document.content[: error.offset]
        where = f"line {before.count(chr(10)) + 1} of the here-document {document.name}"
        raise Malformed(f"{where}: {error}; quote its name to put no variables in", offset) from None


def single(given: Arguments) -> Instruction:
    """WORKDIR, USER or STOPSIGNAL: the rest of the line."""
    return Single(word=given.word, value=given.check(Word(given.rest, given.start)), **given.common)


def maintainer(given: Arguments) -> Instruction:
    """MAINTAINER: the rest of the line, as it is."""
    return Single(word="MAINTAINER", value=given.rest, **given.common)


def several(given: Arguments) -> Instruction:
    """EXPOSE PORT ...."""
    found = words.plain(given.rest)
    values = [given.check(Word(text, offset + given.start)) for text, offset in found]
    return Several(word=given.word, values=tuple(values), **given.common)


def volume(given: Arguments) -> Instruction:
    """VOLUME PATH ... or VOLUME ["PATH", ...]."""
    found = given.plain()
    if not found or not all(word.text.strip(SPACE) for word in found):
        raise Malformed(f"a path is empty: expected {WANTED['VOLUME']}", given.start)
    return Several(word="VOLUME", values=tuple(given.check(word) for word in found), **given.common)


def healthcheck(given: Arguments) -> Instruction:
    """HEALTHCHECK NONE or HEALTHCHECK [--interval=30s ...] CMD COMMAND."""
    kind, length = words.first(given.rest)
    start = given.start + length
    rest = given.rest[length:]
    if kind.upper() == "NONE":
        if rest:
            raise Malformed("expected nothing after HEALTHCHECK NONE", start)
        return Healthcheck(test=("NONE",), **given.common)
    if kind.upper() != "CMD":
        raise Malformed(f"expected NONE or CMD COMMAND, not {kind[:40]!r}", given.start)
    listed = words.json_list(rest, start)
    if not rest or listed == ():
        raise Malformed("expected a command after HEALTHCHECK CMD", start)
    test = ("CMD-SHELL", rest) if listed is None else ("CMD", *listed)
    return Healthcheck(
        test=test,
        interval=_time(given, "interval"),
        timeout=_time(given, "timeout"),
        start_period=_time(given, "start-period"),
        start_interval=_time(given, "start-interval"),
        retries=_retries(given),
        **given.common,
    )


def _time(given: Arguments, name: str) -> int:
    for value, offset in given.flags.get(name, ()):
        if not value:
            return 0
        try:
            time = durations.parse(value)
        except BadRequest as error:
            raise Malformed(str(error), offset) from None
        if time and time < _SHORTEST:
            raise Malformed(f"expected --{name} of at least 1ms, not {value[:40]!r}", offset)
        return time
    return 0


def _retries(given: Arguments) -> int:
    for value, offset in given.flags.get("retries", ()):
        if not re.fullmatch(r"\d{1,9}", value or "0", re.ASCII):
            raise Malformed(f"expected a number for --retries, not {str(value)[:40]!r}", offset)
        return int(value or "0")
    return 0


def onbuild(given: Arguments) -> Instruction:
    """ONBUILD INSTRUCTION; the parser has looked at the instruction."""
    documents = "".join(f"\n{document.content}{document.name}" for document in given.line.heredocs)
    return Onbuild(instruction=given.rest + documents, **given.common)
