"""What a container is to be: the image's configuration, and what the one who runs it wants otherwise.

Two objects come of it. The *configuration* has the members of an OCI image's `config`, and is what a
commit passes on. The *settings* concern this container alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from layerfs.errors import BadRequest
from layerfs.store import imageconfig
from layerfs.store.volumes import check_name as check_volume_name

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of `layerfs run` say."""

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    """In place of the image's; an empty one for none."""
    environment: tuple[str, ...] = ()
    """`NAME=VALUE`, or `NAME` for the value that it has here."""
    workdir: str = ""
    user: str = ""
    binds: tuple[str, ...] = ()
    """`HOST:DEST[:ro]`."""
    hostname: str = ""
    network: str = "host"
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    """`EndpointSettings` in that network."""
    ports: Mapping[str, Any] = field(default_factory=dict)
    """`PortBindings`."""
    publish_all: bool = False
    terminal: bool = False
    stdin: bool = False
    detached: bool = False
    remove: bool = False


def configuration(image: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Return the configuration of a container of an image whose own is *image*; raises `BadRequest`.

    A command takes the place of the image's `Cmd`; an entrypoint that of both (Docker's rules).
    """
    imageconfig.check(image)
    config = dict(image)
    if wanted.entrypoint is not None:
        config["Entrypoint"] = [wanted.entrypoint] if wanted.entrypoint else []
        config["Cmd"] = []
    if wanted.command:
        config["Cmd"] = list(wanted.command)
    if wanted.environment:
        config["Env"] = environment(config.get("Env") or (), wanted.environment)
    if wanted.workdir:
        config["WorkingDir"] = absolute(wanted.workdir)
    if wanted.user:
        config["User"] = wanted.user
    if not command(config):
        raise BadRequest("no command specified: the image names none, so give one after the image")
    return config


def command(config: Mapping[str, Any]) -> list[str]:
    """Return the words of the process that *config* describes: its entrypoint and its arguments."""
    return [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]


def absolute(workdir: str) -> str:
    """Return *workdir* if it can be a working directory, else raise `BadRequest`."""
    if not workdir.startswith("/"):
        raise BadRequest(f"the working directory {workdir!r} is invalid: it needs to be an absolute path")
    return workdir


def environment(base: Iterable[str], more: Iterable[str]) -> list[str]:
    """Return the variables *base* with *more* over them, the order kept.

    A name alone takes the value that this process has, and is left out if it has none. Raises `BadRequest`.
    """
    values: dict[str, str] = {}
    for text in base:
        name, _, value = text.partition("=")
        values[name] = value
    for text in more:
        name, equals, value = text.partition("=")
        if not name or "\0" in text:
            raise BadRequest(f"invalid environment variable {text!r}: give NAME=VALUE or NAME")
        if equals:
            values[name] = value
        elif name in os.environ:
            values[name] = os.environ[name]
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def settings(wanted: Wanted) -> dict[str, Any]:
    """Return the settings of a container, values for JSON; raises `BadRequest`."""
    if wanted.hostname and not _HOSTNAME.fullmatch(wanted.hostname):
        raise BadRequest(
            f"invalid hostname {wanted.hostname!r}: use letters, digits, '-' and '.', at most 64"
        )
    return {
        "Tty": wanted.terminal,
        "OpenStdin": wanted.stdin,
        "StdinOnce": wanted.stdin and not wanted.detached,
        "Hostname": wanted.hostname,
        "NetworkMode": wanted.network,
        **({"Networks": {wanted.network: dict(wanted.endpoint)}} if wanted.endpoint else {}),
        "PortBindings": dict(wanted.ports),
        "PublishAllPorts": wanted.publish_all,
        "Binds": [bind(text) for text in wanted.binds],
        "AutoRemove": wanted.remove,
    }


def endpoint_settings(aliases: Iterable[str], address: str | None) -> dict[str, Any]:
    """Return the `EndpointSettings` that the options --network-alias and --ip mean, empty for none."""
    found: dict[str, Any] = {}
    if given := list(aliases):
        found["Aliases"] = given
    if address:
        found["IPAMConfig"] = {"IPv6Address" if ":" in address else "IPv4Address": address}
    return found


def bind(text: str) -> list[str]:
    """Return `[HOST|NAME:]DEST[:ro|rw,nocopy]` as source, destination and mode; raises `BadRequest`."""
    host, colon, rest = text.partition(":")
    if not colon and text.startswith("/"):
        host, rest = "", text
    destination, colon, mode = rest.partition(":")
    if (
        text.startswith(":")
        or not destination
        or (colon and not set(mode.split(",")) <= {"ro", "rw", "nocopy"})
    ):
        raise BadRequest(f"invalid volume {text!r}: give HOST:DEST, HOST:DEST:ro or HOST:DEST:rw")
    if host.startswith("."):
        host = os.path.abspath(host)
    elif host and not host.startswith("/"):
        check_volume_name(host)
    if not destination.startswith("/") or os.path.normpath(destination) in ("/", "//"):
        raise BadRequest(f"invalid volume {text!r}: DEST must be an absolute path other than /")
    return [host, os.path.normpath(destination), mode or "rw"]
