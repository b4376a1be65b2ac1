"""What commands share: common options, and doing the same with each of several things."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from layerfs.cli import Suggesting, render
from layerfs.errors import LayerfsError, UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

NO_TRUNC = click.option("--no-trunc", is_flag=True, help="Show ids and commands in full length.")

_MAY_BE_EMPTY = frozenset({"entrypoint", "options"})
"""Parameters without a default for which an empty text says something: no entrypoint, no mount options."""


class GivenText(click.ParamType):  # type: ignore[type-arg]
    """A text that is not empty: as a name, an empty one is what an unset variable of a script makes."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value*."""
        if value == "":
            self.fail("it is empty: give one, or leave it out", param, ctx)
        return str(value)


def refuse_empty(command: click.Command) -> click.Command:
    """Have *command* refuse empty names, paths and the like; an option whose default is empty may be so."""
    for parameter in command.params:
        is_text = isinstance(parameter.type, (click.types.StringParamType, click.Path))
        if is_text and parameter.default != "" and parameter.name not in _MAY_BE_EMPTY:
            parameter.type = GivenText()
    return command


class Group(Suggesting):
    """Commands below one word, like all others."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        command = super().get_command(ctx, cmd_name)
        return self.prepared(command) if command else None


def each(names: Iterable[str], do: Callable[[str], None]) -> int:
    """Do *do* with each of *names*, print what fails, and return the exit status."""
    status = 0
    for name in names:
        try:
            do(name)
        except LayerfsError as error:
            render.note(str(error))
            status = error.exit_code
    return status


def filter_option(examples: str) -> Callable[[Decorated], Decorated]:
    """Return the option --filter, with *examples* in its help."""
    return click.option(
        "--filter", "filters", metavar="NAME=VALUE", multiple=True, help=f"Take only some: {examples}."
    )


def parsed_filters(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return what options --filter say, each `NAME=VALUE` or `label!=VALUE`; raises `UsageError`."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value or not name:
            raise UsageError(f"bad filter {text!r}: give NAME=VALUE, such as label=X")
        found.setdefault(name, []).append(value)
    return found


def parsed_pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Return what options such as --label say, each `NAME=VALUE` or `NAME`.

    Raises `UsageError`, which begins with *what*: "bad label".
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise UsageError(f"{what} {text!r}: give NAME=VALUE")
        found[name] = value
    return found


def confirm(what: str) -> None:
    """Ask whether *what* is to be removed; raises `UsageError` where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: give --force to prune without being asked")
    click.echo(f"This will remove {what}.", err=True)
    click.confirm("Are you sure you want to continue?", abort=True, err=True)
