"""`layerfs volume ...`: directories that outlive the containers which mount them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, INSPECT_FORMAT, Listing, Row, inspect_each
from layerfs.cli.shared import Group, confirm, each, filter_option, parsed_filters, parsed_pairs
from layerfs.client.client import Client

_LISTING = Listing(
    {
        "Driver": "DRIVER",
        "Name": "VOLUME NAME",
        "Mountpoint": "MOUNTPOINT",
        "Scope": "SCOPE",
        "Labels": "LABELS",
    },
    ("Driver", "Name"),
)


@click.group("volume", cls=Group)
def volume_command() -> None:
    """Make, look at and remove volumes."""


@volume_command.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Show names alone.")
@filter_option("name=X, label=X, dangling=true")
@FORMAT
@click.pass_obj
def ls_command(root: Path, quiet: bool, filters: tuple[str, ...], form: str) -> None:
    """List volumes, by name."""
    given = json.dumps(parsed_filters(filters))
    rows = [_row(it) for it in Client.of(root).request("GET", "/volumes", filters=given)["Volumes"]]
    if quiet and form == "table":
        render.show("\n".join(row["Name"] for row in rows))
    else:
        _LISTING.show(rows, form)


def _row(volume: dict[str, Any]) -> Row:
    labels = volume["Labels"] or {}
    return {
        "Driver": volume["Driver"],
        "Name": volume["Name"],
        "Mountpoint": volume["Mountpoint"],
        "Scope": volume["Scope"],
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(labels.items())),
    }


@volume_command.command("inspect")
@INSPECT_FORMAT
@click.argument("volumes", nargs=-1, required=True)
@click.pass_obj
def inspect_command(root: Path, volumes: tuple[str, ...], form: str) -> int:
    """Show everything about volumes, as JSON, or as a format says."""
    client = Client.of(root)
    return inspect_each(volumes, lambda name: client.request("GET", f"/volumes/{name}"), form)


@volume_command.command("create")
@click.option("-d", "--driver", metavar="DRIVER", default="local", help="The driver: local (the default).")
@click.option(
    "-o", "--opt", "options", metavar="NAME=VALUE", multiple=True, help="What to mount: type, device, o."
)
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="A label (repeatable).")
@click.argument("name", required=False)
@click.pass_obj
def create_command(
    root: Path, driver: str, options: tuple[str, ...], labels: tuple[str, ...], name: str | None
) -> None:
    """Make a volume, and print its name.

    One that is there stays as it is. With --opt, something else is mounted whenever a container uses it:

    \b
    layerfs volume create -o type=tmpfs -o device=tmpfs -o o=size=64m scratch
    layerfs volume create -o type=none -o device=/srv/data -o o=bind data
    """
    body = {
        "Name": name or "",
        "Driver": driver,
        "DriverOpts": parsed_pairs(options, "bad option"),
        "Labels": parsed_pairs(labels, "bad label"),
    }
    answer = Client.of(root).request("POST", "/volumes/create", body=json.dumps(body).encode())
    click.echo(answer["Name"])


@volume_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not complain of a volume that is not there.")
@click.argument("volumes", nargs=-1, required=True)
@click.pass_obj
def rm_command(root: Path, force: bool, volumes: tuple[str, ...]) -> int:
    """Remove volumes that no container has, with their data."""
    client = Client.of(root)

    def remove(name: str) -> None:
        client.request("DELETE", f"/volumes/{name}", force=force)
        click.echo(name)

    return each(volumes, remove)


@volume_command.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Remove volumes with a name too.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@filter_option("label=X, label!=X=Y")
@click.pass_obj
def prune_command(root: Path, every: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove the volumes that no container has and nobody named, with their data."""
    given = parsed_filters(filters)
    if every:
        given["all"] = ["true"]
    if not force:
        kind = "all volumes" if every else "all volumes without a name"
        confirm(f"{kind} that no container has")
    answer = Client.of(root).request("POST", "/volumes/prune", filters=json.dumps(given))
    gone = answer["VolumesDeleted"] or []
    freed = f"Total reclaimed space: {render.size(answer['SpaceReclaimed'])}"
    render.show("\n".join([*(["Deleted Volumes:", *gone, ""] if gone else []), freed]))
