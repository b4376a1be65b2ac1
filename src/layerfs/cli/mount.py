"""The command that mounts: an image, plain directories, or a mount that exists already."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfs.cli.options import MountOptions, parse_options
from layerfs.errors import UsageError

if TYPE_CHECKING:
    from layerfs.client.client import Client


@click.command("mount")
@click.option("--image", metavar="REF", help="Mount this image, under a new upper layer.")
@click.option(
    "--lower",
    "lowers",
    metavar="DIR",
    multiple=True,
    help="Mount plain directories: the topmost first (repeatable).",
)
@click.option("--upper", metavar="DIR", help="Write to this directory; without it, --lower mounts read-only.")
@click.option("--work", metavar="DIR", help="An empty directory for --upper, on its filesystem.")
@click.option(
    "--name", metavar="NAME", help="Name the mount, so that it can be resumed after it was unmounted."
)
@click.option("--read-only", is_flag=True, help="Write nothing; an --upper needs no --work then.")
@click.option("--foreground", is_flag=True, help="Stay until unmounted, instead of until mounted.")
@click.option(
    "--config", metavar="FILE", type=click.Path(), help="Read what is not given here from a TOML file."
)
@click.option(
    "-o",
    "options",
    metavar="OPTS",
    multiple=True,
    help="Mount options: ro, nosuid, nodev, allow_other, userxattr, ...",
)
@click.argument("mountpoint", required=False)
@click.pass_obj
def mount_command(
    root: Path,
    image: str | None,
    lowers: tuple[str, ...],
    upper: str | None,
    work: str | None,
    name: str | None,
    read_only: bool,
    foreground: bool,
    config: str | None,
    options: tuple[str, ...],
    mountpoint: str | None,
) -> None:
    """Mount an image or a stack of directories.

    Returns once the mount answers. With --name alone, resumes the mount of that name with what was
    written to it. Without --name the mount is removed when it is unmounted.

    \b
    layerfs mount --image debian:12 --name base /mnt
    layerfs mount --name base /mnt
    layerfs mount --lower ./top --lower ./bottom --upper ./upper --work ./work /mnt
    """
    wanted = parse_options(list(options))
    wanted.image = wanted.image if image is None else image
    wanted.lowers = lowers or wanted.lowers
    wanted.upper = wanted.upper if upper is None else upper
    wanted.work = wanted.work if work is None else work
    wanted.name = wanted.name if name is None else name
    wanted.read_only = read_only or wanted.read_only
    if wanted.root is not None:
        raise UsageError("mount option root is for mount helpers: give 'layerfs --root DIR mount' instead")
    if config is not None:
        from layerfs.cli.config import apply_config

        mountpoint, root = apply_config(Path(config), wanted, mountpoint, root)
    if mountpoint is None:
        raise UsageError("give the MOUNTPOINT; see 'layerfs mount --help'")
    made = start(root, wanted, mountpoint, foreground=foreground)
    if wanted.name is None and not foreground:
        click.echo(made)


def start(
    root: Path, wanted: MountOptions, mountpoint: str, *, foreground: bool, source: str | None = None
) -> str:
    """Check that *wanted* makes sense together, start its daemon on *mountpoint*, and return its name.

    *source* is what the mount table is to show, the name if None.
    Raises `UsageError`, and what `layerfs.mounting.launch.start` raises.
    """
    if wanted.image is None and not wanted.lowers and wanted.name is None:
        raise UsageError("nothing to mount: give --image, --lower, or the --name of a mount to resume")
    if wanted.image is not None and wanted.lowers:
        raise UsageError("give either an image or lower directories, not both")
    if wanted.upper is not None and not wanted.lowers:
        raise UsageError("an upper directory goes with lower directories: give --lower too")
    if (wanted.upper is None) != (wanted.work is None) and not (wanted.upper and wanted.read_only):
        raise UsageError("an upper directory and a work directory go together: give both or neither")
    from layerfs.client.client import Client

    client = Client.of(root)
    if not client.in_place and not foreground:
        return _by_engine(client, wanted, mountpoint, source)
    from layerfs.api.server import start_mount
    from layerfs.mounting.request import MountRequest

    request = MountRequest(
        mountpoint=mountpoint,
        root=root,
        name=wanted.name,
        image=wanted.image,
        lowers=wanted.lowers,
        upper=wanted.upper,
        work=wanted.work,
        read_only=wanted.read_only,
        foreground=foreground,
        source=source,
        options=wanted.switches,
    )
    return start_mount(request)


def _by_engine(client: Client, wanted: MountOptions, mountpoint: str, source: str | None) -> str:
    """Have the engine mount, by a process that has imported everything already; return the name."""
    body = {
        "mountpoint": os.path.abspath(mountpoint),
        "name": wanted.name,
        "image": wanted.image,
        "lowers": [os.path.abspath(path) for path in wanted.lowers],
        "upper": None if wanted.upper is None else os.path.abspath(wanted.upper),
        "work": None if wanted.work is None else os.path.abspath(wanted.work),
        "read_only": wanted.read_only,
        "source": source,
        "options": wanted.switches,
    }
    name: str = client.request("POST", "/layerfs/mounts", body=json.dumps(body).encode())["Name"]
    return name
