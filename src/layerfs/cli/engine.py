"""The command that serves the whole store: engine."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command("engine")
@click.option(
    "--socket", "path", metavar="PATH", type=click.Path(), help="Listen here (engine.sock in LAYERFS_RUN)."
)
@click.option(
    "--group", metavar="GROUP", help="Let this group connect too; its members can do all that root can."
)
@click.pass_obj
def engine_command(root: Path, path: str | None, group: str | None) -> None:
    """Serve Docker's API for the whole store on one socket.

    Mounts and containers have processes of their own: they go on when the engine ends.

    \b
    layerfs engine --socket /run/layerfs/engine.sock
    docker --host unix:///run/layerfs/engine.sock ps
    """
    from layerfs.engine.server import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(root, Path(path).absolute() if path else None, group)
