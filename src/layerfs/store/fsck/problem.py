"""What `layerfs fsck` reports."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong in a store."""

    subject: str
    """What it concerns, as people name it: "layer 1a2b3c4d5e6f", "image ...", "mount NAME", a path."""
    what: str
    remedy: str
    """What to do about it; empty where it has been repaired."""
    repaired: bool = False
