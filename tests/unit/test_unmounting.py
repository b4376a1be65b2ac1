"""The end of a mount that somebody still uses after it was unmounted."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from layerfs.errors import LayerfsError
from layerfs.fuse.inside import Inside
from layerfs.host import holders
from layerfs.host.notify import Notifier
from layerfs.mounting.unmounting import Unmounting


class World:
    """A filesystem that is mounted nowhere here, and that other namespaces have for some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.did: list[str] = []
        self.ended = trio.Event()
        self.place = SimpleNamespace(mountpoint="/mnt")
        self.device = 7

    def holders(self, device: int) -> list[holders.Holder]:
        """Return who has it."""
        self.looks -= 1
        return [holders.Holder(1, "has it mounted in a mount namespace of its own")] if self.looks > 0 else []

    async def flush(self) -> None:
        """Collect what was written."""
        self.did.append("flush")

    async def unmount(self, *, lazy: bool) -> None:
        """Unmount it."""
        self.did.append("unmount")

    async def release(self) -> None:
        """Let it end."""
        self.did.append("release")
        self.ended.set()


@pytest.mark.parametrize(
    ("looks", "did"),
    [
        (0, ["flush", "unmount", "flush", "release"]),
        (3, ["flush", "unmount", "flush", "flush", "release"]),
    ],
)
def test_what_the_last_user_wrote_is_collected(
    looks: int, did: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends may take a while to send what it wrote, and is not seen to use the mount then."""

    async def main() -> list[str]:
        world: Any = World(looks)
        monkeypatch.setattr("layerfs.host.mounttable.mounts_of", lambda device: [])
        monkeypatch.setattr("layerfs.host.holders.namespaces", world.holders)
        ending = Unmounting("name", cast(Inside, world), world.flush, world.ended, Notifier(None))
        await ending.run(force=False)
        return cast("list[str]", world.did)

    assert trio.run(main) == did


@pytest.mark.parametrize(
    ("stuck", "waited_for"),
    [
        ("flush", "what was written to it to get into its upper, and some of it may be lost"),
        ("release", "what collects its writes to let go of it"),
        ("holders", "/proc to tell who uses it"),
    ],
)
def test_an_unmount_ends_whatever_does_not_answer(
    stuck: str, waited_for: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(*arguments: object) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        world: Any = World(1000)
        monkeypatch.setattr("layerfs.fuse.session.stop", world.ended.set)
        if stuck == "holders":
            free = threading.Event()
            monkeypatch.setattr("layerfs.host.holders.namespaces", lambda device: free.wait(30))
            monkeypatch.setattr("layerfs.host.holders.users", lambda device: free.wait(30))
        else:
            monkeypatch.setattr("layerfs.host.holders.namespaces", world.holders)
            monkeypatch.setattr("layerfs.host.holders.users", lambda device: [])
            monkeypatch.setattr(world, stuck, never)
        ending = Unmounting("name", cast(Inside, world), world.flush, world.ended, Notifier(None))
        ending._lazily = True
        with trio.fail_after(20):
            await ending._flush_the_last()
            await ending._let_go(logging.INFO)
        if stuck == "holders":
            free.set()

    monkeypatch.setattr("layerfs.host.mounttable.mounts_of", lambda device: [])
    for name in ("GRACE", "_COLLECTING", "_PATIENCE"):
        monkeypatch.setattr(f"layerfs.mounting.unmounting.{name}", 0.2)
    trio.run(main)
    assert f"name ends: waited 0.2 seconds for {waited_for}" in caplog.messages


def test_a_daemon_that_cannot_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world: Any = World(1000)
        ending = Unmounting("name", cast(Inside, world), world.flush, trio.Event(), Notifier(None))
        with trio.fail_after(20):
            await ending.run(force=False)

    monkeypatch.setattr("layerfs.host.mounttable.mounts_of", lambda device: [])
    monkeypatch.setattr("layerfs.host.holders.namespaces", lambda device: [])
    monkeypatch.setattr("layerfs.fuse.session.stop", lambda: None)
    for name in ("GRACE", "_PATIENCE"):
        monkeypatch.setattr(f"layerfs.mounting.unmounting.{name}", 0.2)
    with pytest.raises(LayerfsError, match=r"waited 0\.2 seconds for its requests: .*'kill -9 \d+'"):
        trio.run(main)
