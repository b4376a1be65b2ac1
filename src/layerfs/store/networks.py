"""Networks: what they are to be, which containers are in them, and whose each address and port is.

An address belongs to a container for as long as a row of `endpoints` says so, in this boot of the machine. It
is chosen in the transaction that writes the row, so no two containers get the same one. What makes the
network real (bridges, namespaces, rules) is no part of the store: see `layerfs.container.networks`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from layerfs.errors import BadRequest, Conflict, Forbidden, LayerfsError, NotFound
from layerfs.host.subnets import routed
from layerfs.store import events, stacks
from layerfs.store.database import Database
from layerfs.store.model import PREDEFINED, Endpoint, Network, Port, Subnet, now, to_datetime
from layerfs.union.trees import boot_id

_LONGEST = 128
"""Characters of a name. dockerd has no limit."""
_DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}
_COLUMNS = "id, name, driver, created, internal, attachable, ipv6, subnets, ipam, labels, options"
_ENDPOINT = (
    "endpoints.id, network, mount, mounts.name, interface, address, address6, mac, names"
    " FROM endpoints JOIN mounts ON mounts.id = mount"
)
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


def is_name(text: str) -> bool:
    """Return whether a network may be called *text*: as with dockerd anything that is not blank."""
    return bool(text.strip()) and text.isprintable() and len(text) <= _LONGEST


class Networks:
    """The networks of a store, and who is in them. Any method may raise `StoreBusy` and its like."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # Networks

    def every(self) -> list[Network]:
        """Return all networks, the predefined ones too, newest first."""
        self._add_predefined()
        return self._rows()

    def _rows(self) -> list[Network]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM networks ORDER BY created DESC, name")
        return [_network(row) for row in rows.fetchall()]

    def find(self, reference: str) -> Network:
        """Return the network with this id, name, or beginning of an id; raises `NotFound`, `BadRequest`."""
        found = self.look(reference)
        if found is None and reference in PREDEFINED:
            self._add_predefined()
            found = self.look(reference)
        if found is None:
            raise NotFound(f"network {reference} not found")
        return found

    def look(self, reference: str) -> Network | None:
        """Return the same, or None.

        Writes nothing, so a predefined one that nobody has asked for yet is missing.
        """
        found = self._rows()
        for network in found:
            if network.id == reference:
                return network
        for network in found:
            if network.name == reference:
                return network
        matching = [network for network in found if reference and network.id.startswith(reference)]
        if len(matching) > 1:
            raise BadRequest(
                f"network {reference} is ambiguous ({len(matching)} matches found based on ID prefix)"
            )
        return matching[0] if matching else None

    def create(
        self,
        name: str,
        *,
        subnets: Sequence[Subnet] = (),
        internal: bool = False,
        attachable: bool = False,
        ipv6: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        ipam: Mapping[str, str] | None = None,
    ) -> Network:
        """Make a network of the driver `bridge`; what *subnets* leave open is chosen here.

        Atomic, and not on the disk before `Store.sync`. Raises `BadRequest` for a name or subnets that make
        no sense, `Conflict` for a name that is taken, `Forbidden` for a predefined one or for subnets that
        overlap another network's.
        """
        if name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {name} network ")
        if not is_name(name):
            raise BadRequest(f"invalid network name {name[:150]!r}: use 1 to {_LONGEST} printable characters")
        self._add_predefined()
        with self._db.transaction():
            if self._db.scalar("SELECT 1 FROM networks WHERE name = ?", (name,)):
                raise Conflict(f"network with name {name} already exists")
            return self._insert(
                name, "bridge", subnets, internal, attachable, ipv6, ipam or {}, labels or {}, options or {}
            )

    def remove(self, network_id: str) -> None:
        """Remove a network.

        Raises `NotFound`, and `Forbidden` for a predefined one and while containers run in it.
        """
        with self._db.transaction():
            self._forget_other_boots()
            network = self.find(network_id)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            if used := self._endpoints("network", network.id):
                names = ", ".join(f'name:"{it.mount_name}" id:"{it.id[:12]}"' for it in used)
                raise Forbidden(
                    f"error while removing network: network {network.name} has active endpoints ({names})"
                )
            self._db.execute("DELETE FROM networks WHERE id = ?", (network.id,))
            self._record(network, "destroy")

    def prune(self, wanted: Callable[[Network], bool]) -> list[Network]:
        """Remove the *wanted* networks that no container has, running or not; return those that went."""
        gone = []
        for network in self.every():
            if network.predefined or not wanted(network):
                continue
            with self._db.transaction():
                if self._users(network):
                    continue
                if self._db.execute("DELETE FROM networks WHERE id = ?", (network.id,)).rowcount:
                    self._record(network, "destroy")
                    gone.append(network)
        with self._db.transaction():
            events.record(self._db, "network", "prune", "", {"reclaimed": "0"})
        return gone

    def _users(self, network: Network) -> bool:
        if self._endpoints("network", network.id):
            return True
        for (options,) in self._db.execute("SELECT options FROM mounts").fetchall():
            container = json.loads(options).get("container") or {}
            if names_in(container) & {network.name, network.id}:
                return True
        return False

    def _insert(
        self,
        name: str,
        driver: str,
        subnets: Sequence[Subnet],
        internal: bool,
        attachable: bool,
        ipv6: bool,
        ipam: Mapping[str, str],
        labels: Mapping[str, str],
        options: Mapping[str, str],
    ) -> Network:
        network_id = os.urandom(32).hex()
        known = [
            subnet
            for (text,) in self._db.execute("SELECT subnets FROM networks").fetchall()
            for subnet in _subnets(text)
        ]
        settled: list[Subnet] = []
        if driver == "bridge":
            others = [ip_network(subnet.subnet) for subnet in known]
            settled = _settle(subnets, others, ipv6=ipv6, seed=network_id)
        columns = (
            network_id, name, driver, now(), internal, attachable, ipv6,
            json.dumps([_as_json(subnet) for subnet in settled]),
            json.dumps(dict(ipam)), json.dumps(dict(labels)), json.dumps(dict(options)),
        )  # fmt: skip
        self._db.execute(
            f"INSERT INTO networks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns
        )
        network = _network(columns)
        self._record(network, "create")
        return network

    def _add_predefined(self) -> None:
        """Make the predefined networks if they are missing: which subnet is free depends on the machine."""
        wanted = "SELECT count(*) FROM networks WHERE name IN ('bridge', 'host', 'none')"
        if self._db.number(wanted) == len(PREDEFINED):
            return
        if not self._db.connection.in_transaction:
            with self._db.transaction():
                self._add_predefined()
            return
        for name, driver in _DRIVERS.items():
            if not self._db.scalar("SELECT 1 FROM networks WHERE name = ?", (name,)):
                self._insert(name, driver, (), False, False, False, {}, {}, {})

    def settle_default(self) -> Network:
        """Return the network `bridge`, with another subnet if the machine has a use for its own by now.

        Another store's may have it, or a network that the machine was connected to. While containers run in
        it, it stays what it is.
        """
        network = self.find("bridge")
        own = [ip_network(subnet.subnet) for subnet in network.subnets]
        if self.endpoints(network=network.id) or not any(
            one.overlaps(other) for one in own for other in routed() if isinstance(one, IPv4Network)
        ):
            return network
        with self._db.transaction():
            if self.endpoints(network=network.id):
                return network
            known = self._db.execute("SELECT subnets FROM networks WHERE id != ?", (network.id,)).fetchall()
            others = [ip_network(subnet.subnet) for (text,) in known for subnet in _subnets(text)]
            settled = _settle((), others, ipv6=network.ipv6, seed=network.id)
            self._db.execute(
                "UPDATE networks SET subnets = ? WHERE id = ?",
                (json.dumps([_as_json(subnet) for subnet in settled]), network.id),
            )
            return self.find(network.id)

    def _record(self, network: Network, action: str, **more: str) -> None:
        attributes = {**more, "name": network.name, "type": network.driver}
        events.record(self._db, "network", action, network.id, attributes)

    # Containers in them

    def endpoints(self, *, network: str | None = None, mount: str | None = None) -> list[Endpoint]:
        """Return who is in the network with this id, or in which networks a container is, or both or all."""
        found = self._endpoints("mount", mount) if mount else self._endpoints("network", network)
        return [it for it in found if network in (None, it.network)]

    def _endpoints(self, column: str, value: str | None) -> list[Endpoint]:
        condition = f"AND {column} = ?2" if value else ""
        values = (boot_id(), value) if value else (boot_id(),)
        rows = self._db.execute(
            f"SELECT {_ENDPOINT} WHERE boot = ?1 {condition} ORDER BY interface, network", values
        )
        return [_endpoint(row) for row in rows.fetchall()]

    def join(
        self,
        mount_id: str,
        network_id: str,
        *,
        address: str = "",
        address6: str = "",
        mac: str = "",
        names: Sequence[str] = (),
    ) -> Endpoint:
        """Put a container that starts, or runs, into a network: give it its addresses there.

        Those in *address* and *address6*, else free ones. Atomic; for one that is in the network already,
        what it has is given up first. Raises `BadRequest` for addresses outside the network, `Forbidden` for
        one that is taken, `NotFound`, and `LayerfsError` where all are taken.
        """
        with self._db.transaction():
            self._forget_other_boots()
            network = self.find(network_id)
            name = self._db.scalar("SELECT name FROM mounts WHERE id = ?", (mount_id,))
            if name is None:
                raise NotFound(f"no such mount: {mount_id}")
            self._db.execute("DELETE FROM endpoints WHERE network = ? AND mount = ?", (network.id, mount_id))
            taken = {it.interface for it in self._endpoints("mount", mount_id)}
            interface = next(f"eth{n}" for n in range(len(taken) + 1) if f"eth{n}" not in taken)
            chosen = self._choose(network, 4, address)
            chosen6 = self._choose(network, 6, address6) if network.ipv6 else ""
            endpoint = Endpoint(
                os.urandom(32).hex(), network.id, mount_id, str(name), interface, chosen, chosen6,
                mac.lower() or _mac(chosen), tuple(names),
            )  # fmt: skip
            self._db.execute(
                "INSERT INTO endpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    endpoint.id, network.id, mount_id, interface, chosen or None, chosen6 or None,
                    endpoint.mac, json.dumps(list(names)), boot_id(),
                ),
            )  # fmt: skip
            self._record(network, "connect", container=mount_id)
            return endpoint

    def leave(self, mount_id: str, network_id: str | None = None) -> None:
        """Take a container out of a network, or of all: its addresses are free, and with the last its ports.

        May be repeated, and writes nothing where there is nothing to do.
        """
        have = "SELECT 1 FROM endpoints WHERE mount = ?1 UNION SELECT 1 FROM ports WHERE mount = ?1"
        if self._db.scalar(have, (mount_id,)) is None:
            return
        with self._db.transaction():
            for endpoint in self.endpoints(mount=mount_id, network=network_id):
                self._record(self.find(endpoint.network), "disconnect", container=mount_id)
            condition, values = "mount = ?", [mount_id]
            if network_id is not None:
                condition, values = f"{condition} AND network = ?", [mount_id, network_id]
            self._db.execute(f"DELETE FROM endpoints WHERE {condition}", values)
            if network_id is None:
                self._db.execute("DELETE FROM ports WHERE mount = ?", (mount_id,))

    def _choose(self, network: Network, version: int, wanted: str) -> str:
        subnets = [subnet for subnet in network.subnets if subnet.version == version]
        column = "address" if version == 4 else "address6"
        rows = self._db.execute(
            f"SELECT {column} FROM endpoints WHERE network = ? AND {column} IS NOT NULL", (network.id,)
        )
        used = {ip_address(str(row[0])) for row in rows.fetchall()}
        for subnet in subnets:
            kept = [subnet.gateway, *subnet.reserved.values()]
            used |= {ip_address(text) for text in kept if text}
        if wanted:
            address = _address(wanted)
            if not any(address in ip_network(subnet.subnet) for subnet in subnets):
                raise BadRequest(
                    f"invalid config for network {network.name}: invalid endpoint settings:\n"
                    f"no configured subnet contains IP address {address}"
                )
            if address in used:
                raise Forbidden(f"Address already in use: {address} in the network {network.name}")
            return str(address)
        for subnet in subnets:
            for candidate in _hosts(ip_network(subnet.range or subnet.subnet), ip_network(subnet.subnet)):
                if candidate not in used:
                    return str(candidate)
        if not subnets:
            return ""
        raise LayerfsError(
            f"no available IPv{version} addresses on this network's address pools: "
            f"{network.name} ({network.id})"
        )

    def _forget_other_boots(self) -> None:
        """Remove what containers had before the machine was started anew; part of a transaction."""
        for table in ("endpoints", "ports"):
            self._db.execute(f"DELETE FROM {table} WHERE boot != ?", (boot_id(),))

    # Ports

    def publish(self, mount_id: str, ports: Iterable[Port]) -> None:
        """Note that *ports* of the host lead to a container, all of them or none.

        Raises `Conflict` in dockerd's words for one that leads to another container.
        """
        with self._db.transaction():
            self._forget_other_boots()
            for port in ports:
                self.check_free(port)
                self._db.execute(
                    "INSERT INTO ports VALUES (?, ?, ?, ?, ?, ?)",
                    (port.protocol, port.host_ip, port.host_port, mount_id, port.container_port, boot_id()),
                )

    def check_free(self, port: Port) -> None:
        """Raise `Conflict`, in dockerd's words, if *port* of the host leads to a container that runs."""
        rows = self._db.execute(
            "SELECT host_ip FROM ports WHERE protocol = ? AND host_port = ? AND boot = ?",
            (port.protocol, port.host_port, boot_id()),
        )
        for (other,) in rows.fetchall():
            same_family = (":" in other) == (":" in port.host_ip)
            if same_family and (other == port.host_ip or {"0.0.0.0", "::"} & {other, port.host_ip}):
                raise Conflict(f"Bind for {port.host_ip}:{port.host_port} failed: port is already allocated")

    def ports(self, mount_id: str | None = None) -> list[Port]:
        """Return the ports of the host that lead to a container, or to any."""
        condition = "AND mount = ?2" if mount_id else ""
        rows = self._db.execute(
            f"SELECT protocol, host_ip, host_port, container_port FROM ports WHERE boot = ?1 {condition} "
            "ORDER BY container_port, protocol, host_port, host_ip",
            (boot_id(), mount_id) if mount_id else (boot_id(),),
        )
        return [Port(*row) for row in rows.fetchall()]

    # What a container is to be in when it runs

    def set_wanted(self, mount_id: str, network: Network, endpoint: Mapping[str, Any] | None) -> None:
        """Note that a container is to be in *network*, with *endpoint* (`EndpointSettings`), or None: not.

        Raises `NotFound`.
        """
        with self._db.transaction():
            text = self._db.scalar("SELECT options FROM mounts WHERE id = ?", (mount_id,))
            if text is None:
                raise NotFound(f"no such mount: {mount_id}")
            options = json.loads(str(text))
            container = options.get("container") or {}
            wanted = endpoints_in(container)
            for key in (network.name, network.id):
                wanted.pop(key, None)
            if endpoint is not None:
                wanted[network.name] = dict(endpoint)
            options["container"] = {**container, "NetworkingConfig": {"EndpointsConfig": wanted}}
            self._db.execute(
                "UPDATE mounts SET options = ? WHERE id = ?", (stacks.canonical_json(options), mount_id)
            )


def network_mode(container: Mapping[str, Any]) -> str:
    """Return the `NetworkMode` in the settings of a container; `default` and nothing mean `bridge`."""
    mode = container.get("NetworkMode") or (container.get("HostConfig") or {}).get("NetworkMode") or "host"
    return "bridge" if mode == "default" else str(mode)


def default_network(container: Mapping[str, Any]) -> str:
    """Return the network that the mode alone puts a container into, "" for one of no bridge."""
    mode = network_mode(container)
    return "" if mode in ("host", "none") or mode.startswith("container:") else mode


def names_in(container: Mapping[str, Any]) -> set[str]:
    """Return the networks, by name or id, that the settings of a container name."""
    return set(endpoints_in(container)) if container else set()


def endpoints_in(container: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the settings of a container want of each network, by its name or id: `EndpointSettings`.

    Those of an older layerfs have the mode alone.
    """
    given = (container.get("NetworkingConfig") or {}).get("EndpointsConfig")
    if given is not None:
        return {name: endpoint or {} for name, endpoint in given.items()}
    mode = default_network(container)
    return {mode: {}} if mode else {}


def _network(row: Sequence[Any]) -> Network:
    network_id, name, driver, created, internal, attachable, ipv6, subnets, ipam, labels, options = row
    return Network(
        network_id, name, driver, to_datetime(created), bool(internal), bool(attachable), bool(ipv6),
        tuple(_subnets(subnets)), json.loads(labels), json.loads(options), json.loads(ipam),
    )  # fmt: skip


def _subnets(text: Any) -> list[Subnet]:
    return [Subnet(**item) for item in json.loads(str(text))]


def _as_json(subnet: Subnet) -> dict[str, Any]:
    names = ("subnet", "gateway", "range", "reserved", "chosen")
    return {name: getattr(subnet, name) for name in names}


def _endpoint(row: Sequence[Any]) -> Endpoint:
    identifier, network, mount, name, interface, address, address6, mac, names = row
    return Endpoint(
        identifier, network, mount, name, interface, address or "", address6 or "", mac,
        tuple(json.loads(names)),
    )  # fmt: skip


def _settle(wanted: Sequence[Subnet], others: Sequence[IPNetwork], *, ipv6: bool, seed: str) -> list[Subnet]:
    """Return the subnets of a new network: those *wanted*, checked, and one of each kind that is missing."""
    problems = [problem for subnet in wanted for problem in _problems(subnet)]
    if problems:
        raise BadRequest("invalid network config:\n" + "\n".join(problems))
    taken = list(others)
    settled = []
    for subnet in wanted:
        if subnet.version == 6 and not ipv6:
            continue  # as dockerd does
        own = ip_network(subnet.subnet) if subnet.subnet else _free_pool(taken)
        if any(own.overlaps(other) for other in taken if other.version == own.version):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        taken.append(own)
        settled.append(_with_gateway(subnet, own))
    if not any(subnet.version == 4 for subnet in settled):
        settled.insert(0, _with_gateway(Subnet("", ""), _free_pool(taken)))
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


def _free_pool(taken: Sequence[IPNetwork]) -> IPv4Network:
    busy = [*(other for other in taken if isinstance(other, IPv4Network)), *routed()]
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


def _address(text: str) -> IPAddress:
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


def _mac(address: str) -> str:
    """Return a hardware address of the local kind: that of an IPv4 address, as Docker's are, or any."""
    tail = IPv4Address(address).packed if address else os.urandom(4)
    return "02:42:" + ":".join(f"{byte:02x}" for byte in tail)
