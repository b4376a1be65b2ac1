"""Images of elsewhere: OCI layouts and archives, and those of `docker save`, come in and go out.

The two functions are imported when they are used: the processes that work on layers need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfs.oci.loading import Loaded, load
    from layerfs.oci.saving import Known, save

__all__ = ["Known", "Loaded", "load", "save"]

_HOMES = {"Known": "saving", "Loaded": "loading", "load": "loading", "save": "saving"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"layerfs.oci.{_HOMES[name]}"), name)
