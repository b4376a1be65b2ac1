"""What references to the past mean, anywhere in a store, and how a graph of checkpoints is drawn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from layerfs.cli.graph import draw
from layerfs.errors import BadRequest, NotFound
from layerfs.mounting.find import mount_of
from layerfs.mounting.mount import Checkpoint
from layerfs.store import Store, revisions
from layerfs.store.model import Image
from layerfs.store.model import Mount as Row

pytestmark = pytest.mark.usefixtures("base")
START = datetime(2026, 1, 31, 10, tzinfo=UTC)


def checkpoint(store: Store, mount: Row, minutes: int) -> str:
    """Make a checkpoint, *minutes* after the start."""
    row = store.mount(mount.id)
    assert row.upper is not None
    Path(store.layer(row.upper).path, f"f{minutes}").write_text("x")
    created = START + timedelta(minutes=minutes)
    return mount_of(store, row).checkpoint(Checkpoint(created=created))


def test_references_mean_the_same_whoever_asks(store: Store, mount: Row, base: Image) -> None:
    first, second = checkpoint(store, mount, 1), checkpoint(store, mount, 2)
    bottom = store.revision("debian:12").step
    meaning = {
        f"{mount.name}~0": second,
        f"{mount.name}~": first,
        f"{mount.name}~1~1": bottom,
        second[:20]: second,
        f"{second}~1": first,
        "debian:12": bottom,
        base.id[:20]: bottom,
        f"sha256:{base.id}": bottom,
        f"{mount.name}@{{2026-01-31T10:01:30Z}}": first,
        f"{mount.name}@{{2026-01-31 10:01:00+00:00}}": first,
        f"{mount.name}@{{2026-01-31T12:00:00.123456789Z}}~1": first,
    }
    assert {given: store.revision(given).step for given in meaning} == meaning
    assert all(store.revision(given).mount is None for given in meaning)
    assert store.revision(mount.name) == revisions.Revision(second, mount.id)
    assert store.revision(mount.id[:20]) == revisions.Revision(second, mount.id)
    assert store.resolve_checkpoint(store.mount(mount.id), "@{2026-01-31T10:01:30Z}") == first


@pytest.mark.parametrize("wrong", ["nothing", "debian:13", "f" * 64, "m~99", "m@{1 minute ago}~99"])
def test_what_is_not_there_is_not_found(store: Store, mount: Row, wrong: str) -> None:
    with pytest.raises(NotFound):
        store.revision(wrong.replace("m", mount.name, 1) if wrong.startswith("m") else wrong)


@pytest.mark.parametrize(
    "wrong", ["", "~1", "A B", "debian:12@{x}", "debian:12@{31 parsecs ago}", "a@{b", "-"]
)
def test_what_can_be_no_reference_is_refused(store: Store, wrong: str) -> None:
    with pytest.raises(BadRequest):
        store.revision(wrong)


def test_an_ambiguous_beginning_is_refused(store: Store, mount: Row) -> None:
    steps = [checkpoint(store, mount, number) for number in range(20)]
    firsts = [step[0] for step in steps]
    twice = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(BadRequest, match="give more of it"):
        store.revision(twice)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 minutes ago", 600),
        ("1 hour ago", 3600),
        ("2 days ago", 172800),
        ("90s", 90),
        ("yesterday", 86400),
    ],
)
def test_times_that_count_from_now(text: str, seconds: int) -> None:
    ago = datetime.now(UTC).timestamp() - revisions.moment(text) / 1e9
    assert seconds - 1 < ago < seconds + 60


def test_three_branches_are_drawn_until_they_meet() -> None:
    entries = [("a2", "a1"), ("b", "base"), ("a1", "base"), ("c", "base"), ("base", None)]
    assert [line.text for line in draw(entries)] == ["* ", "| * ", "* | ", "| | * ", "|_|/", "|/", "* "]
