"""The `--mount` of a RUN: its text to a `RunMount`, and its values once variables are put in."""

from __future__ import annotations

import csv
import re

from layerfs.dockerfile import expansion
from layerfs.dockerfile.expansion import Lookup
from layerfs.dockerfile.instructions import RunMount
from layerfs.errors import BadRequest

_SYNONYMS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_EVERY = {"source", "target", "readonly", "readwrite", "id"}
_OWNED = {"mode", "uid", "gid"}
_OPTIONS: dict[str, set[str]] = {
    "bind": _EVERY | {"from"},
    "cache": _EVERY | _OWNED | {"from", "sharing"},
    "tmpfs": _EVERY | {"size"},
    "secret": _EVERY | _OWNED | {"required", "env"},
    "ssh": _EVERY | _OWNED | {"required"},
}
"""What each type of mount takes."""
_ALONE = {"readonly", "readwrite", "required"}
"""Options that mean `true` without a value."""
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_VALUES = {
    "mode": (re.compile(r"[0-7]{1,6}"), "an octal number, as in 0755"),
    "uid": (re.compile(r"\d{1,9}"), "a number"),
    "gid": (re.compile(r"\d{1,9}"), "a number"),
    "size": (re.compile(r"\d+(\.\d+)?\s?([kmgtp]?i?b?)", re.IGNORECASE), "a size, as in 64m"),
    "sharing": (re.compile("shared|private|locked", re.IGNORECASE), "shared, private or locked"),
    "readonly": (re.compile("|".join(_TRUE + _FALSE)), "true or false"),
    "readwrite": (re.compile("|".join(_TRUE + _FALSE)), "true or false"),
    "required": (re.compile("|".join(_TRUE + _FALSE)), "true or false"),
}


def parse(text: str, escape: str) -> RunMount:
    """Return the mount that *text*, a list with commas as in CSV, describes; `bind` where no type is given.

    Raises `BadRequest` for an unknown type, an option that the type does not take, or values that cannot be.
    Where the type is a variable, `expand` finds that out.
    """
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error:
        raise BadRequest(f"expected options with commas between them, not {text[:80]!r}") from None
    options: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        key = _SYNONYMS.get(key.lower(), key.lower())
        if not equals:
            if key not in _ALONE:
                raise BadRequest(f"expected KEY=VALUE in --mount, not {field[:80]!r}")
            value = "true"
        expansion.check(value, escape)
        options[key] = value
    if "$" in options.get("from", ""):
        raise BadRequest("from= takes no variables: name the image in a stage of its own, FROM ... AS NAME")
    type_ = options.pop("type", "bind")
    mount = RunMount(type_ if "$" in type_ else type_.lower(), options)
    _check(mount, final=False)
    return mount


def expand(mount: RunMount, lookup: Lookup, escape: str = "\\") -> RunMount:
    """Return *mount* with variables put into its values, and `readonly` and `required` as `true` or `false`.

    Every result has `readonly`: by default `true` for `bind`, `secret` and `ssh`, as BuildKit has it;
    `readwrite` is turned into it. Raises `BadRequest` for a value that cannot be.
    """
    options = {key: expansion.expand(value, lookup, escape) for key, value in mount.options.items()}
    type_ = expansion.expand(mount.type, lookup, escape).lower()
    _check(RunMount(type_, options), final=True)
    if "readwrite" in options:
        writable = options.pop("readwrite") in _TRUE
        options.setdefault("readonly", "false" if writable else "true")
    options.setdefault("readonly", "false" if type_ in ("cache", "tmpfs") else "true")
    for key in ("readonly", "required"):
        if key in options:
            options[key] = "true" if options[key] in _TRUE else "false"
    if "sharing" in options:
        options["sharing"] = options["sharing"].lower()
    return RunMount(type_, options)


def _check(mount: RunMount, *, final: bool) -> None:
    """Raise `BadRequest` for values that cannot be; unless *final*, those with variables can be anything."""
    options = mount.options
    if not final and "$" in mount.type:
        return
    if mount.type not in _OPTIONS:
        raise BadRequest(f"expected a mount of type {', '.join(_OPTIONS)}, not {mount.type[:40]!r}")
    for key in options:
        if key not in _OPTIONS[mount.type]:
            known = ", ".join(sorted(_OPTIONS[mount.type]))
            raise BadRequest(
                f"a mount of type {mount.type} does not take {key[:40]!r}: expected one of {known}"
            )
    for key, (good, wanted) in _VALUES.items():
        value = options.get(key)
        if value is None or (not final and "$" in value):
            continue
        if not good.fullmatch(value):
            raise BadRequest(f"expected {wanted} for {key}= in --mount, not {value[:40]!r}")
    if mount.type in ("bind", "cache", "tmpfs") and not options.get("target"):
        raise BadRequest(f"expected target=PATH in --mount=type={mount.type}")
    if mount.type == "secret":
        if not any(options.get(key) for key in ("id", "source", "target")):
            raise BadRequest("expected id=NAME or target=PATH in --mount=type=secret")
        if options.get("id") and options.get("source"):
            raise BadRequest("expected either id= or source= in --mount=type=secret: they are the same")
