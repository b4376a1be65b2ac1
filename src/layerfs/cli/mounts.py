"""The commands about mounts that exist: commit, rm, umount."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.cli import render
from layerfs.cli.names import NAME
from layerfs.cli.shared import each
from layerfs.client.client import Client


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
@click.argument("name", type=NAME)
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


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="End what runs and unmount first, even what is in use.")
@click.option("-v", "--volumes", is_flag=True, help="Remove its volumes without a name too.")
@click.argument("names", nargs=-1, required=True, type=NAME)
@click.pass_obj
def rm_command(root: Path, names: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove mounts, and what was written to them.

    What was committed stays: images are not touched.
    """
    client = Client.of(root)

    def remove(name: str) -> None:
        client.request("DELETE", f"/containers/{name}", force=force, v=volumes)
        click.echo(name)

    return each(names, remove)


@click.command("umount")
@click.option("-f", "--force", is_flag=True, help="Unmount even what is in use; open files stay usable.")
@click.option("-l", "--lazy", is_flag=True, help="The same as --force.")
@click.argument("name", type=NAME)
@click.pass_obj
def umount_command(root: Path, name: str, force: bool, lazy: bool) -> None:
    """Unmount a mount.

    NAME is its name, or the directory it is mounted on. What was written stays:
    'layerfs mount --name NAME MOUNTPOINT' resumes it.
    """
    Client.of(root).request("POST", "/layerfs/unmount", name=name, force=force or lazy)
