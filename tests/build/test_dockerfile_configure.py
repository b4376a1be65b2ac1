"""What instructions do to a configuration, and what the history says of them."""

from __future__ import annotations

from typing import Any

import pytest

from layerfs.dockerfile import history, parser
from layerfs.dockerfile.configure import DEFAULT_PATH, Configuration
from layerfs.dockerfile.instructions import Copy, Instruction, Run
from layerfs.errors import BadRequest


def instructions(text: str) -> tuple[Instruction, ...]:
    return parser.parse(b"FROM a\n" + text.encode()).stages[0].instructions


def apply(configuration: Configuration, text: str) -> list[str | None]:
    return [configuration.apply(each) for each in instructions(text)]


@pytest.mark.parametrize(
    ("before", "text", "after", "said"),
    [
        ({}, "ENV A=b", {"Env": ["A=b"]}, "ENV A=b"),
        (
            {"Env": ["A=1", "B=2", "C=3"]},
            'ENV B="x y" D=$A$B C=',
            {"Env": ["A=1", "B=x y", "C=", "D=12"]},
            "ENV B=x y D=12 C=",
        ),
        ({"Env": None}, "ENV A it's", None, "a ' is never closed"),
        ({}, "ENV A  b  c", {"Env": ["A=b  c"]}, "ENV A=b  c"),
        (
            {"Labels": {"a": "1", "b": "2"}},
            "LABEL b=3 'c d'=\"e f\"",
            {"Labels": {"a": "1", "b": "3", "c d": "e f"}},
            "LABEL b=3 c d=e f",
        ),
        ({}, 'CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}, 'CMD ["a" "b c"]'),
        ({}, "CMD echo $HOME", {"Cmd": ["/bin/sh", "-c", "echo $HOME"]}, 'CMD ["/bin/sh" "-c" "echo $HOME"]'),
        ({"Cmd": ["x"]}, "CMD []", {"Cmd": []}, "CMD []"),
        ({"Cmd": ["x"]}, 'ENTRYPOINT ["a"]', {"Entrypoint": ["a"]}, 'ENTRYPOINT ["a"]'),
        ({}, 'CMD ["é\\n\\"\\u0001☃"]', {"Cmd": ['é\n"\x01☃']}, 'CMD ["é\\n\\"\\x01☃"]'),
        ({}, 'SHELL ["/bin/bash", "-c"]', {"Shell": ["/bin/bash", "-c"]}, "SHELL [/bin/bash -c]"),
        (
            {"ExposedPorts": {"1/tcp": {}}},
            "EXPOSE 8000-8001/UDP 443 0.0.0.0:80:81",
            {"ExposedPorts": {"1/tcp": {}, "443/tcp": {}, "81/tcp": {}, "8000/udp": {}, "8001/udp": {}}},
            "EXPOSE [81/tcp 443/tcp 8000/udp 8001/udp]",
        ),
        (
            {"Env": ["P=80 81"]},
            "EXPOSE $P",
            {"ExposedPorts": {"80/tcp": {}, "81/tcp": {}}},
            "EXPOSE [80/tcp 81/tcp]",
        ),
        (
            {"Volumes": {"/x": {}}},
            "VOLUME /a /b",
            {"Volumes": {"/x": {}, "/a": {}, "/b": {}}},
            "VOLUME [/a /b]",
        ),
        ({}, 'VOLUME ["/a b"]', {"Volumes": {"/a b": {}}}, "VOLUME [/a b]"),
        ({"Env": ["U=me"]}, "USER $U:x", {"User": "me:x"}, "USER me:x"),
        ({}, "WORKDIR a//b/../c/", {"WorkingDir": "/a/c"}, "WORKDIR /a/c"),
        ({"WorkingDir": "/a"}, "WORKDIR b c", {"WorkingDir": "/a/b c"}, "WORKDIR /a/b c"),
        ({"WorkingDir": "/a"}, "WORKDIR //b", {"WorkingDir": "/b"}, "WORKDIR /b"),
        ({"WorkingDir": "/a"}, "WORKDIR ../..", {"WorkingDir": "/"}, "WORKDIR /"),
        ({}, "STOPSIGNAL SIGUSR1", {"StopSignal": "SIGUSR1"}, "STOPSIGNAL SIGUSR1"),
        ({"OnBuild": ["RUN a"]}, "ONBUILD RUN b $C", {"OnBuild": ["RUN a", "RUN b $C"]}, None),
        (
            {"Healthcheck": {"Test": ["CMD", "x"], "Retries": 9}},
            "HEALTHCHECK --interval=1h1m1.5s --timeout=1500us CMD curl x",
            {"Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 3661500000000, "Timeout": 1500000}},
            "HEALTHCHECK {Test:[CMD-SHELL curl x] Interval:1h1m1.5s Timeout:1.5ms StartPeriod:0s "
            "StartInterval:0s Retries:0}",
        ),
        (
            {},
            "HEALTHCHECK NONE",
            {"Healthcheck": {"Test": ["NONE"]}},
            "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        ),
    ],
)
def test_one_instruction(
    before: dict[str, Any], text: str, after: dict[str, Any] | None, said: str | None
) -> None:
    copied = repr(before)
    if after is None:
        with pytest.raises(BadRequest, match=said):
            instructions(text)
        return
    configuration = Configuration(before)
    unchanged = {name: before[name] for name in ("Env",) if name in before and "Env" not in after}
    assert apply(configuration, text) == [said]
    assert configuration.config == {**unchanged, **after}
    assert repr(before) == copied


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ENV $NONE=a", "a name is empty"),
        ("ENV $PAIR=a", "a variable's name has a ="),
        ("LABEL $NONE=a", "a name is empty"),
        ("EXPOSE http", "'http' is not a port: use 80"),
        ("EXPOSE 0", "is not a port"),
        ("EXPOSE 70000", "is not a port"),
        ("EXPOSE 9-8", "is not a port"),
        ("EXPOSE 80/tpc", "is not a port"),
        ("EXPOSE host:80:80", "is not a port"),
        ("EXPOSE 1-16385", "more than 16384 ports"),
        ("USER a b", "exactly one argument"),
        ("STOPSIGNAL SIGNOTHING", "invalid signal"),
        ("VOLUME $NONE", "a path is empty"),
        ('ENV A="${NONE:?give it}"', "NONE: give it"),
        ('ARG A="${NONE:?give it}"', "NONE: give it"),
    ],
)
def test_values_that_cannot_be_are_refused_with_their_line(text: str, says: str) -> None:
    configuration = Configuration({"Env": ["PAIR=a=b"]})
    with pytest.raises(BadRequest) as caught:
        apply(configuration, text)
    assert str(caught.value).startswith("Dockerfile:2: ")
    assert says in str(caught.value)
    assert configuration.config == {"Env": ["PAIR=a=b"]}


def test_an_entrypoint_keeps_the_command_of_its_own_stage_only() -> None:
    stage = Configuration({"Cmd": ["below"]})
    apply(stage, 'CMD ["own"]\nENTRYPOINT ["e"]')
    assert stage.config["Cmd"] == ["own"]
    child = stage.child()
    apply(child, 'ENTRYPOINT ["f"]')
    assert "Cmd" not in child.config


def test_a_shell_holds_for_what_follows() -> None:
    stage = Configuration({})
    apply(stage, 'CMD a\nSHELL ["/bin/bash", "-ec"]\nENTRYPOINT b')
    assert stage.config["Cmd"] == ["/bin/sh", "-c", "a"]
    assert stage.config["Entrypoint"] == ["/bin/bash", "-ec", "b"]
    assert stage.words("c") == ["/bin/bash", "-ec", "c"]
    assert stage.words(("c", "d")) == ["c", "d"]


def test_args_come_from_the_command_line_then_the_default_then_before_from() -> None:
    stage = Configuration(
        {"Env": ["X=env"]},
        build_args={"A": "given", "HTTP_PROXY": "p"},
        global_args={"A": "g", "B": "g", "C": "g"},
    )
    said = apply(stage, "ARG A=default$X B C=${X}1 D E=$A-$B\nARG X=arg\nENV Y=$X$E")
    assert said == ["ARG A=given B=g C=env1 D E=given-g", "ARG X=arg", "ENV Y=arggiven-g"]
    assert stage.lookup("D") is None
    assert stage.lookup("HTTP_PROXY") is None
    assert stage.args() == {"A": "given", "B": "g", "C": "env1", "D": "", "E": "given-g", "X": "arg"}
    assert stage.config["Env"] == ["X=env", "Y=arggiven-g"]
    environment = stage.environment()
    assert environment["X"] == "arg"
    assert "D" not in environment
    assert (environment["HTTP_PROXY"], environment["http_proxy"]) == ("p", "p")


def test_a_proxy_is_given_in_both_spellings_the_small_one_first() -> None:
    stage = Configuration(
        {"Env": ["NO_PROXY=env"]},
        build_args={"http_proxy": "small", "HTTP_PROXY": "big", "No_Proxy": "x", "A": "b"},
    )
    assert stage.environment() == {
        "HTTP_PROXY": "small",
        "http_proxy": "small",
        "NO_PROXY": "env",
        "no_proxy": "x",
    }


def test_env_after_arg_wins_and_is_what_the_history_shows() -> None:
    stage = Configuration({}, build_args={"A": "given"})
    apply(stage, "ARG A\nENV A=env")
    assert stage.args() == {"A": "env"}
    assert history.run(stage.words("make"), stage.args()) == "RUN |1 A=env /bin/sh -c make # buildkit"


def test_a_stage_from_another_has_its_args_but_not_its_triggers() -> None:
    stage = Configuration({"Env": ["A=1"]})
    apply(stage, "ARG B=2\nONBUILD RUN x\nMAINTAINER me\nWORKDIR /w")
    child = stage.child()
    assert (child.lookup("A"), child.lookup("B"), child.args(), child.author) == ("1", "2", {"B": "2"}, "me")
    assert child.config == {"Env": ["A=1"], "WorkingDir": "/w"}
    apply(child, "ENV A=9 B=9")
    assert (stage.lookup("A"), stage.lookup("B"), stage.config["Env"]) == ("1", "2", ["A=1"])


def test_a_path_is_set_where_the_image_has_none() -> None:
    for before, after in (({}, [f"PATH={DEFAULT_PATH}"]), ({"Env": ["PATH=/x"]}, ["PATH=/x"])):
        stage = Configuration(before)
        stage.set_default_path()
        assert stage.config["Env"] == after


def test_copy_with_variables_put_in() -> None:
    stage = Configuration({"Env": ["A=a", "D=/d"]})
    (found,) = instructions(
        "COPY --chown=$A --chmod=$M --exclude=$A <<X <<'Y' $A/* \\$A ${D}/\n$A'\nX\n$A\nY"
    )
    assert isinstance(found, Copy)
    result = stage.expand_copy(found)
    assert (result.chown, result.chmod, result.exclude) == ("a", "", ("$A",))
    assert (result.sources, result.destination) == (("a/*", "$A"), "/d/")
    assert [document.content for document in result.heredocs] == ["a'\n", "$A\n"]
    (found,) = instructions('ADD --checksum=$A ["$A b", "/c d"]')
    assert isinstance(found, Copy)
    result = stage.expand_copy(found)
    assert (result.checksum, result.sources, result.destination) == ("a", ("a b",), "/c d")


def test_history_of_copy_and_run() -> None:
    stage = Configuration({"Env": ["A=a"]})
    (found,) = instructions("COPY --from=x --parents --chown=1:2 --chmod=755 $A <<E b /c\nE\n")
    assert isinstance(found, Copy)
    said = history.copy(stage.expand_copy(found))
    assert said == "COPY --parents --chown=1:2 --chmod=755 a b <<E /c # buildkit"
    assert history.run(["/bin/sh", "-c", "make  all"], {}) == "RUN /bin/sh -c make  all # buildkit"


def test_mounts_with_variables_put_in() -> None:
    stage = Configuration({"Env": ["ID=x", "T=/t", "RW=true"]})
    (found,) = instructions(
        "RUN --mount=type=cache,id=$ID,target=${T},uid=1 --mount=target=/b,rw=$RW"
        " --mount=type=secret,id=$ID,env=S y"
    )
    assert isinstance(found, Run)
    first, second, third = stage.expand_run(found).mounts
    assert first.options == {"id": "x", "target": "/t", "uid": "1", "readonly": "false"}
    assert second.options == {"target": "/b", "readonly": "false"}
    assert third.options == {"id": "x", "env": "S", "readonly": "true"}
    (found,) = instructions("RUN --mount=type=$TYPE,target=/t,uid=1 y")
    assert isinstance(found, Run)
    assert Configuration({"Env": ["TYPE=Cache"]}).expand_run(found).mounts[0].type == "cache"
    for kind, says in (
        ("tmpfs", "does not take 'uid'"),
        ("nfs", "expected a mount of type bind"),
        ("", "not ''"),
    ):
        with pytest.raises(BadRequest, match=f"^Dockerfile:2: .*{says}"):
            Configuration({"Env": [f"TYPE={kind}"]}).expand_run(found)
    (found,) = instructions("RUN --mount=type=cache,target=/t,uid=$ID y")
    assert isinstance(found, Run)
    with pytest.raises(BadRequest, match=r"^Dockerfile:2: expected a number for uid= in --mount, not 'x'$"):
        stage.expand_run(found)


def test_a_configuration_does_not_grow_without_end() -> None:
    stage = Configuration({"Env": ["A=" + "x" * 100_000]})
    with pytest.raises(BadRequest, match=r"^Dockerfile:43: the configuration is longer than 4 MiB"):
        apply(stage, "\n".join(f"ENV A{number}=$A" for number in range(100)))
    with pytest.raises(BadRequest, match=r"^Dockerfile:1002: expected at most 1000 ONBUILD"):
        apply(Configuration({}), "ONBUILD RUN x\n" * 1001)
