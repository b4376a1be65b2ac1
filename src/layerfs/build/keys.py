"""Keys of the build cache: the digest of all that decides what a step has in it.

A key begins with the step below: two builds that have the same one, and do the same to it, get the same. What
is not in the key makes no difference to the files: labels, for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfs.build.copying import Job

_FORM = "layerfs-build-1"
"""Changes whenever something does that decides what a step is."""


def key(kind: str, below: str | None, /, **what: Any) -> str:
    """Return the key of a step of a *kind* on top of the step *below*."""
    text = json.dumps([_FORM, kind, below, what], sort_keys=True, separators=(",", ":"), default=_known)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def job(wanted: Job) -> Mapping[str, Any]:
    """Return what a COPY or ADD says, for its key."""
    return asdict(wanted)


def _known(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(value)
