"""A mount that another process serves: what is asked of it travels over its socket."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.errors import Conflict
from layerfs.host.rundir import log_path, running_pid
from layerfs.mounting.exchange import NotListeningError, exchange
from layerfs.mounting.mount import Checkpoint, Commit, Committed, Rollback, WentBack
from layerfs.store.model import to_nanoseconds
from layerfs.unixhttp.message import Pairs, Response, to_error

if TYPE_CHECKING:
    from layerfs.mounting.mount import Mount
    from layerfs.union.changes import Change

PATIENCE = 10.0
"""Seconds to wait for a daemon that is about to start or to end."""
_KINDS = "CAD"
"""What the numbers of Docker's changes mean."""


class Remote:
    """A `Mount` that the daemon of another process serves.

    Where that has ended meanwhile, *otherwise* is asked: the mount as it is without a daemon.
    """

    def __init__(self, root: Path, name: str, mount_id: str, otherwise: Callable[[], Mount]) -> None:
        """Prepare to ask the daemon of the mount *mount_id* of the store at *root*."""
        self._root = root
        self.name = name
        self.mount_id = mount_id
        self._otherwise = otherwise

    def commit(self, wanted: Commit) -> Committed:
        """See `Mount`."""
        pairs = [
            ("container", self.mount_id),
            ("repo", wanted.reference or ""),
            ("comment", wanted.comment),
            ("author", wanted.author),
            *(("changes", change) for change in wanted.changes),
        ]
        if wanted.pause is not None:
            pairs.append(("pause", str(int(wanted.pause))))
        answer = self._ask("POST", "/commit", pairs)
        if answer is None:
            return self._otherwise().commit(wanted)
        made = json.loads(answer.body)
        return Committed(made["Id"].removeprefix("sha256:"), tuple(made.get("Warnings") or ()))

    def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""
        body: dict[str, Any] = {
            "CreatedBy": wanted.created_by,
            "Comment": wanted.comment,
            "Author": wanted.author,
            "Created": to_nanoseconds(wanted.created) if wanted.created is not None else None,
            "Build": wanted.build,
            "Pause": wanted.pause,
        }
        query = [("name", self.mount_id)]
        answer = self._ask("POST", "/layerfs/checkpoint", query, json.dumps(body).encode())
        if answer is None:
            return self._otherwise().checkpoint(wanted)
        return str(json.loads(answer.body)["Step"])

    def rollback(self, wanted: Rollback) -> WentBack:
        """See `Mount`."""
        body = {"Ref": wanted.reference, "Discard": wanted.discard, "Pause": wanted.pause}
        answer = self._ask("POST", "/layerfs/rollback", [("name", self.mount_id)], json.dumps(body).encode())
        if answer is None:
            return self._otherwise().rollback(wanted)
        made = json.loads(answer.body)
        return WentBack(made["Step"], made["Kept"])

    def changes(self) -> Sequence[Change]:
        """See `Mount`."""
        from layerfs.union.changes import Change

        answer = self._ask("GET", f"/containers/{self.mount_id}/changes", [])
        if answer is None:
            return self._otherwise().changes()
        return [
            Change(_KINDS[item["Kind"]], os.fsencode(item["Path"])) for item in json.loads(answer.body) or ()
        ]

    def flush(self) -> None:
        """See `Mount`."""
        if self._ask("POST", "/layerfs/flush", [("name", self.mount_id)]) is None:
            self._otherwise().flush()

    def status(self) -> dict[str, Any]:
        """See `Mount`."""
        answer = self._ask("GET", "/layerfs/status", [("name", self.mount_id)])
        if answer is None:
            return self._otherwise().status()
        status: dict[str, Any] = json.loads(answer.body)
        return status

    def unmount(self, *, force: bool, discard: bool = False) -> bool:
        """See `Mount`. Returns once the daemon has ended too: the name is free for the next one."""
        flags = {"force": force, "discard": discard}
        pairs = [("name", self.mount_id), *((name, "1") for name, given in flags.items() if given)]
        if self._ask("POST", "/layerfs/unmount", pairs) is None:
            return self._otherwise().unmount(force=force, discard=discard)
        self._wait_for_end()
        return True

    def remove(self, *, force: bool, volumes: bool = False) -> None:
        """See `Mount`. Returns once the daemon has ended too."""
        pairs = [("force", "1" if force else ""), ("v", "1" if volumes else "")]
        answer = self._ask("DELETE", f"/containers/{self.mount_id}", pairs)
        if answer is None:
            self._otherwise().remove(force=force, volumes=volumes)
        else:
            self._wait_for_end()

    def _ask(self, method: str, path: str, pairs: Pairs, body: bytes = b"") -> Response | None:
        """Return the answer of the daemon, None when none runs. One that starts or ends is waited for.

        Raises the error that the answer tells of.
        """
        deadline = time.monotonic() + PATIENCE
        while running_pid(self.name) is not None:
            try:
                answer = exchange(self.name, method, path, pairs, body)
            except NotListeningError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
                continue
            if answer.status == 404 and str(to_error(answer)).startswith("no such mount"):
                raise Conflict(
                    f"the running mount called {self.name} belongs to another store than {self._root}"
                )
            if answer.status >= 400:
                raise to_error(answer)
            return answer
        return None

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while (pid := running_pid(self.name)) is not None:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{self.name} is unmounted, but its daemon (process {pid}) has not ended after "
                    f"{PATIENCE:g} seconds: see {log_path(self.name)}"
                )
            time.sleep(0.005)
