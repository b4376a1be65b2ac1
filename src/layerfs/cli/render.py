"""How things are shown: tables, sizes and ages, as Docker's command line prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from layerfs.api.times import duration

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
COLUMN_GAP = 3
MINIMAL_COLUMN = 10


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* under *header* in columns three spaces apart, none but the last narrower than ten."""
    return aligned([header, *rows])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return *lines* in columns three spaces apart, none narrower than ten but a line's last one."""
    widths: dict[int, int] = {}
    for line in lines:
        for number, cell in enumerate(line[:-1]):
            widths[number] = max(widths.get(number, MINIMAL_COLUMN), COLUMN_GAP + len(cell))
    return "\n".join(
        "".join(f"{cell:{widths[number]}}" for number, cell in enumerate(line[:-1]))
        + (line[-1] if line else "")
        for line in lines
    )


def size(count: int) -> str:
    """Return *count* bytes with three digits in decimal units: 126MB, 69.2MB, 0B."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(UNITS) - 1:  # 999.5 would be rounded to a fourth digit
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{UNITS[unit]}"


def age(timestamp: int) -> str:
    """Return how long ago the Unix time *timestamp* was: "10 seconds ago"."""
    return f"{duration((datetime.now(UTC) - datetime.fromtimestamp(timestamp, UTC)).total_seconds())} ago"


def moment(timestamp: int) -> str:
    """Return the Unix time *timestamp* in local time, RFC 3339."""
    return datetime.fromtimestamp(timestamp, UTC).astimezone().isoformat()


def short_id(identifier: str) -> str:
    """Return the first twelve digits of an id, without `sha256:`."""
    return identifier.removeprefix("sha256:")[:12]


def ellipsis(text: str, length: int) -> str:
    """Return *text* cut to *length* characters, the last of them an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def printable(text: str) -> str:
    """Return *text* with what would disturb a line or a terminal replaced by spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return *value* as JSON. What would disturb a terminal is escaped: an image says what its labels are."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(map(_escaped, text)) if not text.isprintable() else text


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\n":  # a newline is JSON's own: those in texts are escaped
        return character
    return json.dumps(character)[1:-1]  # two escapes where it takes a surrogate pair


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return each of *rows* as a JSON object on a line of its own."""
    return "\n".join(map(as_json, rows))


def note(text: str) -> None:
    """Tell the user *text*, one line, beside the output."""
    click.echo(f"layerfs: {printable(' '.join(text.split()))}", err=True)


def show(text: str) -> None:
    """Print *text* unless it is empty."""
    if text:
        click.echo(text)
