"""The commands about containers: exec, kill, logs, start, stop, wait."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfs.cli import render
from layerfs.cli.shared import each
from layerfs.errors import Conflict, LayerfsError

if TYPE_CHECKING:
    from layerfs.store.model import Mount


def check_terminal(tty: bool, interactive: bool) -> None:
    """Raise `LayerfsError` where keys are wanted from something that has none."""
    if tty and interactive and not os.isatty(0):
        raise LayerfsError("the input device is not a TTY: leave out -t, or run it from a terminal")


def warn_unfiltered() -> None:
    """Tell the person who runs a container if no seccomp filter confines it."""
    from layerfs.container import seccomp

    if seccomp.is_missing():
        render.note(seccomp.UNFILTERED)


def find(root: Path, name: str) -> Mount:
    """Return the container called *name*; raises `NotFound`, and `Conflict` for a mount that is none."""
    from layerfs.store import Store

    with Store(root, create=False) as store:
        mount = store.mount(name)
    if not mount.container:
        raise Conflict(f"{mount.name} is a mount, not a container: 'layerfs run' makes containers")
    return mount


def start_attached(root: Path, mount: Mount, *, stdin: bool) -> int:
    """Start the container *mount* with our output, and input if *stdin*; return the exit code of its process.

    Returns 0 when the user left it running. Raises `LayerfsError`.
    """
    from layerfs.container import lifecycle
    from layerfs.container.attach import Attachment
    from layerfs.container.ociruntime import ContainerError
    from layerfs.host.record import Record, Watch, directory

    opened: list[tuple[Attachment, Watch]] = []

    def attach(record: Record) -> None:
        bundle = directory(mount.id)
        attachment = Attachment(bundle, record, tty=mount.container["Tty"], stdin=stdin)
        opened.append((attachment, Watch(mount.id)))

    from layerfs.api.server import start_mount

    if not lifecycle.start(root, mount, start_mount, attach):
        raise Conflict(f"{mount.name} is running already")
    ((attachment, watch),) = opened
    with watch:
        with attachment:
            if not attachment.run():
                return 0
        code = lifecycle.wait(root, mount, watch)
    if code is None:
        raise ContainerError(f"nobody knows how {mount.name} ended")
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
    from layerfs.container import lifecycle

    warn_unfiltered()
    if not (attach or interactive):
        from layerfs.api.server import start_mount

        def start(name: str) -> None:
            lifecycle.start(root, find(root, name), start_mount)
            click.echo(name)

        return each(names, start)
    if len(names) > 1:
        raise Conflict("only one container can be attached to: give one name")
    mount = find(root, names[0])
    stdin = interactive and mount.container["OpenStdin"]
    check_terminal(mount.container["Tty"], stdin)
    return start_attached(root, mount, stdin=stdin)


@click.command("stop")
@click.option("-t", "--time", "seconds", metavar="SECONDS", type=click.IntRange(0), default=10)
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def stop_command(root: Path, names: tuple[str, ...], seconds: int) -> int:
    """Stop containers: SIGTERM, and SIGKILL after --time seconds (10).

    What was written to them stays.
    """
    from layerfs.client.client import Client

    def stop(name: str) -> None:
        find(root, name)
        Client.local(root).request("POST", f"/containers/{name}/stop", t=str(seconds))
        click.echo(name)

    return each(names, stop)


@click.command("kill")
@click.option("-s", "--signal", "text", metavar="SIGNAL", default="KILL", help="Send this instead of KILL.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def kill_command(root: Path, names: tuple[str, ...], text: str) -> int:
    """Send a signal to the processes that containers began with."""
    from layerfs.client.client import Client

    def kill(name: str) -> None:
        find(root, name)
        Client.local(root).request("POST", f"/containers/{name}/kill", signal=text)
        click.echo(name)

    return each(names, kill)


@click.command("wait")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def wait_command(root: Path, names: tuple[str, ...]) -> int:
    """Wait until containers have ended, and print their exit codes."""
    from layerfs.container import lifecycle
    from layerfs.host.record import Watch

    def wait(name: str) -> None:
        mount = find(root, name)
        try:
            watch = Watch(mount.id)
        except FileNotFoundError:
            code = mount.container.get("ExitCode")
        else:
            with watch:
                code = lifecycle.wait(root, mount, watch)
        if code is None:
            raise Conflict(f"{name} was not started")
        click.echo(code)

    return each(names, wait)


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", metavar="LINES", type=click.IntRange(0), help="Show the last lines alone.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.argument("name")
@click.pass_obj
def logs_command(root: Path, name: str, follow: bool, tail: int | None, timestamps: bool) -> None:
    """Show what a container wrote."""
    from layerfs.container import files, logs
    from layerfs.host import record

    mount = find(root, name)

    def goes_on() -> bool:
        found = record.look(mount.id)
        return found is not None and found.alive()

    outputs = {b"stdout": sys.stdout.buffer, b"stderr": sys.stderr.buffer}
    pieces = logs.read(files.log_path(root, mount.id), tail=tail, goes_on=goes_on if follow else None)
    for piece in pieces:
        output = outputs[piece.stream]
        output.write(piece.time + b" " + piece.text if timestamps else piece.text)
        if follow:
            output.flush()


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
    from layerfs.container.processes import Execution, execute

    if not detach:
        check_terminal(tty, interactive)
    wanted = Execution(
        command=command,
        environment=environment,
        workdir=workdir,
        user=user,
        terminal=tty,
        stdin=interactive,
        detached=detach,
    )
    return execute(find(root, name), wanted)
