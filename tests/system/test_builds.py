"""Every instruction of a Dockerfile, built with `layerfs build` on real mounts, and what comes of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.builds import HEAD, Builds, builds

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def engine_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds by an engine."""
    with builds(tmp_path_factory.mktemp("builds")) as (made, _):
        yield made
        made.layerfs.check_store()


@pytest.fixture(scope="module")
def place_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds by the command itself."""
    with builds(tmp_path_factory.mktemp("builds"), served=False) as (made, _):
        yield made
        made.layerfs.check_store()


@pytest.fixture(params=["engine", "place"])
def either(request: pytest.FixtureRequest) -> Builds:
    """Builds by an engine, and then by the command itself."""
    made: Builds = request.getfixturevalue(f"{request.param}_builds")
    return made


def test_an_image_is_built_of_copies_and_commands(either: Builds) -> None:
    built = either.ok(
        HEAD + "WORKDIR /app\nCOPY . .\nRUN cat message > out && echo built >> out\nCMD cat out\n",
        "-t", "first:1", "-t", "first:latest",
        files={"message": "hello\n"},
    )  # fmt: skip
    assert built.run() == "hello\nbuilt\n"
    assert built.config["WorkingDir"] == "/app"
    assert either.inspect("first:1")["Id"] == f"sha256:{built.image}"
    assert either.inspect("first")["Id"] == f"sha256:{built.image}"
    assert built.history == [
        "WORKDIR /app",
        "COPY . . # buildkit",
        "RUN /bin/sh -c cat message > out && echo built >> out # buildkit",
        'CMD ["/bin/sh" "-c" "cat out"]',
    ]


def test_nothing_is_done_again_that_has_not_changed(either: Builds) -> None:
    dockerfile = (
        HEAD
        + "ENV A=1\nCOPY source /source\nRUN cat /proc/sys/kernel/random/uuid > /when; echo ran\nLABEL x=y\n"
    )
    first = either.ok(dockerfile, files={"source": "1"})
    again = either.ok(dockerfile, files={"source": "1"})
    assert again.image == first.image
    assert again.cached == [
        "[3/5] COPY source /source",
        "[4/5] RUN cat /proc/sys/kernel/random/uuid > /when; echo ran",
    ]
    changed = either.ok(dockerfile, files={"source": "2"})
    assert changed.cached == []
    assert "ran" in changed.log
    anew = either.ok(dockerfile, "--no-cache", files={"source": "1"})
    assert anew.cached == []
    assert anew.run("cat", "/when") != first.run("cat", "/when")


def test_a_step_is_done_again_after_one_that_was(engine_builds: Builds) -> None:
    dockerfile = HEAD + "ARG A\nRUN echo $A > /a\nRUN cat /a > /b\n"
    assert engine_builds.ok(dockerfile, "--build-arg", "A=1").run("cat", "/b") == "1\n"
    other = engine_builds.ok(dockerfile, "--build-arg", "A=2")
    assert (other.cached, other.run("cat", "/b")) == ([], "2\n")
    back = engine_builds.ok(dockerfile, "--build-arg", "A=1")
    assert (len(back.cached), back.run("cat", "/b")) == (2, "1\n")


def test_a_label_does_not_make_commands_run_again(engine_builds: Builds) -> None:
    first = engine_builds.ok(HEAD + "LABEL a=1\nRUN echo labelled\n")
    other = engine_builds.ok(HEAD + "LABEL a=2\nRUN echo labelled\n")
    assert other.cached == ["[3/3] RUN echo labelled"]
    assert first.history[0] == "LABEL a=1"
    assert other.history[0] == "LABEL a=2"
    assert other.config["Labels"] == {"a": "2"}


def test_the_places_that_a_container_needs_are_in_no_layer(engine_builds: Builds) -> None:
    built = engine_builds.ok(HEAD + "RUN echo x > /srv/x; ls /etc/hosts /etc/resolv.conf\nRUN true\n")
    layers = engine_builds.inspect(built.image)["GraphDriver"]["Data"]["LowerDir"].split(":")
    top = Path(layers[0])
    assert [str(path.relative_to(top)) for path in sorted(top.rglob("*"))] == ["srv", "srv/x"]
    assert len(layers) == 2  # `true` has written nothing: no layer
    assert built.history[-1] == "RUN /bin/sh -c true # buildkit"


def test_metadata_is_what_docker_makes_of_it(engine_builds: Builds) -> None:
    built = engine_builds.ok(
        HEAD
        + """MAINTAINER somebody
ENV A=1 B="two words"
ENV C ${A}3
LABEL one="1" two=$B
EXPOSE 80 53/udp
VOLUME /data ["/more"]
USER jane
WORKDIR /a
WORKDIR b
STOPSIGNAL SIGUSR1
SHELL ["/bin/sh", "-ec"]
HEALTHCHECK --interval=5s --retries=2 CMD true
ONBUILD RUN echo never
ENTRYPOINT ["cat"]
CMD ["/etc/passwd"]
"""
    )
    config = built.config
    assert config["Env"] == ["GREETING=hello", *[it for it in config["Env"] if it.startswith("PATH=")],
                             "A=1", "B=two words", "C=13"]  # fmt: skip
    assert config["Labels"] == {"one": "1", "two": "two words"}
    assert config["ExposedPorts"] == {"53/udp": {}, "80/tcp": {}}
    assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("jane", "/a/b", "SIGUSR1")
    assert config["Shell"] == ["/bin/sh", "-ec"]
    assert config["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 2
    }  # fmt: skip
    assert config["OnBuild"] == ["RUN echo never"]
    assert (config["Entrypoint"], config["Cmd"]) == (["cat"], ["/etc/passwd"])
    assert engine_builds.inspect(built.image)["Author"] == "somebody"


def test_a_command_sees_user_directory_and_variables(engine_builds: Builds) -> None:
    built = engine_builds.ok(
        HEAD
        + """ARG GIVEN=default
ARG OTHER=other
ENV SET=set OTHER=env
USER jane:wheel
WORKDIR /work
USER jane
RUN id -u; id -g; pwd; echo $GIVEN-$OTHER-$SET-$HOME-$http_proxy
USER 0:100
RUN id -u; id -g; touch /work/x
""",
        "--build-arg", "GIVEN=given", "--build-arg", "http_proxy=xproxyx",
        "--no-cache",
    )  # fmt: skip
    said = re.findall(r"^#\d+ [\d.]+ (.*)$", built.log, re.M)
    assert said == ["1000", "100", "/work", "given-env-set-/home/jane-xproxyx", "0", "100"]
    assert "xproxyx" not in json.dumps([built.config, built.history])


def test_the_exec_form_needs_no_shell(engine_builds: Builds) -> None:
    built = engine_builds.ok(HEAD + 'SHELL ["/no/such"]\nRUN ["/bin/touch", "/a b"]\nRUN ["echo", "$HOME"]\n')
    assert built.run("ls", "/a b") == "/a b\n"
    assert "#4 " in built.log
    assert "$HOME" in built.log


def test_here_documents_are_run_and_copied(engine_builds: Builds) -> None:
    built = engine_builds.ok(
        HEAD
        + """ENV WHO=world
RUN <<EOF
echo one > /one
echo two $WHO > /two
EOF
RUN cat <<A > /three; cat <<"B" >> /three
hello $WHO
A
bye $WHO
B
RUN <<EOF
#!/bin/cat
#from a file
EOF
COPY <<EOF <<"RAW" /srv/
expanded $WHO
EOF
raw $WHO
RAW
""",
    )
    read = "cat /one /two /three /srv/EOF /srv/RAW"
    assert built.run("sh", "-c", read).splitlines() == [
        "one", "two world", "hello world", "bye $WHO", "expanded world", "raw $WHO"
    ]  # fmt: skip
    assert "#from a file" in built.log


def test_stages_are_forks_and_only_those_needed_are_built(engine_builds: Builds) -> None:
    dockerfile = (
        "ARG BASE=busybox:1\n"
        "FROM $BASE AS base\nARG KEPT=kept\nENV IN=base\nRUN echo base > /srv/base\n"
        "FROM base AS one\nRUN echo one-$KEPT > /srv/one\n"
        "FROM base AS two\nRUN echo two > /srv/two\n"
        "FROM base AS unneeded\nRUN exit 1\n"
        "FROM scratch\nCOPY --from=one /srv /srv\nCOPY --from=two /srv/two /srv/renamed\n"
        "COPY --from=busybox:1 /bin /bin\nCOPY --from=0 /srv/base /zero\n"
    )
    built = engine_builds.ok(dockerfile)
    assert built.run("sh", "-c", "cat /srv/base /srv/one /srv/renamed /zero; ls /srv").split() == [
        "base", "one-kept", "two", "base", "base", "one", "renamed"
    ]  # fmt: skip
    assert "unneeded" not in built.log
    assert engine_builds.ok(dockerfile, "--target", "two").run("ls", "/srv") == "base\ntwo\n"
    assert "exit 1" in engine_builds.fails(dockerfile, "--target", "unneeded")


def test_independent_stages_run_side_by_side(engine_builds: Builds) -> None:
    """Each waits for a file of the other in a cache that they share: one after the other would not end."""
    waits = "RUN --mount=type=cache,target=/c touch /c/{}; while ! test -e /c/{}; do sleep 0.1; done\n"
    built = engine_builds.ok(
        f"{HEAD.strip()} AS a\n{waits.format('a', 'b')}RUN echo a > /a\n"
        f"{HEAD.strip()} AS b\n{waits.format('b', 'a')}RUN echo b > /b\n"
        f"{HEAD}COPY --from=a /a /\nCOPY --from=b /b /\n"
    )
    assert built.run("cat", "/a", "/b") == "a\nb\n"


def test_triggers_run_in_the_image_made_from_it(engine_builds: Builds) -> None:
    engine_builds.ok(
        HEAD + "ONBUILD COPY file /file\nONBUILD RUN cat /file > /out\nRUN echo not\n", "-t", "trigger"
    )
    built = engine_builds.ok("FROM trigger\nRUN cat /out\n", files={"file": "content\n"})
    assert built.run("cat", "/out") == "content\n"
    assert "OnBuild" not in built.config or not built.config["OnBuild"]


def test_mounts_of_a_command(engine_builds: Builds) -> None:
    built = engine_builds.ok(
        f"{HEAD.strip()} AS other\nRUN echo other > /srv/file\n"
        + HEAD
        + """RUN --mount=type=bind,target=/ctx cat /ctx/in > /a; touch /ctx/x || echo read-only >> /a
RUN --mount=type=bind,from=other,source=/srv,target=/o,rw cat /o/file >> /a; echo gone > /o/new
RUN --mount=type=bind,from=other,source=/srv,target=/o ls /o >> /a
RUN --mount=type=tmpfs,target=/t,size=1m mount | grep ' /t ' | grep -q size=1024k && echo t > /t/f
RUN --mount=type=cache,id=c,target=/c,mode=0700,uid=1000 ls -ldn /c >> /a; echo one > /c/f
RUN --mount=type=cache,id=c,target=/other cat /other/f >> /a
RUN --mount=type=cache,id=c,target=/other,ro ! touch /other/g
""",
        files={"in": "in\n"},
    )
    lines = built.run("cat", "/a").splitlines()
    assert lines[:4] == ["in", "read-only", "other", "file"]
    assert re.match(r"drwx------ +2 1000 ", lines[4])
    assert lines[5:] == ["one"]
    assert {"ctx", "o", "t", "c", "other"} & set(built.run("ls", "/").split()) == set()


def test_secrets_are_seen_by_their_command_alone(either: Builds, tmp_path: Path) -> None:
    secret = "Zz9-the-secret-itself-9zZ"
    file = tmp_path / "secret"
    file.write_text(secret)
    built = either.ok(
        HEAD
        + """RUN --mount=type=secret,id=one cat /run/secrets/one | wc -c > /size; ls -ln /run/secrets
RUN --mount=type=secret,id=one,target=/s,mode=0444,uid=1000 ls -ln /s >> /size
RUN --mount=type=secret,id=two,env=TWO echo ${#TWO} >> /size
RUN test ! -e /run/secrets/one && test -z "$TWO"
RUN --mount=type=secret,id=missing test ! -e /run/secrets/missing
""",
        "--secret", f"id=one,src={file}", "--secret", "id=two,env=SECRET", "--no-cache",
        env={"SECRET": secret},
    )  # fmt: skip
    sizes = built.run("cat", "/size").splitlines()
    assert (sizes[0], sizes[-1]) == (str(len(secret)), str(len(secret)))
    assert sizes[1].startswith("-r--r--r--    1 1000")
    assert secret not in built.log
    for place in (either.layerfs.root, either.layerfs.run):
        for path in (it for it in place.rglob("*") if it.is_file()):
            assert secret.encode() not in path.read_bytes(), path
    line = either.fails(HEAD + "RUN --mount=type=secret,id=needed,required true\n")
    assert line.endswith("secret needed is required by a RUN: give it with --secret id=needed")


def test_caches_are_known_and_pruned(own_builds: Builds) -> None:
    built = own_builds.ok(
        HEAD + "RUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/x bs=1000 count=5; echo kept > /kept\n"
    )
    (row,) = (
        json.loads(line)
        for line in own_builds.layerfs.ok("df", "--format", "json").splitlines()
        if "Build Cache" in line
    )
    assert row["TotalCount"] == "2"
    own_builds.layerfs.ok("rmi", built.image)
    assert "Total reclaimed space: 5" in own_builds.layerfs.ok("builder", "prune", "--force", "--all")
    own_builds.layerfs.ok("fsck")
    again = own_builds.ok(HEAD + "RUN --mount=type=cache,target=/c test ! -e /c/x\n")
    assert again.cached == []


@pytest.fixture
def own_builds(tmp_path: Path) -> Iterator[Builds]:
    """Builds in a store of the test's own."""
    with builds(tmp_path) as (made, _):
        yield made
        made.layerfs.check_store()


def test_a_command_finds_what_the_one_before_has_changed(either: Builds) -> None:
    """Its container was made while that one ran."""
    built = either.ok(
        HEAD
        + """WORKDIR /work
RUN echo 'new:x:77:88::/home/new:/bin/sh' >> /etc/passwd
USER new
RUN id -u > /tmp/one; echo $HOME >> /tmp/one
USER root
RUN rm -rf /work && mkdir /work && touch /work/second
RUN pwd; ls /work > /ls; touch here
RUN sed -i 's:/root:/elsewhere:' /etc/passwd
RUN echo $HOME > /home
RUN mv /bin/sh /bin/moved && cp /bin/moved /bin/sh
RUN echo moved > /moved
RUN cp /bin/busybox /bin/ash
SHELL ["/bin/ash", "-c"]
RUN echo $0 > /shell
RUN rm -rf /etc/hosts /etc/resolv.conf /tmp/x; test -e /etc/hosts
"""
    )
    assert built.run("cat", "/tmp/one", "/ls", "/home", "/moved", "/shell").split() == [
        "77", "/home/new", "second", "/elsewhere", "moved", "/bin/ash"
    ]  # fmt: skip
    assert built.run("ls", "/work").split() == ["here", "second"]


def test_places_to_mount_on_do_not_come_along_with_a_directory_that_is_moved(engine_builds: Builds) -> None:
    built = engine_builds.ok(
        HEAD + "RUN mv /etc /old && mkdir /etc\nRUN cp /old/passwd /etc && ls -A /etc > /ls\n"
    )
    assert built.run("ls", "-A", "/old").split() == ["group", "passwd"]
    assert built.run("cat", "/ls").split() == ["hosts", "passwd", "resolv.conf"]
    layers = engine_builds.inspect(built.image)["GraphDriver"]["Data"]["LowerDir"].split(":")
    assert sorted(os.listdir(f"{layers[0]}/etc")) == ["passwd"]


def test_an_image_of_nothing_but_a_shell_has_nothing_else_afterwards(engine_builds: Builds) -> None:
    built = engine_builds.ok("FROM busybox:1 AS b\nFROM scratch\nCOPY --from=b /bin /bin\nRUN echo x > /x\n")
    layers = engine_builds.inspect(built.image)["GraphDriver"]["Data"]["LowerDir"].split(":")
    assert [sorted(os.listdir(layer)) for layer in layers] == [["x"], ["bin"]]


def test_an_image_from_elsewhere_is_a_cache(own_builds: Builds, tmp_path: Path) -> None:
    dockerfile = (
        HEAD + "WORKDIR /w\nENV A=b\nCOPY f g /w/\nRUN cat /proc/sys/kernel/random/uuid > /u\nRUN true\n"
    )
    files = {"f": "f", "g": "g"}
    built = own_builds.ok(dockerfile, "-t", "pulled", files=files)
    archive = tmp_path / "archive"
    own_builds.layerfs.ok("save", "pulled", "-o", archive)
    value = built.run("cat", "/u")
    own_builds.layerfs.ok("rmi", "pulled")
    own_builds.layerfs.ok("builder", "prune", "--force", "--all")
    own_builds.layerfs.ok("load", "-q", archive)
    again = own_builds.ok(dockerfile, "--cache-from", "pulled", files=files)
    assert again.run("cat", "/u") == value
    assert len(again.cached) == 2
    known = own_builds.ok(dockerfile, files=files)
    assert (known.image, len(known.cached)) == (again.image, 4)
    other = own_builds.ok(dockerfile, "--cache-from", "pulled", files={**files, "g": "other"})
    assert other.run("cat", "/u") != value
