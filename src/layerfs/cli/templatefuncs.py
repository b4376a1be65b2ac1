"""The functions of templates (`--format`), Go's own and those that docker adds, and how values are shown."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import quote_plus

LONGEST = 1 << 23
"""Characters that a template may make, and that one value may have."""
_WIDEST = 10_000
"""Characters to which `pad` and `printf` fill up."""


class Invalid(Exception):
    """A template cannot be parsed or executed; `str(error)` says why."""


def invalid(why: str) -> Invalid:
    """Return the error that says *why*, as one line that can be shown."""
    return Invalid("".join(c if c.isprintable() else " " for c in why))


class Missing:
    """The value of a member that is not there: false, and shown only where such names are a user's own."""

    def __init__(self, name: str = "") -> None:
        """*name* is the member that somebody who shows the value has mistaken, "" for none."""
        self.name = name


MISSING = Missing()


def is_true(value: Any) -> bool:
    """Return whether *value* counts as true: what is not empty, zero or nothing."""
    return not isinstance(value, Missing) and bool(value)


def text_of(value: Any) -> str:
    """Return *value* as a template shows it: Go's %v."""
    if callable(value):
        value = value()
    if isinstance(value, Missing) and value.name:
        raise invalid(f"there is no field {value.name}")
    return _text_of(value, 0)


def _text_of(value: Any, depth: int) -> str:
    if depth > 100:
        raise invalid("a value is nested too deep")
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, Missing):
        return "<no value>" if depth == 0 else "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_text_of(value[key], depth + 1)}' for key in sorted(value))}]"
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(_text_of(item, depth + 1) for item in value)}]"
    return str(value)


def _plain(value: Any) -> Any:
    """Return *value* for JSON: methods are left out, and what is missing is null."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if not callable(item)}
    return None if isinstance(value, Missing) else value


def _json(value: Any) -> str:
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    return "".join(map(_escaped, text)) if not text.isprintable() else text


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _strings(value: Any) -> list[str]:
    if value is None or isinstance(value, Missing):
        return []
    if not isinstance(value, (list, tuple)):
        raise invalid(f"{text_of(value)[:80]!r} is no list")
    return [text_of(item) for item in value]


def _join(first: Any, second: Any = "") -> str:
    if isinstance(first, str) and not isinstance(second, str):
        first, second = second, first  # `list | join ","` has the separator first
    return text_of(second).join(_strings(first))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(text_of(key), Missing())
        elif isinstance(value, (list, tuple, str)):
            if isinstance(key, bool) or not isinstance(key, int):
                raise invalid(f"cannot index with {text_of(key)[:80]!r}: give a number")
            if not 0 <= key < len(value):
                raise invalid(f"index out of range: {key}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        elif value is None or isinstance(value, Missing):
            raise invalid("index of nothing")
        else:
            raise invalid(f"cannot index {text_of(value)[:80]!r}")
    return value


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    if not isinstance(value, (list, tuple, str)):
        raise invalid(f"cannot slice {text_of(value)[:80]!r}")
    end = len(value) if end is None else end
    if not 0 <= start <= end <= len(value):
        raise invalid(f"slice out of range: {start}:{end}")
    return value[start:end]


def _length(value: Any) -> int:
    if isinstance(value, (Mapping, list, tuple)):
        return len(value)
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if value is None or isinstance(value, Missing):
        return 0
    raise invalid(f"len of {text_of(value)[:80]!r}")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise invalid("missing argument for comparison")
    return any(_comparable(first) == _comparable(other) and _kind(first) == _kind(other) for other in others)


def _comparable(value: Any) -> Any:
    return None if isinstance(value, Missing) else value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "none" if value is None or isinstance(value, Missing) else type(value).__name__


def _less(first: Any, second: Any) -> bool:
    if _kind(first) != _kind(second) or _kind(first) not in ("number", "str"):
        raise invalid("incompatible types for comparison")
    return bool(first < second)


def _pad(text: Any, before: int = 0, after: int = 0) -> str:
    if not (0 <= before <= _WIDEST and 0 <= after <= _WIDEST):
        raise invalid(f"pad takes up to {_WIDEST} characters")
    return " " * before + text_of(text) + " " * after if text != "" else ""


def _truncate(text: Any, length: int) -> str:
    return text_of(text)[: max(0, length)]


def _split(text: Any, separator: Any) -> list[str]:
    return text_of(text).split(text_of(separator)) if separator != "" else list(text_of(text))


def _printed(*values: Any) -> str:
    text = ""
    for n, value in enumerate(values):  # blanks stand between two values that are no texts
        blank = n and not isinstance(value, str) and not isinstance(values[n - 1], str)
        text += (" " if blank else "") + text_of(value)
    return text


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<verb>.)", re.DOTALL)


def _formatted(form: Any, *values: Any) -> str:
    rest = list(values)

    def one(found: re.Match[str]) -> str:
        width, precision, verb = int(found["width"] or 0), found["precision"], found["verb"]
        if width > _WIDEST or int(precision or 0) > _WIDEST:
            raise invalid(f"printf fills up to {_WIDEST} characters")
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        return _fill(_by_verb(verb, rest.pop(0), precision), width, found["flags"], verb)

    text = _VERB.sub(one, text_of(form))
    return text + (f"%!(EXTRA {', '.join(map(text_of, rest))})" if rest else "")


def _by_verb(verb: str, value: Any, precision: str | None) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if verb in "sv":
        text = text_of(value)
        return text[: int(precision or 0)] if precision is not None and verb == "s" else text
    if verb == "q":
        return json.dumps(text_of(value), ensure_ascii=False)
    if verb == "t" and isinstance(value, bool):
        return text_of(value)
    if verb in "xX" and isinstance(value, str):
        return value.encode(errors="replace").hex()
    if verb in "dxXoc" and number and isinstance(value, int):
        return chr(value) if verb == "c" else format(value, verb)
    if verb in "feg" and number:
        return format(float(value), f".{precision or 6}{verb}")
    return f"%!{verb}({text_of(value)})"


def _fill(text: str, width: int, flags: str, verb: str) -> str:
    if "-" in flags:
        return text.ljust(width)
    return text.zfill(width) if "0" in flags and verb in "dxXof" else text.rjust(width)


def _refuse(*_: Any) -> NoReturn:
    raise invalid("this function is not supported")


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "and": _refuse,  # these two look at their arguments one by one: see `gotemplate`
    "or": _refuse,
    "not": lambda value: not is_true(value),
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _less,
    "le": lambda first, second: not _less(second, first),
    "gt": lambda first, second: _less(second, first),
    "ge": lambda first, second: not _less(first, second),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _printed,
    "println": lambda *values: " ".join(map(text_of, values)) + "\n",
    "printf": _formatted,
    "html": lambda *values: html.escape(_printed(*values)),
    "urlquery": lambda *values: quote_plus(_printed(*values)),
    "json": _json,
    "join": _join,
    "split": _split,
    "lower": lambda text: text_of(text).lower(),
    "upper": lambda text: text_of(text).upper(),
    "title": lambda text: re.sub(r"(^|\s)(\w)", lambda found: found[1] + found[2].upper(), text_of(text)),
    "pad": _pad,
    "truncate": _truncate,
}
HEADERS: Mapping[str, Callable[..., Any]] = {
    "json": lambda text: text,
    "join": lambda text, *_: text,
    "split": lambda text, *_: text,
    "lower": lambda text: text,
    "upper": lambda text: text,
    "title": lambda text: text,
    "truncate": lambda text, *_: text,
}
"""What some functions do in the first line of a table, whose values are the columns' names."""
