"""What `mount -o remount` means for a mount of layerfs: its flags, and whether it takes writes."""

from __future__ import annotations

import errno
import json
import os

from layerfs.cli.options import option_names
from layerfs.errors import Conflict, NotFound, from_os_error
from layerfs.host import holders, mountcalls, mounttable
from layerfs.host.rundir import owner
from layerfs.mounting.exchange import exchange
from layerfs.unixhttp.message import to_error

_READ_ONLY = 1
_FLAGS = {
    "ro": _READ_ONLY,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
"""The flags of mount(2)."""
_ATIME = _FLAGS["noatime"] | _FLAGS["relatime"] | _FLAGS["strictatime"]
_CLEARS = {
    "rw": _READ_ONLY,
    "defaults": _READ_ONLY | 2 | 4 | 8,
    "suid": 2,
    "dev": 4,
    "exec": 8,
    "async": 16 | 128,
    "atime": _FLAGS["noatime"],
    "diratime": _FLAGS["nodiratime"],
    "norelatime": _FLAGS["relatime"],
    "nostrictatime": _FLAGS["strictatime"],
    "nolazytime": _FLAGS["lazytime"],
}


def remount(mountpoint: str, texts: list[str]) -> None:
    """Change the flags of the mount at *mountpoint* to what the option strings *texts* say.

    Options that are no flags stay as they were. When a mount becomes read-only, what was written before is in
    the upper on return. Raises `NotFound` when no layerfs is mounted there; `Conflict` when a file is open to
    be written to, or when a mount that reads alone is to take writes; and other `LayerfsError`s.
    """
    place = mounttable.resolve(mountpoint)
    there = mounttable.mounted_at(place)
    if there is None or there.type != mounttable.TYPE:
        raise NotFound(f"no layerfs is mounted on {place}: mount it first")
    flags = _new_flags(there.flags, texts)
    known = owner(there.device)
    name = known[0] if known and known[1] is not None else None
    becomes_read_only = bool(flags & _READ_ONLY)
    if name is not None:
        _ask_daemon(name, place, becomes_read_only)
    _remount(place, there.device, flags)
    if name is not None and becomes_read_only:
        _flush(name)  # what came in between


def _new_flags(now: frozenset[str], texts: list[str]) -> int:
    flags = 0
    for option in now:
        flags |= _FLAGS.get(option, 0)
    for option in option_names(texts):
        if option in _FLAGS:
            if _FLAGS[option] & _ATIME:
                flags &= ~_ATIME
            flags |= _FLAGS[option]
        else:
            flags &= ~_CLEARS.get(option, 0)
    return flags


def _ask_daemon(name: str, place: str, becomes_read_only: bool) -> None:
    """Have what was written in the upper first; raise `Conflict` for a mount that takes no writes."""
    if becomes_read_only:
        _flush(name)
        return
    answer = exchange(name, "GET", "/layerfs/status", [])
    if answer.status == 200 and json.loads(answer.body)["Upper"] is None:
        raise Conflict(f"{name} was mounted read-only on {place}: unmount it, and mount it without ro")


def _flush(name: str) -> None:
    answer = exchange(name, "POST", "/layerfs/flush", [])
    if answer.status >= 400:
        raise to_error(answer)


def _remount(place: str, device: int, flags: int) -> None:
    try:
        fd = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            path = b"/proc/self/fd/%d" % fd
            if mountcalls.identify(path, follow=True).device != device:
                raise Conflict(f"something else is mounted on {place} now: try again")
            mountcalls.remount(path, flags)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EBUSY:
            who = holders.describe(holders.users(device)) or "a process writes to it"
            raise Conflict(f"cannot make {place} read-only: {who}; end it first") from None
        error.filename = None
        raise from_os_error(error, f"remount {place}") from None
