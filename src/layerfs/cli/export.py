"""The command that takes the whole tree of a mount out of the store: export."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from layerfs.cli.archives import write_out
from layerfs.cli.names import NAME
from layerfs.errors import UsageError


@click.command("export")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(), help="Write to FILE, not to standard output."
)
@click.argument("name", type=NAME)
@click.pass_obj
def export_command(root: Path, name: str, output: str | None) -> None:
    """Write the whole tree of a mount as a tar archive.

    NAME may be mounted or not. The archive has the merged tree alone, without layers or history:
    'layerfs import' makes an image of one layer of it. For images, see 'layerfs save'.
    """
    from layerfs.client.client import Client

    if output is None and sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal: give --output, or redirect standard output")
    answer = Client.of(root).stream("GET", f"/containers/{name}/export")
    with closing(answer.chunks) as pieces:
        write_out(pieces, None if output is None else Path(output), f"export {name}")
