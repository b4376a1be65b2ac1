"""Docker's `NetworkingConfig`: how a container is connected to the networks that it begins with."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest

_MAC = re.compile(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}")
_LINK = re.compile(r"/?[\w.-]{1,128}(:(/[\w.-]+/)?[\w.-]{1,128})?", re.ASCII)
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_SHARED = ("host", "none")


def taken(body: Members, mode: str) -> dict[str, Any]:
    """Return the member `NetworkingConfig` of a request to create a container; raises `BadRequest`.

    *mode* is its `NetworkMode`: the network of the container where no other is named. A `MacAddress` of the
    whole container, as clients of old send it, becomes that of its connection to the network of this name.
    """
    alone = mode in _SHARED or mode.startswith("container:")
    members = body.member("NetworkingConfig")
    endpoints = {
        name: endpoint(Members({} if value is None else value, f"NetworkingConfig.EndpointsConfig.{name}"))
        for name, value in (members.entries("EndpointsConfig") if members else None) or ()
    }
    if "default" in endpoints:
        endpoints[mode] = endpoints.pop("default")
    if address := body.text("MacAddress"):
        if alone:
            raise BadRequest("conflicting options: mac-address and the network mode")
        own = endpoints.setdefault(mode, endpoint(Members({})))
        if own["MacAddress"] not in ("", _mac(address)):
            raise BadRequest(
                "conflicting MAC address options: the container's own, and that of its connection"
            )
        own["MacAddress"] = _mac(address)
    if not endpoints and not alone:
        endpoints[mode] = endpoint(Members({}))
    return {"EndpointsConfig": endpoints}


def endpoint(members: Members) -> dict[str, Any]:
    """Return an `EndpointSettings`, of which only what a client decides is kept; raises `BadRequest`."""
    addresses = members.member("IPAMConfig")
    found: dict[str, Any] = {
        "IPAMConfig": addresses and _ipam(addresses),
        "Links": members.texts("Links"),
        "Aliases": members.texts("Aliases"),
        "MacAddress": _mac(members.text("MacAddress")),
        "DriverOpts": members.pairs("DriverOpts"),
        "GwPriority": members.number("GwPriority"),
    }
    for alias in found["Aliases"] or ():
        if not _HOST_NAME.fullmatch(alias):
            raise BadRequest(f"invalid endpoint settings: invalid alias {alias[:80]!r}: it is no host name")
    for link in found["Links"] or ():
        check_link(link)
    return found


def _ipam(members: Members) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, version in (("IPv4Address", 4), ("IPv6Address", 6)):
        if text := members.text(name):
            found[name] = address(text, version)
    if texts := members.texts("LinkLocalIPs"):
        found["LinkLocalIPs"] = [address(text) for text in texts]
    return found


def address(text: str, version: int | None = None) -> str:
    """Return the address *text* in its usual form; raises `BadRequest` if it is none of that version."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        found = None
    if found is None or version not in (None, found.version) or found.is_unspecified:
        kind = f"IPv{version}" if version else "link-local IP"
        raise BadRequest(f"invalid endpoint settings: invalid {kind} address: {text[:80]}")
    return str(found)


def check_link(text: str) -> None:
    """Raise `BadRequest` unless *text* names a container, and perhaps an alias: `NAME[:ALIAS]`."""
    if not _LINK.fullmatch(text):
        raise BadRequest(f"bad format for links: {text[:80]}")


def _mac(text: str) -> str:
    if text and not _MAC.fullmatch(text):
        raise BadRequest(f"invalid MAC address: {text[:80]}")
    return ":".join(part.zfill(2) for part in re.split("[:-]", text)).lower() if text else ""
