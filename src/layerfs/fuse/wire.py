"""The C extension beside pyfuse3, if there is one: see `_wire.c` for what it does.

It has to be loaded before pyfuse3, with its symbols visible to it. Setting `LAYERFS_EXTENSION=0` does
without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

import trio


class Wire(Protocol):
    """What the extension offers."""

    def is_active(self) -> bool:
        """Tell whether pyfuse3's session is served through the extension."""

    def has_killpriv(self) -> bool:
        """Tell whether the kernel leaves clearing set-id bits to the daemon, and says when."""

    def wait_beside(self, loop: int, seconds: float) -> None:
        """Let the next wait for requests go on while *loop* is not readable, for at most *seconds*."""

    def is_idle(self) -> bool:
        """Tell whether the last wait for requests was in vain."""

    def set_spin(self, nanoseconds: int) -> None:
        """Set for how many nanoseconds to poll for the next request; 0 for never."""

    def set_row(self, opcode: int, form: str, handler: Callable[..., Any] | int, descriptor: Any, /) -> None:
        """Set what answers a request, or the errno to answer: see `layerfs.fuse.requests.Row`."""

    def set_ways(
        self, caller: type[Any], later: Callable[[bytes, Coroutine[Any, Any, Any]], None], /
    ) -> None:
        """Set what makes a caller of uid, gid and pid, and what answers later: with (request, coroutine)."""

    def answer(self, request: bytes, answer: Any, /) -> None:
        """Answer a request as one that is brought to a handler: with what that may return."""

    def counts(self) -> list[int]:
        """Return how many requests were answered through the table, by opcode."""

    def know(self, descriptors: int, /) -> None:
        """Keep what is known of inodes: what is vouched for with at most so many descriptors."""

    def vouch(self, inode: int, fd: int, links: int, is_file: bool, no_capability: bool) -> bool:
        """Let the extension answer for an inode in the upper, by its descriptor, until that is revoked.

        *links* is the link count to tell, 0 for the object's own. Returns whether it does: there may be no
        room.
        """

    def revoke_all(self) -> None:
        """Take nothing for known any more."""

    def drop_lapsed(self) -> bool:
        """Close some of the descriptors of what is vouched for no more; tell whether none is left."""

    def keep_attributes(self, told: tuple[int, os.stat_result, int, int], /) -> None:
        """Have the extension answer GETATTR with this until it is dropped, or the inode forgotten.

        *told* is inode number, stat, link count and blocks.
        """

    def drop_attributes(self, inode: int) -> None:
        """Have it do so no more."""

    def set_take_late(self, handler: Callable[[int, int, int], None]) -> None:
        """Have *handler* called for late files not vouched for any more: inode, seconds, nanoseconds.

        Late is a file whose modification time on disk a write has moved: see `layerfs.fuse.times`.
        """

    def set_late(self, inode: int, round: int, seconds: int, nanoseconds: int) -> bool:
        """Take over a late file, whose time was told so, if it is vouched for; tell whether it is."""

    def begin_round(self, round: int) -> None:
        """Count writes as of this round from now on."""

    def settle_times(self, round: int) -> None:
        """Set the times told of the late files vouched for that were last written to before a round."""

    def tell_writes(self, inode: int, seconds: int, nanoseconds: int) -> bool:
        """Have writes to an inode that are under way set this time when they end; tell if there are any."""

    def plain_entry(
        self, dir_fd: int, name: bytes, bases: Mapping[int, int], taken: Mapping[int, Any], prefix: bytes
    ) -> tuple[int, int, bytes] | None:
        """Return what the kernel is told of a name that no node is known for, None where that takes more.

        That is where it is a directory, on a device that is not in *bases*, its number is *taken*, or where
        it has private attributes, whose names begin with *prefix*; b"" if they do not matter. The result:
        inode number and type of the file, struct fuse_entry_out. Raises `OSError`.
        """

    def direntplus(
        self,
        told: tuple[int, os.stat_result, int, int] | bytes | None,
        inode: int,
        cookie: int,
        mode: int,
        name: bytes,
        /,
    ) -> bytes:
        """Return an entry of a listing: struct fuse_direntplus, with padding.

        *told* is what `keep_attributes` takes, struct fuse_entry_out, or None for an entry without a node.
        """

    def pending_writes(self) -> int:
        """Return how many writes threads are doing now."""

    def wait_for_writes(self) -> None:
        """Return when the writes that threads are doing now are done, fallocate(2) among them."""

    def sync(self, fd: int, data_only: bool, /) -> None:
        """Do what `layerfs.fuse.lost.Lost.sync` says; `has_lost` and `forgive` likewise."""

    def has_lost(self) -> bool:
        """See `sync`."""

    def forgive(self, fd: int, /) -> None:
        """See `sync`."""

    def stop_answering(self) -> None:
        """Write nothing to the device from now on: it is about to be closed, and threads may be at work."""


def _load() -> tuple[Wire | None, str]:
    if os.environ.get("LAYERFS_EXTENSION") == "0":
        return None, "switched off by LAYERFS_EXTENSION=0"
    if "pyfuse3" in sys.modules:
        return None, "pyfuse3 was loaded first"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        from layerfs.fuse import _wire  # type: ignore[attr-defined]
    except ImportError as error:
        return None, f"not built, or not loadable ({error})"
    finally:
        sys.setdlopenflags(flags)
    return cast(Wire, _wire), ""


extension, _why_not = _load()
"""The extension, or None."""


def is_active() -> bool:
    """Tell whether the session of this process is served through the extension."""
    return extension is not None and extension.is_active()


def revoke_all() -> None:
    """Have the extension answer by itself for nothing any more that it has been told of so far."""
    if extension is not None:
        extension.revoke_all()


def is_writing() -> bool:
    """Tell whether the extension's threads do writes now."""
    return extension is not None and extension.pending_writes() > 0


async def writes_done() -> None:
    """Return when the writes that the extension's threads do now are done; they may wait for a disk."""
    if extension is not None and is_writing():
        await trio.to_thread.run_sync(extension.wait_for_writes, abandon_on_cancel=True)


def stop_answering() -> None:
    """Have the extension's threads answer nothing any more: the session is about to be closed."""
    if extension is not None:
        extension.stop_answering()


def drop_lapsed() -> bool:
    """Close some descriptors that `revoke_all` has left open; tell whether none is left."""
    return extension is None or extension.drop_lapsed()


def status() -> str:
    """Return in a few words whether the extension is at work, and if not why."""
    if extension is None:
        return f"not active: {_why_not}"
    if not extension.is_active():
        return "not active: the FUSE library calls itself in another way than the extension expects"
    return "active" if extension.has_killpriv() else "active (the kernel has no HANDLE_KILLPRIV_V2)"
