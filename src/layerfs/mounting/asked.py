"""What is asked of a mount over its daemon's socket, and how the answer is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from layerfs.errors import Conflict
from layerfs.mounting.mount import Checkpoint, Commit, Committed, Rollback, WentBack
from layerfs.store.model import to_nanoseconds
from layerfs.unixhttp.message import Pairs, Response, to_error

if TYPE_CHECKING:
    from pathlib import Path

    from layerfs.union.changes import Change

_T = TypeVar("_T")
_KINDS = "CAD"
"""What the numbers of Docker's changes mean."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[_T]):
    """A request to the daemon of a mount."""

    method: str
    path: str
    query: Pairs
    read: Callable[[Any], _T]
    """Returns what an answer says, given its JSON: None where it has none."""
    body: bytes = b""

    def answered(self, answer: Response, name: str, root: Path) -> _T:
        """Return what *answer* says, of the daemon of the mount called *name* of the store at *root*.

        Raises the `LayerfsError` that it tells of.
        """
        if answer.status == 404 and str(to_error(answer)).startswith("no such mount"):
            raise Conflict(f"the running mount called {name} belongs to another store than {root}")
        if answer.status >= 400:
            raise to_error(answer)
        return self.read(json.loads(answer.body) if answer.body else None)


def commit(mount_id: str, wanted: Commit) -> Asked[Committed]:
    """See `Mount.commit`."""
    pairs = [
        ("container", mount_id),
        ("repo", wanted.reference or ""),
        ("comment", wanted.comment),
        ("author", wanted.author),
        *(("changes", change) for change in wanted.changes),
    ]
    if wanted.pause is not None:
        pairs.append(("pause", str(int(wanted.pause))))

    def read(made: Any) -> Committed:
        return Committed(made["Id"].removeprefix("sha256:"), tuple(made.get("Warnings") or ()))

    return Asked("POST", "/commit", pairs, read)


def checkpoint(mount_id: str, wanted: Checkpoint) -> Asked[str]:
    """See `Mount.checkpoint`."""
    body: dict[str, Any] = {
        "CreatedBy": wanted.created_by,
        "Comment": wanted.comment,
        "Author": wanted.author,
        "Created": to_nanoseconds(wanted.created) if wanted.created is not None else None,
        "Build": wanted.build,
        "Pause": wanted.pause,
    }
    encoded = json.dumps(body).encode()
    return Asked("POST", "/layerfs/checkpoint", [("name", mount_id)], lambda made: str(made["Step"]), encoded)


def rollback(mount_id: str, wanted: Rollback) -> Asked[WentBack]:
    """See `Mount.rollback`."""
    body = {"Ref": wanted.reference, "Discard": wanted.discard, "Pause": wanted.pause}
    encoded = json.dumps(body).encode()

    def read(made: Any) -> WentBack:
        return WentBack(made["Step"], made["Kept"])

    return Asked("POST", "/layerfs/rollback", [("name", mount_id)], read, encoded)


def changes(mount_id: str) -> Asked[Sequence[Change]]:
    """See `Mount.changes`."""

    def read(found: Any) -> Sequence[Change]:
        from layerfs.union.changes import Change

        return [Change(_KINDS[item["Kind"]], os.fsencode(item["Path"])) for item in found or ()]

    return Asked("GET", f"/containers/{mount_id}/changes", [], read)


def flush(mount_id: str) -> Asked[None]:
    """See `Mount.flush`."""
    return Asked("POST", "/layerfs/flush", [("name", mount_id)], lambda nothing: None)


def status(mount_id: str) -> Asked[dict[str, Any]]:
    """See `Mount.status`."""
    return Asked("GET", "/layerfs/status", [("name", mount_id)], dict)


def unmount(mount_id: str, *, force: bool, discard: bool) -> Asked[None]:
    """See `Mount.unmount`."""
    flags = {"force": force, "discard": discard}
    pairs = [("name", mount_id), *((name, "1") for name, given in flags.items() if given)]
    return Asked("POST", "/layerfs/unmount", pairs, lambda nothing: None)


def remove(mount_id: str, *, force: bool, volumes: bool) -> Asked[None]:
    """See `Mount.remove`."""
    pairs = [("force", "1" if force else ""), ("v", "1" if volumes else "")]
    return Asked("DELETE", f"/containers/{mount_id}", pairs, lambda nothing: None)
