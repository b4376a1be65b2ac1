"""The command that makes an image of a directory or an archive."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.cli.progress import Progress


@click.command("import")
@click.argument("source", type=click.Path())
@click.argument("reference", required=False)
@click.option("-m", "--message", default="", help="A comment, which the history shows.")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    help="Apply a Dockerfile instruction to the image (repeatable).",
)
@click.pass_obj
def import_command(
    root: Path, source: str, reference: str | None, message: str, changes: tuple[str, ...]
) -> None:
    """Make an image of a directory or an archive.

    The image has one layer, and is called REFERENCE if given. SOURCE is a directory,
    a tar archive (plain, gzip or zstd), or - for an archive from standard input.
    Prints the image's id.
    """
    from layerfs.cli.uploads import opened
    from layerfs.client.client import Client
    from layerfs.client.lines import lines

    with (
        Progress(f"importing {source}") as progress,
        opened(source, progress, f"import {source}") as (upload, what),
    ):
        answer = Client.of(root).stream(
            "POST",
            "/images/create",
            upload=upload,
            source=what,
            fromSrc="-",
            repo=reference,
            message=message,
            changes=changes,
            called=source,
            progress=progress.wanted,
        )
        told = list(progress.following(lines(answer)))
    click.echo(told[-1]["status"])
