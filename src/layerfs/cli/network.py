"""`layerfs network ...`: networks for containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, INSPECT_FORMAT, Listing, Row, inspect_each
from layerfs.cli.shared import (
    NO_TRUNC,
    Group,
    confirm,
    each,
    filter_option,
    parsed_filters,
    parsed_pairs,
)
from layerfs.client.client import Client
from layerfs.errors import UsageError

_LISTING = Listing(
    {
        "ID": "NETWORK ID",
        "Name": "NAME",
        "Driver": "DRIVER",
        "Scope": "SCOPE",
        "IPv4": "IPV4",
        "IPv6": "IPV6",
        "Internal": "INTERNAL",
        "Labels": "LABELS",
        "CreatedAt": "CREATED AT",
    },
    ("ID", "Name", "Driver", "Scope"),
)


@click.group("network", cls=Group)
def network_command() -> None:
    """Make, look at and remove networks for containers."""


@network_command.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@filter_option("driver=bridge, name=X, label=X, dangling=true, type=custom")
@NO_TRUNC
@FORMAT
@click.pass_obj
def ls_command(root: Path, quiet: bool, filters: tuple[str, ...], no_trunc: bool, form: str) -> None:
    """List networks, by name."""
    found = Client.of(root).request("GET", "/networks", filters=json.dumps(parsed_filters(filters)))
    rows = [_row(network, no_trunc) for network in sorted(found, key=lambda network: str(network["Name"]))]
    if quiet and form == "table":
        render.show("\n".join(row["ID"] for row in rows))
    else:
        _LISTING.show(rows, form)


def _row(network: dict[str, Any], no_trunc: bool) -> Row:
    return {
        "ID": network["Id"] if no_trunc else render.short_id(network["Id"]),
        "Name": network["Name"],
        "Driver": network["Driver"],
        "Scope": network["Scope"],
        "IPv4": str(network["EnableIPv4"]).lower(),
        "IPv6": str(network["EnableIPv6"]).lower(),
        "Internal": str(network["Internal"]).lower(),
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(network["Labels"].items())),
        "Label": lambda name: network["Labels"].get(name, ""),
        "CreatedAt": network["Created"],
    }


@network_command.command("inspect")
@INSPECT_FORMAT
@click.argument("networks", nargs=-1, required=True)
@click.pass_obj
def inspect_command(root: Path, networks: tuple[str, ...], form: str) -> int:
    """Show everything about networks, as JSON, or as a format says."""
    client = Client.of(root)
    return inspect_each(networks, lambda name: client.request("GET", f"/networks/{name}"), form)


@network_command.command("create")
@click.option("-d", "--driver", metavar="DRIVER", default="bridge", help="The driver: bridge (the default).")
@click.option("--subnet", "subnets", metavar="CIDR", multiple=True, help="Its addresses (repeatable).")
@click.option(
    "--gateway", "gateways", metavar="ADDRESS", multiple=True, help="The host's address in a subnet."
)
@click.option(
    "--ip-range", "ranges", metavar="CIDR", multiple=True, help="The part of a subnet that containers get."
)
@click.option(
    "--aux-address", "aux", metavar="NAME=ADDRESS", multiple=True, help="An address that no container gets."
)
@click.option("--internal", is_flag=True, help="Let nothing out of it, and nothing in.")
@click.option("--attachable", is_flag=True, help="Note that containers may be connected to it (they may).")
@click.option("--ipv6", is_flag=True, help="Have IPv6 in it too.")
@click.option("-o", "--opt", "options", metavar="NAME=VALUE", multiple=True, help="An option for the driver.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="A label (repeatable).")
@click.argument("name")
@click.pass_obj
def create_command(
    root: Path,
    driver: str,
    subnets: tuple[str, ...],
    gateways: tuple[str, ...],
    ranges: tuple[str, ...],
    aux: tuple[str, ...],
    internal: bool,
    attachable: bool,
    ipv6: bool,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    name: str,
) -> None:
    """Make a network, and print its id.

    Containers in it find each other by their names. A free subnet is chosen if none is given.
    """
    body = {
        "Name": name,
        "Driver": driver,
        "Internal": internal,
        "Attachable": attachable,
        "EnableIPv6": ipv6,
        "Options": parsed_pairs(options, "bad option"),
        "Labels": parsed_pairs(labels, "bad label"),
        "IPAM": {"Config": _configs(subnets, gateways, ranges, parsed_pairs(aux, "bad auxiliary address"))},
    }
    answer = Client.of(root).request("POST", "/networks/create", body=json.dumps(body).encode())
    click.echo(answer["Id"])


def _configs(
    subnets: tuple[str, ...], gateways: tuple[str, ...], ranges: tuple[str, ...], aux: dict[str, str]
) -> list[dict[str, Any]]:
    """Return an IPAM configuration for each subnet, with what lies in it; raises `UsageError`."""
    from ipaddress import ip_network

    configs: list[dict[str, Any]] = [{"Subnet": subnet} for subnet in subnets]

    def place(text: str, what: str) -> dict[str, Any]:
        for config in configs:
            try:
                own, given = (ip_network(it, strict=False) for it in (config["Subnet"], text))
            except ValueError:
                if len(configs) == 1:
                    return config  # the API says what is wrong with it
                continue
            if own.version == given.version and own.overlaps(given):
                return config
        raise UsageError(f"no matching subnet for {what} {text}")

    for text in ranges:
        place(text, "range")["IPRange"] = text
    for text in gateways:
        place(text, "gateway")["Gateway"] = text
    for name, text in aux.items():
        place(text, "aux-address").setdefault("AuxiliaryAddresses", {})[name] = text
    return configs


@network_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not complain of a network that is not there.")
@click.argument("networks", nargs=-1, required=True)
@click.pass_obj
def rm_command(root: Path, force: bool, networks: tuple[str, ...]) -> int:
    """Remove networks that no container runs in."""
    from layerfs.errors import NotFound

    client = Client.of(root)

    def remove(name: str) -> None:
        try:
            client.request("DELETE", f"/networks/{name}")
        except NotFound:
            if not force:
                raise
            return
        click.echo(name)

    return each(networks, remove)


@network_command.command("connect")
@click.option("--ip", "address", metavar="ADDRESS", help="Its IPv4 address there.")
@click.option("--ip6", "address6", metavar="ADDRESS", help="Its IPv6 address there.")
@click.option("--alias", "aliases", metavar="NAME", multiple=True, help="Be found by this name too.")
@click.option(
    "--link", "links", metavar="NAME[:ALIAS]", multiple=True, help="Know another container by a name."
)
@click.option(
    "--link-local-ip", "local", metavar="ADDRESS", multiple=True, help="One more address of the link."
)
@click.argument("network")
@click.argument("container")
@click.pass_obj
def connect_command(
    root: Path,
    address: str | None,
    address6: str | None,
    aliases: tuple[str, ...],
    links: tuple[str, ...],
    local: tuple[str, ...],
    network: str,
    container: str,
) -> None:
    """Put a container into a network, at once if it runs."""
    ipam = {"IPv4Address": address, "IPv6Address": address6, "LinkLocalIPs": list(local)}
    endpoint: dict[str, Any] = {"Aliases": list(aliases), "Links": list(links)}
    if any(ipam.values()):
        endpoint["IPAMConfig"] = {name: value for name, value in ipam.items() if value}
    body = {"Container": container, "EndpointConfig": endpoint}
    Client.of(root).request("POST", f"/networks/{network}/connect", body=json.dumps(body).encode())


@network_command.command("disconnect")
@click.option("-f", "--force", is_flag=True, help="Do so whatever state the container is in.")
@click.argument("network")
@click.argument("container")
@click.pass_obj
def disconnect_command(root: Path, force: bool, network: str, container: str) -> None:
    """Take a container out of a network."""
    body = {"Container": container, "Force": force}
    Client.of(root).request("POST", f"/networks/{network}/disconnect", body=json.dumps(body).encode())


@network_command.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@filter_option("until=24h, label=X, label!=X=Y")
@click.pass_obj
def prune_command(root: Path, force: bool, filters: tuple[str, ...]) -> None:
    """Remove the networks that no container has, running or not."""
    given = json.dumps(parsed_filters(filters))
    if not force:
        confirm("all networks that no container has")
    gone = Client.of(root).request("POST", "/networks/prune", filters=given)["NetworksDeleted"] or []
    render.show("\n".join(["Deleted Networks:", *gone] if gone else []))
