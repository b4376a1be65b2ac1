"""The options of a tmpfs in a container: of `Tmpfs` and of a mount of that type (mount(8), tmpfs(5))."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest

_DEFAULT = ("noexec", "nosuid", "nodev", "rprivate")
"""What a tmpfs in a container has that asks for nothing else."""
_FLAGS = (
    ("ro", "rw"), ("exec", "noexec"), ("suid", "nosuid"), ("dev", "nodev"), ("sync", "async"), ("dirsync",),
    ("atime", "noatime"), ("diratime", "nodiratime"), ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"), ("mand", "nomand"), ("defaults",),
    ("private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"),
)  # fmt: skip
"""The options without a value, those together of which the last one counts."""
_VALUES = {
    "size": r"\d{1,18}[kKmMgG%]?",
    "mode": r"[0-7]{1,5}",
    "uid": r"\d{1,10}",
    "gid": r"\d{1,10}",
    "nr_inodes": r"\d{1,18}[kKmMgG]?",
    "nr_blocks": r"\d{1,18}[kKmMgG]?",
    "mpol": r"[a-z0-9:,=-]{1,80}",
    "huge": r"[a-z_]{1,20}",
}
_UNITS = ((1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k"))


def merged(options: str) -> list[str]:
    """Return the options of a tmpfs for a runtime: the defaults with *options* over them ("size=1m,exec").

    Raises `BadRequest` for one that there is not.
    """
    kept: dict[object, str] = {}
    for option in (*_DEFAULT, *filter(None, options.split(","))):
        name, equals, value = option.partition("=")
        group: object = next((flags for flags in _FLAGS if not equals and name in flags), None)
        if group is None:
            if not equals or not re.fullmatch(_VALUES.get(name, r"(?!)"), value, re.ASCII):
                raise BadRequest(f'invalid tmpfs option "{option[:80]}"')
            group = name
        kept.pop(group, None)
        kept[group] = option
    return [option for option in kept.values() if option != "defaults"]


def options(members: Members) -> list[list[str]] | None:
    """Return the member `Options` of `TmpfsOptions`: a list of lists of one or two words."""
    given = members.lists("Options")
    for words in given or ():
        if len(words) not in (1, 2):
            raise BadRequest("invalid option array length")
        if words[0] not in ("exec", "noexec"):
            raise BadRequest(f"invalid option: {words[0][:80]}")
    return given


def text(options: Mapping[str, Any], *, writable: bool) -> str:
    """Return `TmpfsOptions` as the text that `Tmpfs` has (moby's `ConvertTmpfsOptions`).

    Raises `BadRequest` for values that a tmpfs cannot have.
    """
    size, mode = options.get("SizeBytes", 0), options.get("Mode", 0)
    if size < 0 or not 0 <= mode <= 0o7777:
        raise BadRequest("SizeBytes and Mode of TmpfsOptions must be a size and a file mode")
    words = [] if writable else ["ro"]
    if mode:
        words.append(f"mode={mode:o}")
    if size:
        unit, suffix = next(((unit, name) for unit, name in _UNITS if size % unit == 0), (1, ""))
        words.append(f"size={size // unit}{suffix}")
    words += ["=".join(option) for option in options.get("Options") or ()]
    result = ",".join(words)
    merged(result)
    return result
