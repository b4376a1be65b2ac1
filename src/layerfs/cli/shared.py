"""What commands share: common options, and doing the same with each of several things."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from layerfs.cli import render
from layerfs.errors import LayerfsError

NO_TRUNC = click.option("--no-trunc", is_flag=True, help="Show ids and commands in full length.")
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Print a table (the default), or a JSON object a line.",
)

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
