"""What a container is to be: the image's configuration, and what the one who makes it wants otherwise.

Two objects come of the body of Docker's `POST /containers/create`. The *configuration* has the members of an
OCI image's `config`, and is what a commit passes on. The *settings* concern this container alone: the other
members of that body, by their own names, complete and checked, and what is to be mounted ("MountPoints").
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from layerfs.container import health, hostconfig, mountpoints, namespaces, networking, portbindings
from layerfs.container.members import Members, one_line
from layerfs.container.stored import points_of
from layerfs.errors import BadRequest, NotFound
from layerfs.host.signals import signal_number
from layerfs.store import imageconfig

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_HOSTNAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,254}[A-Za-z0-9_])?")
_OWN_FLAGS = (
    "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "NetworkDisabled",
)  # fmt: skip


class Description(NamedTuple):
    """What a container is to be, as the store keeps it."""

    config: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]
    """What was asked for and cannot be done here, but does no harm: dockerd's answer has them too."""


def _nobody(name: str) -> Mount:
    raise NotFound(f"No such container: {name}")


def described(
    image: Mapping[str, Any],
    body: object,
    *,
    default_network: str = "bridge",
    find: Callable[[str], Mount] = _nobody,
) -> Description:
    """Return what the container is that *body*, a request to create one, asks for.

    *image* is the configuration of its image; *find* returns another container, which `VolumesFrom` or a
    mode "container:NAME" means, or raises `NotFound`. Looks at this machine: what it can limit, whether the
    sources of bind mounts exist; changes nothing. Raises `BadRequest`, with dockerd's line where it has one.
    """
    imageconfig.check(image)
    with one_line():
        imageconfig.check_shape([body], "the request's body")
        return _described(image, Members(body), default_network, find)


def _described(
    image: Mapping[str, Any], whole: Members, default_network: str, find: Callable[[str], Mount]
) -> Description:
    config = _configuration(image, whole)
    imageconfig.check(config, "the container's configuration")
    host, warnings = hostconfig.taken(
        whole.member("HostConfig") or Members({}, "HostConfig"), default_network
    )
    for member in ("PidMode", "IpcMode", "NetworkMode"):
        if other := namespaces.container_of(host[member]):
            with suppress(NotFound):  # it may be made later: whoever starts this one is told
                host[member] = f"container:{find(other).id}"  # it may get another name
    for text in host["Links"] or ():
        name = text.partition(":")[0]
        try:
            find(name.removeprefix("/"))
        except NotFound as error:
            raise BadRequest(f"could not get container for {name}: {error}") from None
    own: dict[str, Any] = {name: whole.flag(name) for name in _OWN_FLAGS}
    own |= {"Image": whole.text("Image"), "Hostname": _hostname(whole), "Domainname": _domainname(whole)}
    if own["NetworkDisabled"]:
        host["NetworkMode"] = "none"
    exposed = whole.names("ExposedPorts")
    namespaces.check_network({**own, "ExposedPorts": exposed}, host)
    own["NetworkingConfig"] = networking.taken(whole, host["NetworkMode"])

    def inherited(name: str) -> list[mountpoints.Point]:
        try:
            return list(points_of(find(name)))
        except NotFound as error:
            raise BadRequest(str(error)) from None

    own["MountPoints"] = mountpoints.points(host, sorted(config.get("Volumes") or ()), inherited)
    own["HostConfig"] = host
    if not command(config):
        raise BadRequest("no command specified: the image names none, so give one after the image")
    return Description(config, own, warnings)


def _configuration(image: Mapping[str, Any], body: Members) -> dict[str, Any]:
    """Return the configuration *image* with what *body* wants otherwise: moby's `merge`."""
    config = dict(image)
    if body.text("User"):
        config["User"] = body.text("User")
    if exposed := body.names("ExposedPorts"):
        config["ExposedPorts"] = {
            **{port: {} for port in portbindings.ports(exposed)},
            **(image.get("ExposedPorts") or {}),
        }
    if variables := body.texts("Env"):
        config["Env"] = _variables(variables, image.get("Env") or ())
    if labels := body.pairs("Labels"):
        config["Labels"] = {**(image.get("Labels") or {}), **labels}
    entrypoint, words = body.words("Entrypoint"), body.words("Cmd")
    if entrypoint:
        config["Entrypoint"] = entrypoint if entrypoint != [""] else []
        config["Cmd"] = words or []
    elif words:
        config["Cmd"] = words
        if entrypoint is not None and "Entrypoint" not in image:
            config["Entrypoint"] = []
    if body.text("WorkingDir"):
        config["WorkingDir"] = os.path.normpath(absolute(body.text("WorkingDir")))
    if volumes := body.names("Volumes"):
        config["Volumes"] = {**{path: {} for path in volumes}, **(image.get("Volumes") or {})}
    if body.text("StopSignal"):
        signal_number(body.text("StopSignal"))
        config["StopSignal"] = body.text("StopSignal")
    if (patience := body.optional_number("StopTimeout")) is not None:
        config["StopTimeout"] = patience
    if (check := health.merged(health.taken(body), image.get("Healthcheck"))) is not None:
        config["Healthcheck"] = check
    for name in ("Shell", "OnBuild"):
        if (given := body.texts(name)) is not None:
            config[name] = given
    return config


def _variables(own: Iterable[str], image: Iterable[str]) -> list[str]:
    """Return a container's variables: its *own*, then those of the *image* that they say nothing of.

    A name alone stays as it was given: it takes the image's variable away, and inspect shows it.
    """
    texts: dict[str, str] = {}
    for text in own:
        name = text.partition("=")[0]
        if not name:
            raise BadRequest(f"invalid environment variable: {text[:80]}")
        texts[name] = text
    for text in image:
        texts.setdefault(text.partition("=")[0], text)
    return list(texts.values())


def _hostname(body: Members) -> str:
    name = body.text("Hostname")
    if len(name) > 64:
        raise BadRequest(f'invalid hostname: "{name[:80]}" is too long (maximum 64 bytes)')
    if name and not _HOSTNAME.fullmatch(name):
        raise BadRequest(f"invalid hostname {name!r}: use letters, digits, '-' and '.', at most 64")
    return name


def _domainname(body: Members) -> str:
    name = body.text("Domainname")
    if name and not _DOMAIN.fullmatch(name):
        raise BadRequest(f"invalid domain name {name[:80]!r}: use letters, digits, '-' and '.'")
    return name


def command(config: Mapping[str, Any]) -> list[str]:
    """Return the words of the process that *config* describes: its entrypoint and its arguments."""
    return [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]


def absolute(workdir: str) -> str:
    """Return *workdir* if it can be a working directory, else raise `BadRequest`."""
    if not workdir.startswith("/"):
        raise BadRequest(f"the working directory {workdir!r} is invalid, it needs to be an absolute path")
    return workdir


def environment(base: Iterable[str], more: Iterable[str]) -> list[str]:
    """Return the variables *base* with *more* over them, the order kept.

    A name alone takes the variable away. Raises `BadRequest`.
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
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]
