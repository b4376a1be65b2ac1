"""`--chown` and USER: numbers, or names that passwd(5) and group(5) of what lies below have."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from layerfs.build.sources import Source
from layerfs.build.walking import follow, opened
from layerfs.errors import BadRequest
from layerfs.union.reading import read_at

_MOST = 10 << 20
"""Bytes that a file of users or groups may have, as by BuildKit."""
_LARGEST = 2**32 - 2


class UnknownOwner(BadRequest):
    """A user or group that is not there."""


def find_owner(below: Source | None, wanted: str) -> tuple[int, int]:
    """Return the user and group that *wanted*, `USER[:GROUP]`, means in the tree *below*, if there is one.

    Without a group, a name has the group of its entry, and a number is that of the group, too. Raises
    `UnknownOwner`, `BadRequest` for what names nobody, and `OSError`.
    """
    user, colon, group = wanted.partition(":")
    if not user or (colon and not group):
        raise BadRequest(f"invalid owner {wanted!r}: give USER or USER:GROUP")
    if (number := _number(user)) is not None:
        uid = gid = number
    else:
        entry = next((entry for entry in _entries(below, b"etc/passwd", 4) if entry[0] == user), None)
        if entry is None:
            raise UnknownOwner(
                f"no user {user!r} in /etc/passwd of the stage: add it first, or give a number"
            )
        uid, gid = int(entry[2]), int(entry[3])
    if group:
        if (number := _number(group)) is not None:
            gid = number
        else:
            entry = next((entry for entry in _entries(below, b"etc/group", 3) if entry[0] == group), None)
            if entry is None:
                raise UnknownOwner(
                    f"no group {group!r} in /etc/group of the stage: add it first, or give a number"
                )
            gid = int(entry[2])
    return uid, gid


def _number(text: str) -> int | None:
    if text == "root":
        return 0
    if re.fullmatch(r"[0-9]{1,20}", text) is None:
        return None
    if int(text) > _LARGEST:
        raise BadRequest(f"user and group ids must be in the range 0 to {_LARGEST}, not {text}")
    return int(text)


def _entries(below: Source | None, path: bytes, fields: int) -> Iterator[list[str]]:
    """Yield the lines of *path* with so many *fields* or more, where those from the third on are numbers."""
    for line in _read(below, path).splitlines():
        entry = line.strip().split(":")
        if len(entry) >= fields and all(re.fullmatch("[0-9]{1,10}", text) for text in entry[2:fields]):
            yield entry


def _read(below: Source | None, path: bytes) -> str:
    """Return the text of the regular file *path*, an empty one where there is none."""
    if below is None:
        return ""
    try:
        place = follow(below, path)
    except NotADirectoryError:
        return ""
    if place.st is None or not stat.S_ISREG(place.st.st_mode):
        return ""
    if place.st.st_size > _MOST:
        raise BadRequest(f"/{path.decode()} of the stage has more than {_MOST >> 20} MiB")
    with opened(below, place) as (fd, start):
        return read_at(fd, place.st.st_size, start).decode("utf-8", "surrogateescape")
