"""The commands about room on the disk: df, prune."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.shared import FORMAT
from layerfs.client.client import Client
from layerfs.errors import UsageError

_KINDS = {"Images": "Images", "Containers": "Mounts", "Layers": "Layers"}


@click.command("df")
@click.option("-v", "--verbose", is_flag=True, help="List every image, mount and layer.")
@FORMAT
@click.pass_obj
def df_command(root: Path, verbose: bool, form: str) -> None:
    """Show what takes room in the store, and what could be freed.

    RECLAIMABLE is what would go with the images that no mount uses ('layerfs prune --all'), with the mounts
    that are not mounted, and, as layers, with both ('layerfs prune --all --mounts').
    """
    found = Client.of(root).request("GET", "/layerfs/df")
    if verbose:
        parts = {"Images": _images(found), "Mounts": _mounts(found), "Layers": _layers(found)}
        if form == "json":
            render.show(render.as_json(parts))
        else:
            render.show("\n\n".join(f"{kind}:\n\n{_table(rows)}" for kind, rows in parts.items()))
        return
    rows = [
        {
            "Type": _KINDS[kind],
            "TotalCount": str(len(found[kind])),
            "Active": str(part["Active"]),
            "Size": render.size(part["Size"]),
            "Reclaimable": _share(part["Reclaimable"], part["Size"]),
        }
        for kind, part in found["Summary"].items()
    ]
    if form == "json":
        render.show(render.json_lines(rows))
    else:
        header = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")
        render.show(render.table(header, [list(row.values()) for row in rows]))


def _share(part: int, whole: int) -> str:
    percent = f" ({min(100, part * 100 // whole)}%)" if whole else ""
    return f"{render.size(part)}{percent}"


def _table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "none"
    header = [_heading(name) for name in rows[0]]
    return render.table(header, [list(row.values()) for row in rows])


def _heading(name: str) -> str:
    """Return the name of a JSON member as a column's: "SharedSize" as "SHARED SIZE"."""
    return "".join(f" {c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()


def _images(found: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for image in found["Images"]:
        for name in image["RepoTags"] or ["<none>:<none>"]:
            repository, _, tag = name.rpartition(":")
            rows.append(
                {
                    "Repository": repository,
                    "Tag": tag,
                    "ImageId": render.short_id(image["Id"]),
                    "Created": render.age(image["Created"]),
                    "Size": render.size(image["Size"]),
                    "SharedSize": render.size(image["SharedSize"]),
                    "UniqueSize": render.size(image["Size"] - image["SharedSize"]),
                    "Mounts": str(image["Containers"]),
                }
            )
    return rows


def _mounts(found: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "MountId": render.short_id(mount["Id"]),
            "Image": _image_name(mount["Image"]),
            "Size": render.size(mount["SizeRw"]),
            "Created": render.age(mount["Created"]),
            "Status": mount["Status"],
            "Names": ",".join(name.removeprefix("/") for name in mount["Names"]),
        }
        for mount in found["Containers"]
    ]


def _image_name(name: str) -> str:
    return render.short_id(name) if name.startswith("sha256:") else name or "<no image>"


def _layers(found: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "LayerId": render.short_id(layer["Id"]),
            "State": layer["State"],
            "Created": render.age(layer["Created"]),
            "Size": render.size(layer["Size"]),
            "Images": str(layer["Images"]),
            "Mounts": str(layer["Containers"]),
        }
        for layer in found["Layers"]
    ]


@click.command("prune")
@click.option(
    "-a", "--all", "every", is_flag=True, help="Remove images with a name too, if no mount uses them."
)
@click.option("--mounts", is_flag=True, help="Remove what is not mounted, and what was written to it, first.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Take only what is older (until=24h, until=2026-01-31) or has a label (label=X, label!=X=Y).",
)
@click.pass_obj
def prune_command(root: Path, every: bool, mounts: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove what nobody needs any more.

    That is: images without a name that no mount uses and no image was made from; with --all those with a name
    too; with --mounts first the mounts that are not mounted. And always what killed processes left behind.
    A layer that a mount or another image uses stays.
    """
    given = _filters(filters)
    what = [
        *(["all mounts that are not mounted, with what was written to them"] if mounts else []),
        f"all images {'that no mount uses' if every else 'without a name that no mount uses'}",
    ]
    if not force:
        _confirm(what)
    client = Client.of(root)
    lines = [*client.request("POST", "/layerfs/recover")]
    freed = 0
    if mounts:
        answer = client.request("POST", "/containers/prune", filters=json.dumps(given))
        freed += answer["SpaceReclaimed"]
        lines += _listed("Deleted Mounts", answer["ContainersDeleted"] or [])
    given["dangling"] = ["false" if every else "true"]
    answer = client.request("POST", "/images/prune", filters=json.dumps(given))
    freed += answer["SpaceReclaimed"]
    removed = [f"{word.lower()}: {it}" for item in answer["ImagesDeleted"] or () for word, it in item.items()]
    lines += _listed("Deleted Images", removed)
    render.show("\n".join([*lines, f"Total reclaimed space: {render.size(freed)}"]))


def _listed(heading: str, lines: list[str]) -> list[str]:
    return [f"{heading}:", *lines, ""] if lines else []


def _filters(texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"bad filter {text!r}: give NAME=VALUE, such as until=24h or label=X")
        found.setdefault(name, []).append(value)
    return found


def _confirm(what: list[str]) -> None:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: give --force to prune without being asked")
    click.echo(f"This will remove {' and '.join(what)}.", err=True)
    click.confirm("Are you sure you want to continue?", abort=True, err=True)
