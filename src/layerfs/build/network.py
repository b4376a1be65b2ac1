"""The network of a stage: one namespace for all its RUNs, made when the first is about to be needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.build.workplace import Workplace
from layerfs.container import networking, networks
from layerfs.container.members import Members
from layerfs.container.namespaces import container_of
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.host.rundir import RunLock
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_ALONE = ("host", "none")


class Network:
    """The network that a stage has for commands that ask for no other one. For the thread of the stage."""

    def __init__(self, work: Workplace, host: Mapping[str, Any]) -> None:
        """Prepare; *host* is the build's `HostConfig`, whose `NetworkMode` says which network it is."""
        self._work = work
        self._host = dict(host)
        self._mode = str(host["NetworkMode"])
        self._thread: threading.Thread | None = None
        self._made: networks.Prepared | None = None
        self._error: LayerfsError | None = None
        self._mount_id: str | None = None
        self._lock: RunLock | None = None
        self._note: Path | None = None
        if container_of(self._mode) is not None:
            raise BadRequest("a build cannot join the network of a container: give the name of a network")

    def begin(self, step: str) -> None:
        """Begin to make it, if there is anything to make; *step* is any that the build has."""
        if self._mode in _ALONE or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._make, args=(step,), name="network of a build")
        self._thread.start()

    def ready(self) -> networks.Prepared:
        """Return it, once it is there, as `begin` was told. Raises `LayerfsError`."""
        if self._thread is None:
            return networks.Prepared()
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def _make(self, step: str) -> None:
        try:
            mount = self._anchor(step)
            self._note = self._work.note_network(mount.id)
            self._made = networks.set_up(self._work.root, mount)
        except LayerfsError as error:
            self._error = error
        except BaseException as error:
            self._error = LayerfsError(f"cannot make the network of the build: {error}")

    def _anchor(self, step: str) -> Mount:
        """Make the row that has the addresses: a mount that is never mounted, and goes with this process."""
        name, _ = self._work.mount_name()
        self._lock = RunLock(name)
        self._lock.set_pid(os.getpid())
        with Store(self._work.root) as store:
            row = store.create_mount(name, image=None, step=step, writable=False, ephemeral=True)
        self._mount_id = row.id
        settings = {
            "HostConfig": self._host,
            "NetworkingConfig": {"EndpointsConfig": {self._mode: networking.endpoint(Members({}))}},
        }
        return replace(row, options={"container": settings})

    def close(self) -> None:
        """Take it away. May be repeated. Raises `LayerfsError`."""
        if self._thread is None:
            return
        self._thread.join()
        if self._note is not None:
            networks.take_down(self._work.root, self._note.name)
            self._note.unlink(missing_ok=True)
            self._note = None
        if self._mount_id is not None:
            with Store(self._work.root) as store, suppress(NotFound):
                store.remove_mount(self._mount_id)
            self._mount_id = None
        if self._lock is not None:
            self._lock.forget()
            self._lock.release()
            self._lock = None
