"""The commands about images: images, history, tag, rmi, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, Listing, Row
from layerfs.cli.shared import NO_TRUNC, each, parsed_filters
from layerfs.client.client import Client

LISTING = Listing(
    {
        "Repository": "REPOSITORY",
        "Tag": "TAG",
        "Digest": "DIGEST",
        "ID": "IMAGE ID",
        "CreatedSince": "CREATED",
        "CreatedAt": "CREATED AT",
        "Size": "SIZE",
        "SharedSize": "SHARED SIZE",
        "UniqueSize": "UNIQUE SIZE",
        "Containers": "CONTAINERS",
    },
    ("Repository", "Tag", "ID", "CreatedSince", "Size"),
)
_DIGESTS = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
HISTORY = Listing(
    {
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
    },
    ("ID", "CreatedSince", "CreatedBy", "Size", "Comment"),
)


@click.command("images")
@click.argument("reference", required=False)
@click.option("-a", "--all", "every", is_flag=True, help="Show untagged images that others build upon too.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@click.option("--digests", is_flag=True, help="Show the digests that they have in a registry.")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="List only some: dangling=true, label=X, reference=X, before=IMAGE, since=IMAGE.",
)
@NO_TRUNC
@FORMAT
@click.pass_obj
def images_command(
    root: Path,
    reference: str | None,
    every: bool,
    quiet: bool,
    digests: bool,
    filters: tuple[str, ...],
    no_trunc: bool,
    form: str,
) -> None:
    """List images, newest first.

    REFERENCE picks some of them: "debian", "debian:*".
    """
    wanted = parsed_filters(filters)
    if reference:
        wanted.setdefault("reference", []).append(reference)
    found = Client.of(root).request(
        "GET", "/images/json", all=every, filters=json.dumps(wanted) if wanted else ""
    )
    rows = [_image_row(image, tag, no_trunc) for image in found for tag in _names(image)]
    if quiet and form == "table":
        render.show("\n".join(dict.fromkeys(row["ID"] for row in rows)))
    else:
        LISTING.show(rows, form, _DIGESTS if digests else ())


def _names(image: dict[str, Any]) -> list[str]:
    """Return the tags of an image, or what stands in their place."""
    by_digest = [f"{name.partition('@')[0]}:<none>" for name in image["RepoDigests"] or ()]
    return image["RepoTags"] or list(dict.fromkeys(by_digest)) or ["<none>:<none>"]


def _image_row(image: dict[str, Any], tag: str, no_trunc: bool) -> Row:
    repository, _, name = tag.rpartition(":")
    digests = [it.partition("@")[2] for it in image["RepoDigests"] or () if it.startswith(f"{repository}@")]
    shared = image.get("SharedSize", -1)
    return {
        "Repository": repository,
        "Tag": name,
        "Digest": digests[0] if digests else "<none>",
        "ID": image["Id"] if no_trunc else render.short_id(image["Id"]),
        "CreatedSince": render.age(image["Created"]),
        "CreatedAt": render.moment(image["Created"]),
        "Size": render.size(image["Size"]),
        "SharedSize": "N/A" if shared < 0 else render.size(shared),
        "UniqueSize": "N/A" if shared < 0 else render.size(image["Size"] - shared),
        "Containers": "N/A" if image.get("Containers", -1) < 0 else str(image["Containers"]),
    }


@click.command("history")
@click.argument("image")
@NO_TRUNC
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@click.option(
    "-H",
    "--human/--no-human",
    default=True,
    help="Show sizes and times for people (the default), or exact ones.",
)
@FORMAT
@click.pass_obj
def history_command(root: Path, image: str, no_trunc: bool, quiet: bool, human: bool, form: str) -> None:
    """Show how an image came to be, the newest step first."""
    found = Client.of(root).request("GET", f"/images/{image}/history")
    rows = [_history_row(item, no_trunc, human) for item in found]
    if quiet and form == "table":
        render.show("\n".join(row["ID"] for row in rows))
    else:
        created = "CreatedSince" if human else "CreatedAt"
        HISTORY.show(rows, form, ("ID", created, "CreatedBy", "Size", "Comment"))


def _history_row(item: dict[str, Any], no_trunc: bool, human: bool) -> Row:
    created_by = render.printable(item["CreatedBy"])
    return {
        "ID": item["Id"] if no_trunc else render.short_id(item["Id"]),
        "CreatedSince": render.age(item["Created"]),
        "CreatedAt": render.moment(item["Created"]),
        "CreatedBy": created_by if no_trunc else render.ellipsis(created_by, 45),
        "Size": render.size(item["Size"]) if human else str(item["Size"]),
        "Comment": render.printable(item["Comment"]),
    }


@click.command("tag")
@click.argument("source")
@click.argument("target")
@click.pass_obj
def tag_command(root: Path, source: str, target: str) -> None:
    """Give an image one more name.

    SOURCE is a name or an id, TARGET a name as in [HOST/]NAME[:TAG]; the tag is "latest" if none is given.
    """
    Client.of(root).request("POST", f"/images/{source}/tag", repo=target)


@click.command("rmi")
@click.option("--no-prune", is_flag=True, help="Keep the images without a name that it was made of.")
@click.option("-f", "--force", is_flag=True, help="Take all names of an image, and names that mounts use.")
@click.argument("images", nargs=-1, required=True)
@click.pass_obj
def rmi_command(root: Path, images: tuple[str, ...], force: bool, no_prune: bool) -> int:
    """Remove images.

    A name in IMAGES is removed, and the image with its last name. What a mount or another image uses stays.
    """
    client = Client.of(root)

    def remove(image: str) -> None:
        for record in client.request("DELETE", f"/images/{image}", force=force, noprune=no_prune):
            for word, what in record.items():
                click.echo(f"{word}: {what}")

    return each(images, remove)


@click.command("verify")
@click.argument("reference")
@click.option("--accept", is_flag=True, help="Take unverified layers as they are now for whole, first.")
@click.pass_obj
def verify_command(root: Path, reference: str, accept: bool) -> int:
    """Check the files of an image against its manifests.

    Prints a line for each file that differs, and for each layer that is unverified because the machine
    stopped before it was on disk. Fails if there is one.
    """
    client = Client.of(root)
    if accept:
        client.request("POST", "/layerfs/verify", ref=reference)
    found = client.request("GET", "/layerfs/verify", ref=reference)
    for item in found:
        path = f"{render.printable(item['Path'])}: " if item["Path"] else ""
        click.echo(f"{render.short_id(item['Layer'])}  {path}{item['What']}")
    if not found:
        click.echo(f"{reference}: every file is as its manifest says")
    return 1 if found else 0
