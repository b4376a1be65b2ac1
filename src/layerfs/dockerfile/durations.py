"""Durations as Go writes and reads them: `1m30s`, `500ms`, `1.5h`; in nanoseconds."""

from __future__ import annotations

import re
from decimal import Decimal

from layerfs.errors import BadRequest

_UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_LONGEST = 1 << 63


def parse(text: str) -> int:
    """Return the nanoseconds of *text*; raises `BadRequest` unless Go would read it, too."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total = Decimal(0)
    at = 0
    while found := _PART.match(rest, at):
        total += Decimal(found[1]) * _UNITS[found[2]]
        at = found.end()
    if not rest or at != len(rest) or total >= _LONGEST:
        raise BadRequest(f"expected a duration, as in 30s or 1m30s, not {text[:40]!r}")
    return sign * int(total)


def text(nanoseconds: int) -> str:
    """Return what Go's `Duration.String` does: `1m30s`, `500ms`, `0s`."""
    if nanoseconds < 0:
        return "-" + text(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, _UNITS["m"])
    seconds = _decimal(rest, 10**9) + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: int, size: int) -> str:
    if value % size == 0:
        return str(value // size)
    digits = len(str(size)) - 1
    return f"{value // size}.{value % size:0{digits}d}".rstrip("0")
