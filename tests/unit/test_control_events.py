"""The stream of events: what was, what comes, what was asked for."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from layerfs.api.server import App
from layerfs.api.times import parse_time
from layerfs.errors import BadRequest
from layerfs.store import Store
from layerfs.unixhttp.message import Query, Request, Response, Stream
from tests.unit.control_support import answer_of, make_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Store(tmp_path / "store") as store:
        image = store.import_image(make_tree(tmp_path / "tree"), "debian:12")
        store.create_mount("base", image=image)
    return tmp_path / "store"


def request(version: str = "v1.51", **query: str) -> Request:
    return Request("GET", f"/{version}/events", Query(tuple(query.items())))


async def past(root: Path, **query: str) -> list[dict[str, Any]]:
    """Return the events up to now that *query* asks for."""
    answer = await answer_of(App(root), request(until=repr(time.time()), since="1", **query))
    assert isinstance(answer, Stream)
    return [json.loads(line) for chunk in answer.chunks for line in chunk.splitlines()]


async def test_past_events_look_as_dockers(root: Path) -> None:
    found = await past(root)
    assert [(event["Type"], event["Action"]) for event in found] == [
        ("image", "import"),
        ("image", "tag"),
        ("container", "create"),
    ]
    tagged = found[1]
    with Store(root) as store:
        image = store.resolve("debian:12")
    assert tagged["Actor"]["ID"] == f"sha256:{image.id}"
    assert tagged["Actor"]["Attributes"]["name"] == "debian:12"
    assert tagged["time"] == tagged["timeNano"] // 10**9
    assert (tagged["status"], tagged["scope"]) == ("tag", "local")


@pytest.mark.parametrize(
    ("filters", "actions"),
    [
        ({"type": ["container"]}, ["create"]),
        ({"event": ["tag", "create"]}, ["tag", "create"]),
        ({"image": ["debian:12"]}, ["import", "tag"]),
        ({"image": ["debian"]}, ["import", "tag"]),
        ({"container": ["base"]}, ["create"]),
        ({"container": ["other"]}, []),
        ({"type": ["image"], "event": ["create"]}, []),
    ],
)
async def test_filters(root: Path, filters: dict[str, list[str]], actions: list[str]) -> None:
    assert [event["Action"] for event in await past(root, filters=json.dumps(filters))] == actions


async def test_since_and_until(root: Path) -> None:
    middle = time.time()
    with Store(root) as store:
        store.tag(store.resolve("debian:12").id, "later")
    app = App(root)
    for query, actions in (
        ({"since": repr(middle), "until": repr(time.time())}, ["tag"]),
        ({"since": "1", "until": repr(middle)}, ["import", "tag", "create"]),
        ({"until": repr(time.time())}, []),
    ):
        answer = await answer_of(app, request(**query))
        assert isinstance(answer, Stream)
        lines = b"".join([*answer.chunks]).splitlines()
        assert [json.loads(line)["Action"] for line in lines] == actions


def first_of(answer: Stream) -> bytes:
    """Return the first piece of *answer* that says something, and leave."""
    with contextlib.closing(answer.chunks) as chunks:
        return next(chunk for chunk in chunks if chunk)


async def test_events_come_as_they_happen(root: Path) -> None:
    answer = await answer_of(App(root), request())
    assert isinstance(answer, Stream)

    async def act() -> None:
        await trio.sleep(0.2)
        with Store(root) as store:
            store.tag(store.resolve("debian:12").id, "later")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            event = json.loads(await trio.to_thread.run_sync(first_of, answer))
    assert event["Actor"]["Attributes"]["name"] == "later:latest"


async def test_a_stream_ends_at_its_time(root: Path) -> None:
    answer = await answer_of(App(root), request(until=repr(time.time() + 0.3)))
    assert isinstance(answer, Stream)
    assert b"".join(answer.chunks) == b""


@pytest.mark.parametrize(
    "query",
    [
        {"since": "yesterday"},
        {"until": "-1"},
        {"since": "1e9"},
        {"since": "20", "until": "10"},
        {"filters": "{"},
        {"filters": '{"color": ["red"]}'},
    ],
)
async def test_bad_questions(root: Path, query: dict[str, str]) -> None:
    answer = await answer_of(App(root), request(**query))
    assert isinstance(answer, Response)
    assert answer.status == 400


def test_times_keep_their_nanoseconds() -> None:
    assert parse_time("1700000000.000000001", "since") == 1_700_000_000_000_000_001
    assert parse_time("1700000000.5", "since") == 1_700_000_000_500_000_000
    assert parse_time("1700000000", "since") == 1_700_000_000_000_000_000
    assert parse_time("", "since") is None
    for text in ("1.", ".5", "1.0000000001", "٣", "1 ", "nan", "9" * 30):
        with pytest.raises(BadRequest, match="since"):
            parse_time(text, "since")
