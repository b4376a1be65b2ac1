"""Ports of the host that lead to a container: which are asked for, and that nobody else has them.

netavark's rules lead packets to a container before the host looks who listens. So that no program of the
host takes the port, and waits for what never comes, a socket of ours has it: the container's supervisor
inherits it, and holds it for as long as the container runs.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from layerfs.container import portbindings
from layerfs.errors import Conflict, LayerfsError
from layerfs.store import Store
from layerfs.store.model import Port

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
_TRIES = 64
"""How often a port that the kernel found free may turn out to be somebody's."""


def wanted(
    bindings: Mapping[str, Iterable[Mapping[str, Any]] | None] | None,
    exposed: Iterable[str] = (),
    *,
    publish_all: bool = False,
    host_ip: str = "0.0.0.0",
) -> list[tuple[Port, range]]:
    """Return the ports to publish, each with those of the host that will do; empty: any that is free.

    *bindings* are Docker's `PortBindings`, *exposed* the `ExposedPorts`, published if that is asked for;
    *host_ip* is where no address is given. Raises `BadRequest`.
    """
    found: list[tuple[Port, range]] = []
    for spec, hosts in (bindings or {}).items():
        inside = _port(portbindings.port(spec), host_ip)
        for host in hosts or [{}]:
            given = str(host.get("HostPort") or "")
            outside = range(0) if given in ("", "0") else portbindings.host_ports(given)
            address = str(host.get("HostIp") or "").strip("[]") or host_ip
            found.append((replace(inside, host_ip=address), outside))
    if publish_all:
        have = {(port.container_port, port.protocol) for port, _ in found}
        more = [_port(spec, host_ip) for spec in portbindings.ports(sorted(exposed))]
        found += [(port, range(0)) for port in more if (port.container_port, port.protocol) not in have]
    return found


def _port(spec: str, host_ip: str) -> Port:
    number, _, protocol = spec.partition("/")
    return Port(protocol, host_ip, 0, int(number))


def claim(
    store: Store, mount_id: str, asked: Iterable[tuple[Port, range]]
) -> tuple[list[Port], list[socket.socket]]:
    """Take ports of the host for a container: note them in the store, and hold each by a socket.

    All or none. Raises `LayerfsError` in dockerd's words for one that somebody has.
    """
    held: list[socket.socket] = []
    taken: list[Port] = []
    try:
        for port, choice in asked:
            taken.append(_claim(store, mount_id, port, choice, held))
    except BaseException:
        for one in held:
            one.close()
        raise
    return taken, held


def _claim(store: Store, mount_id: str, port: Port, choice: range, held: list[socket.socket]) -> Port:
    refusal: LayerfsError | None = None
    for number in choice or [0] * _TRIES:
        candidate = Port(port.protocol, port.host_ip, number, port.container_port)
        try:
            if number:
                store.networks.check_free(candidate)
            one = _bind(candidate)
            candidate = Port(port.protocol, port.host_ip, number or one.getsockname()[1], port.container_port)
            try:
                store.networks.publish(mount_id, [candidate])
            except BaseException:
                one.close()
                raise
        except Conflict as error:
            refusal = error
            continue
        held.append(one)
        return candidate
    assert refusal is not None
    raise refusal


def _bind(port: Port) -> socket.socket:
    """Return a socket that has *port* of the host; raises `Conflict` where somebody else has it."""
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    where = f"{port.host_ip}:{port.host_port}/{port.protocol}"
    number = getattr(socket, "IPPROTO_SCTP", 132) if port.protocol == "sctp" else 0
    try:
        one = socket.socket(family, _KINDS[port.protocol], number)
    except OSError as error:
        raise LayerfsError(f"failed to bind host port {where}: {error.strerror}") from None
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol != "udp":
            # Connections that have ended must not keep the port: they are not ours. And only a socket that
            # listens keeps those away who say the same of theirs.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((port.host_ip, port.host_port))
        if port.protocol != "udp":
            one.listen(1)
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"failed to bind host port {where}: address already in use") from None
        text = (error.strerror or str(error)).lower()
        raise LayerfsError(f"failed to bind host port {where}: {text}") from None
    return one


def close(sockets: Iterable[socket.socket]) -> None:
    """Close *sockets*: whoever inherited them has their ports still."""
    for one in sockets:
        with suppress(OSError):
            one.close()
