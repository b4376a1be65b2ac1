"""`layerfs container ...` and `layerfs image ...`: the same commands, under the names docker also has."""

from __future__ import annotations

import click

from layerfs.cli import COMMANDS, cli

CONTAINER = {
    name: name
    for name in (
        "commit",
        "cp",
        "diff",
        "exec",
        "export",
        "inspect",
        "kill",
        "logs",
        "rm",
        "run",
        "start",
        "stop",
        "wait",
    )
} | {"ls": "ps"}
IMAGE = {name: name for name in ("history", "import", "inspect", "load", "pull", "push", "save", "tag")} | {
    "ls": "images",
    "rm": "rmi",
}


class _Group(click.Group):
    """Some of the commands, by other names."""

    names: dict[str, str]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name, command in self.names.items() if command in COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return cli.get_command(ctx, self.names[cmd_name]) if cmd_name in self.names else None


class _Container(_Group):
    names = CONTAINER


class _Image(_Group):
    names = IMAGE


@click.group("container", cls=_Container)
def container_command() -> None:
    """Work with containers: the same commands as without this word."""


@click.group("image", cls=_Image)
def image_command() -> None:
    """Work with images: the same commands as without this word."""
