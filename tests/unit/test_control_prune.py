"""The routes that prune and tell of room, and the commands on them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from layerfs.api import app
from layerfs.api.times import parse_until
from layerfs.client.client import local_place
from layerfs.errors import BadRequest
from layerfs.store import Store
from layerfs.unixhttp.message import Query, Request, Stream
from tests.unit.control_support import ask, make_tree, whole_answer
from tests.unit.steps_support import chain
from tests.unit.test_cli_commands import Run, fails, run
from tests.unit.test_store_usage import committed

__all__ = ["run"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store: "base" with label role=base, "one" made from it, an image without a name, a mount at rest."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    with Store(tmp_path / "store") as store:
        tree = make_tree(tmp_path / "tree")
        base = store.import_image(tree, "base", changes=["LABEL role=base"])
        store.create_mount("m", image=base)
        committed(store, "m", 1000, "one")
        store.import_image(tree / "etc", None, changes=["LABEL role=extra"])
    return tmp_path / "store"


def test_disk_usage(root: Path) -> None:
    found = ask(root, "GET", "/system/df")
    assert found["LayersSize"] == 3_000_006 + 1000 + 6
    images = {str(image["RepoTags"]): image for image in found["Images"]}
    assert {
        name: (image["Size"], image["SharedSize"], image["Containers"]) for name, image in images.items()
    } == {
        "[]": (6, 0, 0),
        "['one:latest']": (3_001_006, 3_000_006, 0),
        "['base:latest']": (3_000_006, 3_000_006, 1),
    }
    (mount,) = found["Containers"]
    assert (mount["Names"], mount["SizeRw"], mount["SizeRootFs"]) == (["/m"], 0, 3_001_006)
    assert (found["Volumes"], found["BuildCache"]) == ([], [])
    assert set(ask(root, "GET", "/system/df", type=["image"])) == {"Images", "LayersSize"}
    with pytest.raises(BadRequest, match="unknown object type 'x'"):
        ask(root, "GET", "/system/df", type=["x"])
    listed = whole_answer(root, Request("GET", "/images/json", Query((("shared-size", "1"),))))
    assert [image["SharedSize"] for image in json.loads(listed.body)] == [0, 3_000_006, 3_000_006]


def test_images_are_pruned_by_dockers_filters(root: Path) -> None:
    def prune(**filters: list[str]) -> tuple[int, int]:
        answer = ask(root, "POST", "/images/prune", filters=json.dumps(filters))
        return len(answer["ImagesDeleted"] or ()), answer["SpaceReclaimed"]

    assert prune(label=["role=base"]) == (0, 0)
    assert prune(until=["1h"]) == (0, 0)
    assert prune(**{"label!": ["role"]}) == (0, 0)
    assert prune(**{"label!": ["role=base"]}) == (2, 6)
    assert prune(dangling=["true"]) == (0, 0)
    assert prune(dangling=["false"], label=["other"]) == (0, 0)
    assert prune(dangling=["0"], until=["0s"]) == (2, 0)  # the mount goes on with its layer
    for bad in ({"until": ["yesterday"]}, {"until": ["1h", "2h"]}, {"color": ["red"]}, {"dangling": ["x"]}):
        with pytest.raises(BadRequest, match="filter"):
            prune(**bad)


def test_mounts_are_pruned(root: Path) -> None:
    with Store(root) as store:
        (mount,) = store.mounts()
    nobody = ask(root, "POST", "/containers/prune", filters='{"label": ["role=other"]}')
    assert nobody == {"ContainersDeleted": None, "SpaceReclaimed": 0}
    assert ask(root, "POST", "/containers/prune")["ContainersDeleted"] == [mount.id]
    events = ask_events(root)
    assert {"reclaimed": "0"} in [event["Actor"]["Attributes"] for event in events]
    assert ask(root, "POST", "/build/prune") == {"CachesDeleted": None, "SpaceReclaimed": 0}


def ask_events(root: Path) -> list[dict[str, dict[str, object]]]:
    answer = app.answer(
        local_place(root), Request("GET", "/events", Query((("since", "1"), ("until", f"{time.time():.6f}"))))
    )
    assert isinstance(answer, Stream)
    return [json.loads(line) for line in b"".join(answer.chunks).splitlines()]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1h30m", 5400), ("0.5h", 1800), ("250ms", 0.25), ("24h", 86400), ("0s", 0)],
)
def test_how_long_ago(text: str, seconds: float) -> None:
    assert abs((parse_until("0s") - parse_until(text)).total_seconds() - seconds) < 0.1


def test_moments() -> None:
    assert parse_until("1700000000") == parse_until("2023-11-14T22:13:20Z")
    assert parse_until("1700000000.5") > parse_until("2023-11-15T00:13:20+02:00")
    assert parse_until("2023-11-14") < parse_until("2023-11-15T00:00:01.123456789Z")
    for bad in ("", "h", "1 h", "-5s", "2023-13-01", "9" * 30, "1h2"):
        with pytest.raises(BadRequest, match="until"):
            parse_until(bad)


def test_the_commands(run: Run, root: Path) -> None:
    header, images, mounts, layers, cache = run("df")[1].splitlines()
    assert header.split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert images.split() == ["Images", "3", "1", "3MB", "6B", "(0%)"]
    assert mounts.split() == ["Mounts", "1", "0", "0B", "0B"]
    assert layers.split() == ["Layers", "4", "0", "3MB", "3MB", "(100%)"]
    assert cache.split() == ["Build", "Cache", "0", "0", "0B", "0B"]
    out = run("df", "-v")[1]
    assert "REPOSITORY   TAG       IMAGE ID       CREATED" in out
    assert "SHARED SIZE   UNIQUE SIZE   MOUNTS" in out
    found = json.loads(run("df", "-v", "--format", "json")[1])
    assert {row["UniqueSize"] for row in found["Images"]} == {"6B", "0B", "1kB"}
    assert json.loads(run("df", "--format", "json")[1].splitlines()[0])["Reclaimable"] == "6B (0%)"

    fails(run("prune"), 2, "give --force")
    fails(run("prune", "-f", "--filter", "until"), 2, "bad filter 'until'")
    fails(run("prune", "-f", "--filter", "x=y"), 1, "invalid filter 'x'")
    assert run("prune", "-f", "--filter", "until=1h")[1] == "Total reclaimed space: 0B\n"
    lines = run("prune", "-f")[1].splitlines()
    assert lines[0] == "Deleted Images:"
    assert lines[-1] == "Total reclaimed space: 6B"
    lines = run("prune", "-f", "--all", "--mounts", "--filter", "label!=role=none")[1].splitlines()
    assert lines[0] == "Deleted Mounts:"
    assert "untagged: one:latest" in lines
    assert lines[-1] == "Total reclaimed space: 3MB"
    assert run("images", "-q") == (0, "", "")
    assert "0B" in run("df")[1]


def test_the_build_cache_by_the_commands(run: Run, root: Path) -> None:
    with Store(root) as store, store.building():
        steps = chain(store, "a", (100, 20))
        store.steps.make_image(steps[0], {}, references=["built"])
    assert run("df")[1].splitlines()[-1].split() == ["Build", "Cache", "2", "0", "20B", "20B", "(100%)"]
    listed = run("df", "-v")[1]
    assert "CACHE ID   CACHE TYPE   SIZE" in listed
    assert "RUN a 1" in listed
    fails(run("builder", "prune"), 2, "give --force")
    fails(run("builder", "prune", "-f", "--keep-storage", "x"), 2, "invalid size 'x' for --keep-storage")
    for kept in (("--filter", "until=1h"), ("--filter", "id=x"), ("--keep-storage", "1k")):
        assert run("builder", "prune", "-f", *kept)[1] == "Total reclaimed space: 0B\n"
    lines = run("builder", "prune", "-f")[1].splitlines()
    assert lines == ["Deleted build cache objects:", "a-1", "", "Total reclaimed space: 20B"]
    assert "a-0" in run("system", "prune", "-f", "--all")[1].splitlines()
