"""The commands that tell how things are: inspect, status, fsck."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.shared import each
from layerfs.client.client import Client
from layerfs.errors import NotFound


@click.command("inspect")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def inspect_command(root: Path, names: tuple[str, ...]) -> int:
    """Show all about mounts and images, as a JSON array."""
    client = Client.of(root)
    found: list[Any] = []

    def inspect(name: str) -> None:
        for kind in ("containers", "images"):
            try:
                found.append(client.request("GET", f"/{kind}/{name}/json"))
                return
            except NotFound:
                continue
        raise NotFound(f"no such mount or image: {name}")

    status = each(names, inspect)
    click.echo(render.as_json(found, indent=4))
    return status


@click.command("status")
@click.argument("name", required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Print text or a JSON object.",
)
@click.pass_obj
def status_command(root: Path, name: str | None, form: str) -> int:
    """Show how a mount's daemon is doing.

    Without NAME, shows every mount that runs.
    """
    client = Client.of(root)
    if name is not None:
        names = [name]
    else:
        names = [item["Names"][0].removeprefix("/") for item in client.request("GET", "/containers/json")]
        if not names:
            click.echo("no mount is running")

    def status(name: str) -> None:
        found = client.request("GET", "/layerfs/status", name=name)
        click.echo(render.as_json(found) if form == "json" else "\n".join(_lines(found)))

    return each(names, status)


def _lines(figures: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield *figures* as lines "name: value", those of a mapping in it indented under its name."""
    for name, value in figures.items():
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # "CopyUps" is for programs
        label = f"{indent}{words[:1]}{words[1:].lower()}:"
        if isinstance(value, Mapping):
            yield label
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield label
            yield from (f"{indent}  {render.printable(str(item))}" for item in value)
        else:
            yield f"{label} {render.printable(str(value))}"


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Put right what can be without losing anything.")
@click.option("--contents", is_flag=True, help="Read every file and hold it against its layer's manifest.")
@click.pass_obj
def fsck_command(root: Path, repair: bool, contents: bool) -> int:
    """Check the store: its database, its directories, its layers' manifests, and what crashes left.

    Prints a line for each problem and what to do about it, and fails if one remains. Mounts may stay in use.
    """
    method = "POST" if repair else "GET"
    found = Client.of(root).request(method, "/layerfs/fsck", contents=contents)
    for problem in found:
        subject, what = render.printable(problem["Subject"]), render.printable(problem["What"])
        end = " (repaired)" if problem["Repaired"] else f": {render.printable(problem['Remedy'])}"
        click.echo(f"{subject}: {what}{end}")
    left = sum(not problem["Repaired"] for problem in found)
    click.echo(f"{root}: {left} problem{'s' * (left != 1)} left" if left else f"{root}: clean")
    return 1 if left else 0
