"""The control socket itself: how it is made, and who may use it."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import trio

from layerfs.errors import Conflict, LayerfsError, from_os_error


def listen(path: Path) -> trio.SocketListener:
    """Return a listener on a new Unix socket at *path*, mode 0600, in place of a stale one.

    The caller holds the mount's run lock, so a socket that is already there belongs to nobody.
    Raises `LayerfsError` when the path is too long for a socket address, or cannot be made.
    """
    if len(os.fsencode(path)) > 107:  # sun_path of unix(7), less its null byte
        raise LayerfsError(
            f"{path} is too long for a socket (107 bytes at most): set LAYERFS_RUN to a shorter one"
        )
    if path.exists() and not path.is_socket():
        raise Conflict(f"{path} exists and is not a socket: remove it")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(bytes(path))
        path.chmod(0o600)  # nobody connects before: not listening yet, and the directory is 0700
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise from_os_error(error, f"listen on {path}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def of_stdlib(listener: socket.socket) -> trio.SocketListener:
    """Return the listener on the listening socket *listener*, which somebody else has made."""
    listener.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def peer_uid(stream: trio.SocketStream) -> int:
    """Return the user id of the process that connected (SO_PEERCRED, unix(7))."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def may_connect(uid: int) -> bool:
    """Return whether the user *uid* may use the socket: the daemon's own user and root may."""
    return uid in (0, os.geteuid())
