"""The client for programs: sandboxes that go back when something fails, with and without an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import layerfs.client.trio as aio
from layerfs.client import Checkpoint, Layerfs, Sandbox
from layerfs.errors import Conflict, NotFound
from tests.conftest import Layerfs as Command
from tests.system.apirequests import engine

pytestmark = pytest.mark.root


@pytest.fixture(params=["engine", "in place"])
def store(
    request: pytest.FixtureRequest, layerfs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Layerfs]:
    """A store with an image, with an engine and without."""
    monkeypatch.setenv("LAYERFS_RUN", str(layerfs.run))
    monkeypatch.setenv("LAYERFS_ROOT", str(layerfs.root))
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/file").write_text("old")
    layerfs.ok("import", tmp_path / "tree", "base")
    if request.param == "engine":
        engine(layerfs)
    with Layerfs() as opened:
        yield opened


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    """A directory to mount on."""
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def sandbox(store: Layerfs, mnt: Path) -> Iterator[Sandbox]:
    """A live mount of the image."""
    made = store.mount("base", mnt, name="agent")
    yield made
    made.remove(force=True)


def fail_after(checkpoint: Checkpoint, action: Callable[[], object]) -> None:
    """Leave the block of *checkpoint* by an exception, after *action*."""
    with checkpoint:
        action()
        raise ZeroDivisionError


def test_an_exception_goes_back_and_no_exception_goes_on(sandbox: Sandbox, mnt: Path) -> None:
    file = mnt / "d/file"
    with sandbox.checkpoint("first") as first:
        file.write_text("new")
    assert (file.read_text(), first.went_back) == ("new", None)
    second = sandbox.checkpoint("second")
    with pytest.raises(ZeroDivisionError):
        fail_after(second, file.unlink)
    assert file.read_text() == "new"
    assert second.went_back is not None
    assert second.went_back.kept is not None
    assert [entry.comment for entry in sandbox.log(most=2)] == ["second", "first"]
    first.rollback(discard=True)
    assert file.read_text() == "old"


def test_where_going_back_fails_that_is_said_with_the_reason_for_it(store: Layerfs, mnt: Path) -> None:
    sandbox = store.mount("base", mnt, name="agent")
    with pytest.raises(NotFound) as caught:
        fail_after(sandbox.checkpoint(), lambda: sandbox.remove(force=True))
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_all_that_can_be_asked(store: Layerfs, sandbox: Sandbox, mnt: Path, tmp_path: Path) -> None:
    (mnt / "d/file").write_text("new")
    step = sandbox.checkpoint("changed").id
    (mnt / "d/file").rename(mnt / "d/other")
    sandbox.checkpoint("renamed")
    touched = [entry.touched for entry in sandbox.log("/d/other") if entry.touched]
    assert [(each.kind, each.path, each.source) for each in touched] == [
        ("R", "/d/other", "/d/file"),
        ("C", "/d/file", None),
        ("A", "/d/file", None),
    ]
    assert (store.read(step, "/d/file"), sandbox.read("/d/other")) == (b"new", b"new")
    assert [(entry.name, entry.type, entry.size) for entry in store.ls(step, "/d")] == [("file", "file", 3)]
    assert [entry.name for entry in sandbox.ls("/d")] == ["other"]
    assert [(each.kind, each.path) for each in store.diff(step, "agent")] == [
        ("D", "/d/file"),
        ("A", "/d/other"),
    ]
    restored = sandbox.restore("base", "/d/file")
    assert (restored.changed, (mnt / "d/file").read_text()) == (1, "old")
    (tmp_path / "fork").mkdir()
    fork = sandbox.fork("fork", tmp_path / "fork")
    assert sorted(os.listdir(tmp_path / "fork/d")) == ["file", "other"]
    made = sandbox.forks("many", tmp_path, 2)
    for each in (fork, *made):
        each.remove(force=True)
    with pytest.raises(Conflict):
        sandbox.keep(last=1)
    sandbox.unmount()
    thinned = sandbox.keep(last=1)
    assert step in thinned.squashed
    with pytest.raises(NotFound, match="squashed"):
        store.read(step, "/d/file")
    store.mount(None, mnt, name="agent")
    assert (mnt / "d/file").read_text() == "old"


async def test_the_same_on_trio_where_cancelling_goes_back_too(store: Layerfs, mnt: Path) -> None:
    there = aio.Layerfs()
    sandbox = await there.mount("base", mnt, name="agent")
    try:
        file = mnt / "d/file"
        with trio.CancelScope() as scope:
            async with sandbox.checkpoint("risky"):
                file.write_text("new")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await sandbox.read("/d/file") == b"old"
        async with sandbox.checkpoint("fine") as fine:
            file.write_text("newer")
        made = await sandbox.checkpoint("third")
        assert [entry.id for entry in await sandbox.log(most=2)] == [made.id, fine.id]
        with pytest.raises(NotFound):
            await there.ls("nothing")
    finally:
        await sandbox.remove(force=True)
