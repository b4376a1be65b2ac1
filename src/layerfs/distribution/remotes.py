"""Where an image comes from or goes to, in skopeo's words: `TRANSPORT:DETAILS` (containers-transports(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from layerfs.errors import BadRequest, UsageError
from layerfs.store.references import normalize

_TRANSPORTS = (
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
)


@dataclass(frozen=True, slots=True)
class Remote:
    """An image outside the store."""

    transport: str
    details: str
    """What follows the transport's colon, as skopeo takes it."""

    def __str__(self) -> str:
        """Return it as skopeo takes it."""
        return f"{self.transport}:{self.details}"

    def image_name(self) -> str | None:
        """Return the name that the image goes by there as `repository:tag`, None where it has none."""
        found = _name(self.transport, self.details)
        try:
            return normalize(found) if found else None
        except BadRequest:
            return None

    def registry(self) -> str | None:
        """Return the host of the registry that has it, None for other transports."""
        if self.transport != "docker":
            return None
        first, slash, _ = self.details.removeprefix("//").partition("/")
        is_host = slash and (first == "localhost" or "." in first or ":" in first)
        return first if is_host else "docker.io"


def parse_remote(text: str) -> Remote:
    """Return what *text* means: `debian:12` is `docker://debian:12`, as for Docker. Raises `UsageError`."""
    transport, colon, details = text.partition(":")
    if transport == "docker" and not details.startswith("//"):
        colon = ""  # Docker Hub has an image called docker
    if not colon or transport not in _TRANSPORTS:
        if "://" in text:
            raise UsageError(f"unknown transport in {text!r}: use one of {', '.join(_TRANSPORTS)}")
        transport, details = "docker", f"//{text}"
    if not details.removeprefix("//"):
        raise UsageError(f"{text!r} names no image")
    return Remote(transport, details)


def _name(transport: str, details: str) -> str | None:
    if transport == "docker":
        name = details.removeprefix("//")
        return None if "@" in name else name
    if transport == "docker-daemon":
        return None if details.startswith("sha256:") else details
    if transport == "docker-archive":
        name = details.partition(":")[2]
        return None if name.startswith("@") else name
    if transport == "containers-storage":
        return re.sub(r"^\[.*?\]", "", details)
    if transport in ("oci", "oci-archive"):
        path, _, name = details.partition(":")
        # A layout called "debian" with an image called "12" in it is debian:12.
        return name if not name or ":" in name or "/" in name else f"{PurePath(path).name}:{name}"
    return None
