"""A Dockerfile's text to instructions, and the errors with their places."""

from __future__ import annotations

import pytest

from layerfs.dockerfile import parser
from layerfs.dockerfile.instructions import (
    Arg,
    Command,
    Copy,
    Dockerfile,
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
from layerfs.errors import BadRequest


def parse(text: str) -> Dockerfile:
    return parser.parse(text.encode())


def one(text: str) -> Instruction:
    """Return the only instruction of a stage."""
    (instruction,) = parse(f"FROM base\n{text}\n").stages[0].instructions
    return instruction


def run(text: str) -> Run:
    instruction = one(text)
    assert isinstance(instruction, Run)
    return instruction


def copied(text: str) -> Copy:
    instruction = one(text)
    assert isinstance(instruction, Copy)
    return instruction


def test_stages_begin_with_from_and_args_may_come_before() -> None:
    found = parse(
        "ARG TAG=12 OTHER\nFROM --platform=linux/arm64 debian:$TAG AS Build\nRUN a\nfrom scratch\ncopy a /b\n"
    )
    assert [names.names for names in found.args] == [(("TAG", "12"), ("OTHER", None))]
    first, second = found.stages
    assert (first.begin.image, first.begin.name, first.begin.platform) == (
        "debian:$TAG",
        "build",
        "linux/arm64",
    )
    assert (second.begin.image, second.begin.name, second.begin.line) == ("scratch", None, 4)
    assert [type(each) for each in second.instructions] == [Copy]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("RUN make all", "make all"),
        ("run   make  all  ", "make  all"),
        ('RUN ["make", "a b"]', ("make", "a b")),
        ('RUN [ "make" ]', ("make",)),
        ("RUN [ -f x ] && y", "[ -f x ] && y"),
        ("RUN ['make']", "['make']"),
        ('RUN ["make', '["make'),
        ('RUN ["\\u00e9\\ud800"]', ("é\ufffd",)),
        ("RUN -- --option", "--option"),
        ('RUN echo "a', 'echo "a'),
        ("RUN [NaN]", "[NaN]"),
    ],
)
def test_commands_in_shell_and_exec_form(text: str, command: str | tuple[str, ...]) -> None:
    assert run(text).command == command


@pytest.mark.parametrize("word", ["CMD", "ENTRYPOINT"])
def test_an_empty_list_takes_a_command_away(word: str) -> None:
    instruction = one(f"{word} []")
    assert isinstance(instruction, Command)
    assert (instruction.word, instruction.command) == (word, ())


def test_flags_of_run() -> None:
    found = run(
        "RUN --network=none --security=insecure --mount=type=cache,dst=/c,id=x,sharing=locked"
        " --mount='from=tools,\"source=/a,b\",target=/d,rw' --mount=type=secret,id=s,required make"
    )
    assert (found.network, found.security, found.command) == ("none", "insecure", "make")
    assert found.mounts == (
        RunMount("cache", {"target": "/c", "id": "x", "sharing": "locked"}),
        RunMount("bind", {"from": "tools", "source": "/a,b", "target": "/d", "readwrite": "true"}),
        RunMount("secret", {"id": "s", "required": "true"}),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ENV A=b", Env(line=2, text="ENV A=b", pairs=(("A", "b"),))),
        (
            "ENV A=b\\ c D='e f' G=\"h i\" J=",
            (("A", "b\\ c"), ("D", "'e f'"), ("G", '"h i"'), ("J", "")),
        ),
        ("ENV A  some  words ", (("A", "some  words"),)),
        ("ENV A b=c", (("A", "b=c"),)),
        ("ENV A='it'\"'\"'s'", (("A", "'it'\"'\"'s'"),)),
    ],
)
def test_env(text: str, expected: Env | tuple[tuple[str, str], ...]) -> None:
    found = one(text)
    assert isinstance(found, Env)
    assert found == expected if isinstance(expected, Env) else found.pairs == expected


def test_other_instructions() -> None:
    found = parse(
        """FROM base
LABEL a.b="c d" e=f
ARG A B=c D='e f'
EXPOSE 80 443/tcp $PORT
VOLUME /a /b
VOLUME ["/a b", "/c"]
WORKDIR /a b
USER $USER:group
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-c"]
MAINTAINER Somebody $HERE <a@b>
ONBUILD   RUN make $ALL
HEALTHCHECK NONE
HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0s --start-interval=1.5s --retries=3 CMD curl x
HEALTHCHECK CMD ["curl", "x"]
"""
    ).stages[0]
    common = {(each.line, each.text) for each in found.instructions}
    assert (7, "WORKDIR /a b") in common
    assert [_bare(each) for each in found.instructions] == [
        ("Label", (("a.b", '"c d"'), ("e", "f"))),
        ("Arg", (("A", None), ("B", "c"), ("D", "'e f'"))),
        ("EXPOSE", ("80", "443/tcp", "$PORT")),
        ("VOLUME", ("/a", "/b")),
        ("VOLUME", ("/a b", "/c")),
        ("WORKDIR", "/a b"),
        ("USER", "$USER:group"),
        ("STOPSIGNAL", "SIGTERM"),
        ("SHELL", ("/bin/bash", "-c")),
        ("MAINTAINER", "Somebody $HERE <a@b>"),
        ("Onbuild", "RUN make $ALL"),
        ("Healthcheck", ("NONE",), 0, 0, 0, 0, 0),
        ("Healthcheck", ("CMD-SHELL", "curl x"), 90 * 10**9, 5 * 10**8, 0, 15 * 10**8, 3),
        ("Healthcheck", ("CMD", "curl", "x"), 0, 0, 0, 0, 0),
    ]


def _bare(each: Instruction) -> tuple[object, ...]:
    match each:
        case Label():
            return ("Label", each.pairs)
        case Arg():
            return ("Arg", each.names)
        case Several():
            return (each.word, each.values)
        case Single():
            return (each.word, each.value)
        case Command():
            return (each.word, each.command)
        case Onbuild():
            return ("Onbuild", each.instruction)
        case Healthcheck():
            times = (each.interval, each.timeout, each.start_period, each.start_interval)
            return ("Healthcheck", each.test, *times, each.retries)
    raise AssertionError(each)


def test_copy_and_add_with_every_flag() -> None:
    found = copied(
        "COPY --from=0 --chown=$U:g --chmod=755 --link --parents=true --exclude=*.o --exclude=b a/ ./c* /d/"
    )
    assert (found.word, found.sources, found.destination) == ("COPY", ("a/", "./c*"), "/d/")
    assert (found.from_, found.chown, found.chmod, found.link, found.parents) == (
        "0",
        "$U:g",
        "755",
        True,
        True,
    )
    assert found.exclude == ("*.o", "b")
    found = copied(
        'ADD --checksum=sha256:$X --keep-git-dir --unpack=false --link=false ["https://a b", "/c"]'
    )
    assert (found.word, found.sources, found.destination) == ("ADD", ("https://a b",), "/c")
    assert (found.checksum, found.keep_git_dir, found.unpack, found.link) == ("sha256:$X", True, False, False)
    assert copied('COPY --chown="a b" x /y').chown == "a b"
    assert copied("COPY a /b").unpack is None


def test_a_no_break_space_belongs_to_a_plain_word_but_separates_others() -> None:
    assert copied("COPY a\xa0b c /d").sources == ("a\xa0b", "c")
    found = one("ENV A=b\xa0C=d")
    assert isinstance(found, Env)
    assert found.pairs == (("A", "b"), ("C", "d"))


def test_here_documents_of_copy_are_sources_by_name() -> None:
    found = copied("COPY <<a.txt b <<-'c' /d/\n$A\na.txt\n\t$C\n\tc")
    assert found.sources == ("b",)
    assert found.heredocs == (Heredoc("a.txt", "$A\n", True), Heredoc("c", "$C\n", False))


def test_onbuild_takes_its_here_document_along() -> None:
    trigger = one("ONBUILD COPY <<a <<b /c\n1\na\n2\nb")
    assert isinstance(trigger, Onbuild)
    again = parser.parse_onbuild(trigger.instruction)
    assert isinstance(again, Copy)
    assert again.heredocs == (Heredoc("a", "1\n", True), Heredoc("b", "2\n", True))


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", "1:1", "expected FROM"),
        ("# nothing\n\n", "1:1", "expected FROM"),
        ("RUN a\n", "1:1", "expected FROM, or ARG, before RUN"),
        ("ARG a\n", "1:6", "there is no stage"),
        ("FROM a\nFORM b\n", "2:1", "FORM is not an instruction: did you mean FROM?"),
        ("FROM a\n  xyz b\n", "2:3", "xyz is not an instruction: expected one of ADD"),
        ("FROM a\nRUN\n", "2:4", "RUN needs an argument: expected a command"),
        ("FROM\n", "1:5", "expected an image"),
        ("FROM a b\n", "1:8", "expected FROM IMAGE or FROM IMAGE AS NAME"),
        ("FROM a AS 1b\n", "1:11", "'1b' cannot name a stage: expected a letter first"),
        ("FROM a\nRUN --mont=type=cache b\n", "2:5", "RUN has no flag --mont: expected --mount"),
        ("FROM a\nRUN \\\n  # x\n   --network=lan b\n", "4:4", "expected --network=default|none|host"),
        ("FROM a\nCOPY --link=maybe a b\n", "2:6", "expected --link=true"),
        ("FROM a\nCOPY --chown a b\n", "2:6", "expected a value: --chown=VALUE"),
        ("FROM a\nCOPY --from=$A a b\n", "2:6", "variables belong into a stage of its own"),
        ("FROM a\nCOPY --from=a --from=b c d\n", "2:15", "only once"),
        ("FROM a\nCOPY a\n", "2:6", "needs a destination"),
        ("FROM a\nCOPY a <<b\nb\n", "2:8", "cannot be the destination"),
        ("FROM a\nCOPY << b /c\nb\n", "2:6", "name right after <<"),
        ('FROM a\nCOPY <<b c" /d\nb\n', "2:6", "expected the quotes after <<b to be closed"),
        ("FROM a\nRUN <<b\nc\n", "2:5", "expected a line 'b' further down"),
        ("FROM a\nCOPY <<b /c\n1\n${x\nb\n", "2:6", "line 2 of the here-document b: expected one of } "),
        ("FROM a\nENV A\n", "2:6", "has no value"),
        ("FROM a\nENV A=b c\n", "2:9", "use NAME=VALUE"),
        ("FROM a\nENV =b\n", "2:5", "a name is missing"),
        ("FROM a\nENV A=b \\\n  C='d\n", "3:5", "a ' is never closed: expected another"),
        ("FROM a\nENV A=${B\n", "2:7", "expected }"),
        ("FROM a\nENV A=x${B:=c}\n", "2:12", "expected one of } :-"),
        ("FROM a\nLABEL a=b \\\n c=${}\n", "3:4", "bad substitution"),
        ("FROM ${a\n", "1:6", "expected }"),
        ("FROM a\nUSER ${a\n", "2:6", "expected }"),
        ("FROM a\nSHELL bash -c\n", "2:7", "expected a list of strings"),
        ("FROM a\nSHELL []\n", "2:7", "expected a list of strings"),
        ('FROM a\nCMD ["a", 1]\n', "2:5", "expected only strings"),
        ('FROM a\nCMD ["a", ["b"]]\n', "2:5", "expected only strings"),
        ('FROM a\nCMD ["a\\u0000"]\n', "2:5", "no null byte"),
        ("FROM a\nRUN []\n", "2:5", "expected a command"),
        ("FROM a\nHEALTHCHECK\n", "2:12", "expected NONE or a command"),
        ("FROM a\nHEALTHCHECK PING x\n", "2:13", "expected NONE or CMD COMMAND, not 'PING'"),
        ("FROM a\nHEALTHCHECK CMD\n", "2:16", "expected a command after"),
        ("FROM a\nHEALTHCHECK NONE x\n", "2:18", "expected nothing after"),
        ("FROM a\nHEALTHCHECK --interval=5 CMD a\n", "2:13", "expected a duration"),
        ("FROM a\nHEALTHCHECK --interval=5us CMD a\n", "2:13", "at least 1ms"),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD a\n", "2:13", "expected a number for --retries"),
        ("FROM a\nONBUILD FROM b\n", "2:9", "ONBUILD cannot be followed by FROM"),
        ("FROM a\nONBUILD ONBUILD RUN b\n", "2:9", "ONBUILD cannot be followed by ONBUILD"),
        ("FROM a\nONBUILD NOTHING b\n", "2:9", "NOTHING is not an instruction"),
        ("FROM a\nONBUILD COPY b\n", "2:14", "needs a destination"),
        ('FROM a\nVOLUME [""]\n', "2:8", "a path is empty"),
        ("FROM a\nVOLUME []\n", "2:8", "a path is empty"),
        ("FROM a\nMAINTAINER --boo x\n", "2:12", "MAINTAINER has no flag --boo"),
        ("FROM a\nRUN --mount=type=nfs,target=/a b\n", "2:5", "expected a mount of type bind, cache"),
        ("FROM a\nRUN --mount=type=cache b\n", "2:5", "expected target=PATH"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/a,uid=1 b\n", "2:5", "does not take 'uid'"),
        ("FROM a\nRUN --mount=target=/a,from=$B c\n", "2:5", "takes no variables"),
        ("FROM a\nRUN --mount=target b\n", "2:5", "expected KEY=VALUE"),
        ("FROM a\nRUN --mount=type=secret b\n", "2:5", "expected id=NAME or target=PATH"),
        ("FROM a\nRUN --mount=type=cache,target=/a,mode=999 b\n", "2:5", "expected an octal number"),
        ("FROM a\nRUN a\0b\n", "2:6", "expected UTF-8 text, not a null byte"),
    ],
)
def test_errors_say_where_and_what_was_expected(text: str, place: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"Dockerfile:{place}: ")
    assert says in message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_found_except_in_comments() -> None:
    assert parser.parse(b"# caf\xe9\nFROM a\n").stages[0].begin == From(line=2, text="FROM a", image="a")
    with pytest.raises(BadRequest, match=r"^Dockerfile:2:8: expected UTF-8 text, not the byte 0xe9$"):
        parser.parse(b"FROM a\nRUN caf\xe9\n")
    with pytest.raises(BadRequest, match=r"^Dockerfile:3:2: expected UTF-8 text, not the byte 0xff$"):
        parser.parse(b"FROM a\nCOPY <<b /c\n1\xff\nb\n")


def test_a_trigger_is_one_instruction() -> None:
    for text in ("", "RUN a\nRUN b", "FROM a", "ONBUILD RUN a", "MAINTAINER x"):
        with pytest.raises(BadRequest, match=r"^ONBUILD:1:1: "):
            parser.parse_onbuild(text)


def test_an_unknown_frontend_is_warned_of() -> None:
    assert parse("# syntax=docker/dockerfile:1.7-labs\nFROM a").warnings == ()
    assert parse("# syntax=docker.io/docker/dockerfile@sha256:abc\nFROM a").warnings == ()
    (warning,) = parse("# syntax=example.com/other\nFROM a").warnings
    assert warning.startswith("Dockerfile: syntax=example.com/other is not used")
