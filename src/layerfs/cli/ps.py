"""The command that lists mounts and containers: ps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, Listing, Row
from layerfs.cli.shared import NO_TRUNC, parsed_filters
from layerfs.client.client import Client

COMMAND_WIDTH = 20
"""Characters of a command in a table, as docker shows it."""
_MOUNT_WIDTH = 15
LISTING = Listing(
    {
        "ID": "MOUNT ID",
        "Image": "IMAGE",
        "Command": "COMMAND",
        "CreatedSince": "CREATED",
        "RunningFor": "CREATED",
        "CreatedAt": "CREATED AT",
        "State": "STATE",
        "Status": "STATUS",
        "Ports": "PORTS",
        "Mountpoint": "MOUNTPOINT",
        "Names": "NAMES",
        "Size": "SIZE",
        "Labels": "LABELS",
        "Mounts": "MOUNTS",
        "LocalVolumes": "LOCAL VOLUMES",
        "Networks": "NETWORKS",
    },
    ("ID", "Image", "Command", "CreatedSince", "Status", "Mountpoint", "Names"),
)


@click.command("ps")
@click.option("-a", "--all", "every", is_flag=True, help="List those that are not mounted or running too.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="List only some: name=X, status=exited, label=X, ancestor=IMAGE, id=X.",
)
@click.option("-n", "--last", metavar="N", type=int, default=-1, help="List the last N that were made.")
@click.option("-l", "--latest", is_flag=True, help="List the last one that was made.")
@click.option("-s", "--size", "sizes", is_flag=True, help="Show how much was written to each.")
@NO_TRUNC
@FORMAT
@click.pass_obj
def ps_command(
    root: Path,
    every: bool,
    quiet: bool,
    filters: tuple[str, ...],
    last: int,
    latest: bool,
    sizes: bool,
    no_trunc: bool,
    form: str,
) -> None:
    """List mounts, and containers, which are mounts too."""
    last = 1 if latest and last < 0 else last
    found = Client.of(root).request(
        "GET",
        "/containers/json",
        all=every,
        limit=str(last) if last > 0 else "",
        size=sizes or ".Size" in form,
        filters=json.dumps(parsed_filters(filters)) if filters else "",
    )
    rows = [_row(item, no_trunc) for item in found]
    if quiet and form == "table":
        render.show("\n".join(row["ID"] for row in rows))
        return
    columns = list(LISTING.default)
    if any(row["Ports"] for row in rows):
        columns.insert(5, "Ports")
    LISTING.show(rows, form, [*columns, *(["Size"] if sizes else [])])


def _row(item: dict[str, Any], no_trunc: bool) -> Row:
    image = item["Image"] or "<no image>"
    command = render.printable(item["Command"])
    if image.startswith("sha256:") and not no_trunc:
        image = render.short_id(image)
    labels: Mapping[str, str] = item.get("Labels") or {}
    since = render.age(item["Created"])
    mounts = [mount.get("Name") or mount.get("Source", "") for mount in item.get("Mounts") or ()]
    networks = (item.get("NetworkSettings") or {}).get("Networks") or {}
    return {
        "ID": item["Id"] if no_trunc else render.short_id(item["Id"]),
        "Image": image,
        "Command": f'"{command if no_trunc else render.ellipsis(command, COMMAND_WIDTH)}"' if command else "",
        "CreatedSince": since,
        "RunningFor": since,
        "CreatedAt": render.moment(item["Created"]),
        "State": item["State"],
        "Status": item["Status"],
        "Ports": ports(item.get("Ports") or []),
        "Mountpoint": render.printable(item["Mountpoint"]),
        "Names": ",".join(name.removeprefix("/") for name in item["Names"]),
        "Size": _size(item),
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(labels.items())),
        "Label": lambda name: labels.get(name, ""),
        "Mounts": ",".join(name if no_trunc else render.ellipsis(name, _MOUNT_WIDTH) for name in mounts),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in item.get("Mounts") or ())),
        "Networks": ",".join(networks or filter(None, [item["HostConfig"].get("NetworkMode")])),
    }


def _size(item: Mapping[str, Any]) -> str:
    written = render.size(item.get("SizeRw") or 0)
    return f"{written} (virtual {render.size(item['SizeRootFs'])})" if item.get("SizeRootFs") else written


def ports(found: list[dict[str, Any]]) -> str:
    """Return ports as docker lists them: those in a row as a range, "0.0.0.0:8000-8001->80-81/tcp"."""
    groups: list[list[Any]] = []
    for port in sorted(found, key=lambda port: (port["Type"], port.get("IP") or "", port["PrivatePort"])):
        address, outside, inside = port.get("IP") or "", port.get("PublicPort") or 0, port["PrivatePort"]
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[:2] == [port["Type"], address]
            and last[3] == inside - 1
            and (last[5] == outside - 1 if outside else last[5] == 0)
        ):
            last[3], last[5] = inside, outside
        else:
            groups.append([port["Type"], address, inside, inside, outside, outside])
    return ", ".join(_group(*group) for group in groups)


def _group(kind: str, address: str, first: int, last: int, low: int, high: int) -> str:
    inside = f"{first}/{kind}" if first == last else f"{first}-{last}/{kind}"
    if not low:
        return inside
    outside = str(low) if low == high else f"{low}-{high}"
    return f"{f'[{address}]' if ':' in address else address}:{outside}->{inside}"
