"""The commands about mounts that exist: commit, diff, ps, rm, umount."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.shared import FORMAT, NO_TRUNC, each
from layerfs.client.client import Client
from layerfs.errors import NotFound

KINDS = "CAD"
"""What the numbers of a change mean: changed, added, deleted."""
COMMAND_WIDTH = 20
"""Characters of a command in a table, as docker shows it."""


@click.command("commit")
@click.option("-m", "--message", default="", help="A comment, which the history shows.")
@click.option("-a", "--author", default="", help='The author, as in "Jane Roe <jane@example.org>".')
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    help="Apply a Dockerfile instruction to the image (repeatable).",
)
@click.option("-p", "--pause", is_flag=True, help="Let the container's processes stand still meanwhile.")
@click.argument("name")
@click.argument("reference", required=False)
@click.pass_obj
def commit_command(
    root: Path,
    name: str,
    reference: str | None,
    message: str,
    author: str,
    changes: tuple[str, ...],
    pause: bool,
) -> None:
    """Make an image of what was written to a mount.

    The image is called REFERENCE, if given. The mount NAME stays in use. Prints the image's id.

    What was written is a layer of the store then: a directory given as --upper is empty after it, which a
    warning says.

    The image has everything whose write had returned before; with --pause, what a container writes to
    several files is cut at one moment.
    """
    if pause:
        from layerfs.cli.containers import describe

        describe(Client.of(root), name)
    answer = Client.of(root).request(
        "POST",
        "/commit",
        container=name,
        repo=reference,
        comment=message,
        author=author,
        changes=changes,
        pause="1" if pause else "0",
    )
    for warning in answer.get("Warnings") or ():
        render.note(f"warning: {warning}")
    click.echo(answer["Id"])


@click.command("diff")
@click.argument("name")
@click.pass_obj
def diff_command(root: Path, name: str) -> None:
    """List what was written to a mount since its last commit.

    A stands for added, C for changed, D for deleted.
    """
    found = Client.of(root).request("GET", f"/containers/{name}/changes") or ()
    render.show("\n".join(f"{KINDS[item['Kind']]} {render.printable(item['Path'])}" for item in found))


@click.command("ps")
@click.option("-a", "--all", "every", is_flag=True, help="List mounts that are not mounted too.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids alone.")
@NO_TRUNC
@FORMAT
@click.pass_obj
def ps_command(root: Path, every: bool, quiet: bool, no_trunc: bool, form: str) -> None:
    """List mounts."""
    found = Client.of(root).request("GET", "/containers/json", all=every)
    rows = [_mount_row(item, no_trunc) for item in found]
    if quiet:
        render.show("\n".join(row["ID"] for row in rows))
    elif form == "json":
        render.show(render.json_lines(rows))
    else:
        columns = ("ID", "Image", "Command", "CreatedSince", "Status", "Mountpoint", "Names")
        header = ("MOUNT ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "MOUNTPOINT", "NAMES")
        render.show(render.table(header, [[row[column] for column in columns] for row in rows]))


def _mount_row(item: dict[str, Any], no_trunc: bool) -> dict[str, str]:
    image = item["Image"] or "<no image>"
    command = render.printable(item["Command"])
    if image.startswith("sha256:") and not no_trunc:
        image = render.short_id(image)
    return {
        "ID": item["Id"] if no_trunc else render.short_id(item["Id"]),
        "Image": image,
        "Command": f'"{command if no_trunc else render.ellipsis(command, COMMAND_WIDTH)}"' if command else "",
        "CreatedSince": render.age(item["Created"]),
        "CreatedAt": render.moment(item["Created"]),
        "State": item["State"],
        "Status": item["Status"],
        "Mountpoint": render.printable(item["Mountpoint"]),
        "Names": ",".join(name.removeprefix("/") for name in item["Names"]),
    }


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Unmount first, even what is in use.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rm_command(root: Path, names: tuple[str, ...], force: bool) -> int:
    """Remove mounts, and what was written to them.

    What was committed stays: images are not touched.
    """
    client = Client.of(root)

    def remove(name: str) -> None:
        client.request("DELETE", f"/containers/{name}", force=force)
        click.echo(name)

    return each(names, remove)


@click.command("umount")
@click.option("-f", "--force", is_flag=True, help="Unmount even what is in use; open files stay usable.")
@click.option("-l", "--lazy", is_flag=True, help="The same as --force.")
@click.argument("name")
@click.pass_obj
def umount_command(root: Path, name: str, force: bool, lazy: bool) -> None:
    """Unmount a mount.

    NAME is its name, or the directory it is mounted on. What was written stays:
    'layerfs mount --name NAME MOUNTPOINT' resumes it.
    """
    client = Client.of(root)

    def unmount(name: str) -> None:
        client.request("POST", "/layerfs/unmount", name=name, force=force or lazy)

    if "/" not in name:
        try:
            unmount(name)
            return
        except NotFound as error:
            unknown = error
    else:
        unknown = NotFound(f"no mount of this store is mounted on {name}")
    found = _mounted_on(client, name)
    if found is None:
        raise unknown
    unmount(found)


def _mounted_on(client: Client, path: str) -> str | None:
    """Return the id of the mount on the directory *path*, None when there is none.

    The directory itself is not looked at: its daemon may be dead, or hang.
    """
    parent, name = os.path.split(os.path.abspath(path))
    directory = os.path.join(os.path.realpath(parent), name).encode(errors="replace").decode()  # as in JSON
    for item in client.request("GET", "/containers/json", all=True):
        if item["Mountpoint"] == directory and item["State"] in ("running", "dead"):
            identifier: str = item["Id"]
            return identifier
    return None
