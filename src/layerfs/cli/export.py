"""The command that takes the whole tree of a mount out of the store: export."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from layerfs.cli.names import NAME
from layerfs.errors import Conflict, NotFound, UsageError, from_os_error

if TYPE_CHECKING:
    from layerfs.store import Store


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
    from layerfs.archive.flat import merged_tar
    from layerfs.client.client import Client
    from layerfs.store import Store

    if output is None and sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal: give --output, or redirect standard output")
    with Store(root, create=False) as store:
        mount_id = store.mount(name).id
        Client.of(root).request("POST", "/layerfs/flush", name=mount_id)
        mount = store.mount(mount_id)
        stack = store.stack_of(mount, upper=True)
        try:
            with _opened(output) as file:
                for piece in merged_tar(stack):
                    file.write(piece)
                file.flush()
                _check_still_there(store, mount_id)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise from_os_error(error, f"export {mount.name}") from None


def _opened(output: str | None) -> AbstractContextManager[BinaryIO]:
    """Open where the archive goes to; a file appears when it is whole."""
    from layerfs.oci.outputs import new_file

    if output is None:
        return nullcontext(sys.stdout.buffer)
    path = Path(output)
    return new_file(path) if path.is_file() or not path.exists() else path.open("wb")


def _check_still_there(store: Store, mount_id: str) -> None:
    try:
        store.mount(mount_id)
    except NotFound:
        raise Conflict(
            "the mount was removed while it was being exported: the archive is not whole"
        ) from None
