"""Image layouts made by hand, right or wrong in any detail."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from layerfs import oci
from layerfs.errors import LayerfsError
from layerfs.store import Store

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "+gzip": gzip.compress,
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def archive(*members: tuple[Json, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of members with these attributes and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for attributes, content in members:
            info = tarfile.TarInfo()
            for name, value in attributes.items():
                setattr(info, name, value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def files(**contents: str) -> bytes:
    """Return a tar archive of files."""
    return archive(*(({"name": name, "mtime": 5}, text.encode()) for name, text in contents.items()))


def digest(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of *data*."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def config_of(layers: Sequence[bytes], **fields: Any) -> Json:
    """Return a configuration for *layers*."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": {"Cmd": ["sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [
            {"created": f"2024-05-06T07:08:{at:02}Z", "created_by": f"step {at}"} for at in range(len(layers))
        ],
        **fields,
    }


class Layout:
    """An OCI layout that is being made in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes | Json, media_type: str, **more: Any) -> Json:
        """Add a blob; return its descriptor."""
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        name = digest(content)
        (self.path / "blobs" / name.replace(":", "/")).write_bytes(content)
        return {"mediaType": media_type, "digest": name, "size": len(content), **more}

    def image(
        self, layers: Sequence[bytes], *, pack: str = "+gzip", config: Json | None = None, **more: Any
    ) -> Json:
        """Add an image; return the descriptor of its manifest."""
        about = self.blob(config or config_of(layers), CONFIG)
        stored = [self.blob(PACKERS[pack](layer), LAYER + pack) for layer in layers]
        return self.manifest(about, stored, **more)

    def manifest(self, config: Json, layers: Sequence[Json], **more: Any) -> Json:
        """Add a manifest; return its descriptor."""
        fields = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers)}
        return self.blob(fields, MANIFEST, **more)

    def index(self, *entries: Json) -> Path:
        """Write index.json; return the layout's directory."""
        self.top({"schemaVersion": 2, "manifests": list(entries)})
        return self.path

    def top(self, index: object) -> None:
        """Write anything at all as index.json."""
        (self.path / "index.json").write_text(json.dumps(index))


def named(name: str) -> Json:
    """Return annotations that give an image a name."""
    return {REF_NAME: name}


def as_archive(layout: Path, file: Path) -> Path:
    """Make a tar archive of a layout."""
    with tarfile.open(file, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, path.relative_to(layout), recursive=False)
    return file


def docker_archive(
    file: Path, layers: Sequence[bytes], tags: Sequence[str] | None, config: Json | None = None
) -> Path:
    """Make an archive as `docker save` did before version 25."""
    data = json.dumps(config or config_of(layers)).encode()
    name = f"{hashlib.sha256(data).hexdigest()}.json"
    with tarfile.open(file, "w") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        known: dict[bytes, str] = {}
        names = [f"{at:064x}/layer.tar" for at in range(len(layers))]
        for path, layer in zip(names, layers, strict=True):
            if layer in known:  # as docker did with layers that are twice in an image
                link = tarfile.TarInfo(path)
                link.type, link.linkname = tarfile.SYMTYPE, f"../{known[layer]}"
                tar.addfile(link)
            else:
                add(path, layer)
                known[layer] = path
        add(name, data)
        add("manifest.json", json.dumps([{"Config": name, "RepoTags": tags, "Layers": names}]).encode())
    return file


def assert_refused(store: Store, source: Path, says: str, **options: Any) -> None:
    """Load what cannot be loaded: one clear line, and the store is as it was."""
    images = store.images()
    rows = store.database.execute("SELECT * FROM layers").fetchall()
    directories = sorted((store.root / "layers").iterdir())
    with pytest.raises(LayerfsError, match=says) as caught:
        oci.load(store, source, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert store.images() == images
    assert store.database.execute("SELECT * FROM layers").fetchall() == rows
    assert sorted((store.root / "layers").iterdir()) == directories
