"""The container of a RUN is made while the command before still runs: what that changes must count."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.build import gate
from tests.system.builds import HEAD, Builds, builds

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds by an engine."""
    with builds(tmp_path_factory.mktemp("ahead")) as (there, _):
        yield there
        there.layerfs.check_store()


def test_a_directory_that_the_command_before_has_made_anew_is_the_one_to_work_in(made: Builds) -> None:
    made.ok(HEAD + "WORKDIR /w\nRUN sleep 0.3; rm -r /w && mkdir /w && touch /w/new\nRUN test -e new\n")


def test_a_directory_that_the_command_before_has_made_a_link_leads_on_in_the_tree(made: Builds) -> None:
    made.ok(
        HEAD
        + "WORKDIR /w\nRUN sleep 0.3; rm -r /w; mkdir /other && touch /other/there && ln -s /other /w\n"
        + "RUN test -e there\n"
    )


def test_a_directory_that_the_command_before_has_removed_is_made_again(made: Builds) -> None:
    made.ok(HEAD + "WORKDIR /w\nRUN sleep 0.3; cd /; rmdir /w\nRUN test $(pwd) = /w\n")


def test_a_program_that_the_command_before_has_put_earlier_in_the_path_is_run(made: Builds) -> None:
    made.ok(
        HEAD
        + "ENV PATH=/first:/bin\n"
        + "RUN mkdir /first; echo '#!/bin/sh' > /first/x; echo 'touch /mine' >> /first/x; chmod +x /first/x\n"
        + "RUN sleep 0.3; mv /first/x /first/true\n"
        + 'RUN ["true"]\n'
        + "RUN test -e /mine\n"
    )


def test_a_user_may_begin_in_a_directory_that_it_could_not_enter(made: Builds) -> None:
    made.ok(
        HEAD
        + "RUN echo someone:x:1234:1234::/:/bin/sh >> /etc/passwd; mkdir /w; chmod 700 /w\n"
        + "WORKDIR /w\nUSER someone\nRUN true\nRUN test $(id -u) = 1234 && test $(pwd) = /w\n"
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [('"no-such"', 127), ('"/no/such"', 127), ('"/etc"', 126), ('"/plain"', 126), ('"/text"', 126)],
)
def test_a_program_that_cannot_be_run_has_the_code_of_docker(made: Builds, words: str, code: int) -> None:
    begin = HEAD + "RUN echo x > /plain; echo x > /text; chmod 755 /text\n"
    done = made.run(f"{begin}RUN [{words}]\n")
    assert done.stderr.splitlines()[-1].endswith(f"returned a non-zero code: {code}")
    assert f"exec: {words}: " in done.stderr
    assert made.left() == []


def test_the_command_has_nothing_of_the_gate(made: Builds) -> None:
    built = made.ok(HEAD + "RUN true\nRUN ls /proc/self/fd; cat /proc/1/comm; readlink /proc/1/exe; env\n")
    lines = [line.split(" ", 2)[-1] for line in built.log.splitlines() if line.startswith("#3 ")]
    assert {"0", "1", "2"} <= set(lines)
    assert "4" not in lines
    assert "gate" not in built.log


def test_builds_work_without_the_gate(tmp_path: Path) -> None:
    """As where no compiler was at hand when layerfs was installed."""
    with builds(tmp_path, served=False) as (own, _):
        context = own.context(HEAD + "WORKDIR /w\nRUN echo 1 > one\nRUN cat one; exit 4\n")
        words = ["unshare", "-m", "sh", "-c", f'mount --bind /dev/null {gate.PROGRAM} && exec "$@"', "sh"]
        done = subprocess.run(
            [*words, *own.layerfs.words, "build", "--network", "none", str(context)],
            env=own.layerfs.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.stderr.splitlines()[-1].endswith("returned a non-zero code: 4")
        assert own.left() == []
        own.layerfs.check_store()


def test_nothing_of_what_a_command_writes_last_is_lost(made: Builds) -> None:
    """A runtime copies what its container writes, and may not be done when the command has ended."""
    count = 20
    built = made.ok(HEAD + "".join(f"RUN seq 1 20000; echo last {n}\n" for n in range(count)))
    lines = [line.split(" ", 2)[-1] for line in built.log.splitlines()]
    assert [line for line in lines if line.startswith("last ")] == [f"last {n}" for n in range(count)]
    assert lines.count("20000") == count


def test_a_user_may_open_the_output_by_its_name(made: Builds) -> None:
    built = made.ok(
        HEAD
        + "RUN echo someone:x:1234:1234::/:/bin/sh >> /etc/passwd\nUSER someone\n"
        + "RUN echo said > /dev/stdout; echo wrong > /dev/stderr\n"
    )
    assert "said" in built.log
    assert "wrong" in built.log
