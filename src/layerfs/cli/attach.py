"""The commands that join a terminal or pipes to a process in a container: attach, exec."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli.names import NAME
from layerfs.errors import Conflict, LayerfsError

if TYPE_CHECKING:
    from layerfs.client.client import Client

DETACH_KEYS = click.option(
    "--detach-keys", metavar="KEYS", default="", help="Leave it by these keys (ctrl-p,ctrl-q)."
)
SIG_PROXY = click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on (the default).")


@dataclass(frozen=True, slots=True)
class Streams:
    """Which streams of a process are joined to ours."""

    tty: bool
    """Whether it has a terminal."""
    stdin: bool
    stdout: bool = True
    stderr: bool = True

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Streams:
        """Return those that the *body* of a request to create a container asks for."""
        return cls(body["Tty"], body["AttachStdin"], body["AttachStdout"], body["AttachStderr"])


def check_terminal(tty: bool, interactive: bool) -> None:
    """Raise `LayerfsError` where keys are wanted from something that has none."""
    if tty and interactive and not os.isatty(0):
        raise LayerfsError("the input device is not a TTY: leave out -t, or run it from a terminal")


def keys(text: str) -> bytes:
    """Return the keys *text* to leave a container by; raises `BadRequest`."""
    from layerfs.container.attachment import detach_keys

    return detach_keys(text)


def start_attached(
    client: Client, name: str, streams: Streams, *, remove: bool, keys: bytes, signals: bool = True
) -> int:
    """Start the container *name* with our output, and our input; return the exit code of its process.

    Returns 0 when the user left it running, by *keys*. *remove*: it is removed at its end; *signals*: they
    are passed on. Raises `LayerfsError`.
    """
    from layerfs.cli.containers import start

    connection, early = client.take_over(
        "POST",
        f"/containers/{name}/attach",
        stream=True,
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
    )
    condition = "removed" if remove else "next-exit"
    end = client.stream("POST", f"/containers/{name}/wait", condition=condition)
    with connection:
        start(client, name)
        joined = _joined(client, name, connection, early, streams, keys, signals)
        if not joined.run():
            return 0
    code: int = json.loads(b"".join(end.chunks))["StatusCode"]
    return code


def _joined(
    client: Client, name: str, connection: Any, early: bytes, streams: Streams, keys: bytes, signals: bool
) -> Any:
    from layerfs.client.attachment import Joined

    def resize(rows: int, columns: int) -> None:
        client.request("POST", f"/containers/{name}/resize", h=str(rows), w=str(columns))

    def pass_on(number: int) -> None:
        if signals:
            client.request("POST", f"/containers/{name}/kill", signal=str(number))

    return Joined(
        connection, early, tty=streams.tty, stdin=streams.stdin, resize=resize, pass_on=pass_on, keys=keys
    )


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Pass nothing on that is read from standard input.")
@DETACH_KEYS
@SIG_PROXY
@click.argument("name", type=NAME)
@click.pass_obj
def attach_command(root: Path, name: str, no_stdin: bool, detach_keys: str, sig_proxy: bool) -> int:
    """Join a container that runs: see what it writes, and type.

    Exits with its status when it ends; ctrl-p ctrl-q leaves it running.
    """
    from layerfs.cli.containers import describe
    from layerfs.client.client import Client

    leave = keys(detach_keys)
    client = Client.of(root)
    found = describe(client, name)
    if not found["State"]["Running"]:
        raise Conflict("cannot attach to a stopped container, start it first")
    if found["State"]["Paused"]:
        raise Conflict("cannot attach to a paused container, unpause it first")
    identifier: str = found["Id"]
    streams = Streams(found["Config"]["Tty"], not no_stdin and found["Config"]["OpenStdin"])
    check_terminal(streams.tty, streams.stdin)
    connection, early = client.take_over(
        "POST",
        f"/containers/{identifier}/attach",
        stream=True,
        stdin=streams.stdin,
        stdout=True,
        stderr=True,
    )
    end = client.stream("POST", f"/containers/{identifier}/wait", condition="not-running")
    with connection:
        if not _joined(client, identifier, connection, early, streams, leave, sig_proxy).run():
            return 0
    code: int = json.loads(b"".join(end.chunks))["StatusCode"]
    return code


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is read from standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for its end.")
@click.option("--privileged", is_flag=True, help="Give the command all rights.")
@DETACH_KEYS
@click.option(
    "-e",
    "--env",
    "environment",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Set a variable; a name alone takes the value that it has here.",
)
@click.option(
    "--env-file", "files", metavar="FILE", multiple=True, help="Set the variables in FILE, a line each."
)
@click.option("-w", "--workdir", metavar="DIR", default="", help="Start in this directory of the container.")
@click.option("-u", "--user", metavar="USER[:GROUP]", default="", help="Run as this user.")
@click.argument("name", type=NAME)
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(
    root: Path,
    name: str,
    interactive: bool,
    tty: bool,
    detach: bool,
    privileged: bool,
    detach_keys: str,
    environment: tuple[str, ...],
    files: tuple[str, ...],
    workdir: str,
    user: str,
    command: tuple[str, ...],
) -> int:
    """Run one more command in a container that runs.

    Exits with the command's status; 126 means that it could not be executed, 127 that it was not found.
    """
    from layerfs.cli.createbody import variables
    from layerfs.client.attachment import Joined
    from layerfs.client.client import Client
    from layerfs.container.ociruntime import ContainerError, failure

    leave = keys(detach_keys)
    if not detach:
        check_terminal(tty, interactive)
        if tty and not any(os.isatty(fd) for fd in (0, 1, 2)):
            raise ContainerError("there is no terminal to use: leave out -t, or run it from one", 1)
    client = Client.of(root)
    body = {
        "Cmd": list(command),
        "Env": variables(files, environment),
        "WorkingDir": workdir,
        "User": user,
        "Tty": tty,
        "Privileged": privileged,
        "DetachKeys": detach_keys,
        "AttachStdin": interactive and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
    }
    made = client.request("POST", f"/containers/{name}/exec", body=json.dumps(body).encode())["Id"]
    start = json.dumps({"Detach": detach, "Tty": tty}).encode()
    if detach:
        try:
            client.request("POST", f"/exec/{made}/start", body=start)
        except LayerfsError as error:
            status = failure(str(error)).exit_code
            raise ContainerError(str(error), status if status != 125 else 1) from None
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
            keys=leave,
        ).run()
    code = client.request("GET", f"/exec/{made}/json")["ExitCode"]
    return 0 if code is None else int(code)
