"""The commands about images: images, history, tag, rmi, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.shared import FORMAT, NO_TRUNC, each
from layerfs.client.client import Client


@click.command("images")
@click.argument("reference", required=False)
@click.option("-a", "--all", "every", is_flag=True, help="Show untagged images that others build upon too.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@NO_TRUNC
@FORMAT
@click.pass_obj
def images_command(
    root: Path, reference: str | None, every: bool, quiet: bool, no_trunc: bool, form: str
) -> None:
    """List images, newest first.

    REFERENCE picks some of them: "debian", "debian:*".
    """
    filters = f'{{"reference": [{_quoted(reference)}]}}' if reference else ""
    found = Client.of(root).request("GET", "/images/json", all=every, filters=filters)
    rows = [
        _image_row(image, tag, no_trunc) for image in found for tag in image["RepoTags"] or ["<none>:<none>"]
    ]
    if quiet:
        render.show("\n".join(dict.fromkeys(row["ID"] for row in rows)))
    elif form == "json":
        render.show(render.json_lines(rows))
    else:
        columns = ("Repository", "Tag", "ID", "CreatedSince", "Size")
        header = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")
        render.show(render.table(header, [[row[column] for column in columns] for row in rows]))


def _image_row(image: dict[str, Any], tag: str, no_trunc: bool) -> dict[str, str]:
    repository, _, name = tag.rpartition(":")
    return {
        "Repository": repository,
        "Tag": name,
        "ID": image["Id"] if no_trunc else render.short_id(image["Id"]),
        "CreatedSince": render.age(image["Created"]),
        "CreatedAt": render.moment(image["Created"]),
        "Size": render.size(image["Size"]),
    }


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)


class _HistoryCommand(click.Command):
    """Takes `--human=false` too, as Docker's does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = {"--human=false": "--no-human", "-H=false": "--no-human", "--human=true": "--human"}
        return super().parse_args(ctx, [words.get(argument, argument) for argument in args])


@click.command("history", cls=_HistoryCommand)
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
    if quiet:
        render.show("\n".join(row["ID"] for row in rows))
    elif form == "json":
        render.show(render.json_lines(rows))
    else:
        created = "CreatedSince" if human else "CreatedAt"
        header = ("IMAGE", "CREATED" if human else "CREATED AT", "CREATED BY", "SIZE", "COMMENT")
        columns = ("ID", created, "CreatedBy", "Size", "Comment")
        render.show(render.table(header, [[row[column] for column in columns] for row in rows]))


def _history_row(item: dict[str, Any], no_trunc: bool, human: bool) -> dict[str, str]:
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
@click.option("-f", "--force", is_flag=True, help="Take all names of an image, and names that mounts use.")
@click.argument("images", nargs=-1, required=True)
@click.pass_obj
def rmi_command(root: Path, images: tuple[str, ...], force: bool) -> int:
    """Remove images.

    A name in IMAGES is removed, and the image with its last name. What a mount or another image uses stays.
    """
    client = Client.of(root)

    def remove(image: str) -> None:
        for record in client.request("DELETE", f"/images/{image}", force=force):
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
