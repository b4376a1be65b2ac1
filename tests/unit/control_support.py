"""What the tests of the control room share: a running mount on plain directories, and its server."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from layerfs.api import app
from layerfs.api.server import App
from layerfs.client.client import Client, local_place
from layerfs.errors import Conflict
from layerfs.host.rundir import RunLock, socket_path
from layerfs.mounting.mount import Rollback, WentBack
from layerfs.store import Store
from layerfs.store.commit import Wording
from layerfs.store.model import Image, Mount
from layerfs.union.changes import Change, changes
from layerfs.unixhttp.message import Answer, Request, Response
from layerfs.unixhttp.peer import listen
from layerfs.unixhttp.server import serve


class DirectoryMount:
    """A `LiveMount` that is a directory: what is written to the upper's tree is what was written."""

    def __init__(self, root: Path, mount: Mount, mountpoint: str) -> None:
        self.root = root
        self.name = mount.name
        self.mount_id = mount.id
        self.mountpoint = mountpoint
        self.busy = False
        self.ended = trio.Event()

    def upper(self) -> Path:
        """Return the tree to write to."""
        with Store(self.root) as store:
            return store.layer(store.mount(self.mount_id).upper or "").path

    @property
    def outside_upper(self) -> Path | None:
        with Store(self.root) as store:
            return store.outside_upper(store.mount(self.mount_id))

    async def commit(
        self, *, reference: str | None, comment: str, author: str, changes: Sequence[str], pause: bool | None
    ) -> Image:
        with Store(self.root) as store:
            store.check_commit(reference, changes)
            mount = store.mount(self.mount_id)
            upper = store.prepare_upper(mount)
            try:
                return store.commit(
                    mount, upper, reference=reference, comment=comment, author=author, changes=changes
                )
            except BaseException:
                store.abandon_upper(mount, upper)
                raise

    async def rollback(self, wanted: Rollback) -> tuple[WentBack, Callable[[], None]]:
        """Go back in the store: there is nobody to see it."""
        with Store(self.root) as store:
            mount = store.mount(self.mount_id)
            step = store.resolve_checkpoint(mount, wanted.reference)
            upper = store.prepare_upper(mount)
            went = store.rollback(mount, upper, step, Wording(), keep=not wanted.discard)
            return WentBack(step, went.kept), lambda: None

    async def checkpoint(self, wording: Wording, *, build: str | None, pause: bool | None) -> str:
        with Store(self.root) as store:
            mount = store.mount(self.mount_id)
            return store.checkpoint(mount, store.prepare_upper(mount), wording, build=build)

    async def changes(self) -> list[Change]:
        with Store(self.root) as store:
            return list(changes(store.stack_of(store.mount(self.mount_id), upper=True)))

    async def flush(self) -> None:
        pass  # what is written to a directory is there at once

    def status(self) -> dict[str, Any]:
        return {"name": self.name, "pid": os.getpid(), "requests": {"lookup": 7}, "layers": ["one", "two"]}

    async def unmount(self, *, force: bool, discard: bool) -> None:
        if self.busy and not force:
            raise Conflict(f"{self.name} is busy")
        with Store(self.root) as store:
            store.set_unmounted(self.mount_id)
        self.ended.set()

    async def remove(self, *, force: bool, volumes: bool) -> None:
        await self.unmount(force=force, discard=True)
        with Store(self.root) as store:
            store.remove_mount(self.mount_id)


@dataclass
class Running:
    """A mount that runs in this process, as its daemon would run it."""

    live: DirectoryMount
    socket: Path


@asynccontextmanager
async def running(root: Path, mount: Mount, mountpoint: str) -> AsyncIterator[Running]:
    """Run *mount* while the block lasts, and end as its daemon does when it is unmounted."""
    with Store(root) as store:
        store.set_mounted(mount.id, mountpoint, datetime.now(UTC))
    live = DirectoryMount(root, mount, mountpoint)
    with RunLock(mount.name) as lock:
        lock.set_pid(os.getpid())
        path = socket_path(mount.name)
        async with serving(App(root, live), path) as scope, trio.open_nursery() as nursery:

            async def end() -> None:
                await live.ended.wait()
                scope.cancel()
                lock.release()

            nursery.start_soon(end)
            yield Running(live, path)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(app: App, path: Path) -> AsyncIterator[trio.CancelScope]:
    """Serve *app* on the socket *path* while the block lasts; yield the scope that ends the server."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await serve(listen(path), app, task_status=task_status)

        await nursery.start(run)
        yield scope
        scope.cancel()


async def exchange(path: Path, data: bytes, *, end: bool = True) -> bytes:
    """Send *data* to the socket *path* and return all that comes back until the server closes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(data)
        if end:
            await stream.send_eof()
        answer = b""
        while part := await stream.receive_some(65536):
            answer += part
        return answer


def connect(path: Path) -> socket.socket:
    """Return a plain connection to the socket *path*."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


def make_tree(path: Path) -> Path:
    """Make a small tree at *path*."""
    (path / "etc").mkdir(parents=True)
    (path / "etc/motd").write_text("hello\n")
    (path / "big").write_bytes(bytes(3_000_000))
    return path


def ask(root: Path, method: str, path: str, body: bytes = b"", **parameters: Any) -> Any:
    """Return the JSON of the answer to a request about the store at *root*, in this process."""
    return Client.local(root).request(method, path, body=body, **parameters)


async def answer_of(served: App, request: Request) -> Answer:
    """Return the answer of *served* to *request*, as a server asks for it."""
    return await served.find(request).answer(request)


def whole_answer(root: Path, request: Request) -> Response:
    """Return the answer to *request* about the store at *root*, which is no stream, from this process."""
    answer = app.answer(local_place(root), request)
    assert isinstance(answer, Response)
    return answer
