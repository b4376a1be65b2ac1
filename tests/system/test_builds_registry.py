"""Builds of images that a registry has: pulled, asked for anew, by digest, behind a password."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.builds import Builds, builds
from tests.system.registries import PASSWORD, USER, Registry, guarded, registry

__all__ = ["guarded", "registry"]
pytestmark = pytest.mark.root


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Builds]:
    """Builds in a store of the test's own, by an engine."""
    with builds(tmp_path) as (found, _):
        yield found
        found.layerfs.check_store()


def _push(made: Builds, reference: str, text: str, *options: str) -> str:
    """Have the registry have an image whose /text says *text*, and this store not; return its digest."""
    made.ok(f"FROM busybox:1\nRUN echo {text} > /text\n", "-t", reference)
    digest = made.layerfs.ok("push", "-q", "--tls-verify=false", *options, reference)
    made.layerfs.ok("rmi", reference)
    return digest


def test_an_image_is_pulled_when_it_is_missing_and_asked_for_anew_if_that_is_wanted(
    made: Builds, registry: Registry
) -> None:
    reference = f"{registry.host}/base:1"
    _push(made, reference, "one")
    dockerfile = f"FROM {reference}\nCOPY --from={registry.host}/other /text /other\nRUN cat /text /other\n"
    _push(made, f"{registry.host}/other", "other")
    assert "one\n" in made.ok(dockerfile).log
    old = made.layerfs.ok("image", "inspect", "-f", "{{.Id}}", reference)
    _push(made, f"{registry.host}/base:new", "two")
    made.layerfs.ok("pull", "-q", "--tls-verify=false", f"docker://{registry.host}/base:new", "new")
    made.layerfs.ok("push", "-q", "--tls-verify=false", "new", f"docker://{reference}")
    assert made.layerfs.ok("image", "inspect", "-f", "{{.Id}}", reference) == old
    assert made.ok(dockerfile).run("cat", "/text") == "one\n"
    assert made.ok(dockerfile, "--pull").run("cat", "/text") == "two\n"


def test_a_digest_means_one_image_for_ever(made: Builds, registry: Registry) -> None:
    digest = _push(made, f"{registry.host}/base:1", "one").split()[-1]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    _push(made, f"{registry.host}/base:1", "two")
    built = made.ok(f"FROM {registry.host}/base@{digest}\nENV A=b\n")
    assert built.run("cat", "/text") == "one\n"


def test_what_a_registry_does_not_have_is_said_as_docker_says_it(made: Builds, registry: Registry) -> None:
    line = made.fails(f"FROM {registry.host}/missing:1\n")
    assert "missing" in line
    assert "not found" in line


def test_credentials_of_the_client_are_for_their_registry(
    made: Builds, guarded: Registry, tmp_path: Path
) -> None:
    reference = f"{guarded.host}/base:1"
    _push(made, reference, "guarded", "--creds", f"{USER}:{PASSWORD}")
    dockerfile = f"FROM {reference}\nRUN cat /text\n"
    assert "denied" in made.fails(dockerfile, env={"DOCKER_CONFIG": str(tmp_path)})
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {guarded.host: {"auth": auth}}}))
    assert "guarded\n" in made.ok(dockerfile, env={"DOCKER_CONFIG": str(tmp_path)}).log


def test_credentials_that_a_program_keeps_are_asked_for(
    made: Builds, guarded: Registry, tmp_path: Path
) -> None:
    reference = f"{guarded.host}/kept:1"
    _push(made, reference, "kept", "--creds", f"{USER}:{PASSWORD}")
    program = tmp_path / "docker-credential-keeps"
    answer = json.dumps({"ServerURL": guarded.host, "Username": USER, "Secret": PASSWORD})
    known = json.dumps({guarded.host: USER})
    program.write_text(f"#!/bin/sh\ntest $1 = list && {{ echo '{known}'; exit; }}\necho '{answer}'\n")
    program.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "keeps"}))
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert "kept\n" in made.ok(f"FROM {reference}\nRUN cat /text\n", env=env).log
    made.layerfs.ok("rmi", reference)
    pulled = made.command("pull", "--tls-verify=false", f"docker://{reference}", "pulled:1", env=env)
    assert pulled.returncode == 0, pulled.stderr
    without = made.command("pull", f"docker://{reference}", "pulled:2", env={"DOCKER_CONFIG": str(tmp_path)})
    assert "docker-credential-keeps, which is not installed" in without.stderr
