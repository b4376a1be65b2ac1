"""The mount helper's form of the command line: what mount(8) and mount.fuse3(8) call for `fuse.layerfs`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from layerfs.cli.mount import start
from layerfs.cli.options import option_names, parse_options
from layerfs.cli.shared import GivenText
from layerfs.host.rundir import store_root


@click.command("layerfs")
@click.option("-o", "options", metavar="OPTS", multiple=True, required=True)
@click.option("-f", "--foreground", is_flag=True)
@click.argument("source")
@click.argument("mountpoint", type=GivenText())
def _helper(source: str, mountpoint: str, options: tuple[str, ...], foreground: bool) -> None:
    """Mount on MOUNTPOINT what the options say; SOURCE is what /proc/mounts shows, as with overlayfs.

    With the option remount, change the flags of what is mounted there.
    """
    if "remount" in option_names(list(options)):
        from layerfs.cli.remount import remount

        remount(mountpoint, list(options))
        return
    wanted = parse_options(list(options))
    start(store_root(wanted.root), wanted, mountpoint, foreground=foreground, source=source)


def mount_helper(arguments: Sequence[str]) -> None:
    """Mount as *arguments*, `SOURCE MOUNTPOINT -o OPTIONS`, say; return once the mount answers.

    Raises `UsageError` or another `LayerfsError`, and click's errors for a malformed command line.
    """
    _helper.main(list(arguments), prog_name="layerfs", standalone_mode=False)
