"""What commands share: common options, and doing the same with each of several things."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from layerfs.errors import LayerfsError

NO_TRUNC = click.option("--no-trunc", is_flag=True, help="Show ids and commands in full length.")
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Print a table (the default), or a JSON object a line.",
)


def each(names: Iterable[str], do: Callable[[str], None]) -> int:
    """Do *do* with each of *names*, print what fails, and return the exit status."""
    status = 0
    for name in names:
        try:
            do(name)
        except LayerfsError as error:
            click.echo(f"layerfs: {error}", err=True)
            status = error.exit_code
    return status
