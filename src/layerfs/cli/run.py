"""The command that runs a program in a new container."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.errors import BadRequest, LayerfsError, NotFound

if TYPE_CHECKING:
    from layerfs.container.settings import Wanted
    from layerfs.store import Store
    from layerfs.store.model import Image, Mount


class RunCommand(click.Command):
    """A command whose own errors, wrong usage among them, have the exit code 125, as docker's have.

    All others are those of the container's process.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Do what every command does with its arguments; raises `ContainerError`."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            from layerfs.container.ociruntime import ContainerError

            text = error.format_message().rstrip(".")
            raise ContainerError(f"{text}; see '{ctx.command_path} --help'") from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `ContainerError` for all that goes wrong."""
        try:
            return super().invoke(ctx)
        except LayerfsError as error:
            from layerfs.container.ociruntime import ContainerError

            if isinstance(error, ContainerError):
                raise
            raise ContainerError(str(error)) from error


@click.command(
    "run", cls=RunCommand, context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS]"
)
@click.option("--name", metavar="NAME", help="Name the container.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is read from standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the container a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for its end; print the container's id.")
@click.option("--rm", "remove", is_flag=True, help="Remove the container at its end.")
@click.option(
    "-e", "--env", "environment", metavar="NAME=VALUE", multiple=True, help="Set a variable (repeatable)."
)
@click.option("-w", "--workdir", metavar="DIR", default="", help="Start in this directory of the container.")
@click.option("-u", "--user", metavar="USER[:GROUP]", default="", help="Run as this user.")
@click.option(
    "-v",
    "--volume",
    "binds",
    metavar="HOST:DEST[:ro]",
    multiple=True,
    help="Show the host's file or directory HOST at DEST (repeatable).",
)
@click.option("-h", "--hostname", metavar="NAME", default="", help="Name the machine (else by the id).")
@click.option(
    "--network",
    metavar="NETWORK",
    default="host",
    help="host (the default), none, bridge, or a network of yours.",
)
@click.option(
    "--network-alias", "aliases", metavar="NAME", multiple=True, help="Be found there by this name too."
)
@click.option("--ip", metavar="ADDRESS", help="Have this address in the network.")
@click.option(
    "-p",
    "--publish",
    metavar="[[IP:]PORT:]PORT[/udp]",
    multiple=True,
    help="Have a port of the host lead there.",
)
@click.option("-P", "--publish-all", is_flag=True, help="Publish every port that the image exposes.")
@click.option("--entrypoint", metavar="PROGRAM", help="Run this in place of the image's entrypoint.")
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    help="Pull the image from its registry if the store does not have it (the default), or not.",
)
@click.argument("image")
@click.argument("command", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run_command(
    root: Path,
    name: str | None,
    interactive: bool,
    tty: bool,
    detach: bool,
    remove: bool,
    environment: tuple[str, ...],
    workdir: str,
    user: str,
    binds: tuple[str, ...],
    hostname: str,
    network: str,
    aliases: tuple[str, ...],
    ip: str | None,
    publish: tuple[str, ...],
    publish_all: bool,
    entrypoint: str | None,
    pull: str,
    image: str,
    command: tuple[str, ...],
) -> int:
    """Run a command in a new container of an image.

    Without a COMMAND, runs what the image names. Exits with the command's status; 125 means that layerfs
    failed, 126 that the command could not be executed, 127 that it was not found.

    \b
    layerfs run -ti debian:12
    layerfs run --rm -v ./src:/src -w /src debian:12 make
    """
    from layerfs.container.ports import bindings
    from layerfs.container.settings import Wanted, endpoint_settings

    wanted = Wanted(
        command=command,
        entrypoint=entrypoint,
        environment=environment,
        workdir=workdir,
        user=user,
        binds=binds,
        hostname=hostname,
        network=network,
        endpoint=endpoint_settings(aliases, ip),
        ports=bindings(publish),
        publish_all=publish_all,
        terminal=tty,
        stdin=interactive,
        detached=detach,
        remove=remove,
    )
    from layerfs.cli import containers
    from layerfs.container import lifecycle

    lifecycle.check_possible()
    if not detach:
        containers.check_terminal(tty, interactive)
    containers.warn_unfiltered()
    mount = _create(
        root, name if name is not None else f"container-{secrets.token_hex(4)}", image, wanted, pull
    )
    if detach:
        lifecycle.start(root, mount)
        click.echo(mount.id)
        return 0
    return containers.start_attached(root, mount, stdin=interactive)


def _create(root: Path, name: str, reference: str, wanted: Wanted, pull: str) -> Mount:
    """Make the mount of a container, of an image that is pulled if need be; raises `LayerfsError`."""
    from layerfs.container.settings import configuration, settings
    from layerfs.store import Store

    chosen = settings(wanted)
    with Store(root) as store:
        image = _find_image(store, reference, pull)
        if image.os != "linux":
            raise BadRequest(f"{reference} is an image for {image.os}, not for linux")
        config = configuration(image.config, wanted)
        return store.create_mount(name, image=image, options={"container": chosen}, config=config)


def _find_image(store: Store, reference: str, pull: str) -> Image:
    """Return the image called *reference*, from its registry if *pull* says so; raises `LayerfsError`."""
    try:
        if pull != "always":
            return store.resolve(reference)
    except NotFound:
        if pull == "never":
            raise
        click.echo(f"Unable to find image '{reference}' locally", err=True)
    from layerfs.archive.limits import Limits
    from layerfs.distribution.pull import pull as bring
    from layerfs.distribution.remotes import Remote
    from layerfs.distribution.skopeo import Options
    from layerfs.store.references import normalize

    remote = Remote("docker", f"//{normalize(reference)}")
    return bring(store, remote, None, Options(), limits=Limits(), progress=sys.stderr.isatty()).image
