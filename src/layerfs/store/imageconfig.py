"""What an image's configuration may be: the `config` object of the OCI image specification.

It is checked where it comes in: an image in a store can be run, and listed, without looking twice. Docker's
leniency holds: a member may be missing or null, and a member that is not known is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from layerfs.errors import BadRequest
from layerfs.host.signals import signal_number

_DEPTH = 64
"""How deep a document may be nested: a real one has some six levels, and Python's own limit is 1000."""


def check(config: object, whose: str = "the image's configuration") -> None:
    """Raise `BadRequest` unless *config* is one that can be run.

    The line says *whose* it is, which member is wrong, and what that must be.
    """
    if not isinstance(config, dict):
        raise BadRequest(f"{whose} must be an object, not {_kind(config)}")
    check_shape(config, whose)
    for name, (good, wanted) in _MEMBERS.items():
        value = config.get(name)
        if value is not None and not good(value):
            raise BadRequest(f"{name} in {whose} must be {wanted}, not {shown(value)}")
    if signal := config.get("StopSignal"):
        try:
            signal_number(signal)
        except BadRequest:
            wanted = "the name or number of a signal, such as SIGTERM"
            raise BadRequest(f"StopSignal in {whose} must be {wanted}, not {shown(signal)}") from None


def check_shape(value: object, whose: str) -> None:
    """Raise `BadRequest` for a document that cannot be written as JSON again: too deep, or not finite."""
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        level = [item for node in level for item in (node.values() if isinstance(node, dict) else node)]
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise BadRequest(f"{whose} has a number that is not finite")
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return
    raise BadRequest(f"{whose} is nested more than {_DEPTH} deep")


def words(config: Mapping[str, Any], name: str) -> list[str]:
    """Return the list of strings *name*; an empty one where it is missing, or is none.

    For lists of what a store holds: one that an earlier layerfs wrote may have anything in it.
    """
    value = config.get(name)
    return value if isinstance(value, list) and _is_words(value) else []


def labels(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels, null ones as empty strings as Go reads them; like `words`, none if they are bad."""
    value = config.get("Labels")
    if not isinstance(value, dict) or not _is_labels(value):
        return {}
    return {name: text or "" for name, text in value.items()}


def is_text(value: object) -> bool:
    """Return whether *value* can be given to a program, or be a name: no null byte, nor half a character."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_environment(value: object) -> bool:
    return isinstance(value, list) and all(is_text(item) and item and item[0] != "=" for item in value)


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_text(name) and (text is None or is_text(text)) for name, text in value.items()
    )


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_healthcheck(value: object) -> bool:
    if not isinstance(value, dict) or not _is_words(value.get("Test") or []):
        return False
    numbers = ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")
    return all(_is_number(value.get(name) or 0) for name in numbers)


_LIST = 'a list of strings, such as ["sh", "-c", "make"]'
_MEMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "User": (is_text, 'a string, such as "1000:1000"'),
    "ExposedPorts": (_is_set, 'an object with ports as names, such as {"80/tcp": {}}'),
    "Env": (_is_environment, 'a list of strings NAME=VALUE or NAME, such as ["LANG=C"]'),
    "Entrypoint": (_is_words, _LIST),
    "Cmd": (_is_words, _LIST),
    "Volumes": (_is_set, 'an object with paths as names, such as {"/data": {}}'),
    "WorkingDir": (is_text, 'a string, such as "/srv"'),
    "Labels": (_is_labels, 'an object of strings, such as {"name": "value"}'),
    "StopSignal": (is_text, 'a string, such as "SIGTERM"'),
    "StopTimeout": (_is_number, "a number of seconds"),
    "Shell": (_is_words, _LIST),
    "OnBuild": (_is_words, "a list of strings"),
    "Healthcheck": (_is_healthcheck, 'an object, such as {"Test": ["CMD", "true"]}'),
}
"""For each member that means something: what is good, and what it must be in words."""


def _kind(value: object) -> str:
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "null")


def shown(value: object) -> str:
    """Return *value* for a message: its kind, and as much of it as a line has room for."""
    text = repr(value)
    return f"{_kind(value)}: {text if len(text) <= 60 else text[:59] + '…'}"
