"""The commands that bring images in and out as files: load and save."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from layerfs.cli import render
from layerfs.errors import NotFound, UsageError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 512m, 10G."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes that *value* means."""
        found = re.fullmatch(r"(\d{1,18})([kmgt]?)(?:i?b)?", str(value).strip().lower())
        if not found:
            self.fail(f"{value!r} is no size: use bytes, or a number with k, m, g or t", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


@click.command("load")
@click.argument("source", type=click.Path(), required=False)
@click.option("-i", "--input", "given", metavar="FILE", type=click.Path(), help="The same as SOURCE.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="REF", help="Name the image so (repeatable).")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Choose from an index of several platforms.")
@click.option("--max-size", type=Size(), metavar="SIZE", help="Refuse an image that unpacks to more (256g).")
@click.option("--max-files", type=click.IntRange(1), metavar="N", help="Refuse more files (10000000).")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def load_command(
    root: Path,
    source: str | None,
    given: str | None,
    tags: tuple[str, ...],
    platform: str | None,
    max_size: int | None,
    max_files: int | None,
    quiet: bool,
) -> None:
    """Load images from an archive or a layout.

    SOURCE is an archive of 'docker save', an OCI archive, an OCI layout directory, or - for an archive
    from standard input. Archives may be compressed.
    """
    from layerfs import oci
    from layerfs.archive.limits import Limits
    from layerfs.store import Store

    if source is not None and given is not None:
        raise UsageError("name the archive once: as SOURCE or with --input")
    default = Limits()
    limits = Limits(max_size or default.size, max_files or default.files)
    name = source or given or "-"
    with Store(root) as store:
        for line in store.recover():
            render.note(line)
        progress = _Progress(name, wanted=not quiet)
        try:
            loaded = oci.load(
                store,
                _input(name),
                platform=platform,
                references=tags or None,
                limits=limits,
                progress=progress,
            )
        finally:
            progress.end()
    for each in loaded:
        for reference in each.references:
            click.echo(f"Loaded image: {reference}")
        if not each.references:
            click.echo(f"Loaded image ID: sha256:{each.image.id}")
        if each.left_out:
            click.echo(
                f"layerfs: {each.left_out} device nodes were left out: only root can make them", err=True
            )


def _input(name: str) -> Path | BinaryIO:
    if name != "-":
        if not Path(name).exists():
            raise NotFound(f"no such file or directory: {name}")
        return Path(name)
    if sys.stdin.isatty():
        raise UsageError("name an archive or a directory, or send an archive to standard input")
    return sys.stdin.buffer


@click.command("save")
@click.argument("references", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="Write there; - is standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["docker-archive", "oci-archive", "oci-dir"]),
    default="docker-archive",
    help="What to write: a docker-archive, which is an OCI archive too, unless told otherwise.",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "zstd"]),
    help="Of the layers: none by default in a docker-archive, else gzip.",
)
@click.pass_obj
def save_command(
    root: Path, references: tuple[str, ...], output: str | None, form: str, compression: str | None
) -> None:
    """Save images to an archive, or to an OCI layout directory.

    The same images give the same bytes each time.
    """
    from layerfs import oci
    from layerfs.store import Store

    target: Path | BinaryIO = Path(output or "-")
    if output in (None, "-"):
        if form == "oci-dir":
            raise UsageError("name the directory with --output")
        if sys.stdout.isatty():
            raise UsageError("an archive is not for a terminal: use --output, or a pipe")
        target = sys.stdout.buffer
    with Store(root, create=False) as store:
        oci.save(store, references, target, format=form, compression=compression)


class _Progress:
    """Shows on a terminal how much has been read."""

    def __init__(self, source: str, *, wanted: bool) -> None:
        self._source = source
        self._wanted = wanted and sys.stderr.isatty()
        self._shown = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that *done* bytes of *total* have been read; a total of 0 is not known."""
        if self._wanted and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            amount = render.size(done) + (f" of {render.size(total)}" if total else "")
            sys.stderr.write(f"\r\x1b[Kloading {self._source}: {amount}")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
