"""Times as Docker's API and its command line write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from layerfs.errors import BadRequest

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which Docker shows for a time that never was."""
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)"


def timestamp(moment: datetime | None) -> str:
    """Return *moment* in RFC 3339 with nanoseconds, or Go's zero time for None."""
    if moment is None:
        return ZERO_TIME
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def parse_time(text: str, name: str) -> int | None:
    """Return a Unix time such as "1700000000" or "1700000000.000000001" in nanoseconds.

    Returns None for an empty text and for "0"; raises `BadRequest`, naming the parameter *name*, for others.
    """
    if text in ("", "0"):
        return None
    match = re.fullmatch(r"(\d{1,18})(?:\.(\d{1,9}))?", text, re.ASCII)
    if match is None:
        raise BadRequest(f"invalid value for {name!r}: {text[:100]!r} is not a Unix time")
    seconds, fraction = match.groups()
    return int(seconds) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def parse_until(text: str) -> datetime:
    """Return the moment that the filter "until" means: a Unix time, an ISO 8601 time, or how long ago.

    Durations are Go's: "24h", "1h30m", "0.5s". A time without a zone is local. Raises `BadRequest`.
    """
    try:
        if re.fullmatch(rf"(?:{_DURATION})+", text, re.ASCII):
            parts = re.findall(_DURATION, text, re.ASCII)
            return datetime.now(UTC) - timedelta(seconds=sum(float(n) * _SECONDS[unit] for n, unit in parts))
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            return datetime.fromtimestamp(float(text), UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise BadRequest(
            f"invalid filter 'until': {text[:100]!r} is neither a time nor a duration such as 24h or 1h30m"
        ) from None


def duration(seconds: float) -> str:
    """Return a length of time as Docker words it: "Less than a second", "About an hour", "5 weeks"."""
    count = int(seconds)
    if count < 1:
        return "Less than a second"
    if count == 1:
        return "1 second"
    if count < 60:
        return f"{count} seconds"
    minutes = count // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
