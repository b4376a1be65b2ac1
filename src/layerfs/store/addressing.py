"""Which subnets a network gets, and which addresses in them a container: what Docker calls IPAM.

Nothing here looks at the store or at the machine.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from layerfs.errors import BadRequest, Forbidden, LayerfsError
from layerfs.store.model import Subnet

_MOST_ASKED = 1 << 16
"""Addresses that are looked at, at most, for a free one: a /16."""

IPNetwork = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address


def pools() -> Iterator[IPv4Network]:
    """Yield the subnets that networks get for which nobody asks for one: dockerd's default address pools."""
    for second in range(17, 32):
        yield IPv4Network(f"172.{second}.0.0/16")
    for third in range(0, 256, 16):
        yield IPv4Network(f"192.168.{third}.0/20")


def settle(
    wanted: Sequence[Subnet],
    others: Sequence[IPNetwork],
    routed: Sequence[IPv4Network],
    *,
    ipv6: bool,
    seed: str,
) -> list[Subnet]:
    """Return the subnets of a new network: those *wanted*, checked, and one of each kind that is missing.

    *others* are those of other networks, *routed* those that the machine uses; *seed*, hexadecimal digits,
    decides about IPv6. Raises `BadRequest`, `Forbidden` where they overlap, and `LayerfsError` where there is
    none left.
    """
    problems = [problem for subnet in wanted for problem in _problems(subnet)]
    if problems:
        raise BadRequest("invalid network config:\n" + "\n".join(problems))
    taken = list(others)
    settled = []
    for subnet in wanted:
        if subnet.version == 6 and not ipv6:
            continue  # as dockerd does
        own = ip_network(subnet.subnet) if subnet.subnet else _free_pool(taken, routed)
        if any(own.overlaps(other) for other in taken if other.version == own.version):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        taken.append(own)
        settled.append(_with_gateway(subnet, own))
    if not any(subnet.version == 4 for subnet in settled):
        settled.insert(0, _with_gateway(Subnet("", ""), _free_pool(taken, routed)))
    if ipv6 and not any(subnet.version == 6 for subnet in settled):
        own6 = IPv6Network(f"fd{seed[:2]}:{seed[2:6]}:{seed[6:10]}::/64")  # a ULA: RFC 4193
        settled.append(_with_gateway(Subnet("", ""), own6))
    return settled


def _with_gateway(subnet: Subnet, own: IPNetwork) -> Subnet:
    within = ip_network(subnet.range) if subnet.range else own
    reserved = {ip_address(text) for text in subnet.reserved.values()}
    free = (str(it) for it in _hosts(within, own) if it not in reserved)
    gateway = subnet.gateway or next(free, "")
    if not gateway:
        raise BadRequest(f"invalid network config:\ninvalid subnet {own}: it has no room for a gateway")
    return Subnet(str(own), gateway, subnet.range, dict(subnet.reserved), bool(subnet.subnet))


def _free_pool(taken: Sequence[IPNetwork], routed: Sequence[IPv4Network]) -> IPv4Network:
    busy = [*(other for other in taken if isinstance(other, IPv4Network)), *routed]
    for pool in pools():
        if not any(pool.overlaps(other) for other in busy):
            return pool
    raise LayerfsError("all predefined address pools have been fully subnetted: give a subnet")


def _problems(subnet: Subnet) -> Iterator[str]:
    """Yield what is wrong with *subnet*, in the words of dockerd's `validateIpamConfig`."""
    if not subnet.subnet:
        if subnet.gateway or subnet.range or subnet.reserved:
            yield "invalid subnet : give the subnet of the gateway, the ip-range and the auxiliary addresses"
        return
    try:
        own = ip_network(subnet.subnet, strict=False)
    except ValueError:
        yield f"invalid subnet {subnet.subnet[:80]}: it is none in CIDR notation, such as 10.1.0.0/16"
        return
    if "/" not in subnet.subnet:
        yield f"invalid subnet {subnet.subnet}: it is none in CIDR notation, such as 10.1.0.0/16"
    elif ip_address(subnet.subnet.partition("/")[0]) != own.network_address:
        yield f"invalid subnet {subnet.subnet}: it should be {own}"
    if subnet.range:
        yield from _range_problems(subnet.range, own)
    if subnet.gateway:
        yield from (
            f"invalid gateway {subnet.gateway[:80]}: {line}" for line in _outside(subnet.gateway, own)
        )
    for name, text in subnet.reserved.items():
        yield from (f"invalid auxiliary address {name[:80]}: {line}" for line in _outside(text, own))


def _range_problems(text: str, own: IPNetwork) -> Iterator[str]:
    try:
        part = ip_network(text, strict=False)
    except ValueError:
        yield f"invalid ip-range {text[:80]}: it is none in CIDR notation"
        return
    if part.version != own.version:
        yield f"invalid ip-range {text}: parent subnet is an IPv{own.version} block"
        return
    if part.prefixlen < own.prefixlen:
        yield f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {own}"
    if ip_address(text.partition("/")[0]) != part.network_address:
        yield f"invalid ip-range {text}: it should be {part}"
    if not own.overlaps(part):
        yield f"invalid ip-range {text}: parent subnet {own} doesn't contain ip-range"


def _outside(text: str, own: IPNetwork) -> Iterator[str]:
    try:
        address = ip_address(text)
    except ValueError:
        yield "it is no address"
        return
    if address.version != own.version:
        yield f"parent subnet is an IPv{own.version} block"
    elif address not in own:
        yield f"parent subnet {own} doesn't contain this address"


def choose(subnets: Sequence[Subnet], used: Collection[IPAddress]) -> IPAddress | None:
    """Return a free address in one of *subnets*, none of *used*; None where there is none."""
    for subnet in subnets:
        for candidate in _hosts(ip_network(subnet.range or subnet.subnet), ip_network(subnet.subnet)):
            if candidate not in used:
                return candidate
    return None


def reserved(subnets: Sequence[Subnet]) -> set[IPAddress]:
    """Return the addresses in *subnets* that no container may have: of gateways, and those kept free."""
    return {
        ip_address(text) for subnet in subnets for text in (subnet.gateway, *subnet.reserved.values()) if text
    }


def check_within(name: str, subnets: Sequence[Subnet], address: IPAddress) -> None:
    """Raise `BadRequest`, in dockerd's words, if *address* is in none of *subnets* of the network *name*."""
    if not any(address in ip_network(subnet.subnet) for subnet in subnets):
        raise BadRequest(
            f"invalid config for network {name}: invalid endpoint settings:\n"
            f"no configured subnet contains IP address {address}"
        )


def address(text: str) -> IPAddress:
    """Return the address *text*; raises `BadRequest`."""
    try:
        return ip_address(text)
    except ValueError:
        raise BadRequest(f"invalid endpoint settings:\ninvalid IP address: {text[:80]}") from None


def _hosts(within: IPNetwork, own: IPNetwork) -> Iterator[IPAddress]:
    """Yield the addresses of *within* that a machine in *own* may have."""
    first, last = int(within.network_address), int(within.broadcast_address)
    kind = type(within.network_address)
    never = {own.network_address} | ({own.broadcast_address} if own.version == 4 else set())
    if own.prefixlen >= own.max_prefixlen - 1:
        never = set()
    for number in range(first, min(last, first + _MOST_ASKED) + 1):
        if (address := kind(number)) not in never:
            yield address


def mac(address: str) -> str:
    """Return a hardware address of the local kind: that of an IPv4 address, as Docker's are, or any."""
    tail = IPv4Address(address).packed if address else os.urandom(4)
    return "02:42:" + ":".join(f"{byte:02x}" for byte in tail)
