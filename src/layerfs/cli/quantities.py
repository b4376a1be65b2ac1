"""Amounts as people write them on a command line: sizes, lengths of time, moments, shares of processors."""

from __future__ import annotations

import re
import time
from datetime import datetime
from decimal import Decimal, InvalidOperation

from layerfs.errors import UsageError

_NANOSECONDS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def size(text: str | None, what: str) -> int:
    """Return the bytes that *text* means, such as "512m", 0 for nothing; raises `UsageError` about *what*."""
    if not text:
        return 0
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgtp]?)i?b?", text.strip().lower(), re.ASCII)
    if not found:
        raise UsageError(f"invalid size {text!r} for {what}: give a number of bytes, or one with k, m or g")
    return int(Decimal(found[1]) * (1 << 10 * " kmgtp".index(found[2] or " ")))


def cpus(text: str) -> int:
    """Return a number of processors in billionths; raises `UsageError`."""
    try:
        value = Decimal(text) * 10**9
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or abs(value) > 10**18:
        raise UsageError(f"invalid --cpus {text!r}: give a number such as 1.5")
    if value != int(value):
        raise UsageError(f"invalid --cpus {text!r}: it is too precise, nine digits are the most")
    return int(value)


def duration(text: str, what: str) -> int:
    """Return a length of time in nanoseconds: "1m30s"; raises `UsageError` about *what*."""
    if text == "0":
        return 0
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text)
    parts = _DURATION.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise UsageError(f"invalid duration {text[:80]!r} for {what}: give one such as 1m30s")
    return sign * int(sum(Decimal(number) * _NANOSECONDS[unit] for number, unit in parts))


def moment(text: str | None, what: str) -> str | None:
    """Return a moment as the API takes it, in Unix time; raises `UsageError` about *what*.

    *text* is a Unix time, an RFC 3339 time or a part of one, which is local without a zone, or how long ago.
    """
    if not text or re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text, re.ASCII):
        return text
    try:
        nanoseconds = time.time_ns() - duration(text, what)
    except UsageError:
        try:
            found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone()
        except (ValueError, OverflowError):
            raise UsageError(
                f"invalid time {text[:80]!r} for {what}: give one such as 2026-01-31T12:00:00, or 10m for ago"
            ) from None
        nanoseconds = int(found.timestamp() * 10**6) * 1000
    return f"{max(nanoseconds, 1) // 10**9}.{max(nanoseconds, 1) % 10**9:09}"
