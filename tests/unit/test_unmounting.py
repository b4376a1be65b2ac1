"""The end of a mount that somebody still uses after it was unmounted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

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
