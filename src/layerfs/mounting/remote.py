"""A mount that another process serves: what is asked of it travels over its socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from layerfs.errors import Conflict
from layerfs.host.rundir import log_path, running_pid
from layerfs.mounting import asked
from layerfs.mounting.asked import Asked
from layerfs.mounting.exchange import NotListeningError, exchange
from layerfs.mounting.mount import Checkpoint, Commit, Committed, Rollback, WentBack

if TYPE_CHECKING:
    from layerfs.mounting.mount import Mount
    from layerfs.union.changes import Change

PATIENCE = 10.0
"""Seconds to wait for a daemon that is about to start or to end."""
_T = TypeVar("_T")
_Other = TypeVar("_Other")


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
        return self._ask(asked.commit(self.mount_id, wanted), lambda mount: mount.commit(wanted))

    def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""
        return self._ask(asked.checkpoint(self.mount_id, wanted), lambda mount: mount.checkpoint(wanted))

    def rollback(self, wanted: Rollback) -> WentBack:
        """See `Mount`."""
        return self._ask(asked.rollback(self.mount_id, wanted), lambda mount: mount.rollback(wanted))

    def changes(self) -> Sequence[Change]:
        """See `Mount`."""
        return self._ask(asked.changes(self.mount_id), lambda mount: mount.changes())

    def flush(self) -> None:
        """See `Mount`."""
        self._ask(asked.flush(self.mount_id), lambda mount: mount.flush())

    def status(self) -> dict[str, Any]:
        """See `Mount`."""
        return self._ask(asked.status(self.mount_id), lambda mount: mount.status())

    def unmount(self, *, force: bool, discard: bool = False) -> bool:
        """See `Mount`. Returns once the daemon has ended too: the name is free for the next one."""
        wanted = asked.unmount(self.mount_id, force=force, discard=discard)
        at_rest = self._ask(wanted, lambda mount: mount.unmount(force=force, discard=discard))
        if at_rest is None:
            self._wait_for_end()
        return at_rest is not False

    def remove(self, *, force: bool, volumes: bool = False) -> None:
        """See `Mount`. Returns once the daemon has ended too."""

        def remove(mount: Mount) -> bool:
            mount.remove(force=force, volumes=volumes)
            return True

        at_rest = self._ask(asked.remove(self.mount_id, force=force, volumes=volumes), remove)
        if not at_rest:
            self._wait_for_end()

    def _ask(self, wanted: Asked[_T], otherwise: Callable[[Mount], _Other]) -> _T | _Other:
        """Return the answer of the daemon, or *otherwise* when none runs.

        One that starts or ends is waited for. Raises the error that the answer tells of.
        """
        deadline = time.monotonic() + PATIENCE
        while running_pid(self.name) is not None:
            try:
                answer = exchange(self.name, wanted.method, wanted.path, wanted.query, wanted.body)
            except NotListeningError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
                continue
            return wanted.answered(answer, self.name, self._root)
        return otherwise(self._otherwise())

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while (pid := running_pid(self.name)) is not None:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{self.name} is unmounted, but its daemon (process {pid}) has not ended after "
                    f"{PATIENCE:g} seconds: see {log_path(self.name)}"
                )
            time.sleep(0.005)
