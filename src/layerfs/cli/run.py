"""The command that runs a program in a new container."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.errors import LayerfsError, NotFound

if TYPE_CHECKING:
    from layerfs.client.client import Client


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
    metavar="[HOST|NAME:]DEST[:ro]",
    multiple=True,
    help="Show the host's file or directory HOST, or the volume NAME, at DEST (repeatable).",
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
@click.option("--ip", metavar="ADDRESS", default="", help="Have this address in the network.")
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
    ip: str,
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
    from layerfs.container.portbindings import published
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
        ports=published(publish),
        publish_all=publish_all,
        terminal=tty,
        stdin=interactive,
        detached=detach,
        remove=remove,
    )
    from layerfs.cli import containers
    from layerfs.client.client import Client
    from layerfs.container.settings import request

    client = Client.of(root)
    if client.in_place:
        from layerfs.container import lifecycle

        lifecycle.check_possible()
    if not detach:
        containers.check_terminal(tty, interactive)
    containers.warn_unfiltered()
    body = {**request(wanted), "Image": image}
    identifier = create(client, root, name, body, pull)
    if detach:
        containers.start(client, identifier)
        click.echo(identifier)
        return 0
    return containers.start_attached(client, identifier, tty=tty, stdin=interactive, remove=remove)


def create(client: Client, root: Path, name: str | None, body: dict[str, Any], pull: str) -> str:
    """Make the container that *body* describes, of an image that is pulled if need be; return its id.

    Raises `LayerfsError`.
    """
    reference: str = body["Image"]
    if pull == "always":
        _pull(root, reference)
    try:
        made = _create(client, name, body)
    except NotFound as error:
        if pull != "missing" or "No such image" not in str(error):
            raise
        click.echo(f"Unable to find image '{reference}' locally", err=True)
        _pull(root, reference)
        made = _create(client, name, body)
    for warning in made["Warnings"]:
        render.note(f"warning: {warning}")
    identifier: str = made["Id"]
    return identifier


def _create(client: Client, name: str | None, body: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = client.request(
        "POST", "/containers/create", body=json.dumps(body).encode(), name=name
    )
    return made


def _pull(root: Path, reference: str) -> None:
    from layerfs.archive.limits import Limits
    from layerfs.distribution.pull import pull
    from layerfs.distribution.remotes import Remote
    from layerfs.distribution.skopeo import Options
    from layerfs.store import Store
    from layerfs.store.references import normalize

    with Store(root) as store:
        remote = Remote("docker", f"//{normalize(reference)}")
        pull(store, remote, None, Options(), limits=Limits(), progress=sys.stderr.isatty())
