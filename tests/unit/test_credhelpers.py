"""Programs that keep credentials for docker's clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfs.cli import credhelpers
from layerfs.cli.access import access_body
from layerfs.errors import LayerfsError, NotFound

KEEPS = """#!/bin/sh
test "$1" = list && { echo '{"https://index.docker.io/v1/": "me", "one.example": "joe"}'; exit; }
read -r server
case $server in
https://index.docker.io/v1/) echo '{"ServerURL": "x", "Username": "me", "Secret": "of the hub"}' ;;
one.example) echo '{"ServerURL": "x", "Username": "<token>", "Secret": "a token"}' ;;
broken.example) echo 'the keyring is locked'; exit 1 ;;
odd.example) echo 'hello' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""
Configured = Callable[..., Path]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    """Have a program `docker-credential-keeps`, and write docker's configuration."""
    program = tmp_path / "docker-credential-keeps"
    program.write_text(KEEPS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def configure(**fields: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(fields))
        return path

    return configure


def test_a_store_is_asked_for_every_registry(configured: Configured) -> None:
    configured(credsStore="keeps")
    hub = {"username": "me", "password": "of the hub", "serveraddress": "https://index.docker.io/v1/"}
    token = {"identitytoken": "a token", "serveraddress": "one.example"}
    assert credhelpers.of_host("docker.io") == hub
    assert credhelpers.of_host("one.example") == token
    assert credhelpers.of_host("other.example") is None
    assert credhelpers.of_all() == {"https://index.docker.io/v1/": hub, "one.example": token}


def test_a_helper_is_for_its_registry_alone(configured: Configured) -> None:
    configured(credHelpers={"one.example": "keeps"})
    assert credhelpers.of_host("docker.io") is None
    assert list(credhelpers.of_all()) == ["one.example"]


def test_without_any_nothing_is_asked(configured: Configured, tmp_path: Path) -> None:
    configured(auths={"one.example": {"auth": "am9lOnNlY3JldA=="}})
    assert credhelpers.of_host("one.example") is None
    (tmp_path / "config.json").write_text("{")
    assert credhelpers.of_all() == {}


def test_pulls_and_pushes_have_them_unless_others_are_given(configured: Configured) -> None:
    configured(credsStore="keeps")
    sent = json.loads(access_body(host="docker.io")["Auth"])
    assert sent == {"auths": {"docker.io": {"auth": "bWU6b2YgdGhlIGh1Yg=="}}}
    assert "Auth" not in access_body(host="docker.io", creds="joe:secret")
    assert "Auth" not in access_body(host="other.example")


@pytest.mark.parametrize(
    ("name", "host", "line"),
    [
        ("keeps", "broken.example", "docker-credential-keeps failed: the keyring is locked"),
        ("keeps", "odd.example", "docker-credential-keeps did not answer with a JSON object"),
        ("missing", "x.example", "names docker-credential-missing, which is not installed: install it"),
        ("../evil", "x.example", "names the credential program '../evil'"),
    ],
)
def test_what_is_wrong_is_said(configured: Configured, name: str, host: str, line: str) -> None:
    configured(credsStore=name)
    with pytest.raises(LayerfsError) as raised:
        credhelpers.of_host(host)
    assert line in str(raised.value)


def test_a_program_that_waits_for_ever_is_not_waited_for(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(credsStore="sleeps")
    program = tmp_path / "docker-credential-sleeps"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(credhelpers, "_PATIENCE", 0.2)
    with pytest.raises(LayerfsError, match=r"did not answer within 0\.2 seconds"):
        credhelpers.of_host("one.example")


def test_a_missing_program_is_something_to_install(configured: Configured) -> None:
    path = configured(credsStore="missing")
    with pytest.raises(NotFound) as raised:
        credhelpers.of_all()
    assert str(raised.value).startswith(f"{path} names ")
