"""Patterns for references: what they match, and what the worst of them cost."""

from __future__ import annotations

import pytest

from layerfs.api.filters import reference_matches


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("debian", True),
        ("debian:12", True),
        ("debian:*", True),
        ("deb*", True),
        ("*", True),
        ("d?bian", True),
        ("*bian:1?", True),
        ("**", True),
        ("", False),
        ("debia", False),
        ("debian:", False),
        ("?debian", False),
        ("*x*", False),
        ("debian.12", False),
    ],
)
def test_patterns(pattern: str, matches: bool) -> None:
    assert reference_matches(pattern, "debian:12") is matches


def test_a_star_stops_at_a_slash() -> None:
    assert reference_matches("host/*", "host/name:1")
    assert not reference_matches("*", "host/name:1")
    assert not reference_matches("host?name", "host/name:1")
    assert reference_matches("*/*:1", "host/name:1")


def test_a_pattern_of_many_stars_is_answered_at_once() -> None:
    """As a regular expression this one takes longer than the universe has."""
    assert not reference_matches("*a" * 60 + "*b", "a" * 200 + ":1")
