"""One request to the daemon of a mount, over the mount's socket."""

from __future__ import annotations

import time
from functools import partial

from layerfs import errors
from layerfs.host.polling import readable
from layerfs.host.rundir import is_stopped, log_path, running_pid, socket_path
from layerfs.unixhttp.client import UnixClient, UnreadError
from layerfs.unixhttp.message import Pairs, Query, Request, Response

PATIENCE = 600.0
"""Seconds that a daemon may work on one request: collecting gigabytes from the kernel takes its time."""
PING_PATIENCE = 10.0
"""Seconds after which a daemon that does not answer must at least answer that it is there."""


class NotListeningError(errors.Conflict):
    """Nobody listens on the socket of a daemon, or has read the request: it is just starting, or ending."""


def exchange(name: str, method: str, path: str, query: Pairs, body: bytes = b"") -> Response:
    """Send one request to the daemon of the mount called *name*, and return its answer.

    Raises `Conflict` when there is none, `NotListeningError` where nothing was done yet. A daemon that works
    on it is waited for, `PATIENCE` seconds at most; one that is stopped, or that answers nobody, is not.
    """
    pid = running_pid(name) or 0
    _check_not_stopped(name, pid)
    wait = partial(_wait_for_answer, name=name, pid=pid, what=f"{method} {path}")
    client = UnixClient(socket_path(name), timeout=PING_PATIENCE, wait=wait)
    try:
        return client.send(Request(method, path, Query(query), body))
    except (FileNotFoundError, ConnectionRefusedError, UnreadError) as error:
        raise NotListeningError(str(silent(name, pid, str(error.strerror)))) from error
    except TimeoutError as error:
        raise silent(name, pid, f"waited {PING_PATIENCE:g} seconds") from error
    except OSError as error:
        raise silent(name, pid, error.strerror or str(error)) from error


def _wait_for_answer(fd: int, name: str, pid: int, what: str) -> None:
    """Return when there is something to read; raise `Conflict` when none is to be expected any more."""
    deadline = time.monotonic() + PATIENCE
    while not readable([fd], PING_PATIENCE):
        check_works(name, pid, what, deadline)


def check_works(name: str, pid: int, what: str, deadline: float) -> None:
    """Raise `Conflict` if the daemon (*pid*) of *name* is not to be waited for any longer.

    It has been asked for *what*, and has not answered for `PING_PATIENCE`. At the *deadline*, of the clock
    `time.monotonic`, all patience ends.
    """
    _check_not_stopped(name, pid)
    if not _pings(name):
        raise silent(name, pid, f"waited {PING_PATIENCE:g} seconds for {what}")
    if time.monotonic() > deadline:
        raise silent(name, pid, f"waited {PATIENCE:g} seconds for {what}, which it is still working on")


def _pings(name: str) -> bool:
    """Tell whether the daemon of *name* answers anything at all."""
    client = UnixClient(socket_path(name), timeout=PING_PATIENCE)
    try:
        return client.send(Request("GET", "/_ping")).status < 500
    except OSError:
        return False


def _check_not_stopped(name: str, pid: int) -> None:
    if is_stopped(pid):
        raise errors.Conflict(
            f"the daemon of {name} (process {pid}) is stopped: 'kill -CONT {pid}' lets it go on"
        )


def silent(name: str, pid: int, reason: str) -> errors.Conflict:
    """Return the error for the daemon (*pid*) of *name*, which does not answer for that *reason*."""
    return errors.Conflict(
        f"the daemon of {name} (process {pid}) runs, but does not answer on {socket_path(name)} ({reason}); "
        f"see {log_path(name)}"
    )
