"""The commands that show what happens: logs, events."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.names import NAME
from layerfs.cli.shared import parsed_filters

_SINCE = click.option("--since", metavar="TIME", help="Show what is later: a time, or 10m for ago.")
_UNTIL = click.option("--until", metavar="TIME", help="Show what is earlier.")


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", metavar="LINES", default="all", help="Show the last lines alone.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--details", is_flag=True, help="Show what the log has of labels and variables.")
@_SINCE
@_UNTIL
@click.argument("name", metavar="CONTAINER", type=NAME)
@click.pass_obj
def logs_command(
    root: Path,
    name: str,
    follow: bool,
    tail: str,
    timestamps: bool,
    details: bool,
    since: str | None,
    until: str | None,
) -> None:
    """Show what a container wrote."""
    from layerfs.cli.containers import describe
    from layerfs.cli.quantities import moment
    from layerfs.client.attachment import Demultiplexer
    from layerfs.client.client import Client
    from layerfs.errors import UsageError

    if tail != "all" and not (tail.removeprefix("-").isdecimal() and tail.isascii()):
        raise UsageError(f"invalid --tail {tail[:80]!r}: give a number of lines, or all")
    client = Client.of(root)
    found = describe(client, name)
    answer = client.stream(
        "GET",
        f"/containers/{found['Id']}/logs",
        stdout=True,
        stderr=True,
        follow=follow,
        timestamps=timestamps,
        details=details,
        tail=tail,
        since=moment(since, "--since"),
        until=moment(until, "--until"),
    )
    output = Demultiplexer(tty=found["Config"]["Tty"])
    for piece in answer.chunks:
        output.feed(piece)


@click.command("events")
@_SINCE
@_UNTIL
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Take only some: type=image, event=create, container=X, image=X, label=X.",
)
@click.option(
    "--format", "form", metavar="FORMAT", default="", help="A Go template such as '{{.Action}}', or json."
)
@click.pass_obj
def events_command(
    root: Path, since: str | None, until: str | None, filters: tuple[str, ...], form: str
) -> None:
    """Show what happens to containers, mounts and images, as it happens.

    With --since what has happened, too; with --until it ends then.
    """
    from layerfs.cli.formats import clean, template
    from layerfs.cli.quantities import moment
    from layerfs.client.client import Client

    shown = template(form) if form not in ("", "json") else None
    answer = Client.of(root).stream(
        "GET",
        "/events",
        since=moment(since, "--since"),
        until=moment(until, "--until"),
        filters=json.dumps(parsed_filters(filters)) if filters else "",
    )
    rest = b""
    for piece in answer.chunks:
        *lines, rest = (rest + piece).split(b"\n")
        for line in filter(None, lines):
            event = json.loads(line)
            if shown is not None:
                click.echo(clean(shown.execute(event)))
            else:
                click.echo(render.as_json(event) if form else render.printable(_line(event)))


def _line(event: dict[str, Any]) -> str:
    """Return *event* as docker shows it."""
    seconds, nanoseconds = divmod(event["timeNano"], 10**9)
    local = datetime.fromtimestamp(seconds, UTC).astimezone()
    zone = local.strftime("%z")
    moment = f"{local:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}{zone[:3]}:{zone[3:5]}"
    attributes = ", ".join(f"{name}={value}" for name, value in sorted(event["Actor"]["Attributes"].items()))
    text = f"{moment} {event['Type']} {event['Action']} {event['Actor']['ID']}"
    return f"{text} ({attributes})" if attributes else text
