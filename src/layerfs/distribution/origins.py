"""Which blobs of which registries hold a layer, so that a push need neither make them again nor send them.

`layers/ID/origin` says it, as JSON: for each registry the descriptor of the blob that a pull found there,
or a push left. It is a hint: what is not there any more is sent again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfs.oci import Known
from layerfs.store import Store
from layerfs.store.model import Image, Layer

_NAME = "origin"
_MEMBERS = ("mediaType", "digest", "size")
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")
_KEPT = 8
"""Registries that are remembered of a layer."""


def known(store: Store, layer: Layer, registry: str) -> Known | None:
    """Return the blob that holds *layer* in *registry*; None where none is known."""
    found = _read(_file(store, layer.id)).get(registry)
    if not isinstance(found, dict):
        return None
    kind, digest, size = (found.get(key) for key in _MEMBERS)
    if not (isinstance(kind, str) and isinstance(digest, str) and isinstance(size, int)):
        return None
    return Known(kind, digest, size) if _DIGEST.fullmatch(digest) else None


def note(store: Store, image: Image, registry: str, layout: Path) -> None:
    """Note that *registry* has the blobs in *layout*, whose one manifest is that of *image*.

    Blobs that the manifest names and the layout lacks are left out: nobody has looked at what they hold.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((layout / "index.json").read_bytes())
        (entry,) = index["manifests"]
        blobs = json.loads(_blob(layout, entry["digest"]).read_bytes())["layers"]
        for layer_id, about in zip(image.layers, blobs, strict=True):
            blob = _blob(layout, about["digest"])
            if blob.exists() and blob.stat().st_size == about["size"]:
                _note(_file(store, layer_id), registry, about)


def _note(file: Path, registry: str, about: dict[str, Any]) -> None:
    before = _read(file)
    after = {name: before[name] for name in before if name != registry}
    after[registry] = {key: about[key] for key in _MEMBERS}
    if before == after:
        return
    new = file.with_name(f"{_NAME}.{secrets.token_hex(4)}")
    with suppress(OSError):  # the layer is gone, or the disk full: it was a hint
        try:
            new.write_text(json.dumps(dict(list(after.items())[-_KEPT:])))
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(store: Store, layer_id: str) -> Path:
    return store.root / "layers" / layer_id / _NAME


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
