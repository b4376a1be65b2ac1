"""The routes about images and the system, on a real store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.store import Store
from layerfs.unixhttp.message import Query, Request
from tests.unit.control_support import ask, make_tree, whole_answer


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with Store(tmp_path / "store") as store:
        store.import_image(
            make_tree(tmp_path / "tree"),
            "debian:12",
            message="base",
            changes=['CMD ["/bin/bash"]', "LABEL role=base"],
        )
    return tmp_path / "store"


def status(root: Path, method: str, path: str, query: tuple[tuple[str, str], ...] = ()) -> int:
    return whole_answer(root, Request(method, path, Query(query))).status


def test_list(root: Path) -> None:
    (image,) = ask(root, "GET", "/images/json")
    assert image["Id"].startswith("sha256:")
    assert len(image["Id"]) == 71
    assert image["RepoTags"] == ["debian:12"]
    assert image["RepoDigests"] == []
    assert image["ParentId"] == ""
    assert image["Size"] == 3_000_006
    assert abs(image["Created"] - time.time()) < 60
    assert image["Labels"] == {"role": "base"}
    assert image["Containers"] == 0


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"reference": ["debian"]}, 1),
        ({"reference": ["debian:12"]}, 1),
        ({"reference": ["deb*:1?"]}, 1),
        ({"reference": ["debian:13", "debian:12"]}, 1),
        ({"reference": {"debian": True, "x": False}}, 1),
        ({"reference": ["x"]}, 0),
        ({"dangling": ["true"]}, 0),
        ({"dangling": ["false"]}, 1),
        ({"label": ["role"]}, 1),
        ({"label": ["role=base", "role"]}, 1),
        ({"label": ["role=top"]}, 0),
        ({"before": ["debian:12"]}, 0),
        ({"since": ["debian:12"]}, 0),
        ({}, 1),
    ],
)
def test_filters(root: Path, filters: dict[str, Any], count: int) -> None:
    assert len(ask(root, "GET", "/images/json", filters=json.dumps(filters))) == count


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"dangling": ["true"]}, 1),
        ({"dangling": ["false"]}, 1),
        ({"reference": ["debian"]}, 1),
        ({"reference": ["debian:12"]}, 0),
        ({"reference": ["other"]}, 0),
    ],
)
def test_filters_of_an_image_with_a_name_by_digest_alone(
    root: Path, filters: dict[str, Any], count: int
) -> None:
    """As dockerd answers: it is listed whichever dangling images are wanted, and goes with a prune."""
    with Store(root) as store:
        store.note_digest(store.resolve("debian:12").id, f"debian@sha256:{'a' * 64}")
        store.untag("debian:12")
    found = ask(root, "GET", "/images/json", filters=json.dumps(filters))
    assert [image["RepoDigests"] for image in found] == [[f"debian@sha256:{'a' * 64}"]] * count


@pytest.mark.parametrize(
    "filters",
    ["{", "[]", "3", '{"color": ["red"]}', '{"dangling": ["maybe"]}', '{"label": "x"}', '{"label": [1]}'],
)
def test_bad_filters(root: Path, filters: str) -> None:
    with pytest.raises(BadRequest, match="filter"):
        ask(root, "GET", "/images/json", filters=filters)


def test_versions(root: Path) -> None:
    assert ask(root, "GET", "/v1.24/images/json") == [
        {**ask(root, "GET", "/v1.51/images/json")[0], "Containers": -1}
    ]
    for path in ("/v1.23/images/json", "/v1.52/images/json", "/v2.0/images/json", "/v0.1/_ping"):
        with pytest.raises(BadRequest, match="API version"):
            ask(root, "GET", path)
    for path in ("/v1/images/json", "/v1.x/images/json", "/v1.41", "/v99999.1/_ping", "/vv1.41/_ping"):
        with pytest.raises(NotFound, match="page not found"):
            ask(root, "GET", path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/images/json"),
        ("GET", "/"),
        ("GET", "/images"),
        ("GET", "/images//json"),
        ("PUT", "/images/debian:12/tag"),
        ("HEAD", "/images/json"),
        ("BREW", "/version"),
        ("GET", "/IMAGES/json"),
        ("GET", "/layerfs/nothing"),
    ],
)
def test_what_is_not_there(root: Path, method: str, path: str) -> None:
    answer = whole_answer(root, Request(method, path))
    assert answer.status == 404
    assert json.loads(answer.body) == {"message": "page not found"}


def test_inspect_by_every_name(root: Path) -> None:
    found = ask(root, "GET", "/images/debian:12/json")
    assert found["Config"]["Cmd"] == ["/bin/bash"]
    assert found["Comment"] == "base"
    assert found["Created"].endswith("000Z")
    assert found["Os"] == "linux"
    assert found["Size"] == 3_000_006
    assert found["RootFS"]["Type"] == "layers"
    assert found["GraphDriver"]["Data"]["LowerDir"].endswith("/fs")
    identifier = found["Id"].removeprefix("sha256:")
    for name in (found["Id"], identifier, identifier[:12], "docker.io/library/debian:12"):
        assert ask(root, "GET", f"/images/{name}/json") == found


def test_names_with_slashes_and_ports(root: Path) -> None:
    name = "registry.example.org:5000/team/tool:v1"
    ask(root, "POST", "/images/debian:12/tag", repo="registry.example.org:5000/team/tool", tag="v1")
    assert name in ask(root, "GET", f"/images/{name}/json")["RepoTags"]
    assert ask(root, "GET", f"/v1.41/images/{name}/history")[0]["Tags"] == ["debian:12", name]
    assert ask(root, "DELETE", f"/images/{name}") == [{"Untagged": name}]


@pytest.mark.parametrize("name", ["nothing", "debian", "debian:13", "sha256:" + "0" * 64, "0" * 64])
def test_unknown_images(root: Path, name: str) -> None:
    for method, path in (("GET", "json"), ("GET", "history"), ("POST", "tag")):
        with pytest.raises(NotFound, match="no such image"):
            ask(root, method, f"/images/{name}/{path}", repo="x")
    with pytest.raises(NotFound, match="no such image"):
        ask(root, "DELETE", f"/images/{name}")


@pytest.mark.parametrize("name", ["Debian", "a//b", "-x", "a:b:c", "x@sha256:1", "a b", ":12"])
def test_bad_references(root: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="invalid reference format"):
        ask(root, "GET", f"/images/{name}/json")
    with pytest.raises(BadRequest, match="invalid reference format"):
        ask(root, "POST", "/images/debian:12/tag", repo=name)


def test_tag_needs_a_name(root: Path) -> None:
    for tag in ("", "x"):
        with pytest.raises(BadRequest, match="invalid reference format"):
            ask(root, "POST", "/images/debian:12/tag", tag=tag)
    assert status(root, "POST", "/images/debian:12/tag", (("repo", "again"), ("tag", "1"))) == 201
    assert ask(root, "GET", "/images/again:1/json")["RepoTags"] == ["again:1", "debian:12"]


def test_history(root: Path, tmp_path: Path) -> None:
    (item,) = ask(root, "GET", "/images/debian:12/history")
    assert item["Id"] == ask(root, "GET", "/images/debian:12/json")["Id"]
    assert item["CreatedBy"] == f"Imported from {tmp_path}/tree"
    assert item["Tags"] == ["debian:12"]
    assert (item["Size"], item["Comment"]) == (3_000_006, "base")


def test_remove(root: Path) -> None:
    identifier = ask(root, "GET", "/images/debian:12/json")["Id"]
    ask(root, "POST", "/images/debian:12/tag", repo="second")
    with pytest.raises(Conflict):
        ask(root, "DELETE", f"/images/{identifier}")
    records = ask(root, "DELETE", f"/images/{identifier}", force=True)
    assert [record["Untagged"] for record in records[:2]] == ["debian:12", "second:latest"]
    assert records[2] == {"Deleted": identifier}
    assert ask(root, "GET", "/images/json") == []


def test_an_image_in_use_stays(root: Path) -> None:
    with Store(root) as store:
        store.create_mount("user", image=store.resolve("debian:12"))
    with pytest.raises(Conflict, match="user"):
        ask(root, "DELETE", "/images/debian:12")
    assert ask(root, "GET", "/images/json")[0]["Containers"] == 1


def test_verify_names_what_differs(root: Path) -> None:
    assert ask(root, "GET", "/layerfs/verify", ref="debian:12") == []
    with Store(root) as store:
        layer = store.layers_of(store.resolve("debian:12"))[0]
    (layer.path / "etc/motd").write_text("HELLO\n")
    found = ask(root, "GET", "/layerfs/verify", ref="debian:12")
    assert "etc/motd" in [item["Path"] for item in found]
    assert {item["Layer"] for item in found} == {f"sha256:{layer.id}"}
    with pytest.raises(BadRequest):
        ask(root, "GET", "/layerfs/verify")


def test_version_info_and_disk_usage(root: Path) -> None:
    version = ask(root, "GET", "/version")
    assert (version["ApiVersion"], version["MinAPIVersion"]) == ("1.51", "1.24")
    info = ask(root, "GET", "/info")
    assert (info["Images"], info["Containers"], info["Driver"]) == (1, 0, "layerfs")
    assert info["DockerRootDir"] == str(root)
    usage = ask(root, "GET", "/system/df")
    assert usage["LayersSize"] == 3_000_006
    assert len(usage["Images"]) == 1


def test_without_a_store(tmp_path: Path) -> None:
    assert status(tmp_path / "none", "GET", "/_ping") == 200
    with pytest.raises(NotFound, match="no store"):
        ask(tmp_path / "none", "GET", "/images/json")
    assert not (tmp_path / "none").exists()


def test_a_damaged_store_is_told_of(root: Path) -> None:
    (root / "layerfs.db").write_bytes(b"garbage" * 1000)
    answer = whole_answer(root, Request("GET", "/images/json"))
    assert answer.status == 500
    assert "damaged" in json.loads(answer.body)["message"]
