"""What a stage has come to: its files, its configuration and its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from layerfs.store.model import HistoryEntry

if TYPE_CHECKING:
    from layerfs.dockerfile.configure import Configuration
    from layerfs.oci.platforms import Platform


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the history that a stage makes."""

    created_by: str
    created: datetime | None = None
    """None for an instruction that only changes the configuration: it has the time of a layer near it."""
    layer: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage has come to."""

    base: str | None
    """The step of the image that it began with."""
    step: str | None
    """The step with its files; what is below it, above *base*, are the layers alone."""
    entries: tuple[Entry, ...]
    """The history above *base*."""
    configuration: Configuration
    platform: Platform


def history(
    entries: Sequence[Entry], *, before: datetime | None, now: datetime, author: str, comment: str
) -> list[HistoryEntry]:
    """Return *entries* for an image; *before* is the time of what is below them, None for nothing.

    As BuildKit does, one that has no time gets that of the layer before it, or of the first one: so the same
    layers make the same history whenever that is asked for.
    """
    first = next((entry.created for entry in entries if entry.created is not None), before) or now
    result = []
    last = first
    for entry in entries:
        last = entry.created or last
        result.append(HistoryEntry(last, entry.created_by, author, comment, entry.layer is None, entry.layer))
    return result


def with_time(entry: Entry, created: datetime) -> Entry:
    """Return *entry* with another time."""
    return replace(entry, created=created)
