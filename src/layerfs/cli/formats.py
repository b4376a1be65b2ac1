"""`--format`: rows as a table, as JSON, or as a Go template says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from layerfs.cli import render
from layerfs.cli.shared import each

if TYPE_CHECKING:
    from layerfs.cli.gotemplate import Template

Row = Mapping[str, Any]
"""The columns' values: texts, and functions for those that need arguments or are seldom wanted."""

FORMAT = click.option(
    "--format",
    "form",
    metavar="FORMAT",
    default="table",
    help="A Go template such as '{{.ID}}', 'table {{.ID}}\\t{{.Names}}', json, or table (the default).",
)
INSPECT_FORMAT = click.option(
    "-f",
    "--format",
    "form",
    metavar="FORMAT",
    default="",
    help="A Go template such as '{{.Id}}' or '{{json .Config}}', or json.",
)
_ESCAPES = r"\{\{.*?\}\}|\\t|\\n"


def template(text: str) -> Template:
    r"""Return the template *text*, in which `\t` and `\n` mean what they do in Go; raises `UsageError`."""
    from layerfs.cli.gotemplate import Template

    meanings = {"\\t": "\t", "\\n": "\n"}
    return Template(re.sub(_ESCAPES, lambda found: meanings.get(found[0], found[0]), text, flags=re.DOTALL))


class Listing(NamedTuple):
    """How rows of one kind are listed."""

    headers: Mapping[str, str]
    """Every column with its heading."""
    default: Sequence[str]
    """The columns of a table, if nothing else is asked for."""

    def show(self, rows: Iterable[Row], form: str, columns: Sequence[str] = ()) -> None:
        """Print *rows* in the format *form*, a table with *columns* if they are given."""
        render.show(self.text(rows, form, columns))

    def text(self, rows: Iterable[Row], form: str, columns: Sequence[str] = ()) -> str:
        """Return *rows* in the format *form*; raises `UsageError` for a template that is none."""
        form = form.strip()
        if form in ("", "table"):
            names = columns or self.default
            header = [self.headers[name] for name in names]
            return render.table(header, [[str(row[name]) for name in names] for row in rows])
        if form == "json":
            return render.json_lines([_plain(row) for row in rows])
        if form.startswith("table "):
            return self._table(rows, template(form.removeprefix("table ").strip()))
        shown = template(form)
        return "\n".join(clean(shown.execute(row)) for row in rows)

    def _table(self, rows: Iterable[Row], shown: Template) -> str:
        from layerfs.cli.templatefuncs import HEADERS

        headings: dict[str, Any] = {**self.headers, "Label": lambda name: name.rpartition(".")[2].upper()}
        lines = [shown.execute(headings, HEADERS), *(shown.execute(row) for row in rows)]
        return render.aligned([clean(line).split("\t") for text in lines for line in text.split("\n")])


def clean(text: str) -> str:
    """Return *text* without what would disturb a terminal; tabs and newlines stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def _plain(row: Row) -> Row:
    return {name: value for name, value in row.items() if not callable(value)}


def inspect_each(names: Iterable[str], inspect: Callable[[str], Any], form: str) -> int:
    """Show what *inspect* returns for each of *names*, as `show_each` does; return the exit status."""
    found: list[Any] = []
    status = each(names, lambda name: found.append(inspect(name)))
    show_each(found, form)
    return status


def show_each(found: Sequence[Any], form: str) -> None:
    """Print what inspecting has *found*: a JSON array, or what the format *form* makes of each."""
    if not form:
        click.echo(render.as_json(found, indent=4))
    elif form == "json":
        click.echo(render.as_json(found))
    else:
        shown = template(form)
        for item in found:
            click.echo(clean(shown.execute(item)))
