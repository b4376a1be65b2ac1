"""`layerfs builder ...`, `container ...`, `image ...` and so on: the commands, by docker's longer names."""

from __future__ import annotations

import importlib

import click

from layerfs.cli import COMMANDS, Suggesting, cli

_CONTAINER = (
    "attach", "commit", "cp", "create", "diff", "exec", "export", "kill", "logs", "pause", "port", "ps",
    "rename", "restart", "rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait",
)  # fmt: skip
_IMAGE = ("build", "history", "import", "load", "pull", "push", "save", "tag")
CONTAINER = {
    **{name: name for name in _CONTAINER},
    "inspect": "system.inspect_container_command",
    "list": "ps",
    "ls": "ps",
    "prune": "prune.prune_containers_command",
}
IMAGE = {
    **{name: name for name in _IMAGE},
    "inspect": "system.inspect_image_command",
    "list": "images",
    "ls": "images",
    "prune": "prune.prune_images_command",
    "remove": "rmi",
    "rm": "rmi",
}
BUILDER = {"build": "build", "prune": "prune.prune_builder_command"}
SYSTEM = {"df": "df", "events": "events", "info": "info", "prune": "prune.prune_system_command"}


class _Group(Suggesting):
    """Some of the commands, by other names: a name of `COMMANDS`, or a module and what it has."""

    names: dict[str, str]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for name, command in self.names.items() if "." in command or command in COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self.names.get(cmd_name)
        if target is None:
            return None
        module, dot, name = target.partition(".")
        if not dot:
            return cli.get_command(ctx, target)
        command: click.Command = getattr(importlib.import_module(f"layerfs.cli.{module}"), name)
        return self.prepared(command)


class _Container(_Group):
    names = CONTAINER


class _Image(_Group):
    names = IMAGE


class _Builder(_Group):
    names = BUILDER


class _System(_Group):
    names = SYSTEM


@click.group("container", cls=_Container)
def container_command() -> None:
    """Work with containers: the same commands as without this word."""


@click.group("builder", cls=_Builder)
def builder_command() -> None:
    """Work with builds, and with what they have kept."""


@click.group("image", cls=_Image)
def image_command() -> None:
    """Work with images: the same commands as without this word."""


@click.group("system", cls=_System)
def system_command() -> None:
    """Look at the store and the machine, and make room."""
