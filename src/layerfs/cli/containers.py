"""The commands about the life of containers: from start and stop to rename, port and update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.cli.createoptions import limit_options
from layerfs.cli.names import NAME
from layerfs.cli.shared import each
from layerfs.errors import Conflict, LayerfsError, UsageError

if TYPE_CHECKING:
    from layerfs.client.client import Client

_NAMES = click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, type=NAME)
_TIME = click.option(
    "-t",
    "--timeout",
    "--time",
    "seconds",
    metavar="SECONDS",
    type=click.IntRange(-1),
    help="Send SIGKILL after this time (10, or what the container says); -1 for never.",
)
_SIGNAL = click.option("-s", "--signal", "text", metavar="SIGNAL", help="Send this signal first.")


def warn_unfiltered() -> None:
    """Tell the person who runs a container if no seccomp filter confines it."""
    from layerfs.container import seccomp

    if seccomp.is_missing():
        render.note(seccomp.UNFILTERED)


def describe(client: Client, name: str) -> dict[str, Any]:
    """Return what is known of the container *name*; raises `Conflict` for a mount that is none."""
    found: dict[str, Any] = client.request("GET", f"/containers/{name}/json")
    if not found["Config"].get("Image") or not found["HostConfig"].get("NetworkMode"):
        raise Conflict(f"{found['Name'][1:]} is a mount, not a container: 'layerfs run' makes containers")
    return found


def start(client: Client, name: str) -> None:
    """Start the container *name*. Raises `ContainerError`, whose exit code says what is at fault."""
    from layerfs.container.ociruntime import ContainerError, failure

    try:
        client.request("POST", f"/containers/{name}/start")
    except LayerfsError as error:
        raise ContainerError(str(error), failure(str(error)).exit_code) from None


@click.command("start")
@click.option("-a", "--attach", is_flag=True, help="Show its output, and wait for its end.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is read from standard input.")
@click.option("--detach-keys", metavar="KEYS", default="", help="Leave it by these keys (ctrl-p,ctrl-q).")
@_NAMES
@click.pass_obj
def start_command(
    root: Path, names: tuple[str, ...], attach: bool, interactive: bool, detach_keys: str
) -> int:
    """Start containers that have ended, with what was written to them.

    With -a or -i, exits with the status of the command.
    """
    from layerfs.cli import attach as joining
    from layerfs.client.client import Client

    keys = joining.keys(detach_keys)
    client = Client.of(root)
    warn_unfiltered()
    if not (attach or interactive):

        def begin(name: str) -> None:
            describe(client, name)
            client.request("POST", f"/containers/{name}/start")  # the exit code is that of any other error
            click.echo(name)

        return each(names, begin)
    if len(names) > 1:
        raise Conflict("only one container can be attached to: give one name")
    found = describe(client, names[0])
    if found["State"]["Running"]:
        raise Conflict(f"{names[0]} is running already")
    streams = joining.Streams(found["Config"]["Tty"], interactive and found["Config"]["OpenStdin"])
    joining.check_terminal(streams.tty, streams.stdin)
    remove = found["HostConfig"]["AutoRemove"]
    return joining.start_attached(client, found["Id"], streams, remove=remove, keys=keys)


def _on_each(root: Path, names: tuple[str, ...], verb: str, **parameters: Any) -> int:
    """Ask for *verb* of each of the containers *names*, and print those that did."""
    from layerfs.client.client import Client

    client = Client.of(root)

    def do(name: str) -> None:
        describe(client, name)
        client.request("POST", f"/containers/{name}/{verb}", **parameters)
        click.echo(name)

    return each(names, do)


@click.command("stop")
@_TIME
@_SIGNAL
@_NAMES
@click.pass_obj
def stop_command(root: Path, names: tuple[str, ...], seconds: int | None, text: str | None) -> int:
    """Stop containers: SIGTERM, and SIGKILL after --timeout seconds (10).

    What was written to them stays.
    """
    return _on_each(root, names, "stop", t=_text(seconds), signal=text)


@click.command("restart")
@_TIME
@_SIGNAL
@_NAMES
@click.pass_obj
def restart_command(root: Path, names: tuple[str, ...], seconds: int | None, text: str | None) -> int:
    """Stop containers as 'layerfs stop' does, and start them."""
    warn_unfiltered()
    return _on_each(root, names, "restart", t=_text(seconds), signal=text)


def _text(seconds: int | None) -> str:
    return "" if seconds is None else str(seconds)


@click.command("kill")
@click.option("-s", "--signal", "text", metavar="SIGNAL", default="KILL", help="Send this instead of KILL.")
@_NAMES
@click.pass_obj
def kill_command(root: Path, names: tuple[str, ...], text: str) -> int:
    """Send a signal to the processes that containers began with."""
    return _on_each(root, names, "kill", signal=text)


@click.command("pause")
@_NAMES
@click.pass_obj
def pause_command(root: Path, names: tuple[str, ...]) -> int:
    """Let the processes of containers stand still."""
    return _on_each(root, names, "pause")


@click.command("unpause")
@_NAMES
@click.pass_obj
def unpause_command(root: Path, names: tuple[str, ...]) -> int:
    """Let the processes of containers go on."""
    return _on_each(root, names, "unpause")


@click.command("wait")
@_NAMES
@click.pass_obj
def wait_command(root: Path, names: tuple[str, ...]) -> int:
    """Wait until containers have ended, and print their exit codes."""
    from layerfs.client.client import Client

    client = Client.of(root)

    def wait(name: str) -> None:
        found = describe(client, name)
        if found["State"]["Status"] == "created":
            raise Conflict(f"{name} was not started")
        click.echo(client.request("POST", f"/containers/{found['Id']}/wait")["StatusCode"])

    return each(names, wait)


@click.command("rename")
@click.argument("name", metavar="CONTAINER", type=NAME)
@click.argument("new", metavar="NEW_NAME")
@click.pass_obj
def rename_command(root: Path, name: str, new: str) -> None:
    """Give a container, or a mount that is not mounted, another name."""
    from layerfs.client.client import Client

    Client.of(root).request("POST", f"/containers/{name}/rename", name=new)


@click.command("port")
@click.argument("name", metavar="CONTAINER", type=NAME)
@click.argument("port", metavar="[PORT[/udp]]", required=False)
@click.pass_obj
def port_command(root: Path, name: str, port: str | None) -> None:
    """Show which addresses of the host lead to a container's ports, or to one of them."""
    from layerfs.client.client import Client

    found = describe(Client.of(root), name)["NetworkSettings"].get("Ports") or {}
    wanted = port if port is None or "/" in port else f"{port}/tcp"
    if wanted is not None and not found.get(wanted):
        raise LayerfsError(f"no public port '{wanted}' published for {name}")
    for inside in [wanted] if wanted is not None else sorted(found, key=_order):
        for outside in found[inside] or ():
            address = outside["HostIp"] or "0.0.0.0"
            address = f"[{address}]" if ":" in address else address
            click.echo(f"{'' if wanted else f'{inside} -> '}{address}:{outside['HostPort']}")


def _order(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number), protocol


@click.command("update")
@limit_options
@click.option(
    "--restart", metavar="POLICY", help="Start it again: no, on-failure[:N], always, unless-stopped."
)
@_NAMES
@click.pass_obj
def update_command(root: Path, /, names: tuple[str, ...], restart: str | None, **given: Any) -> int:
    """Change the limits and the restart policy of containers, which may run."""
    from layerfs.cli.createbody import limits, restart_policy
    from layerfs.client.client import Client

    body = limits(given)
    if restart:
        body["RestartPolicy"] = restart_policy(restart)
    if not body:
        raise UsageError("you must provide one or more flags: say what is to be changed")
    client = Client.of(root)

    def update(name: str) -> None:
        answer = client.request("POST", f"/containers/{name}/update", body=json.dumps(body).encode())
        for warning in answer["Warnings"] or ():
            render.note(f"warning: {warning}")
        click.echo(name)

    return each(names, update)
