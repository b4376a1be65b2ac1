"""Tables, sizes and ages, as Docker prints them."""

from __future__ import annotations

import json
import time

import pytest

from layerfs.api.times import duration
from layerfs.cli import render


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1kB"),
        (1234, "1.23kB"),
        (69_200_000, "69.2MB"),
        (126_000_000, "126MB"),
        (999_499, "999kB"),
        (999_500, "1MB"),
        (999_999_999, "1GB"),
        (12_345_678_901_234, "12.3TB"),
        (5 * 10**18, "5EB"),
        (5 * 10**21, "5e+03EB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (35 * 86400, "5 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert render.age(int(time.time()) - 3 * 3600) == "3 hours ago"


def test_table() -> None:
    text = render.table(("IMAGE", "CREATED BY", "SIZE"), [("0123456789ab", "x", "1B"), ("<missing>", "", "")])
    assert text.splitlines() == [
        "IMAGE          CREATED BY   SIZE",
        "0123456789ab   x            1B",
        "<missing>                   ",
    ]
    assert render.table(("A", "B"), []) == "A         B"


def test_ellipsis() -> None:
    assert render.ellipsis("x" * 45, 45) == "x" * 45
    assert render.ellipsis("x" * 46, 45) == "x" * 44 + "…"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert render.printable("a\x1b[2Jb\nc\td é") == "a [2Jb c d é"


def test_json_does_not_disturb_the_terminal_either() -> None:
    value = {"\x1b[2J": ["\x9b31m", "\u202etxt.exe", "ä €", "\n", "\U000e0001", "\x7f"]}
    for indent in (None, 4):
        text = render.as_json(value, indent=indent)
        assert json.loads(text) == value
        assert all(character.isprintable() or character == "\n" for character in text)
        assert "ä €" in text


def test_a_note_is_one_line_that_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    render.note("image\x1b[2J\nmade\x9b by\tsomebody")
    assert capsys.readouterr().err == "layerfs: image [2J made  by somebody\n"
