"""Waiting for descriptors, whatever their numbers: select(2) takes none above 1023."""

from __future__ import annotations

import select
from collections.abc import Sequence


def readable(descriptors: Sequence[int], seconds: float | None = None) -> list[int]:
    """Return those of *descriptors* that can be read or are at their end, once there are some: poll(2).

    An empty list when none is after *seconds*; None waits for ever.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [found for found, _ in poll.poll(None if seconds is None else seconds * 1000)]
