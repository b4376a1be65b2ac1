"""The commands that make a container of an image: run and create."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.cli.createoptions import container_options
from layerfs.errors import Conflict, LayerfsError, NotFound

if TYPE_CHECKING:
    from layerfs.client.client import Client

NETWORK = "host"
"""The network of a container for which none is given."""


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
@container_options
@click.option("-d", "--detach", is_flag=True, help="Do not wait for its end; print the container's id.")
@click.option("--rm", is_flag=True, help="Remove the container at its end.")
@click.option("--detach-keys", metavar="KEYS", default="", help="Leave it by these keys (ctrl-p,ctrl-q).")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to it (the default).")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress of a pull.")
@click.argument("image")
@click.argument("command", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run_command(root: Path, /, image: str, command: tuple[str, ...], **given: Any) -> int:
    """Run a command in a new container of an image.

    Without a COMMAND, runs what the image names. Exits with the command's status; 125 means that layerfs
    failed, 126 that the command could not be executed, 127 that it was not found.

    \b
    layerfs run -ti debian:12
    layerfs run --rm -v ./src:/src -w /src debian:12 make
    """
    from layerfs.cli import attach, containers
    from layerfs.cli.createbody import body
    from layerfs.client.client import Client

    detached: bool = given["detach"]
    wanted = body(given, command, network=NETWORK, detached=detached)
    keys = attach.keys(given["detach_keys"])
    client = Client.of(root)
    if client.in_place:
        from layerfs.container import lifecycle

        lifecycle.check_possible()
    if not detached:
        attach.check_terminal(wanted["Tty"], wanted["AttachStdin"])
        _note_size(wanted)
    containers.warn_unfiltered()
    identifier = create(client, {**wanted, "Image": image}, given)
    if detached:
        containers.start(client, identifier)
        click.echo(identifier)
        return 0
    streams = attach.Streams.of(wanted)
    return attach.start_attached(
        client, identifier, streams, remove=given["rm"], keys=keys, signals=given["sig_proxy"]
    )


@click.command("create", context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS]")
@container_options
@click.option("--rm", is_flag=True, help="Remove the container at its end.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress of a pull.")
@click.argument("image")
@click.argument("command", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def create_command(root: Path, /, image: str, command: tuple[str, ...], **given: Any) -> None:
    """Make a container of an image, and print its id; 'layerfs start' starts it.

    \b
    layerfs create -ti --name work debian:12
    layerfs start -ai work
    """
    from layerfs.cli.createbody import body
    from layerfs.client.client import Client

    wanted = body(given, command, network=NETWORK, detached=False)
    click.echo(create(Client.of(root), {**wanted, "Image": image}, given))


def _note_size(wanted: dict[str, Any]) -> None:
    """Let the container's terminal begin with the size that ours has."""
    from layerfs.host import terminal

    size = next((found for fd in (0, 1, 2) if (found := terminal.size(fd))), None) if wanted["Tty"] else None
    if size is not None:
        wanted["HostConfig"]["ConsoleSize"] = list(size)


def create(client: Client, body: dict[str, Any], given: dict[str, Any]) -> str:
    """Make the container that *body* describes, of an image that is pulled if need be; return its id.

    *given* are the options about the making itself. Raises `LayerfsError`.
    """
    reference: str = body["Image"]
    with _id_file(given["cidfile"]) as ids:
        if given["pull"] == "always":
            _pull(client, reference, given)
        try:
            made = _create(client, body, given)
        except NotFound as error:
            if given["pull"] != "missing" or "No such image" not in str(error):
                raise
            click.echo(f"Unable to find image '{reference}' locally", err=True)
            _pull(client, reference, given)
            made = _create(client, body, given)
        ids.append(made["Id"])
    for warning in made["Warnings"] or ():
        render.note(f"warning: {warning}")
    identifier: str = made["Id"]
    return identifier


@contextmanager
def _id_file(path: str | None) -> Iterator[list[str]]:
    """Make the file *path*, which must be a new one, and write to it the id that the block has found.

    It is removed where there is none. Raises `LayerfsError`.
    """
    found: list[str] = []
    if path is None:
        yield found
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise Conflict(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None
    except OSError as error:
        raise LayerfsError(f"failed to create the container ID file: {path}: {error.strerror}") from None
    try:
        yield found
        os.write(file, found[0].encode())
    finally:
        os.close(file)
        if not found:
            os.unlink(path)


def _create(client: Client, body: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = client.request(
        "POST",
        "/containers/create",
        body=json.dumps(body).encode(),
        name=given["name"],
        platform=given["platform"],
    )
    return made


def _pull(client: Client, reference: str, given: dict[str, Any]) -> None:
    from layerfs.cli.access import access_body
    from layerfs.cli.distribution import pull_named
    from layerfs.cli.progress import Progress
    from layerfs.distribution.named import Named

    # As for docker, a registry on the loopback need not have TLS: there is no option to say so.
    named = Named.parse(reference)
    access = access_body(host=named.host, tls_verify=False if named.is_local else None)
    with Progress(f"pulling {reference}", wanted=not given["quiet"]) as progress:
        pull_named(client, reference, {"Platform": given["platform"], **access}, progress)
