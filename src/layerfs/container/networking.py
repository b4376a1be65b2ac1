"""Docker's `NetworkingConfig`: how a container is connected to the networks that it begins with."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from layerfs.container.members import Members
from layerfs.errors import BadRequest

_MAC = re.compile(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}")
_SHARED = ("host", "none")


def taken(body: Members, mode: str) -> dict[str, Any]:
    """Return the member `NetworkingConfig` of a request to create a container; raises `BadRequest`.

    *mode* is its `NetworkMode`. A `MacAddress` of the whole container, as clients of old send it, becomes
    that of its connection to the network of this name.
    """
    members = body.member("NetworkingConfig")
    endpoints = {
        name: endpoint(Members({} if value is None else value, f"NetworkingConfig.EndpointsConfig.{name}"))
        for name, value in (members.entries("EndpointsConfig") if members else None) or ()
    }
    if "default" in endpoints:
        endpoints[mode] = endpoints.pop("default")
    if address := body.text("MacAddress"):
        if mode in _SHARED or mode.startswith("container:"):
            raise BadRequest("conflicting options: mac-address and the network mode")
        own = endpoints.setdefault(mode, endpoint(Members({})))
        if own["MacAddress"] not in ("", _mac(address)):
            raise BadRequest(
                "conflicting MAC address options: the container's own, and that of its connection"
            )
        own["MacAddress"] = _mac(address)
    return {"EndpointsConfig": endpoints}


def endpoint(members: Members) -> dict[str, Any]:
    """Return an `EndpointSettings`, of which only what a client decides is kept; raises `BadRequest`."""
    addresses = members.member("IPAMConfig")
    found: dict[str, Any] = {
        "IPAMConfig": addresses
        and {
            "IPv4Address": _address(addresses, "IPv4Address", 4),
            "IPv6Address": _address(addresses, "IPv6Address", 6),
            "LinkLocalIPs": addresses.texts("LinkLocalIPs") or [],
        },
        "Links": members.texts("Links"),
        "Aliases": members.texts("Aliases"),
        "MacAddress": _mac(members.text("MacAddress")),
        "DriverOpts": members.pairs("DriverOpts"),
        "GwPriority": members.number("GwPriority"),
    }
    for alias in found["Aliases"] or ():
        if not re.fullmatch(r"[^\s,/]{1,255}", alias):
            raise BadRequest(f"invalid alias {alias[:80]!r} in {members.where}")
    return found


def _address(members: Members, name: str, version: int) -> str:
    text = members.text(name)
    if text:
        try:
            good = ipaddress.ip_address(text).version == version
        except ValueError:
            good = False
        if not good:
            raise BadRequest(f"invalid endpoint settings: invalid IPv{version} address: {text[:80]}")
    return text


def _mac(text: str) -> str:
    if text and not _MAC.fullmatch(text):
        raise BadRequest(f"invalid MAC address: {text[:80]}")
    return ":".join(part.zfill(2) for part in re.split("[:-]", text)).lower() if text else ""
