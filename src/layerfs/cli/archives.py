"""The commands that bring images in and out as files: load and save."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from layerfs.cli.progress import Progress
from layerfs.errors import UsageError, from_os_error

if TYPE_CHECKING:
    from layerfs.client.client import Client

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
    from layerfs.cli.uploads import opened
    from layerfs.client.client import Client
    from layerfs.client.lines import lines

    if source is not None and given is not None:
        raise UsageError("name the archive once: as SOURCE or with --input")
    name = source or given or "-"
    if name == "-" and sys.stdin.isatty():
        raise UsageError("name an archive or a directory, or send an archive to standard input")
    with (
        Progress(f"loading {name}", wanted=not quiet) as progress,
        opened(name, progress, "read the archive") as (upload, what),
    ):
        answer = Client.of(root).stream(
            "POST",
            "/images/load",
            upload=upload,
            source=what,
            tag=tags,
            platform=platform,
            maxsize=str(max_size or ""),
            maxfiles=str(max_files or ""),
            quiet=not progress.wanted,
        )
        told = list(progress.following(lines(answer)))
    for fields in told:
        if "stream" in fields:
            click.echo(fields["stream"], nl=False)
        elif "aux" in fields:
            note_left_out(fields["aux"]["LeftOut"])


def note_left_out(count: int) -> None:
    """Tell the user of device nodes that are not in an image."""
    if count:
        click.echo(f"layerfs: {count} device nodes were left out: only root can make them", err=True)


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
    from layerfs.client.client import Client

    if output in (None, "-"):
        if form == "oci-dir":
            raise UsageError("name the directory with --output")
        if sys.stdout.isatty():
            raise UsageError("an archive is not for a terminal: use --output, or a pipe")
    client = Client.of(root)
    save_to(client, references, Path(output) if output not in (None, "-") else None, form, compression)


def save_to(
    client: Client, references: Sequence[str], output: Path | None, form: str, compression: str | None
) -> None:
    """Save images to *output*, or to standard output. Raises `LayerfsError`."""
    answer = client.stream(
        "GET",
        "/images/get",
        sink=output or sys.stdout.buffer,
        names=references,
        format=form,
        compression=compression,
    )
    if client.in_place:
        return
    with closing(answer.chunks) as pieces:
        if form == "oci-dir":
            from layerfs.oci.layingout import lay_out

            assert output is not None
            lay_out(pieces, output)
        else:
            write_out(pieces, output, "save")


def write_out(pieces: Iterable[bytes], output: Path | None, doing: str) -> None:
    """Write *pieces* to a file, which appears when it is whole, or to standard output.

    Raises `BrokenPipeError` and, where *doing* so fails, `LayerfsError`.
    """
    from layerfs.oci.outputs import new_file

    try:
        if output is None:
            opened: AbstractContextManager[BinaryIO] = nullcontext(sys.stdout.buffer)
        else:
            is_file = output.is_file() or not output.exists()
            opened = new_file(output) if is_file else output.open("wb")
        with opened as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, doing) from None
