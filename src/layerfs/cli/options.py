"""Mount options: `-o lowerdir=A:B,upperdir=U,workdir=W,ro,...`, with overlayfs' escapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from layerfs.errors import UsageError

VALUED = frozenset({"lowerdir", "upperdir", "workdir", "name", "image", "root"})
"""The options that layerfs itself understands, with a value."""
SWITCHES = {
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "allow_other": "noallow_other",
    "default_permissions": "nodefault_permissions",
    "metacopy=on": "metacopy=off",
    "userxattr": "nouserxattr",
    "volatile": "novolatile",
}
"""Options of the mount that are on or off; the last one given counts."""
CHOICES = {"partial": ("fill", "keep", "off")}
"""Options of the mount with a value out of several; the last one given counts."""
IGNORED = re.compile(
    r"defaults|auto|noauto|nofail|_netdev|(no)?user|(no)?users|owner|group|async|sync|dirsync|relatime|norelatime|"
    r"strictatime|nostrictatime|nodiratime|diratime|lazytime|nolazytime|silent|loud|x-.*|comment=.*|uhelper=.*"
)
"""What concerns mount(8), systemd or file systems of another kind: accepted without effect."""


@dataclass(slots=True)
class MountOptions:
    """What the options of a mount say."""

    lowers: tuple[str, ...] = ()
    """From the top of the stack to its bottom, as in overlayfs."""
    upper: str | None = None
    work: str | None = None
    name: str | None = None
    image: str | None = None
    root: str | None = None
    read_only: bool = False
    switches: dict[str, str | bool] = field(default_factory=dict)
    """For each of `SWITCHES` that was given, on or off; for each of `CHOICES`, which."""


def parse_options(texts: list[str]) -> MountOptions:
    """Return what the option strings *texts* say, each `NAME[=VALUE],...`.

    A backslash takes the meaning from the comma, colon or backslash after it. Raises `UsageError`
    that names the option which is unknown, empty or given no value.
    """
    options = MountOptions()
    for option in (option for text in texts for option in _split(text, ",") if option):
        name, equals, value = option.partition("=")
        if name in VALUED:
            if not value:
                raise UsageError(f"mount option {name} needs a value")
            _set(options, name, value)
        elif name in ("ro", "rw") and not equals:
            options.read_only = name == "ro"
        elif name in CHOICES:
            if value not in CHOICES[name]:
                raise UsageError(f"mount option {name} is one of {', '.join(CHOICES[name])}, not {value!r}")
            options.switches[name] = value
        elif switch := _switch(option):
            options.switches[switch[0]] = switch[1]
        elif not IGNORED.fullmatch(option):
            raise UsageError(f"unknown mount option {option!r}")
    return options


def option_names(texts: list[str]) -> list[str]:
    """Return the options in *texts* without their values, in their order."""
    return [option.partition("=")[0] for text in texts for option in _split(text, ",") if option]


def _set(options: MountOptions, name: str, value: str) -> None:
    if name == "lowerdir":
        options.lowers = tuple(_unescape(part) for part in _split(value, ":"))
        if not all(options.lowers):
            raise UsageError(
                f"mount option lowerdir={value}: a directory's name is empty; escape colons in names as \\:"
            )
    else:
        field_name = {"upperdir": "upper", "workdir": "work"}.get(name, name)
        setattr(options, field_name, _unescape(value))


def _switch(name: str) -> tuple[str, bool] | None:
    """Return the switch that the option *name* sets, and to what."""
    for on, off in SWITCHES.items():
        if name in (on, off):
            return on.partition("=")[0], name == on
    return None


def _split(text: str, separator: str) -> Iterator[str]:
    """Yield the parts of *text* between unescaped *separator*s, their escapes untouched."""
    start = position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            yield text[start:position]
            start = position + 1
        position += 1
    yield text[start:]


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
