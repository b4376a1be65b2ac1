"""The client of the API.

For programs: `Layerfs`, `Sandbox` and `Checkpoint`, and the same for trio in `layerfs.client.trio`. They are
imported when they are asked for: most commands do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfs.client.sandbox import Checkpoint, Layerfs, Sandbox

__all__ = ["Checkpoint", "Layerfs", "Sandbox"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from layerfs.client import sandbox

        return getattr(sandbox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
