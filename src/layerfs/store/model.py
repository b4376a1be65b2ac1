"""What the store knows about: layers, images, mounts, and what it answers about them.

Lists of layers are ordered from the bottom of the stack to its top. Identifiers are 64 hexadecimal
digits, without the `sha256:` that people may write before them. Times are aware, in UTC.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

LayerState = Literal["importing", "active", "sealed", "external"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """Return the time in nanoseconds since the epoch, cut to what a `datetime` can hold."""
    return time.time_ns() // 1000 * 1000


def to_datetime(nanoseconds: int) -> datetime:
    """Return the UTC time that is *nanoseconds* after the epoch, to the microsecond."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def to_nanoseconds(moment: datetime) -> int:
    """Return the nanoseconds from the epoch to *moment*."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, slots=True)
class Layer:
    """One directory tree of a stack.

    `importing` is a tree that is being made and that no row names yet, `active` the upper of a mount,
    `sealed` an immutable layer, `external` a plain directory that somebody else owns.
    """

    id: str
    state: LayerState
    path: Path
    """The tree: `layers/ID/fs` in the store, or a directory outside it."""
    work: Path | None
    """The directory for copy-up in progress; only an upper has one."""
    created: datetime
    size: int | None
    """Bytes of regular files, hard links counted once; None until measured."""
    manifest_done: bool
    diff_id: str | None = None
    """The digest of its tar archive (`sha256:...`), once it has come in or gone out as one."""
    unverified: bool = False
    """Whether the machine stopped, or the disk failed, before it was known to be on disk: is it whole?"""
    prefix: str | None = None
    """Whether its tree is marked with `trusted` or `user` attributes; None where that was not noted."""
    outside: bool = False
    """Whether its tree is or was an upper outside the store, which others may have written to."""
    plain: bool = False
    """Whether no directory of it is known to be opaque or renamed."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step in the making of an image, as in the OCI image configuration."""

    created: datetime
    created_by: str
    author: str
    comment: str
    empty_layer: bool
    layer: str | None
    """The layer that the step made; None for an empty one."""


@dataclass(frozen=True, slots=True)
class Image:
    """A stack of sealed layers, its configuration and its history."""

    id: str
    layers: tuple[str, ...]
    config: dict[str, Any]
    """The OCI image configuration's `config` object: Env, Cmd, Labels and so on."""
    history: tuple[HistoryEntry, ...]
    """Oldest first."""
    created: datetime
    author: str
    comment: str
    parent: str | None
    architecture: str
    os: str
    tags: tuple[str, ...]
    digests: tuple[str, ...] = ()
    """Names by the digest that its manifest has in a registry: `debian@sha256:...`."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A named stack with its upper: what Docker calls a container, as far as files go."""

    id: str
    name: str
    image: str | None
    """The image it was made from; a commit does not change it."""
    config: dict[str, Any]
    """The configuration of that image when the mount was made."""
    layers: tuple[str, ...]
    """Without the upper; a commit adds what was the upper."""
    upper: str | None
    """None for a read-only mount."""
    mountpoint: str | None
    """Where it is mounted, or was the last time."""
    options: dict[str, Any]
    created: datetime
    started: datetime | None
    """Since when it is mounted; None when it was unmounted in an orderly way."""
    ephemeral: bool
    """Nobody named it: it goes when it is unmounted."""
    step: str = ""
    """The step at the top of its stack."""
    build: str | None = None
    """The build that it is for; that may have ended."""

    @property
    def container(self) -> dict[str, Any]:
        """What is known of the container that runs in it; empty for a mount that is none."""
        found: dict[str, Any] = self.options.get("container") or {}
        return found


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A line of an image's history as people read it."""

    id: str
    """The image that ends with this step, or `<missing>` where the store has none."""
    created: datetime
    created_by: str
    size: int
    comment: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that removing an image took away: a tag, or an image or layer (`sha256:...`)."""

    untagged: str | None = None
    deleted: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an image, a mount, a network or a volume."""

    id: int
    """Grows with every event."""
    time: int
    """Nanoseconds since the epoch."""
    type: str
    """`image`, `container`, `network` or `volume`."""
    action: str
    actor: str
    """Identifier of the image, mount or network, name of the volume."""
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """A file of a layer that is not as the layer's manifest says."""

    layer: str
    path: bytes
    """Relative to the layer's root, which is `.`; empty when the manifest itself is at fault."""
    what: str


@dataclass(frozen=True, slots=True)
class Subnet:
    """A range of addresses of a network, in the notation of CIDR, and who has its first ones."""

    subnet: str
    gateway: str
    """The host's address in it; without an effect in an internal network, but nobody else gets it."""
    range: str = ""
    """The part of it from which containers get their addresses; empty for all of it."""
    reserved: dict[str, str] = field(default_factory=dict)
    """Addresses that no container gets, by their names."""
    chosen: bool = False
    """Whether somebody asked for this subnet."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.subnet else 4


@dataclass(frozen=True, slots=True)
class Network:
    """A network for containers."""

    id: str
    name: str
    driver: str
    """`bridge`, `host` or `null`."""
    created: datetime
    internal: bool
    """Whether nothing leads out of it."""
    attachable: bool
    ipv6: bool
    subnets: tuple[Subnet, ...]
    labels: dict[str, str]
    options: dict[str, str]
    ipam: dict[str, str] = field(default_factory=dict)
    """Options for its IPAM, which have no effect."""

    @property
    def predefined(self) -> bool:
        """Whether it is one of the three that are always there."""
        return self.name in PREDEFINED


PREDEFINED = ("bridge", "host", "none")
"""The names of the networks that nobody makes or removes."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container that runs, in a network."""

    id: str
    network: str
    mount: str
    mount_name: str
    interface: str
    address: str
    """IPv4, empty for none."""
    address6: str
    mac: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host that leads to one of a container that runs."""

    protocol: str
    host_ip: str
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory that outlives the containers which have it mounted."""

    name: str
    path: Path
    created: datetime
    anonymous: bool
    """Whether nobody named it: it may go with its container."""
    labels: dict[str, str]
    options: dict[str, str]
    """Those of Docker's driver `local`: `type`, `o`, `device`."""
