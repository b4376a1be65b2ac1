"""The commands that tell how things are: inspect, status, fsck."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from layerfs.cli import render
from layerfs.cli.formats import INSPECT_FORMAT, inspect_each, template
from layerfs.cli.names import ANY_NAME, NAME
from layerfs.cli.shared import each
from layerfs.client.client import Client
from layerfs.errors import NotFound

_KINDS = {"container": "containers", "image": "images", "network": "networks", "volume": "volumes"}
_SIZE = click.option("-s", "--size", "sizes", is_flag=True, help="Tell sizes of containers too.")


@click.command("inspect")
@click.option(
    "--type",
    "kind",
    type=click.Choice(list(_KINDS)),
    help="Look for nothing else: container (a mount too), image, network or volume.",
)
@_SIZE
@INSPECT_FORMAT
@click.argument("names", nargs=-1, required=True, type=ANY_NAME)
@click.pass_obj
def inspect_command(root: Path, names: tuple[str, ...], kind: str | None, sizes: bool, form: str) -> int:
    """Show all about mounts, containers and images, as a JSON array, or as a format says."""
    wanted = (kind,) if kind else ("container", "image")
    missing = f"no such {kind}" if kind else "no such mount or image"
    return _inspect(root, names, wanted, missing, sizes, form)


@click.command("inspect")
@_SIZE
@INSPECT_FORMAT
@click.argument("names", nargs=-1, required=True, type=NAME)
@click.pass_obj
def inspect_container_command(root: Path, names: tuple[str, ...], sizes: bool, form: str) -> int:
    """Show all about containers and mounts."""
    return _inspect(root, names, ("container",), "no such container", sizes, form)


@click.command("inspect")
@INSPECT_FORMAT
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def inspect_image_command(root: Path, names: tuple[str, ...], form: str) -> int:
    """Show all about images."""
    return _inspect(root, names, ("image",), "no such image", False, form)


def _inspect(
    root: Path, names: tuple[str, ...], kinds: Sequence[str], missing: str, sizes: bool, form: str
) -> int:
    """Show what is known of *names*, each of which is looked for among *kinds*; return the exit status."""
    if form not in ("", "json"):
        template(form)  # a mistake in it is told before anything else
    client = Client.of(root)

    def inspect(name: str) -> Any:
        for kind in kinds:
            suffix = "/json" if kind in ("container", "image") else ""
            try:
                return client.request("GET", f"/{_KINDS[kind]}/{name}{suffix}", size=sizes)
            except NotFound:
                continue
        raise NotFound(f"{missing}: {name}")

    return inspect_each(names, inspect, form)


@click.command("status")
@click.argument("name", required=False, type=NAME)
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
