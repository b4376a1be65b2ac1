"""Repositories: one commit's files, from servers and with contents that are not to be trusted."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layerfs.build import context, git
from layerfs.errors import BadRequest, LayerfsError
from tests.build.stages import Stage
from tests.build.test_context import names
from tests.build.test_copying import paths
from tests.conftest import wait_until


class Repository:
    """A repository that git daemon serves."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.url = f"git://127.0.0.1:{port}/repo"
        self.directory.mkdir()
        self.run("init", "-q", "-b", "main")
        for name, text in {
            "Dockerfile": "FROM a",
            "sub/x": "x",
            ".dockerignore": "ignored",
            "ignored": "",
        }.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
        (directory / "sub/run").write_text("#!/bin/sh\n")
        (directory / "sub/run").chmod(0o755)
        (directory / "out").symlink_to("/etc")
        self.first = self.commit("first")
        self.run("tag", "v1")
        (directory / "sub/x").write_text("later")
        self.second = self.commit("second")

    def run(self, *words: str) -> str:
        settings = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always")
        done = subprocess.run(
            ["git", *settings, *words],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.run("add", "-A")
        self.run("commit", "-q", "-m", message)
        return self.run("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    top = tmp_path_factory.mktemp("git")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    words = [
        "git",
        "daemon",
        "--export-all",
        f"--base-path={top}",
        "--listen=127.0.0.1",
        f"--port={port}",
        "--reuseaddr",
    ]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            made = Repository(top / "repo", port)
            wait_until(lambda: _listens(port))
            yield made
        finally:
            os.killpg(process.pid, 9)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.root
def test_add_a_repository(stage: Stage, repository: Repository) -> None:
    stage.copy(repository.url, to="/src", word="ADD")
    stage.copy(f"{repository.url}#v1:sub", to="/old", word="ADD", chown="5:6")
    stage.copy(f"{repository.url}#{repository.first}", to="/kept/", word="ADD", keep_git_dir=True)
    seen = stage.see()
    assert {path for path in paths(seen) if path.startswith(b"src/")} == {
        *(b"src/Dockerfile", b"src/sub", b"src/sub/x", b"src/sub/run", b"src/.dockerignore"),
        *(b"src/ignored", b"src/out"),
    }
    assert (seen[b"src/sub/x"].content, seen[b"old/x"].content) == (b"later", b"x")
    assert (seen[b"src/sub/run"].mode, seen[b"src/sub/x"].mode) == (0o755, 0o644)
    assert (seen[b"old/x"].uid, seen[b"old/x"].gid) == (5, 6)
    assert b"kept/.git/HEAD" in seen


def test_a_context_from_a_repository(tmp_path: Path, repository: Repository) -> None:
    with context.from_url(repository.url, tmp_path) as opened:
        assert opened.dockerfile == "FROM a"
        assert b"ignored" not in names(opened.source)
        assert b"sub/x" in names(opened.source)


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("#nowhere", "couldn't find remote ref nowhere"),
        ("#main:none", "has no directory none"),
        ("#main:../..", None),
        ("#main:out", "has no directory out"),
        ("#--upload-pack=touch /tmp/x", "invalid repository"),
    ],
)
def test_what_a_repository_has_not(
    tmp_path: Path, repository: Repository, fragment: str, said: str | None
) -> None:
    if said is None:
        assert git.fetch(repository.url + fragment, tmp_path) == tmp_path / "repository"
        return
    with pytest.raises(LayerfsError, match=said) as caught:
        git.fetch(repository.url + fragment, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_commit_of_a_repository(tmp_path: Path, repository: Repository) -> None:
    for number, right in enumerate((repository.second, repository.second[:10])):
        (tmp_path / str(number)).mkdir()
        git.fetch(repository.url, tmp_path / str(number), checksum=right)
    (tmp_path / "wrong").mkdir()
    with pytest.raises(BadRequest, match=f"is the commit {repository.second}, not {repository.first}"):
        git.fetch(repository.url, tmp_path / "wrong", checksum=repository.first)


def test_a_repository_runs_nothing_and_reads_nothing_of_this_machine(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    (home / "hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (home / "hooks/post-checkout").chmod(0o755)
    (home / ".gitconfig").write_text(f"[core]\n\thooksPath = {home}/hooks\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    git.fetch(repository.url, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_submodule_cannot_be_a_path_of_this_machine(tmp_path: Path, repository: Repository) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for words in (
        ("init", "-q"),
        ("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-m", "x"),
    ):
        subprocess.run(["git", *words], cwd=secret, check=True, timeout=30)
    repository.run("checkout", "-q", "-b", "hostile")
    try:
        repository.run("submodule", "add", "-q", str(secret), "stolen")
        repository.commit("submodule")
    finally:
        repository.run("checkout", "-q", "-f", "main")
    with pytest.raises(LayerfsError, match="transport 'file' not allowed"):
        git.fetch(f"{repository.url}#hostile", tmp_path)


def test_a_repository_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.5:
            raise Stopped

    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(Stopped):
            git.fetch(url, tmp_path, check=check)
    assert time.monotonic() - began < 5


def test_a_commit_of_a_server_that_gives_no_single_commits(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "_CONFIG", (*git._CONFIG, "protocol.version=0"))
    repository.run("checkout", "-q", "-b", "side")
    for text in ("in between", "on top"):
        (repository.directory / "sub/x").write_text(text)
        repository.commit(text)
    between = repository.run("rev-parse", "HEAD^")
    repository.run("checkout", "-q", "main")
    tree = git.fetch(f"{repository.url}#{between}", tmp_path)
    assert (tree / "sub/x").read_text() == "in between"
    absent = tmp_path / "absent"
    absent.mkdir()
    with pytest.raises(LayerfsError, match="cannot fetch"):
        git.fetch(f"{repository.url}#{'0' * 40}", absent)
