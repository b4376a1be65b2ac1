"""The `filters` parameter of Docker's list and event requests."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from layerfs.errors import BadRequest

Filters = Mapping[str, frozenset[str]]


def parse_filters(text: str, known: Collection[str]) -> Filters:
    """Return the filters in *text*: JSON, `{"name": ["a", "b"]}` or `{"name": {"a": true}}`.

    Raises `BadRequest` for anything else and for names that are not *known*.
    """
    if not text:
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"invalid filters: {text[:100]!r} is not JSON") from None
    if not isinstance(given, dict):
        raise BadRequest("invalid filters: must be a JSON object")
    filters: dict[str, frozenset[str]] = {}
    for name, values in given.items():
        if name not in known:
            raise BadRequest(f"invalid filter {name!r}: use one of {', '.join(sorted(known))}")
        if isinstance(values, dict):
            values = [value for value, wanted in values.items() if wanted]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BadRequest(f"invalid filter {name!r}: its values must be strings")
        filters[name] = frozenset(values)
    return filters


def boolean_filter(filters: Filters, name: str) -> bool | None:
    """Return the filter *name* as a boolean, None when it is absent; raise `BadRequest` for other values."""
    if name not in filters:
        return None
    values = {value.lower() for value in filters[name]}
    if values <= {"1", "true"}:
        return True
    if values <= {"0", "false"}:
        return False
    raise BadRequest(f"invalid filter {name!r}: its value must be true or false")


def label_matches(filters: Filters, labels: Mapping[str, str]) -> bool:
    """Return whether *labels* have every `NAME` and `NAME=VALUE` of the filter "label", none of "label!"."""

    def has(wanted: str) -> bool:
        name, equals, value = wanted.partition("=")
        return name in labels and (not equals or labels[name] == value)

    return all(map(has, filters.get("label", ()))) and not any(map(has, filters.get("label!", ())))


def reference_matches(pattern: str, tag: str) -> bool:
    """Return whether *pattern* names *tag* ("debian:12" or "debian@sha256:..."), or its repository alone.

    `*` and `?` stand for any characters but a slash, as in Go's path.Match.
    """
    repository = tag.partition("@")[0] if "@" in tag else tag.rpartition(":")[0]
    return _matches(pattern, tag) or _matches(pattern, repository)


def _matches(pattern: str, text: str) -> bool:
    """Return whether all of *text* matches; in time that is bounded by the product of both lengths.

    Where a later part fails, only the last `*` need take more: the ones before it can stay as they are.
    """
    at = position = 0
    star = resume = -1
    while position < len(text):
        wanted = pattern[at : at + 1]
        if wanted == "*":
            star, resume = at, position
            at += 1
        elif wanted == text[position] or (wanted == "?" and text[position] != "/"):
            at, position = at + 1, position + 1
        elif star >= 0 and text[resume] != "/":
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")
