"""The commands that tell what runs here: version, info."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layerfs import __version__
from layerfs.cli import render
from layerfs.cli.formats import clean, template
from layerfs.client.client import Client

_FORMAT = click.option(
    "-f",
    "--format",
    "form",
    metavar="FORMAT",
    default="",
    help="A Go template such as '{{.Server.Version}}', or json.",
)


def _show(found: dict[str, Any], form: str, lines: list[str]) -> None:
    if not form:
        render.show("\n".join(render.printable(line) for line in lines))
    elif form == "json":
        click.echo(render.as_json(found))
    else:
        click.echo(clean(template(form).execute(found)))


@click.command("version")
@_FORMAT
@click.pass_obj
def version_command(root: Path, form: str) -> None:
    """Show the version of layerfs, of the engine if one runs, and of the API."""
    client = Client.of(root)
    server = client.request("GET", "/version")
    own = {name: server[name] for name in ("ApiVersion", "Os", "Arch")}
    found = {"Client": {"Version": __version__, **own}, "Server": server}
    where = "in this process (no engine runs)" if client.in_place else "the engine"
    lines = [
        f"layerfs:      {__version__}",
        f"Engine:       {server['Version']}, {where}",
        f"API version:  {server['ApiVersion']} (minimum version {server['MinAPIVersion']})",
        f"OS/Arch:      {server['Os']}/{server['Arch']}",
        f"Kernel:       {server['KernelVersion']}",
    ]
    _show(found, form, lines)


@click.command("info")
@_FORMAT
@click.pass_obj
def info_command(root: Path, form: str) -> None:
    """Show what is in the store, and what the machine is."""
    found = Client.of(root).request("GET", "/info")
    lines = [
        f"Containers: {found['Containers']}",
        f" Running: {found['ContainersRunning']}",
        f" Paused: {found['ContainersPaused']}",
        f" Stopped: {found['ContainersStopped']}",
        f"Images: {found['Images']}",
        f"Server Version: {found['ServerVersion']}",
        f"Storage Driver: {found['Driver']}",
        *(f" {name}: {value}" for name, value in found["DriverStatus"] or ()),
        f"Kernel Version: {found['KernelVersion']}",
        f"Operating System: {found['OperatingSystem']}",
        f"OSType: {found['OSType']}",
        f"Architecture: {found['Architecture']}",
        f"CPUs: {found['NCPU']}",
        f"Total Memory: {render.size(found['MemTotal'])}",
        f"Name: {found['Name']}",
        f"Root Dir: {found['DockerRootDir']}",
    ]
    _show(found, form, [*lines, *(found["Warnings"] or ())])
