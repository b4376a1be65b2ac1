"""The commands that go through time: checkpoint, rollback, restore, fork, squash, keep."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from layerfs.cli import render
from layerfs.cli.names import NAME
from layerfs.client.client import Client


@click.command("checkpoint")
@click.option("-m", "--message", default="", help="A comment, which the history shows.")
@click.option("-p", "--pause", is_flag=True, help="Let the container's processes stand still meanwhile.")
@click.argument("name", type=NAME)
@click.pass_obj
def checkpoint_command(root: Path, name: str, message: str, pause: bool) -> None:
    """Keep what a mount is now, to go back to: a commit without an image.

    The mount NAME stays in use. Prints the id of the checkpoint.

    It has everything whose write had returned before. 'layerfs commit' makes an image of it.
    """
    body = json.dumps({"Comment": message, "Pause": pause}).encode()
    click.echo(Client.of(root).request("POST", "/layerfs/checkpoint", body=body, name=name)["Step"])


@click.command("rollback")
@click.option("--discard", is_flag=True, help="Do not keep what was written since the last checkpoint.")
@click.option("-p", "--pause", is_flag=True, help="Let the container's processes stand still meanwhile.")
@click.option("--kill", is_flag=True, help="Kill the container's process before; it stays stopped.")
@click.option("--restart", is_flag=True, help="Kill the container's process, and start it again after.")
@click.argument("name", type=NAME)
@click.argument("ref", required=False)
@click.pass_obj
def rollback_command(
    root: Path, name: str, ref: str | None, discard: bool, pause: bool, kill: bool, restart: bool
) -> None:
    """Take a mount back to a checkpoint: REF, or the last one.

    REF is the id of a checkpoint or its beginning, an image that was committed from NAME, or NAME~3: three
    checkpoints before the last. The mount stays in use, and is what it was then from one moment on. What is
    given up is a checkpoint itself, whose id is printed after that of REF, unless nothing was written or
    --discard is given.

    Who has a file open that is another one now keeps what it was, as with a deleted file.
    """
    body = {"Ref": ref or "", "Discard": discard, "Pause": pause or None, "Kill": kill, "Restart": restart}
    answer = Client.of(root).request("POST", "/layerfs/rollback", body=json.dumps(body).encode(), name=name)
    click.echo(answer["Step"])
    if answer["Kept"]:
        click.echo(answer["Kept"])


@click.command("restore")
@click.argument("name", type=NAME)
@click.argument("ref")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_obj
def restore_command(root: Path, name: str, ref: str, paths: tuple[str, ...]) -> None:
    """Bring files or trees back into a mount, as they were at REF.

    REF is a checkpoint, an image, a mount, or one of these with ~N or @{WHEN} after it. What is in a tree
    now and was not then goes. The mount stays in use, and sees writes like any others. A checkpoint is made
    before, whose id is printed: 'layerfs rollback NAME ID' undoes it.
    """
    body = json.dumps({"Ref": ref, "Paths": list(paths)}).encode()
    click.echo(Client.of(root).request("POST", "/layerfs/restore", body=body, name=name)["Step"])


@click.command("fork")
@click.option(
    "-n", "count", type=int, help="Make so many, NEW-1, NEW-2, ..., on directories of these names in DIR."
)
@click.argument("name", type=NAME)
@click.argument("new")
@click.argument("directory", metavar="DIR")
@click.pass_obj
def fork_command(root: Path, name: str, new: str, directory: str, count: int | None) -> None:
    """Make another live mount of what a mount is now, called NEW, on the directory DIR.

    The mount NAME gets a checkpoint and goes on; what is written to one of the two, the other does not see.
    Prints the name of each new mount.
    """
    body = {"Name": new, "Mountpoint": os.path.abspath(directory), "Count": count}
    answer = Client.of(root).request("POST", "/layerfs/fork", body=json.dumps(body).encode(), name=name)
    for made in answer["Mounts"]:
        click.echo(made["Name"])


@click.command("squash")
@click.argument("ref")
@click.pass_obj
def squash_command(root: Path, ref: str) -> None:
    """Join a checkpoint with the one that stands on it, which keeps its id; prints that.

    What only the first one still had is gone, and its space comes back. Refused where an image, a mount or
    another checkpoint needs it, and while a mount of it is in use.
    """
    body = json.dumps({"Ref": ref}).encode()
    click.echo(Client.of(root).request("POST", "/layerfs/squash", body=body)["Step"])


@click.command("keep")
@click.option("--every", metavar="SPAN", help="Keep the newest of each span of time: 10m, 1h, 7d.")
@click.option("--keep-last", "last", metavar="N", type=int, help="Keep the newest N.")
@click.option("--keep-daily", "daily", metavar="N", type=int, help="Keep the newest of each day, of N days.")
@click.argument("name", type=NAME)
@click.pass_obj
def keep_command(root: Path, name: str, every: str | None, last: int | None, daily: int | None) -> None:
    """Thin out the past of a mount: squash the checkpoints that no rule keeps.

    A checkpoint stays if one rule wants it, or an image, a mount, a build or a fork needs it. What was given
    up by going back is thinned out, too. The mount must not be in use. Prints what is gone.
    """
    body = json.dumps({"Every": every, "Last": last, "Daily": daily}).encode()
    done = Client.of(root).request("POST", "/layerfs/keep", body=body, name=name)
    for step in (*done["Squashed"], *done["Removed"]):
        click.echo(step)
    click.echo(f"Total reclaimed space: {render.size(done['Freed'])}")
    if done["InUse"]:
        render.note(f"{len(done['InUse'])} checkpoints stay for now: other mounts that have them are in use")
