"""The commands about room on the disk: df, prune."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from layerfs.cli import quantities, render
from layerfs.cli.formats import FORMAT, Listing
from layerfs.cli.shared import confirm, parsed_filters
from layerfs.client.client import Client

LISTING = Listing(
    {
        "Type": "TYPE",
        "TotalCount": "TOTAL",
        "Active": "ACTIVE",
        "Size": "SIZE",
        "Reclaimable": "RECLAIMABLE",
    },
    ("Type", "TotalCount", "Active", "Size", "Reclaimable"),
)
_KINDS = {"Images": "Images", "Containers": "Mounts", "Layers": "Layers", "BuildCache": "Build Cache"}


@click.command("df")
@click.option("-v", "--verbose", is_flag=True, help="List every image, mount and layer.")
@FORMAT
@click.pass_obj
def df_command(root: Path, verbose: bool, form: str) -> None:
    """Show what takes room in the store, and what could be freed.

    RECLAIMABLE is what would go with the images that no mount uses ('layerfs prune --all'), with the mounts
    that are not mounted, and, as layers, with both ('layerfs prune --all --mounts'); of the build cache, what
    no image has too ('layerfs builder prune').
    """
    found = Client.of(root).request("GET", "/layerfs/df")
    if verbose:
        parts = {"Images": _images(found), "Mounts": _mounts(found), "Layers": _layers(found)}
        parts["Build Cache"] = _cache(found)
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
    LISTING.show(rows, form)


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


def _cache(found: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "CacheId": render.short_id(entry["ID"]),
            "CacheType": entry["Type"],
            "Size": render.size(entry["Size"]),
            "Created": _age(entry["CreatedAt"]),
            "LastUsed": _age(entry["LastUsedAt"]) if entry["LastUsedAt"] else "",
            "Usage": str(entry["UsageCount"]),
            "Shared": str(entry["Shared"]).lower(),
            "Description": entry["Description"],
        }
        for entry in found["BuildCache"]
    ]


def _age(text: str) -> str:
    """Return how long ago a time of the API was, which is in UTC."""
    return render.age(int(datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()))


_ALL = click.option(
    "-a", "--all", "every", is_flag=True, help="Remove images with a name too, if no mount uses them."
)
_FORCE = click.option("-f", "--force", is_flag=True, help="Do not ask.")
_FILTER = click.option(
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Take only what is older (until=24h, until=2026-01-31) or has a label (label=X, label!=X=Y).",
)
_MOUNTS = "all mounts that are not mounted, and containers that do not run, with what was written to them"


@click.command("prune")
@_ALL
@click.option("--mounts", is_flag=True, help="Remove what is not mounted, and what was written to it, first.")
@_FORCE
@_FILTER
@click.pass_obj
def prune_command(root: Path, every: bool, mounts: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove what nobody needs any more.

    That is: images without a name that no mount uses and no image was made from; with --all those with a name
    too; with --mounts first the mounts that are not mounted. And always what killed processes left behind.
    A layer that a mount or another image uses stays.
    """
    _prune(root, filters, force=force, containers=mounts, images=True, every=every, recover=True)


@click.command("prune")
@_FORCE
@_FILTER
@click.pass_obj
def prune_containers_command(root: Path, force: bool, filters: tuple[str, ...]) -> None:
    """Remove containers that do not run and mounts that are not mounted, and what was written to them."""
    _prune(root, filters, force=force, containers=True)


@click.command("prune")
@_ALL
@_FORCE
@_FILTER
@click.pass_obj
def prune_images_command(root: Path, every: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove images without a name that nobody needs; with --all those with a name, too."""
    _prune(root, filters, force=force, images=True, every=every)


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Forget what images and mounts have too.")
@click.option("--keep-storage", metavar="BYTES", help="Stop once the cache takes no more: 10g, 500m.")
@_FORCE
@click.option(
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Take only what has not been used for a while (until=24h), or one entry (id=X).",
)
@click.pass_obj
def prune_builder_command(
    root: Path, every: bool, keep_storage: str | None, force: bool, filters: tuple[str, ...]
) -> None:
    """Remove what builds have kept and no image has, the longest unused first."""
    keep = quantities.size(keep_storage, "--keep-storage")
    given = json.dumps(parsed_filters(filters))
    if not force:
        confirm(f"all {'' if every else 'dangling '}build cache")
    asked: dict[str, Any] = {"filters": given, "all": "1" if every else "", "keep-storage": str(keep or "")}
    answer = Client.of(root).request("POST", "/build/prune", **asked)
    lines = _listed("Deleted build cache objects", answer["CachesDeleted"] or [])
    render.show("\n".join([*lines, f"Total reclaimed space: {render.size(answer['SpaceReclaimed'])}"]))


@click.command("prune")
@_ALL
@click.option("--volumes", is_flag=True, help="Remove volumes without a name too.")
@_FORCE
@_FILTER
@click.pass_obj
def prune_system_command(
    root: Path, every: bool, volumes: bool, force: bool, filters: tuple[str, ...]
) -> None:
    """Remove containers that do not run, mounts not mounted, unused networks and images, and build cache."""
    _prune(
        root,
        filters,
        force=force,
        containers=True,
        networks=True,
        volumes=volumes,
        images=True,
        cache=True,
        every=every,
    )


def _prune(
    root: Path,
    filters: tuple[str, ...],
    *,
    force: bool,
    containers: bool = False,
    networks: bool = False,
    volumes: bool = False,
    images: bool = False,
    cache: bool = False,
    every: bool = False,
    recover: bool = False,
) -> None:
    """Remove what is wanted, after asking unless *force*, and say what was removed."""
    given = parsed_filters(filters)
    if not force:
        what = [
            *([_MOUNTS] if containers else []),
            *(["all networks that no container has"] if networks else []),
            *(["all volumes without a name that no container has"] if volumes else []),
            *([f"all images {'' if every else 'without a name '}that no mount uses"] if images else []),
            *([f"all {'' if every else 'dangling '}build cache"] if cache else []),
        ]
        confirm(" and ".join(what))
    client = Client.of(root)
    lines = [*client.request("POST", "/layerfs/recover")] if recover else []
    freed = 0

    def ask(path: str, filters: dict[str, list[str]], **query: Any) -> dict[str, Any]:
        nonlocal freed
        answer: dict[str, Any] = client.request("POST", path, filters=json.dumps(filters), **query)
        freed += answer.get("SpaceReclaimed", 0)
        return answer

    if containers:
        lines += _listed("Deleted Mounts", ask("/containers/prune", given)["ContainersDeleted"] or [])
    if networks:
        lines += _listed("Deleted Networks", ask("/networks/prune", given).get("NetworksDeleted") or [])
    if volumes:
        without_times = {name: values for name, values in given.items() if name != "until"}
        lines += _listed("Deleted Volumes", ask("/volumes/prune", without_times)["VolumesDeleted"] or [])
    if images:
        answer = ask("/images/prune", {**given, "dangling": ["false" if every else "true"]})
        removed = [
            f"{word.lower()}: {it}" for item in answer["ImagesDeleted"] or () for word, it in item.items()
        ]
        lines += _listed("Deleted Images", removed)
    if cache:
        answer = ask("/build/prune", given, all="1" if every else "")
        lines += _listed("Deleted build cache objects", answer["CachesDeleted"] or [])
    render.show("\n".join([*lines, f"Total reclaimed space: {render.size(freed)}"]))


def _listed(heading: str, lines: list[str]) -> list[str]:
    return [f"{heading}:", *lines, ""] if lines else []
