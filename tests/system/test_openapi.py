"""docs/api.yaml held against the routes that there are, and against what an engine answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from layerfs.api import app
from tests.conftest import Layerfs
from tests.system.apirequests import Answer, Api, engine
from tests.system.openapi import Document

pytestmark = pytest.mark.root
DOCUMENT = Document(Path(__file__).parents[2] / "docs/api.yaml")
ELSEWHERE = {
    ("POST", "/layerfs/exec/{id}/kill", 204),
    ("POST", "/layerfs/pull", 200),
    ("POST", "/layerfs/push", 200),
}
"""Answers that need a container or a registry: test_run_control.py and test_registry.py have them."""
NAME = "agent"


def test_every_route_is_in_the_document_and_no_other() -> None:
    routes = {
        (route.method, route.pattern.pattern)
        for module in app.MODULES["layerfs"]
        for route in app._routes(module)
        if route.pattern.pattern.startswith("/layerfs/")
    }

    written = {
        (method, re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(path)))
        for method, path, _ in DOCUMENT.operations()
    }
    assert written == routes


def test_the_document_is_whole() -> None:
    content = DOCUMENT.content
    assert content["openapi"].startswith("3.1.")
    assert {"title", "version"} <= content["info"].keys()
    names = [operation["operationId"] for _, _, operation in DOCUMENT.operations()]
    assert len(names) == len(set(names))
    used: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                DOCUMENT.resolved(value)
                used.add(value["$ref"])
            for member in value.values():
                look(member)
        elif isinstance(value, list):
            for member in value:
                look(member)

    look(content)
    there = {f"#/components/{kind}/{name}" for kind, parts in content["components"].items() for name in parts}
    assert used == there
    for _, path, operation in DOCUMENT.operations():
        assert {"summary", "responses"} <= operation.keys()
        parameters = [DOCUMENT.resolved(each) for each in operation.get("parameters", [])]
        assert all({"name", "in", "schema"} <= each.keys() for each in parameters)
        in_path = {each["name"] for each in parameters if each["in"] == "path"}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}


class Asked:
    """Requests to an engine, each held against the document."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.seen: set[tuple[str, str, int]] = set()

    def __call__(
        self, method: str, path: str, status: int, body: Any = None, /, *, part: str = "", **query: str
    ) -> Answer:
        """Ask; the answer must have that status, and be as the document has it. *part* is `{id}`."""
        operation = DOCUMENT.content["paths"][path][method.lower()]
        known = {DOCUMENT.resolved(each)["name"] for each in operation.get("parameters", [])}
        assert query.keys() <= known, path
        if body is not None and status < 400:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert list(DOCUMENT.problems(schema, body)) == [], (path, body)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        answer = self.api.ask(method, path.replace("{id}", quote(part)), data, headers, **query)
        assert answer.status == status, (method, path, answer)
        self.seen.add((method, path, status))
        told = DOCUMENT.resolved(operation["responses"][str(status)])
        if "content" not in told:
            assert answer.body == b""
            return answer
        kind = answer.headers.get("Content-Type", "text/plain").partition(";")[0]
        assert kind in told["content"], (path, kind)
        if "schema" in told["content"][kind]:
            problems = list(DOCUMENT.problems(told["content"][kind]["schema"], answer.json()))
            assert problems == [], (method, path)
        return answer


@pytest.fixture
def asked(layerfs: Layerfs, tmp_path: Path) -> Asked:
    """An engine with an image."""
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/file").write_text("old\n")
    (tmp_path / "tree/link").symlink_to("d/file")
    layerfs.ok("import", tmp_path / "tree", "base")
    return Asked(engine(layerfs))


def test_every_answer_is_as_the_document_says(asked: Asked, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    asked("POST", "/layerfs/mounts", 201, {"mountpoint": str(mnt), "image": "base", "name": NAME})
    try:
        _mounts(asked, mnt)
        steps = _past(asked, mnt)
        _time(asked, tmp_path, steps)
        _store(asked, steps)
    finally:
        for name in (NAME, "other"):
            asked.api.ask("POST", "/layerfs/unmount", name=name, force="1")
    documented = {
        (method, path, int(status))
        for method, path, operation in DOCUMENT.operations()
        for status in operation["responses"]
    }
    assert asked.seen | ELSEWHERE == documented


def _mounts(asked: Asked, mnt: Path) -> None:
    for body, status in (
        ({"mountpoint": "relative"}, 400),
        ({"mountpoint": "/nowhere/at/all", "image": "base"}, 404),
        ({"mountpoint": str(mnt), "name": NAME}, 409),
    ):
        asked("POST", "/layerfs/mounts", status, body)
    asked("GET", "/layerfs/status", 200, name=NAME)
    asked("GET", "/layerfs/status", 404, name="nothing")
    asked("POST", "/layerfs/flush", 204, name=NAME)
    asked("POST", "/layerfs/flush", 404, name="nothing")
    asked("POST", "/layerfs/unmount", 404, name="nothing")


def _past(asked: Asked, mnt: Path) -> list[str]:
    steps = []
    for number in range(3):
        (mnt / "d/file").write_text(f"{number}\n")
        answer = asked("POST", "/layerfs/checkpoint", 201, {"Comment": f"n{number}"}, name=NAME)
        steps.append(answer.json()["Step"])
    asked("POST", "/layerfs/checkpoint", 400, {"Comment": 1}, name=NAME)
    asked("POST", "/layerfs/checkpoint", 404, {}, name="nothing")
    (mnt / "d").rename(mnt / "e")
    asked("POST", "/layerfs/checkpoint", 201, name=NAME)
    (mnt / "new").write_bytes(b"\0")
    for query in ({"ref": NAME}, {"ref": NAME, "path": "/e/file"}, {"ref": NAME, "n": "2", "graph": "1"}):
        asked("GET", "/layerfs/log", 200, **query)
    asked("GET", "/layerfs/log", 400, ref=NAME, n="x")
    asked("GET", "/layerfs/log", 404, ref=NAME, path="/never")
    for path in ("/layerfs/ls", "/layerfs/cat"):
        asked("GET", path, 400)
        asked("GET", path, 404, ref=f"{NAME}:/never")
    asked("GET", "/layerfs/ls", 200, ref=NAME)
    assert asked("GET", "/layerfs/cat", 200, ref=f"{NAME}:/e/file").body == b"2\n"
    for form in ("names", "stat", "patch"):
        asked("GET", "/layerfs/diff", 200, a=f"{NAME}~3", b=NAME, form=form)
    asked("GET", "/layerfs/diff", 400, a=NAME)
    asked("GET", "/layerfs/diff", 404, a=NAME, b="nothing")
    return steps


def _time(asked: Asked, tmp_path: Path, steps: list[str]) -> None:
    asked("POST", "/layerfs/restore", 200, {"Ref": steps[0], "Paths": ["/d/file"]}, name=NAME)
    asked("POST", "/layerfs/restore", 400, {"Ref": steps[0]}, name=NAME)
    asked("POST", "/layerfs/restore", 404, {"Ref": steps[0], "Paths": ["/never"]}, name=NAME)
    asked("POST", "/layerfs/rollback", 200, {"Ref": steps[1]}, name=NAME)
    asked("POST", "/layerfs/rollback", 200, {"Ref": steps[2], "Discard": True}, name=NAME)
    asked("POST", "/layerfs/rollback", 400, {"Kill": True, "Pause": True}, name=NAME)
    asked("POST", "/layerfs/rollback", 404, {"Ref": "nothing"}, name=NAME)
    (tmp_path / "fork").mkdir()
    fork = {"Name": "other", "Mountpoint": str(tmp_path / "fork")}
    asked("POST", "/layerfs/fork", 201, fork, name=NAME)
    asked("POST", "/layerfs/fork", 409, fork, name=NAME)
    asked("POST", "/layerfs/fork", 400, {"Name": "x", "Mountpoint": "x"}, name=NAME)
    asked("POST", "/layerfs/fork", 404, {"Name": "x", "Mountpoint": str(tmp_path / "none")}, name=NAME)
    asked("POST", "/layerfs/keep", 409, {"Last": 1}, name=NAME)
    asked("POST", "/layerfs/squash", 409, {"Ref": steps[0]})
    for name in (NAME, "other"):
        asked("POST", "/layerfs/unmount", 204, name=name, force="1")
    asked("POST", "/layerfs/unmount", 409, name=NAME)
    asked("GET", "/layerfs/status", 409, name=NAME)
    asked("POST", "/layerfs/squash", 200, {"Ref": steps[0]})
    asked("POST", "/layerfs/squash", 400, {"Ref": 1})
    asked("POST", "/layerfs/squash", 404, {"Ref": steps[0]})
    asked("POST", "/layerfs/keep", 200, {"Last": 1, "Every": "10m", "Daily": None}, name=NAME)
    asked("POST", "/layerfs/keep", 400, {"Every": "soon"}, name=NAME)
    asked("POST", "/layerfs/keep", 404, {"Last": 1}, name="nothing")
    read_only = {"mountpoint": str(tmp_path / "fork"), "image": "base", "name": "ro", "read_only": True}
    asked("POST", "/layerfs/mounts", 201, read_only)
    asked("POST", "/layerfs/checkpoint", 409, {}, name="ro")
    asked("POST", "/layerfs/rollback", 409, {}, name="ro")
    asked("POST", "/layerfs/restore", 409, {"Ref": "base", "Paths": ["/d"]}, name="ro")
    asked("POST", "/layerfs/unmount", 204, name="ro", force="1")


def _store(asked: Asked, steps: list[str]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: asked("GET", "/layerfs/verify", 200, ref="base"),
        lambda: asked("GET", "/layerfs/verify", 400),
        lambda: asked("GET", "/layerfs/verify", 404, ref="nothing"),
        lambda: asked("POST", "/layerfs/verify", 204, ref="base"),
        lambda: asked("POST", "/layerfs/verify", 400),
        lambda: asked("POST", "/layerfs/verify", 404, ref="nothing"),
        lambda: asked("GET", "/layerfs/fsck", 200, contents="1"),
        lambda: asked("POST", "/layerfs/fsck", 200),
        lambda: asked("POST", "/layerfs/recover", 200),
        lambda: asked("GET", "/layerfs/df", 200),
        lambda: asked("POST", "/layerfs/pull", 400, {"Source": "A B"}),
        lambda: asked("POST", "/layerfs/push", 400, {"Image": "base", "Target": "A B"}),
        lambda: asked("POST", "/layerfs/push", 404, {"Image": "nothing", "Target": "localhost:1/nothing:1"}),
        lambda: asked("POST", "/layerfs/exec/{id}/kill", 404, part="f" * 64),
        lambda: asked("POST", "/layerfs/containers/{id}/exited", 400, part="no id"),
        lambda: asked("POST", "/layerfs/containers/{id}/exited", 200, part="f" * 64),
    ]
    for call in calls:
        call()


def test_a_value_that_does_not_fit_is_noticed() -> None:
    schema = {"$ref": "#/components/schemas/Checkpoint"}
    wrong = [{}, {"Step": None}, {"Step": "x"}, {"Step": "f" * 64, "More": 1}, [], None]
    assert all(list(DOCUMENT.problems(schema, value)) for value in wrong)
    assert list(DOCUMENT.problems(schema, {"Step": "f" * 64})) == []
