"""The command that makes an image of a directory or an archive."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from layerfs.cli import render
from layerfs.errors import NotFound


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
    from layerfs.store import Store

    given: Path | BinaryIO = Path(source)
    if source == "-":
        given = sys.stdin.buffer
    elif not Path(source).exists():
        raise NotFound(f"no such file or directory: {source}")
    progress = _Progress(source)
    with Store(root) as store:
        for line in store.recover():
            render.note(line)
        try:
            image = store.import_image(given, reference, message=message, changes=changes, progress=progress)
        finally:
            progress.end()
    click.echo(f"sha256:{image.id}")


class _Progress:
    """Shows on a terminal how much was imported."""

    def __init__(self, source: str) -> None:
        """Show progress of importing *source*, where standard error is a terminal."""
        self.source = source
        self.wanted = sys.stderr.isatty()
        self.shown = 0.0

    def __call__(self, count: int) -> None:
        """Show that *count* bytes were imported so far."""
        if self.wanted and time.monotonic() - self.shown > 0.1:
            self.shown = time.monotonic()
            sys.stderr.write(f"\r\x1b[Kimporting {self.source}: {render.size(count)}")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
