"""Platforms: which image of several is the one for this machine, or for the one that was asked for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from layerfs.errors import BadRequest

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "armv6l": "arm/v6", "i686": "386"}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
"""What an architecture without a variant means (containerd's rules, which Docker follows)."""


class Platform(NamedTuple):
    """An operating system and a processor, in the words of Go."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """Return it as people write it: linux/arm64, linux/arm/v7."""
        return "/".join(filter(None, self))


def parse(text: str | None) -> Platform:
    """Return the platform that people call *text*; that of this machine when it is None.

    Raises `BadRequest` unless it is OS/ARCHITECTURE[/VARIANT] or ARCHITECTURE alone.
    """
    if text is None:
        machine = platform.machine()
        text = f"linux/{_MACHINES.get(machine, machine)}"
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", _MACHINES.get(parts[0], parts[0])]
    if len(parts) > 3 or not all(parts):
        raise BadRequest(f"{text!r} is no platform: use OS/ARCHITECTURE[/VARIANT], as in linux/arm64")
    return Platform(*parts)


def of(fields: Mapping[str, Any]) -> Platform | None:
    """Return the platform in a descriptor or configuration; None where it has none."""
    system, architecture, variant = (fields.get(key) or "" for key in ("os", "architecture", "variant"))
    if not all(isinstance(part, str) for part in (system, architecture, variant)) or not architecture:
        return None
    return Platform(system or "linux", architecture, variant)


def rank(wanted: Platform, offered: Platform) -> int | None:
    """Return how well *offered* serves where *wanted* is asked for: 0 is best, None not at all.

    Processors run what is made for earlier variants of them, newest first.
    """
    if wanted[:2] != offered[:2]:
        return None
    default = _DEFAULT_VARIANTS.get(wanted.architecture, "")
    want, offer = wanted.variant or default, offered.variant or default
    if want == offer:
        return 0
    if want[:1] == offer[:1] == "v" and want[1:].isdigit() and offer[1:].isdigit() and not wanted.variant:
        distance = int(want[1:]) - int(offer[1:])
        return distance if distance > 0 else None
    return None


def best(wanted: Platform, offers: Sequence[Platform]) -> int | None:
    """Return which of *offers* serves best, the first of equals; None where none does."""
    ranks = [(found, at) for at, offer in enumerate(offers) if (found := rank(wanted, offer)) is not None]
    return min(ranks)[1] if ranks else None
