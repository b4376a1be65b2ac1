"""Builds whose steps must not be taken for others: for what is in mounts, and in stages without files."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.system.builds import HEAD, Builds, builds

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds by an engine."""
    with builds(tmp_path_factory.mktemp("builds")) as (made, _):
        yield made
        made.layerfs.check_store()


def test_a_stage_without_files_is_not_the_build_context(made: Builds) -> None:
    dockerfile = "FROM scratch AS empty\nENV A=b\n" + HEAD + "COPY --from=empty {} /got/\n"
    built = made.ok(dockerfile.format("."), files={"private": "from the context\n"})
    assert built.run("ls", "-A", "/got") == ""
    line = made.fails(dockerfile.format("private"), files={"private": "from the context\n"})
    assert "COPY private: not found in stage empty" in line


def test_an_image_is_no_cache_for_commands_that_find_other_files(made: Builds, tmp_path: Path) -> None:
    mounted = HEAD + "RUN --mount=type=bind,target=/ctx cp /ctx/in /got\n"
    script = HEAD + "RUN <<EOF\n#!/bin/sh\necho {} > /got\nEOF\n"
    files = {"in": "old"}
    made.ok(mounted, "-t", "mounted", files=files)
    made.ok(script.format("old"), "-t", "script")
    archive = tmp_path / "archive"
    made.layerfs.ok("save", "mounted", "script", "-o", archive)
    made.layerfs.ok("rmi", "mounted", "script")
    made.layerfs.ok("builder", "prune", "--force", "--all")
    made.layerfs.ok("load", "-q", archive)
    built = made.ok(mounted, "--cache-from", "mounted", files={"in": "new"})
    assert built.run("cat", "/got") == "new"
    assert made.ok(script.format("new"), "--cache-from", "script").run("cat", "/got") == "new\n"


def test_a_command_whose_mount_changes_meanwhile_is_not_kept_for_what_it_was(made: Builds) -> None:
    mounted = "RUN --mount=type=bind,target=/ctx"
    dockerfile = f"{HEAD}{mounted} cat /ctx/in > /first; sleep 2; cat /ctx/in > /got\n"
    context = made.context(dockerfile, {"in": "old", ".dockerignore": "other\n"})
    words = [*made.layerfs.words, "build", "--network", "none", "--progress", "plain", str(context)]
    with subprocess.Popen(words, env=made.layerfs.environment, stderr=subprocess.PIPE) as process:
        wait_until(lambda: "2/2" in _shown(process))
        (context / "in").write_text("new")
        process.communicate(timeout=60)
    (context / "in").write_text("old")
    done = made.command("build", "--network", "none", "-t", "after", str(context))
    assert done.returncode == 0, done.stderr
    assert made.output("after", "cat", "/first", "/got") == "oldold"


def _shown(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode()


def test_a_command_is_done_again_whose_cache_begins_with_another_stage(made: Builds) -> None:
    dockerfile = (
        HEAD.strip() + " AS begin\nCOPY in /srv/\n" + HEAD
        + "RUN --mount=type=cache,from=begin,source=/srv,target=/c cat /c/in > /got; echo ran\n"
    )  # fmt: skip
    logs = [made.ok(dockerfile, files={"in": content}).log for content in ("one", "one", "two")]
    assert [re.search(r"\d ran\n", log) is not None for log in logs] == [True, False, True]


def test_brackets_in_the_source_of_a_mount_are_a_name(made: Builds) -> None:
    dockerfile = HEAD + "RUN --mount=type=bind,source=a[1],target=/ctx cat /ctx/in > /got\n"
    for content in ("one", "two"):
        built = made.ok(dockerfile, files={"a[1]/in": content, "a1/in": "other"})
        assert built.run("cat", "/got") == content


def test_a_command_cannot_write_below_a_context_that_has_mounts(made: Builds) -> None:
    context = made.context(HEAD + "RUN --mount=type=bind,target=/ctx ! touch /ctx/below/escaped\n")
    below = context / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        made.command("build", "--network", "none", str(context))
        assert list(below.iterdir()) == []
    finally:
        subprocess.run(["umount", below], check=True)


def test_a_context_is_roots_however_it_is_mounted(made: Builds) -> None:
    context = made.context(HEAD + "RUN --mount=type=bind,target=/ctx stat -c '%u %a' /ctx/in > /got\n")
    (context / "in").write_text("in")
    (context / "in").chmod(0o640)
    subprocess.run(["chown", "1234", context / "in"], check=True)
    done = made.command("build", "--network", "none", "-t", "owners", str(context))
    assert done.returncode == 0, done.stderr
    assert made.output("owners", "cat", "/got") == "0 640\n"
