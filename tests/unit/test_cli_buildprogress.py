"""How a build is shown, from the events that the API tells of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from layerfs.cli.buildprogress import shown

_EVENTS: list[Mapping[str, Any]] = [
    {"step": 1, "begin": "FROM x", "stage": "", "number": 1, "total": 3},
    {"step": 1, "done": "id", "cached": False, "seconds": 0.04},
    {},
    {"step": 2, "begin": "ENV A=b", "stage": "", "number": 2, "total": 3},
    {"step": 2, "done": "id", "cached": False, "seconds": 0.0},
    {"step": 3, "begin": "RUN a\x1b[1m", "stage": "", "number": 3, "total": 3},
    {"step": 3, "output": "half", "seconds": 0.1},
    {"step": 3, "output": " line\n1%\r50%\r100%\nrest", "seconds": 0.2},
]
_DONE: list[Mapping[str, Any]] = [
    {"step": 3, "done": "id", "cached": False, "seconds": 1.26},
    {"image": "abc", "wanted": ["x:1"]},
]
_FAILED: list[Mapping[str, Any]] = [
    {"step": 3, "failed": True, "seconds": 1.26},
    {"failed": {"code": 3, "tail": "", "image": "", "where": "Dockerfile:3"}},
    {"errorDetail": {"message": "why"}, "error": "why"},
]


def test_plain_progress_is_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    result = shown(iter([*_EVENTS, {"warning": "odd\nthing"}, *_DONE]), "plain")
    assert (result.image, result.error) == ("abc", "")
    assert capsys.readouterr().err == (
        "#1 [1/3] FROM x\n#1 DONE 0.0s\n\n#3 [3/3] RUN a [1m\n#3 0.200 half line\n#3 0.200 100%\n"
        "layerfs: warning: odd thing\n#3 1.260 rest\n#3 DONE 1.3s\n\nimage sha256:abc\nnamed x:1\n"
    )


def test_a_failure_shows_the_end_of_what_the_command_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    result = shown(iter([*_EVENTS, *_FAILED]), "quiet")
    assert (result.image, result.error) == (None, "Dockerfile:3: why")
    assert capsys.readouterr().err == "------\n > [3/3] RUN a [1m:\nhalf line\n100%\nrest\n------\n"


def test_a_terminal_shows_what_goes_on_below_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    result = shown(iter([*_EVENTS, *_DONE]), "tty")
    assert result.image == "abc"
    said = capsys.readouterr().err
    assert said.endswith(" => image sha256:abc\n => named x:1\n")
    done = [line for line in said.split("\n") if line.endswith("1.3s")]
    assert len(done) == 1
    assert "[3/3] RUN a" in done[0]
