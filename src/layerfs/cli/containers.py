"""The commands about containers: exec, kill, logs, start, stop, wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli import render
from layerfs.cli.shared import each
from layerfs.errors import Conflict, LayerfsError

if TYPE_CHECKING:
    from layerfs.client.client import Client


def check_terminal(tty: bool, interactive: bool) -> None:
    """Raise `LayerfsError` where keys are wanted from something that has none."""
    if tty and interactive and not os.isatty(0):
        raise LayerfsError("the input device is not a TTY: leave out -t, or run it from a terminal")


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


def start_attached(client: Client, name: str, *, tty: bool, stdin: bool, remove: bool) -> int:
    """Start the container *name* with our output, and input if *stdin*; return the exit code of its process.

    Returns 0 when the user left it running. *remove*: it is removed at its end. Raises `LayerfsError`.
    """
    import json

    from layerfs.client.attachment import Joined

    connection, early = client.take_over(
        "POST", f"/containers/{name}/attach", stream=True, stdin=stdin, stdout=True, stderr=True
    )
    condition = "removed" if remove else "next-exit"
    end = client.stream("POST", f"/containers/{name}/wait", condition=condition)
    with connection:
        start(client, name)
        joined = Joined(
            connection,
            early,
            tty=tty,
            stdin=stdin,
            resize=lambda rows, columns: client.request(
                "POST", f"/containers/{name}/resize", h=str(rows), w=str(columns)
            ),
            pass_on=lambda number: client.request("POST", f"/containers/{name}/kill", signal=str(number)),
        )
        if not joined.run():
            return 0
    code: int = json.loads(b"".join(end))["StatusCode"]
    return code


@click.command("start")
@click.option("-a", "--attach", is_flag=True, help="Show its output, and wait for its end.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is read from standard input.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def start_command(root: Path, names: tuple[str, ...], attach: bool, interactive: bool) -> int:
    """Start containers that have ended, with what was written to them.

    With -a or -i, exits with the status of the command.
    """
    from layerfs.client.client import Client

    client = Client.of(root)
    warn_unfiltered()
    if not (attach or interactive):

        def begin(name: str) -> None:
            describe(client, name)
            start(client, name)
            click.echo(name)

        return each(names, begin)
    if len(names) > 1:
        raise Conflict("only one container can be attached to: give one name")
    found = describe(client, names[0])
    if found["State"]["Running"]:
        raise Conflict(f"{names[0]} is running already")
    tty, stdin = found["Config"]["Tty"], interactive and found["Config"]["OpenStdin"]
    check_terminal(tty, stdin)
    remove = found["HostConfig"]["AutoRemove"]
    return start_attached(client, found["Id"], tty=tty, stdin=stdin, remove=remove)


@click.command("stop")
@click.option("-t", "--time", "seconds", metavar="SECONDS", type=click.IntRange(0), default=10)
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def stop_command(root: Path, names: tuple[str, ...], seconds: int) -> int:
    """Stop containers: SIGTERM, and SIGKILL after --time seconds (10).

    What was written to them stays.
    """
    from layerfs.client.client import Client

    client = Client.of(root)

    def stop(name: str) -> None:
        describe(client, name)
        client.request("POST", f"/containers/{name}/stop", t=str(seconds))
        click.echo(name)

    return each(names, stop)


@click.command("kill")
@click.option("-s", "--signal", "text", metavar="SIGNAL", default="KILL", help="Send this instead of KILL.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def kill_command(root: Path, names: tuple[str, ...], text: str) -> int:
    """Send a signal to the processes that containers began with."""
    from layerfs.client.client import Client

    client = Client.of(root)

    def kill(name: str) -> None:
        describe(client, name)
        client.request("POST", f"/containers/{name}/kill", signal=text)
        click.echo(name)

    return each(names, kill)


@click.command("wait")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def wait_command(root: Path, names: tuple[str, ...]) -> int:
    """Wait until containers have ended, and print their exit codes."""
    import json

    from layerfs.client.client import Client

    client = Client.of(root)

    def wait(name: str) -> None:
        found = describe(client, name)
        if found["State"]["Status"] == "created":
            raise Conflict(f"{name} was not started")
        click.echo(
            json.loads(b"".join(client.stream("POST", f"/containers/{found['Id']}/wait")))["StatusCode"]
        )

    return each(names, wait)


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", metavar="LINES", type=click.IntRange(0), help="Show the last lines alone.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.argument("name")
@click.pass_obj
def logs_command(root: Path, name: str, follow: bool, tail: int | None, timestamps: bool) -> None:
    """Show what a container wrote."""
    from layerfs.client.attachment import Demultiplexer
    from layerfs.client.client import Client

    client = Client.of(root)
    found = describe(client, name)
    pieces = client.stream(
        "GET",
        f"/containers/{found['Id']}/logs",
        stdout=True,
        stderr=True,
        follow=follow,
        timestamps=timestamps,
        tail="" if tail is None else str(tail),
    )
    output = Demultiplexer(tty=found["Config"]["Tty"])
    for piece in pieces:
        output.feed(piece)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is read from standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for its end.")
@click.option(
    "-e", "--env", "environment", metavar="NAME=VALUE", multiple=True, help="Set a variable (repeatable)."
)
@click.option("-w", "--workdir", metavar="DIR", default="", help="Start in this directory of the container.")
@click.option("-u", "--user", metavar="USER[:GROUP]", default="", help="Run as this user.")
@click.argument("name")
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(
    root: Path,
    name: str,
    interactive: bool,
    tty: bool,
    detach: bool,
    environment: tuple[str, ...],
    workdir: str,
    user: str,
    command: tuple[str, ...],
) -> int:
    """Run one more command in a container that runs.

    Exits with the command's status; 126 means that it could not be executed, 127 that it was not found.
    """
    import json

    from layerfs.client.attachment import Joined
    from layerfs.client.client import Client
    from layerfs.container.ociruntime import ContainerError

    if not detach:
        check_terminal(tty, interactive)
        if tty and not any(os.isatty(fd) for fd in (0, 1, 2)):
            raise ContainerError("there is no terminal to use: leave out -t, or run it from one", 1)
    client = Client.of(root)
    body = {
        "Cmd": list(command),
        "Env": list(environment),
        "WorkingDir": workdir,
        "User": user,
        "Tty": tty,
        "AttachStdin": interactive and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
    }
    made = client.request("POST", f"/containers/{name}/exec", body=json.dumps(body).encode())["Id"]
    start = json.dumps({"Detach": detach, "Tty": tty}).encode()
    if detach:
        client.request("POST", f"/exec/{made}/start", body=start)
        return 0
    connection, early = client.take_over("POST", f"/exec/{made}/start", body=start)
    with connection:
        Joined(
            connection,
            early,
            tty=tty,
            stdin=interactive,
            resize=lambda rows, columns: client.request(
                "POST", f"/exec/{made}/resize", h=str(rows), w=str(columns)
            ),
            pass_on=lambda number: client.request("POST", f"/layerfs/exec/{made}/kill", signal=str(number)),
        ).run()
    code = client.request("GET", f"/exec/{made}/json")["ExitCode"]
    return 0 if code is None else int(code)
