"""Health checks: for each container that has one, a thread that runs it as long as the container does."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container.execs import Exec, Execution
from layerfs.container.health import OUTPUT_LIMIT, STARTING, Check, Result, after, check_of
from layerfs.errors import LayerfsError, NotFound
from layerfs.host.inotify import Watch
from layerfs.host.polling import readable
from layerfs.host.record import Record, look
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_log = logging.getLogger(__name__)
_PAUSE = 0.1
_LOOK = 30.0
"""Seconds between two looks at the store when nothing is written to it."""


class Checks:
    """The checks of all containers of a store."""

    def __init__(self, root: Path) -> None:
        """Check the containers of the store at *root*, once `run` is called."""
        self._root = root
        self._running: dict[str, int] = {}
        """The pid of the first process of each container that has a thread."""
        self._lock = threading.Lock()

    def run(self) -> None:
        """Check what runs and what is started, for ever. Never raises."""
        while True:
            try:
                self._watch()
            except (LayerfsError, OSError) as error:
                _log.error("cannot look for containers to check: %s", error)
            time.sleep(_LOOK)

    def _watch(self) -> None:
        """Check what runs and what is started. Raises `LayerfsError` and `OSError`."""
        last = 0
        # The store stays open: closing the last connection writes to its files, which would wake us again.
        with Store(self._root) as store, Watch(self._root) as written:
            while True:
                events = store.events(last) if last else store.events(0)[-1:]
                if last == 0 or any(event.action == "start" for event in events):
                    for row in store.mounts():
                        self._begin(row)
                last = events[-1].id if events else last
                written.wait(_LOOK)
                time.sleep(_PAUSE)  # what is written comes in many pieces

    def _begin(self, row: Mount) -> None:
        check = check_of(row.config) if row.container else None
        record = look(row.id) if check else None
        if check is None or record is None or not record.alive():
            return
        with self._lock:
            if self._running.get(row.id) == record.pid:
                return
            self._running[row.id] = record.pid
        threading.Thread(
            target=self._check, args=(row.id, check, record), name=f"health of {row.name}", daemon=True
        ).start()

    def _check(self, mount_id: str, check: Check, record: Record) -> None:
        """Check the container until it ends."""
        began = datetime.now(UTC)
        try:
            health = dict(STARTING)
            self._note(mount_id, health, None)
            while not record.wait(check.wait(health["Status"], (datetime.now(UTC) - began).total_seconds())):
                with Store(self._root) as store:
                    row = store.mount(mount_id)
                result = probe(row, check)
                if not record.alive():
                    return
                before, health = health["Status"], after(health, check, result, began)
                changed = f"health_status: {health['Status']}" if health["Status"] != before else None
                self._note(mount_id, health, changed)
        except NotFound:
            pass  # it has been removed
        except (LayerfsError, OSError) as error:
            _log.error("the health of %s is not checked any more: %s", mount_id[:12], error)
        finally:
            with self._lock:
                if self._running.get(mount_id) == record.pid:
                    del self._running[mount_id]

    def _note(self, mount_id: str, health: dict[str, object], action: str | None) -> None:
        with Store(self._root) as store:
            store.update_container(mount_id, action, Health=health)


def probe(row: Mount, check: Check) -> Result:
    """Run the check of the container *row* once, and return what came of it; its time is bounded."""
    begun = datetime.now(UTC)
    execution = Execution(check.command, stdin=False)
    one = Exec(row.id, execution)
    try:
        one.start(row, detached=False)
        output, in_time = _output(one, check.timeout)
        if not in_time:
            one.signal()
            text = f"Health check exceeded timeout ({check.timeout:g}s)"
            with suppress(LayerfsError):
                one.wait()
            return Result(begun, datetime.now(UTC), -1, text)
        code = one.wait()
    except LayerfsError as error:
        return Result(begun, datetime.now(UTC), -1, str(error))
    return Result(begun, datetime.now(UTC), code, output.decode(errors="replace"))


def _output(one: Exec, seconds: float) -> tuple[bytes, bool]:
    """Return the beginning of what *one* writes until its end, and whether that came within *seconds*."""
    assert one.process is not None
    pipes = [pipe for pipe in (one.process.stdout, one.process.stderr) if pipe is not None]
    output = b""
    deadline = time.monotonic() + seconds
    try:
        waiting = [pipe.fileno() for pipe in pipes]
        while waiting:
            ready = readable(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                return output, False
            for fd in ready:
                piece = os.read(fd, 65536)
                if not piece:
                    waiting.remove(fd)
                output = (output + piece)[: OUTPUT_LIMIT + 1]
        return output, True
    finally:
        for pipe in pipes:
            pipe.close()
