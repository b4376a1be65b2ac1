"""Answers that tell how far some work is: it is done in a thread, and ends with the client."""

from __future__ import annotations

import json
import threading

import pytest

from layerfs.api.progress import Gone, Lines
from layerfs.errors import Conflict, NotFound


def lines_of(pieces: bytes) -> list[dict[str, object]]:
    assert pieces == b"" or pieces.endswith(b"\r\n")
    return [json.loads(line) for line in pieces.splitlines()]


def test_what_is_said_comes_a_line_each() -> None:
    def work(lines: Lines) -> None:
        lines.say("Pulling from x", "latest")
        lines.say("Downloading", "abc", current=3, total=10)
        lines.say("Pull complete", "abc", current=0)
        lines.put({"aux": {"Tag": "latest"}})

    assert lines_of(b"".join(Lines.of(work))) == [
        {"status": "Pulling from x", "id": "latest"},
        {"status": "Downloading", "progressDetail": {"current": 3, "total": 10}, "id": "abc"},
        {"status": "Pull complete", "progressDetail": {}, "id": "abc"},
        {"aux": {"Tag": "latest"}},
    ]


def test_what_fails_before_it_has_said_anything_is_raised() -> None:
    def work(lines: Lines) -> None:
        raise NotFound("no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        Lines.of(work)


def test_what_fails_later_is_the_last_line() -> None:
    def work(lines: Lines) -> None:
        lines.say("begun")
        raise Conflict("it is taken")

    assert lines_of(b"".join(Lines.of(work)))[1:] == [
        {"errorDetail": {"message": "it is taken"}, "error": "it is taken"}
    ]


def test_what_says_nothing_is_no_failure() -> None:
    assert b"".join(Lines.of(lambda lines: None)) == b""


def test_a_client_that_goes_ends_the_work() -> None:
    ended = threading.Event()

    def work(lines: Lines) -> None:
        try:
            lines.say("begun")
            while True:
                lines.check()
                ended.wait(0.01)
        except Gone:
            ended.set()
            raise

    pieces = Lines.of(work)
    assert next(pieces).startswith(b"{")
    assert next(pieces) == b""  # so that a server looks whether its client is there
    pieces.close()
    assert ended.is_set()


def test_a_client_that_goes_before_the_first_line_ends_the_work_too() -> None:
    ended = threading.Event()

    def work(lines: Lines) -> None:
        try:
            while True:  # more than the client takes
                lines.say("on and on")
        finally:
            ended.set()

    Lines.of(work).close()
    assert ended.is_set()
