"""The commands that read the past: log, ls, cat."""

from __future__ import annotations

import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import FORMAT, Listing, Row
from layerfs.cli.names import ANY_NAME
from layerfs.cli.shared import NO_TRUNC
from layerfs.client.client import Client

LOG = Listing(
    {
        "ID": "CHECKPOINT",
        "CreatedAt": "CREATED AT",
        "CreatedSince": "CREATED",
        "Size": "SIZE",
        "Added": "ADDED",
        "Changed": "CHANGED",
        "Deleted": "DELETED",
        "Kind": "KIND",
        "Path": "PATH",
        "Tags": "IMAGES",
        "Comment": "MESSAGE",
        "Parent": "PARENT",
        "Author": "AUTHOR",
        "CreatedBy": "CREATED BY",
    },
    ("ID", "CreatedSince", "Size", "Added", "Changed", "Deleted", "Comment"),
)
_OF_PATH = ("ID", "CreatedSince", "Kind", "Path", "Comment")
FILES = Listing(
    {
        "Mode": "MODE",
        "Uid": "UID",
        "Gid": "GID",
        "Size": "SIZE",
        "Modified": "MODIFIED",
        "Name": "NAME",
        "Type": "TYPE",
        "Target": "TARGET",
    },
    ("Mode", "Uid", "Gid", "Size", "Modified", "Name"),
)
_TYPE_BITS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "character": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


@click.command("log")
@click.option("--graph", is_flag=True, help="Show what was given up by going back, too, and draw lines.")
@click.option("-n", "count", type=click.IntRange(0), default=100, help="Show so many at most (100; 0: all).")
@NO_TRUNC
@FORMAT
@click.argument("ref", type=ANY_NAME)
@click.argument("path", required=False)
@click.pass_obj
def log_command(
    root: Path, ref: str, path: str | None, graph: bool, count: int, no_trunc: bool, form: str
) -> None:
    """List the checkpoints that led to REF, the newest first.

    REF is a mount, an image, a checkpoint, or one of these with ~N or @{WHEN} after it. ADDED, CHANGED and
    DELETED are numbers of names, as 'layerfs diff' lists them.

    With PATH, only those that touched it, under the names that it had before, too: A for added, C for
    changed, D for deleted, R for renamed.
    """
    if graph and path:
        raise click.UsageError("--graph shows no single path: leave one of the two out")
    limit = str(count) if count else None
    found = Client.of(root).request("GET", "/layerfs/log", ref=ref, path=path, n=limit, graph=graph)
    rows = [_log_row(item, no_trunc) for item in found]
    if graph and form == "table":
        from layerfs.cli.graph import draw

        lines = draw([(item["Id"], item["Parent"]) for item in found])
        table = LOG.text(rows, form).split("\n")[1:] if rows else []
        for line in lines:
            click.echo(line.text if line.entry is None else f"{line.text} {table[line.entry]}".rstrip())
        return
    LOG.show(rows, form, _OF_PATH if path else ())


def _log_row(item: dict[str, Any], no_trunc: bool) -> Row:
    moment = int(datetime.fromisoformat(item["Created"][:26]).replace(tzinfo=UTC).timestamp())
    touched = item.get("Touched") or {"Kind": "", "Path": "", "From": None}
    path = render.printable(touched["Path"])
    if touched["From"]:
        path = f"{render.printable(touched['From'])} -> {path}"
    comment = render.printable(item["Comment"])
    tags = ", ".join(item["Tags"])
    if tags and not no_trunc:
        comment = f"({tags}) {comment}".rstrip()
    return {
        "ID": item["Id"] if no_trunc else render.short_id(item["Id"]),
        "Parent": (item["Parent"] or "") if no_trunc else render.short_id(item["Parent"] or ""),
        "CreatedAt": render.moment(moment),
        "CreatedSince": render.age(moment),
        "Size": render.size(item["Size"]),
        "Added": str(item["Added"]),
        "Changed": str(item["Changed"]),
        "Deleted": str(item["Deleted"]),
        "Kind": touched["Kind"],
        "Path": path,
        "Tags": tags,
        "Comment": comment if no_trunc else render.ellipsis(comment, 60),
        "Author": render.printable(item["Author"]),
        "CreatedBy": render.printable(item["CreatedBy"]),
    }


@click.command("ls")
@click.option("-l", "long", is_flag=True, help="Show modes, owners, sizes and times, too.")
@FORMAT
@click.argument("place", metavar="REF[:PATH]")
@click.pass_obj
def ls_command(root: Path, place: str, long: bool, form: str) -> None:
    """List a directory as it was, without a mount.

    REF is a mount, an image, a checkpoint, or one of these with ~N or @{WHEN} after it; PATH begins with a
    slash.
    """
    found = Client.of(root).request("GET", "/layerfs/ls", ref=place)
    if form == "table" and not long:
        render.show("\n".join(render.printable(item["Name"]) for item in found["Entries"]))
        return
    FILES.show([_file_row(item) for item in found["Entries"]], form)


def _file_row(item: dict[str, Any]) -> Row:
    name, target = render.printable(item["Name"]), item["Target"]
    return {
        "Mode": stat.filemode(_TYPE_BITS[item["Type"]] | item["Mode"]),
        "Uid": str(item["Uid"]),
        "Gid": str(item["Gid"]),
        "Size": str(item["Size"]),
        "Modified": render.moment(item["Modified"] // 10**9),
        "Name": name if target is None else f"{name} -> {render.printable(target)}",
        "Type": item["Type"],
        "Target": target or "",
    }


@click.command("cat")
@click.argument("place", metavar="REF:PATH")
@click.pass_obj
def cat_command(root: Path, place: str) -> None:
    """Print a file as it was, without a mount.

    REF is a mount, an image, a checkpoint, or one of these with ~N or @{WHEN} after it; PATH begins with a
    slash.
    """
    answer = Client.of(root).stream("GET", "/layerfs/cat", ref=place)
    sys.stdout.flush()
    try:
        for piece in answer.chunks:
            sys.stdout.buffer.write(piece)
    finally:
        answer.chunks.close()
    sys.stdout.buffer.flush()
