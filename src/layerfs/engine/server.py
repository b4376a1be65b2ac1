"""The engine's process: its lock, its socket, its signals, and what it takes up again when it starts."""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from layerfs.api.relay import Relay
from layerfs.api.routes import Place
from layerfs.api.server import App
from layerfs.build import workplace
from layerfs.engine.health import Checks
from layerfs.engine.restarts import take_up
from layerfs.engine.zygote import Zygote
from layerfs.errors import BadRequest, Conflict, LayerfsError, from_os_error
from layerfs.host import rundir
from layerfs.host.notify import Notifier
from layerfs.host.ownership import open_own
from layerfs.mounting.warmup import warm_up
from layerfs.store import Store
from layerfs.store.reserve import keep, with_reserve
from layerfs.unixhttp import server
from layerfs.unixhttp.peer import listen, of_stdlib

_log = logging.getLogger(__name__)
_FIRST = 3
"""The first descriptor that a service manager passes: sd_listen_fds(3)."""


def run(root: Path, path: Path | None, group: str | None) -> None:
    """Serve the API for the store at *root* until SIGTERM or SIGINT.

    On the socket *path*, `RUN/engine.sock` if None, or on the one that the service manager passes. It is for
    root (the owner of the process) alone, and for *group* if that is given, or whom the service manager lets
    in: they can do all that root can. Raises `LayerfsError`.
    """
    notifier = Notifier.from_environment()  # before the zygote: mounts must not speak for the engine
    for line in workplace.recover():
        _log.warning("%s", line)
    with Store(root) as store:
        for line in with_reserve(root, lambda: list(store.recover())):
            _log.warning("%s", line)
    keep(root)
    with _only_one(root):
        listener = _listener(path or rundir.engine_socket(), group)
        zygote = Zygote(root)
        relay = Relay(root)
        try:
            shared = group is not None or _lets_others_in(listener)
            trio.run(_serve, root, listener, zygote, shared, relay, notifier)
        finally:
            relay.close()
            zygote.close()


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the lock of the engine of this run directory; raises `Conflict`."""
    fd = open_own(rundir.make_run_dir() / "engine.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"an engine runs already in {rundir.run_dir()}: set LAYERFS_RUN for another one"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n%s\n" % (os.getpid(), os.fsencode(root)), 0)
        yield
    finally:
        os.close(fd)


def _listener(path: Path, group: str | None) -> trio.SocketListener | socket.socket:
    """Return the listening socket, the service manager's if it passes one. Raises `LayerfsError`."""
    if os.environ.pop("LISTEN_PID", "") == str(os.getpid()) and os.environ.pop("LISTEN_FDS", "") == "1":
        os.set_inheritable(_FIRST, False)
        return socket.socket(fileno=_FIRST)
    if group is None:
        return listen(path)
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadRequest(f"there is no group {group}: make it with groupadd, or name another") from None
    if path.parent.is_dir() and not path.parent.stat().st_mode & 0o011:
        raise BadRequest(
            f"the group {group} cannot reach {path}: give --socket in a directory that it may enter, "
            "such as /run/layerfs.sock"
        )
    made = listen(path)
    try:
        os.chown(path, -1, number)
        path.chmod(0o660)
    except OSError as error:
        raise from_os_error(error, f"give {path} to the group {group}") from None
    return made


def _lets_others_in(listener: trio.SocketListener | socket.socket) -> bool:
    """Return whether *listener* is one that a service manager has made for a group too (SocketGroup=)."""
    path = listener.getsockname() if isinstance(listener, socket.socket) else ""
    try:
        return bool(path) and bool(os.stat(path).st_mode & 0o066)
    except OSError:
        return False


async def _serve(
    root: Path,
    listener: trio.SocketListener | socket.socket,
    zygote: Zygote,
    shared: bool,
    relay: Relay,
    notifier: Notifier,
) -> None:
    if isinstance(listener, socket.socket):
        listener = of_stdlib(listener)
    app = App(root, place=Place(root, zygote.launch), relay=relay)
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await nursery.start(_serve_clients, listener, app, shared)
            nursery.start_soon(trio.to_thread.run_sync, take_up, app.place)
            nursery.start_soon(warm_up, Path(listener.socket.getsockname()), relay.get_ready)
            threading.Thread(target=Checks(root).run, name="health checks", daemon=True).start()
            notifier.ready(f"serves {root}")
            _log.info("the engine serves the store at %s", root)
            async for _ in signals:
                break
            notifier.stopping("mounts and containers go on")
            nursery.cancel_scope.cancel()


async def _serve_clients(
    listener: trio.SocketListener, app: App, shared: bool, *, task_status: trio.TaskStatus[None]
) -> None:
    try:
        await server.serve(listener, app, connections=_CONNECTIONS, anybody=shared, task_status=task_status)
    except LayerfsError as error:
        _log.error("%s", error)


_CONNECTIONS = 2000
"""Clients that may be connected at a time: each attachment and each wait is one."""
