"""Ports as clients write them: "80/tcp", and what of the host is bound to them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from layerfs.container.members import Members, wrong
from layerfs.errors import BadRequest

PROTOCOLS = ("tcp", "udp", "sctp")


def port(text: str) -> str:
    """Return a port of a container in the form "80/tcp"; raises `BadRequest`."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if (
        not re.fullmatch(r"\d{1,5}", number, re.ASCII)
        or not 0 < int(number) < 65536
        or protocol not in PROTOCOLS
    ):
        raise BadRequest(f'invalid port specification: "{text[:80]}"')
    return f"{int(number)}/{protocol}"


def ports(texts: Iterable[str]) -> list[str]:
    """Return ports of a container, those of a range ("8000-8010/tcp") one by one; raises `BadRequest`."""
    found: list[str] = []
    for text in texts:
        numbers, slash, protocol = text.partition("/")
        first, dash, last = numbers.partition("-")
        found.append(port(first + slash + protocol))
        if dash:
            low, high = (int(port(end).partition("/")[0]) for end in (first, last))
            if high < low:
                raise BadRequest(f'invalid port specification: "{text[:80]}"')
            found += [port(f"{number}{slash}{protocol}") for number in range(low + 1, high + 1)]
    return found


def host_ports(text: str) -> range:
    """Return the ports of the host that "8080" or "8080-8090" allow; raises `BadRequest`."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    if not found or not int(found[1]) <= int(found[2] or found[1]) < 65536:
        raise BadRequest(f'invalid port specification: "{text[:80]}"')
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def published(texts: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Return the `PortBindings` that options such as `127.0.0.1:8080:80/udp` mean; raises `BadRequest`."""
    found: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        rest, _, inside = text.rpartition(":")
        address, _, outside = rest.rpartition(":")
        wanted = ports([inside])
        choice = host_ports(outside) if outside else range(0)
        if len(wanted) > 1 and outside and len(choice) != len(wanted):
            raise BadRequest(f"invalid ranges specified for container and host Ports: {text[:80]!r}")
        for number, one in enumerate(wanted):
            own = str(choice[number]) if outside and len(wanted) > 1 else outside
            found.setdefault(one, []).append({"HostIp": address.strip("[]"), "HostPort": own})
    return found


def bindings(members: Members) -> dict[str, list[dict[str, str]] | None]:
    """Return the member `PortBindings`; raises `BadRequest`."""
    found: dict[str, list[dict[str, str]] | None] = {}
    for text, value in members.entries("PortBindings") or ():
        where = f"{members.path('PortBindings')}.{text}"
        if value is not None and not isinstance(value, list):
            raise wrong(where, "a list of objects", value)
        given = value and [Members(item, f"{where}[{number}]") for number, item in enumerate(value)]
        found[port(text)] = [_binding(binding) for binding in given] if given else []
    return found


def _binding(binding: Members) -> dict[str, str]:
    address, number = binding.text("HostIp"), binding.text("HostPort")
    if address:
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            raise BadRequest(f'invalid IP address in port binding: "{address[:80]}"') from None
    if number:
        host_ports(number)
    return {"HostIp": address, "HostPort": number}
