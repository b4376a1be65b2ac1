"""Who a container's process runs as: names are those of the image's own passwd(5) and group(5)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from layerfs.container.rootfs import read_inside
from layerfs.errors import BadRequest

_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class User:
    """The user, group, further groups and home directory of a process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def find_user(root: Path | int, wanted: str) -> User:
    """Return who *wanted*, `USER[:GROUP]` in names or numbers, is in the image mounted at *root*.

    As Docker does: empty means the user 0; a number needs no entry, and has group 0 then; the further
    groups are those that list the user, unless a group is given. Raises `BadRequest` for unknown names.
    """
    user, colon, group = wanted.partition(":")
    if colon and not group:
        raise BadRequest(f"invalid user {wanted!r}: give USER or USER:GROUP")
    found = next(
        (entry for entry in _entries(root, "etc/passwd", 7) if _is_meant(user or "0", entry[0], entry[2])),
        None,
    )
    if found is not None:
        name, uid, gid, home = found[0], _number(found[2]), _number(found[3]), found[5] or "/"
    elif _is_number(user or "0"):
        name, uid, gid, home = "", _number(user or "0"), 0, "/"
    else:
        raise BadRequest(f"unable to find user {user}: no matching entries in passwd file")
    groups = list(_entries(root, "etc/group", 4))
    if group:
        return User(uid, _find_group(groups, group), (), home)
    further = {_number(entry[2]) for entry in groups if name and name in entry[3].split(",")}
    return User(uid, gid, tuple(sorted(further - {gid})), home)


def with_groups(root: Path, user: User, wanted: Iterable[str]) -> User:
    """Return *user* with the groups *wanted*, names or numbers, in the image mounted at *root*.

    Raises `BadRequest` for unknown names.
    """
    groups = list(_entries(root, "etc/group", 4))
    further = [_find_group(groups, name) for name in wanted]
    return replace(user, groups=tuple(dict.fromkeys([*user.groups, *further])))


def _find_group(groups: list[list[str]], wanted: str) -> int:
    for name, _, number, _ in groups:
        if _is_meant(wanted, name, number):
            return _number(number)
    if _is_number(wanted):
        return _number(wanted)
    raise BadRequest(f"unable to find group {wanted}: no matching entries in group file")


def _entries(root: Path | int, path: str, fields: int) -> Iterator[list[str]]:
    """Yield the lines of the file *path* that have so many *fields* and a number as the third."""
    for line in read_inside(root, path).splitlines():
        entry = line.strip().split(":")
        if len(entry) == fields and all(_is_number(text) for text in entry[2 : 4 if fields == 7 else 3]):
            yield entry


def _is_meant(wanted: str, name: str, number: str) -> bool:
    return wanted == name or (_is_number(wanted) and int(wanted) == int(number))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,20}", text) is not None


def _number(text: str) -> int:
    if int(text) > _LARGEST:
        raise BadRequest(f"user and group ids must be in the range 0 to {_LARGEST}, not {text}")
    return int(text)
