"""What layerfs has not: it answers as an engine that has none of it, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfs.store import Store
from layerfs.unixhttp.message import Request
from tests.unit.control_support import whole_answer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Store(tmp_path / "store"):
        pass
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/swarm", 503, "not a swarm manager"),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("POST", "/swarm/init", 501, "has no swarm"),
        ("POST", "/v1.51/swarm/join", 501, "has no swarm"),
        ("GET", "/services", 503, "not a swarm manager"),
        ("POST", "/services/create", 503, "not a swarm manager"),
        ("GET", "/v1.40/nodes/one", 503, "not a swarm manager"),
        ("DELETE", "/secrets/one", 503, "not a swarm manager"),
        ("GET", "/tasks", 503, "not a swarm manager"),
        ("GET", "/plugins/one/json", 501, "no plugins"),
        ("POST", "/session", 501, "DOCKER_BUILDKIT=0"),
        ("GET", "/libpod/_ping", 404, "page not found"),
    ],
)
def test_what_there_is_none_of_is_refused(
    root: Path, method: str, path: str, status: int, message: str
) -> None:
    answer = whole_answer(root, Request(method, path))
    assert answer.status == status
    text = json.loads(answer.body)["message"]
    assert message in text
    assert "\n" not in text


def test_a_list_of_plugins_is_empty(root: Path) -> None:
    assert json.loads(whole_answer(root, Request("GET", "/plugins")).body) == []
