"""A store and a small tree to fill it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.store import Store
from layerfs.store.model import Image, Mount


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with a bit of everything that needs no privilege."""
    top = tmp_path / "tree"
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (top / "bin").mkdir()
    (top / "bin/sh").write_bytes(b"\x7fELF" + b"\0" * 4096)
    (top / "bin/sh").chmod(0o4755)
    os.link(top / "bin/sh", top / "bin/ash")
    (top / "lib").symlink_to("usr/lib")
    os.mkfifo(top / "pipe", 0o620)
    (top / os.fsdecode(b"odd \xff\n=\\ name")).write_text("odd")
    with (top / "sparse").open("wb") as sparse:
        sparse.seek(8 << 20)
        sparse.write(b"end")
    os.setxattr(top / "etc/passwd", "user.note", b"\x00\xff\n=")
    top.chmod(0o751)
    os.utime(top / "etc/passwd", ns=(1, 1_600_000_000_123_456_789))
    os.utime(top / "etc", ns=(1, 1_500_000_000_987_654_321))
    os.utime(top, ns=(1, 1_400_000_000_000_000_001))
    return top


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return where the store is, or will be."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """Return an empty store."""
    with Store(root) as opened:
        yield opened


@pytest.fixture
def base(store: Store, tree: Path) -> Image:
    """Return the image debian:12, made from the tree."""
    return store.import_image(tree, "debian:12")


@pytest.fixture
def mount(store: Store, base: Image) -> Mount:
    """Return a writable mount of that image."""
    return store.create_mount("base-container", image=base)
