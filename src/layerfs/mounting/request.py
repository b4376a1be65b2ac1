"""What somebody wants mounted, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What somebody wants mounted, and where.

    An *image*, or *lowers* (plain directories, top-most first, with *upper* and *work* if it is to be
    written to), or, with a *name* alone, the mount of that name as it was left. Without a name one is
    made up, and the mount is forgotten when it is unmounted.
    """

    mountpoint: str
    root: Path
    name: str | None = None
    image: str | None = None
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    read_only: bool = False
    foreground: bool = False
    source: str | None = None
    """What the mount table shows as the mount's source: its name if None."""
    options: dict[str, str | bool] = field(default_factory=dict)
    recover: bool = True
    """Whether to look for what killed processes have left in the store before: an engine has done that."""
