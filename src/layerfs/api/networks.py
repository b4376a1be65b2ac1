"""Routes about networks: list, inspect, create, connect, disconnect, remove, prune."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from layerfs.api.filters import Filters, boolean_filter, label_matches, parse_filters
from layerfs.api.networkshapes import ICC, MASQUERADE, shape
from layerfs.api.routes import Call, route
from layerfs.api.times import parse_until
from layerfs.container import networking, networks, rewiring
from layerfs.container.members import Members, one_line
from layerfs.errors import BadRequest, Conflict, Forbidden, NotFound
from layerfs.store.model import PREDEFINED, Subnet
from layerfs.store.networks import names_in
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Mount, Network

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


def list_networks(call: Call) -> Response:
    """Return the networks, newest first."""
    known = ("dangling", "driver", "id", "label", "name", "scope", "type")
    matches = _filter(call.store, parse_filters(call.query.get("filters"), known))
    found = [network for network in call.store.networks.every() if matches(network)]
    detailed = call.request.version < (1, 28)
    return json_response([shape(call.store, network, containers=detailed) for network in found])


def inspect_network(call: Call) -> Response:
    """Return everything about one network."""
    scope = call.query.get("scope")
    network = call.store.networks.find(call.names["id"])
    if scope not in ("", "local"):
        raise NotFound(f"network {call.names['id']} not found")
    return json_response(shape(call.store, network, containers=True))


def create_network(call: Call) -> Response:
    """Make a network."""
    network = _create(call.store, Members(call.request.json()))
    call.store.sync()
    return json_response({"Id": network.id, "Warning": ""}, 201)


def _create(store: Store, body: Members) -> Network:
    name = body.text("Name")
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network ")
    _check_driver(body.text("Driver"))
    if body.text("Scope") not in ("", "local") or body.flag("Ingress"):
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
            "this node to swarm and try again."
        )
    other = body.member("ConfigFrom")
    if body.flag("ConfigOnly") or (other and other.text("Network")):
        raise BadRequest("configuration-only networks are not supported")
    body.flag("CheckDuplicate")
    if body.optional_flag("EnableIPv4") is False:
        raise BadRequest("a network without IPv4 is not supported")
    options = body.pairs("Options") or {}
    ipam = body.member("IPAM") or Members({}, "IPAM")
    if ipam.text("Driver") not in ("", "default"):
        raise NotFound(f'plugin "{ipam.text("Driver")[:80]}" not found: the only IPAM driver is default')
    _check_options(store, options)
    return store.networks.create(
        name,
        subnets=ipam.each("Config", _subnet) or (),
        internal=body.flag("Internal"),
        attachable=body.flag("Attachable"),
        ipv6=body.flag("EnableIPv6"),
        labels=body.pairs("Labels"),
        options=options,
        ipam=ipam.pairs("Options"),
    )


def _check_driver(driver: str) -> None:
    if driver in ("", "bridge", "default"):
        return
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    raise NotFound(f'plugin "{driver[:80]}" not found: the drivers are bridge, host and null')


def _subnet(config: Members) -> Subnet:
    aux = config.pairs("AuxiliaryAddresses") or config.pairs("AuxAddress") or {}
    return Subnet(
        subnet=config.text("Subnet"),
        gateway=config.text("Gateway"),
        range=config.text("IPRange"),
        reserved=aux,
    )


def _check_options(store: Store, options: Mapping[str, str]) -> None:
    """Raise `BadRequest` for options that a bridge cannot have here: none is ignored that dockerd knows."""
    for name, value in options.items():
        if name == networks.MTU:
            if not re.fullmatch(r"\d{1,5}", value, re.ASCII) or not 68 <= int(value) <= 65535:
                raise BadRequest(f"invalid {name}: {value[:80]!r}: give 68 to 65535")
        elif name == networks.BRIDGE_NAME:
            _check_bridge_name(store, value)
        elif name == networks.HOST_BINDING:
            networking.address(value, 4) if value != "0.0.0.0" else None
        elif name in (ICC, MASQUERADE):
            if value.lower() not in ("true", "1"):
                raise BadRequest(f"{name}={value[:80]} is not supported: it is always true")
        elif name.startswith("com.docker.network."):
            raise BadRequest(f"the option {name[:120]} is not supported")


def _check_bridge_name(store: Store, name: str) -> None:
    if not _INTERFACE.fullmatch(name) or name in (".", ".."):
        raise BadRequest(f"invalid {networks.BRIDGE_NAME}: {name[:80]!r}: it is no name of an interface")
    if any(networks.bridge_name(other) == name for other in store.networks.every()):
        raise Forbidden(f"bridge name {name} is already used by another network")
    if networks.interface_exists(name):
        raise Forbidden(f"the interface {name} exists already: give a name that is free")


def remove_network(call: Call) -> Response:
    """Remove a network that no container runs in."""
    network = call.store.networks.find(call.names["id"])
    _clear_away(call, network)
    call.store.networks.remove(network.id)
    return Response(204)


def _clear_away(call: Call, network: Network) -> None:
    from layerfs.api.containers import clear_away  # which shows containers with their networks

    networks.clear_away(call.store, network, partial(clear_away, call))


def connect(call: Call) -> Response:
    """Put a container into a network, at once if it runs."""
    body = Members(call.request.json())
    with one_line():
        mount = _container(call, body)
        settings = networking.endpoint(body.member("EndpointConfig") or Members({}))
    network = call.store.networks.find(call.names["id"])
    rewiring.connect(call.root, mount, network, settings)
    return Response(200)


def disconnect(call: Call) -> Response:
    """Take a container out of a network."""
    body = Members(call.request.json())
    with one_line():
        body.flag("Force")
        mount = _container(call, body)
    network = call.store.networks.find(call.names["id"])
    rewiring.disconnect(call.root, mount, network)
    return Response(200)


def _container(call: Call, body: Members) -> Mount:
    name = body.text("Container").removeprefix("/")
    if not name:
        raise BadRequest("give the member Container: the name or id of a container")
    mount = call.store.mount(name)
    if not mount.container:
        raise Conflict(f"{mount.name} is a mount, not a container: it has no network of its own")
    return mount


def prune_networks(call: Call) -> Response:
    """Remove the networks that no container has, running or not."""
    filters = parse_filters(call.query.get("filters"), ("label", "label!", "until"))
    until = _until(filters)
    for network in call.store.networks.every():
        _clear_away(call, network)
    gone = call.store.networks.prune(
        lambda network: (until is None or network.created <= until) and label_matches(filters, network.labels)
    )
    return json_response({"NetworksDeleted": [network.name for network in gone] or None})


def _until(filters: Filters) -> datetime | None:
    if "until" not in filters:
        return None
    if len(filters["until"]) != 1:
        raise BadRequest("more than one until filter specified")
    return parse_until(*filters["until"])


def _filter(store: Store, filters: Filters) -> Callable[[Network], bool]:
    """Return what tells whether a network is wanted; raises `BadRequest` for values that make no sense."""
    dangling = boolean_filter(filters, "dangling")
    for kind in filters.get("type", ()):
        if kind not in ("builtin", "custom"):
            raise BadRequest(f"invalid filter: 'type'='{kind[:80]}'")
    used = _used(store) if dangling is not None else set()

    def matches(network: Network) -> bool:
        kind = "builtin" if network.predefined else "custom"
        in_use = network.predefined or bool({network.id, network.name} & used)
        return (
            ("driver" not in filters or network.driver in filters["driver"])
            and ("scope" not in filters or "local" in filters["scope"])
            and ("type" not in filters or kind in filters["type"])
            and ("name" not in filters or any(like(text, network.name) for text in filters["name"]))
            and ("id" not in filters or any(like(text, network.id) for text in filters["id"]))
            and label_matches(filters, network.labels)
            and (dangling is None or dangling is not in_use)
        )

    return matches


def _used(store: Store) -> set[str]:
    """Return the networks, by names or ids, that a container has, running or not."""
    found = {endpoint.network for endpoint in store.networks.endpoints()}
    return found.union(*(names_in(mount.container) for mount in store.mounts() if mount.container))


def like(pattern: str, text: str) -> bool:
    """Return whether a filter's *pattern* finds *text*: a part of it, of its begin (^), or of its end ($).

    dockerd takes it for a regular expression; those beyond this could be made to take for ever.
    """
    start, end = pattern.startswith("^"), pattern.endswith("$")
    inner = pattern[start : len(pattern) - end]
    if start and end:
        return text == inner
    if start:
        return text.startswith(inner)
    return text.endswith(inner) if end else inner in text


ROUTES = (
    route("GET", "/networks", list_networks),
    route("GET", "/networks/", list_networks),
    route("POST", "/networks/create", create_network),
    route("POST", "/networks/prune", prune_networks, frees=True),
    route("POST", "/networks/{id}/connect", connect),
    route("POST", "/networks/{id}/disconnect", disconnect),
    route("GET", "/networks/{id}", inspect_network),
    route("DELETE", "/networks/{id}", remove_network),
)
