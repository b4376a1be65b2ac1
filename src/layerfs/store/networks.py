"""Networks: what they are to be, which containers are in them, and whose each address and port is.

An address belongs to a container for as long as a row of `endpoints` says so, in this boot of the machine. It
is chosen in the transaction that writes the row, so no two containers get the same one. What makes the
network real (bridges, namespaces, rules) is no part of the store: see `layerfs.container.networks`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

from layerfs.errors import BadRequest, Conflict, Forbidden, LayerfsError, NotFound
from layerfs.host.subnets import routed
from layerfs.store import addressing, events, stacks
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
        settled: list[Subnet] = []
        if driver == "bridge":
            settled = addressing.settle(subnets, self._taken(), routed(), ipv6=ipv6, seed=network_id)
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
            others = self._taken(but=network.id)
            settled = addressing.settle((), others, routed(), ipv6=network.ipv6, seed=network.id)
            self._db.execute(
                "UPDATE networks SET subnets = ? WHERE id = ?",
                (json.dumps([_as_json(subnet) for subnet in settled]), network.id),
            )
            return self.find(network.id)

    def _taken(self, *, but: str = "") -> list[addressing.IPNetwork]:
        """Return the subnets of all networks, but for the one with this id."""
        rows = self._db.execute("SELECT subnets FROM networks WHERE id != ?", (but,)).fetchall()
        return [ip_network(subnet.subnet) for (text,) in rows for subnet in _subnets(text)]

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
                mac.lower() or addressing.mac(chosen), tuple(names),
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

    def set_names(self, mount_id: str, network_id: str, names: Sequence[str]) -> None:
        """Note by which names, besides its own, a container that runs is found in a network."""
        with self._db.transaction():
            self._db.execute(
                "UPDATE endpoints SET names = ? WHERE mount = ? AND network = ?",
                (json.dumps(list(names)), mount_id, network_id),
            )

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
        used = {ip_address(str(row[0])) for row in rows.fetchall()} | addressing.reserved(subnets)
        if wanted:
            address = addressing.address(wanted)
            addressing.check_within(network.name, subnets, address)
            if address in used:
                raise Forbidden(f"Address already in use: {address} in the network {network.name}")
            return str(address)
        if (free := addressing.choose(subnets, used)) is not None:
            return str(free)
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
