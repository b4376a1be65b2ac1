"""What the control room asks of the mount that runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from layerfs.store.model import Image
    from layerfs.union.changes import Change


class LiveMount(Protocol):
    """A mount that this process serves; everything here runs on its trio loop.

    Every method raises `LayerfsError` with one line for people, and leaves the mount as it was.
    """

    @property
    def name(self) -> str:
        """The mount's name."""

    @property
    def mount_id(self) -> str:
        """The mount's id in the store, 64 hexadecimal digits."""

    @property
    def mountpoint(self) -> str:
        """Where it is mounted, an absolute path."""

    @property
    def outside_upper(self) -> Path | None:
        """The directory that was brought along to take the writes, None where the store has its own."""

    async def commit(
        self, *, reference: str | None, comment: str, author: str, changes: Sequence[str], pause: bool | None
    ) -> Image:
        """Seal what was written as the top layer of a new image and return it; the mount stays in use.

        *reference* tags the image, *changes* are Dockerfile instructions for its configuration. With
        *pause*, the processes of a container that runs in the mount stand still for the moment; with None
        only if they can.
        """

    async def changes(self) -> list[Change]:
        """Return what was written since the last commit, sorted by path."""

    async def flush(self) -> None:
        """Have everything that was written until now in the upper, not in the kernel's cache alone."""

    def status(self) -> dict[str, Any]:
        """Return figures about the running daemon, in values that JSON can hold."""

    async def unmount(self, *, force: bool) -> None:
        """Unmount, and return when done; raise `Conflict` if the mount is in use and *force* is not given.

        The daemon ends by itself after the answer has been sent.
        """

    async def remove(self, *, force: bool) -> None:
        """Unmount as `unmount` does, then remove the mount and its upper layer from the store."""
