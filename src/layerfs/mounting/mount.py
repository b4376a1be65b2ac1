"""What can be asked of a mount, whoever has it: this process, another one, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from layerfs.union.changes import Change


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit is to make of what was written."""

    reference: str | None = None
    """The tag of the image."""
    comment: str = ""
    author: str = ""
    changes: Sequence[str] = ()
    """Dockerfile instructions for the configuration of the image."""
    pause: bool | None = None
    """Whether the processes of a container stand still meanwhile; None: if they can."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint is to make of what was written: a commit without an image."""

    created_by: str = ""
    """Empty for the words of a commit."""
    comment: str = ""
    author: str = ""
    created: datetime | None = None
    """Aware; None for now."""
    build: str | None = None
    """The build that the step is held for, beside the mount."""
    pause: bool | None = None
    """As in `Commit`."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Where a mount is to go back to."""

    reference: str = ""
    """As `layerfs.store.checkpoints.resolve` takes it; empty for the last checkpoint."""
    discard: bool = False
    """Whether what was written since the last checkpoint is not kept as one more."""
    pause: bool | None = None
    """As in `Commit`."""


@dataclass(frozen=True, slots=True)
class WentBack:
    """Where a mount has gone back to."""

    step: str
    kept: str | None
    """The step that what was written is now, None where nothing was, or it was discarded."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit has made."""

    image: str
    """The id of the image, 64 hexadecimal digits."""
    warnings: tuple[str, ...] = ()


class Mount(Protocol):
    """One mount. It is `Served` by this process, `Remote` if another one serves it, or `Resting`.

    The methods wait for their result, so the loop that serves a mount must not call them. They raise
    `LayerfsError` with one line for people; then the mount is as it was.
    """

    @property
    def name(self) -> str:
        """The name of the mount."""

    @property
    def mount_id(self) -> str:
        """The id of the mount in the store, 64 hexadecimal digits."""

    def commit(self, wanted: Commit) -> Committed:
        """Seal what was written as the top layer of a new image; the mount goes on with an empty upper.

        Atomic. Not durable: a power cut within the next seconds may undo it. Everything whose write(2) had
        returned before the call is in the layer.
        """

    def checkpoint(self, wanted: Checkpoint) -> str:
        """Seal what was written as the layer of a new step, and return that: a commit without an image.

        The mount owns the step for as long as that is on its stack.
        """

    def rollback(self, wanted: Rollback) -> WentBack:
        """Have the mount be what it was at a checkpoint; what was written since is kept as another one.

        Atomic. Not durable, as `commit`. Everything whose write(2) had returned before the call is in what is
        given up. See docs/time-travel.md for what a process in the mount sees.
        """

    def changes(self) -> Sequence[Change]:
        """Return what was written since the last commit, sorted by path."""

    def flush(self) -> None:
        """Bring what was written until now into the upper, where others can read it. Idempotent."""

    def status(self) -> dict[str, Any]:
        """Return figures about the daemon, as JSON has them. Raises `Conflict` where none runs."""

    def unmount(self, *, force: bool, discard: bool = False) -> bool:
        """Unmount, and return once the mount has ended; return False if it was not mounted.

        What was written stays. With *discard* what is not in the upper yet may be lost, which is quicker: for
        a mount that is about to be removed. Raises `Conflict` if the mount is in use, unless by *force*.
        """

    def remove(self, *, force: bool, volumes: bool = False) -> None:
        """Remove the mount and its upper from the store; by *force*, unmount it before. Images stay.

        With *volumes*, a container's volumes that nobody named, and nobody else has, go too.
        """


class NotReachedError(Exception):
    """A loop cannot ask the mount now: nothing was asked, and a thread is to see what there is to do."""


class LoopMount(Protocol):
    """A mount as a loop asks it, which waits by `await` alone: `served.InLoop` or `relayed.Relayed`.

    What a method does, returns and raises is as with `Mount`. Besides, each may raise `NotReachedError`.
    """

    async def commit(self, wanted: Commit) -> Committed:
        """See `Mount`."""

    async def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""

    async def flush(self) -> None:
        """See `Mount`."""

    async def status(self) -> dict[str, Any]:
        """See `Mount`."""


def outside_warning(upper: object, image: str, name: str) -> str:
    """Return the warning of a commit of *name* that made *image* of an *upper* outside the store."""
    return (
        f"{upper} is empty now: what was written to it is in the image {image[:12]}. "
        f"The mount {name} still shows it; a new mount of {upper} does not"
    )
